/* NAS EP ("embarrassingly parallel"), after its description in NASA's report RNR-94-007, section 2.2: pairs of Gaussian
 * deviates by acceptance and rejection, tallied in square annuli. The sums must agree with those that NASA publishes.
 *
 *   nas-ep S|W|A
 *
 * Each rank takes every SIZE-th block of 2^16 pairs; a block's place in the sequence of random numbers is computed. */
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define A UINT64_C(1220703125) /* 5^13 */
#define SEED UINT64_C(271828183)
#define MOD46(x) ((x) & ((UINT64_C(1) << 46) - 1))
#define BLOCK 16

static const struct {
  char name;
  int log2pairs;
  double x, y;
} classes[] = {
    {'S', 24, -3.247834652034740e+3, -6.958407078382297e+3},
    {'W', 25, -2.863319731645753e+3, -6.320053679109499e+3},
    {'A', 28, -4.295875165629892e+3, -1.580732573678431e+4},
};

/* base^exponent modulo 2^46 */
static uint64_t power(uint64_t base, uint64_t exponent) {
  uint64_t result = 1;
  for (; exponent; exponent >>= 1, base = MOD46(base * base))
    if (exponent & 1)
      result = MOD46(result * base);
  return result;
}

static double next(uint64_t *x) {
  *x = MOD46(A * *x);
  return ldexp((double)*x, -46);
}

int main(int argc, char **argv) {
  int rank, size;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  unsigned c = 0;
  while (c < sizeof classes / sizeof *classes && (argc < 2 || argv[1][0] != classes[c].name))
    c++;
  if (c == sizeof classes / sizeof *classes) {
    if (rank == 0)
      fprintf(stderr, "usage: nas-ep S|W|A\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  double begun = MPI_Wtime();
  double own[12] = {0}, all[12]; /* sums of x and y, then the tally */
  uint64_t blocks = UINT64_C(1) << (classes[c].log2pairs - BLOCK);
  for (uint64_t block = (uint64_t)rank; block < blocks; block += (uint64_t)size) {
    uint64_t x = MOD46(SEED * power(A, block << (BLOCK + 1)));
    for (int pair = 0; pair < 1 << BLOCK; pair++) {
      double u = 2 * next(&x) - 1, v = 2 * next(&x) - 1, t = u * u + v * v;
      if (t > 1)
        continue;
      double f = sqrt(-2 * log(t) / t), gx = u * f, gy = v * f;
      own[0] += gx;
      own[1] += gy;
      own[2 + (int)fmax(fabs(gx), fabs(gy))]++;
    }
  }
  MPI_Reduce(own, all, 12, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  int good = 1;
  if (rank == 0) {
    double ex = fabs((all[0] - classes[c].x) / classes[c].x), ey = fabs((all[1] - classes[c].y) / classes[c].y);
    good = ex <= 1e-8 && ey <= 1e-8;
    printf("EP class %c, %d ranks, %.2f s\nsums %.15e %.15e\nverification %s\n", classes[c].name, size,
           MPI_Wtime() - begun, all[0], all[1], good ? "SUCCESSFUL" : "FAILED");
  }
  MPI_Finalize();
  return !good;
}
