//! Slurm's own flags in pods' annotations: the keys, and what a cluster lets through of them.

use serde::{Deserialize, Serialize};

/// Flags of sbatch for the pod's job.
pub const FLAGS: &str = "slurm-job.hpk.io/flags";
/// The older key of the same meaning.
pub const OLD_FLAGS: &str = "slurm.hpk.io/flags";
/// Flags of srun for MPI steps.
pub const MPI_FLAGS: &str = "slurm-job.hpk.io/mpi-flags";
/// Written by hpk-kubelet: what was asked of Slurm for the pod, as flags of sbatch.
pub const REQUESTED: &str = "slurm-job.hpk.io/requested";
/// Which container is an MPI step, where it is not the first.
pub const MPI_CONTAINER: &str = "slurm-job.hpk.io/mpi-container";
/// Who the ranks of an MPI step are: `user` (the default) or `root`.
pub const MPI_USER: &str = "slurm-job.hpk.io/mpi-user";
/// How many pods of the same Job, JobSet or group of a LeaderWorkerSet are one gang (`true`: as many as the set says).
pub const GANG: &str = "slurm-job.hpk.io/gang";
/// All that ask for flags.
pub const ANNOTATIONS: [&str; 3] = [OLD_FLAGS, FLAGS, MPI_FLAGS];

/// What pods may ask of Slurm by these annotations: `hpk up --pod-flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodFlags {
    /// Every flag that cannot harm the job or the user's files.
    #[default]
    Allow,
    /// Only flags that say where and when a job runs, none that takes more of the cluster.
    List,
    /// None.
    Deny,
}
