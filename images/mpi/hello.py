"""All ranks in one world, whichever MPI library LD_LIBRARY_PATH names."""

import sys

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank, op=MPI.SUM)
library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
sys.stdout.write(f"rank {world.rank} of {world.size} on {MPI.Get_processor_name()} sum {total} by {library}\n")
sys.stdout.flush()
