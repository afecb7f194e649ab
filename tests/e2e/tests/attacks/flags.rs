//! Flags of sbatch in annotations: nothing of the job that HPK needs can be changed by them.
