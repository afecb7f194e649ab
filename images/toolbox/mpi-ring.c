/* A token goes once round all ranks; each rank says where it runs. The smallest
 * program that shows that MPI's ranks, over however many nodes, are one world. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
  int rank, size, len, token = 0;
  char host[MPI_MAX_PROCESSOR_NAME];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Get_processor_name(host, &len);
  if (rank > 0)
    MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  token++;
  printf("rank %d of %d on %s\n", rank, size, host);
  fflush(stdout);
  if (rank + 1 < size)
    MPI_Send(&token, 1, MPI_INT, rank + 1, 0, MPI_COMM_WORLD);
  else
    printf("the token passed %d ranks\n", token);
  MPI_Finalize();
  return 0;
}
