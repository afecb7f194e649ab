/* What a message between ranks 0 and SIZE-1 costs, for measurements.
 *
 *   ping-pong [BYTES ROUNDS]...
 *
 * Prints when the last rank had MPI_Init behind it, in seconds since 1970; then for each size half a round's microseconds:
 * the median, and what a tenth of the rounds is faster than, which says more on a busy machine. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void rounds_of(int rank, int size, int bytes, int rounds) {
  int other = size - 1 - rank, warm = rounds / 10 + 1;
  char *buffer = calloc(1, (size_t)bytes + 1);
  double *took = calloc((size_t)rounds, sizeof *took);
  if (!buffer || !took)
    MPI_Abort(MPI_COMM_WORLD, 1);
  if (rank == 0 || rank == size - 1)
    for (int i = -warm; i < rounds; i++) {
      double begun = MPI_Wtime();
      if (rank == 0) {
        MPI_Send(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD);
        MPI_Recv(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      } else {
        MPI_Recv(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(buffer, bytes, MPI_BYTE, other, 0, MPI_COMM_WORLD);
      }
      if (i >= 0)
        took[i] = (MPI_Wtime() - begun) / 2 * 1e6;
    }
  if (rank == 0) {
    qsort(took, (size_t)rounds, sizeof *took, ascending);
    printf("%.3f %.3f\n", took[rounds / 2], took[rounds / 10]);
  }
  free(buffer);
  free(took);
}

int main(int argc, char **argv) {
  int rank, size;
  MPI_Init(&argc, &argv);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  double at = (double)now.tv_sec + now.tv_nsec / 1e9, last;
  MPI_Reduce(&at, &last, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  if (rank == 0)
    printf("%.6f\n", last);
  for (int i = 1; i + 1 < argc; i += 2)
    rounds_of(rank, size, atoi(argv[i]), atoi(argv[i + 1]));
  MPI_Finalize();
  return 0;
}
