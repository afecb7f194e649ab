//! What people are told of runs: in events, conditions and statuses.

use serde::{Deserialize, Serialize};

/// Which executor a run is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    #[default]
    Slurm,
}

/// Words and reasons of one executor.
#[derive(Debug)]
pub struct Words {
    /// The executor.
    pub executor: &'static str,
    /// One run, before its id.
    pub run: &'static str,
    /// Before what a run asks for.
    pub command: &'static str,
    /// Of a submission of which nobody knows what became.
    pub lost_answer: &'static str,
    /// What bounds a run's memory.
    pub memory_limit: &'static str,
    /// Who was asked in vain about a run, before its id.
    pub unknown: &'static str,
    /// What carries a link that does not come by itself.
    pub carrier: &'static str,
    pub reasons: Reasons,
}

/// Reasons of events and statuses.
#[derive(Debug)]
pub struct Reasons {
    pub submitted: &'static str,
    pub submit_failed: &'static str,
    pub pending: &'static str,
    pub put_back: &'static str,
    pub duplicate: &'static str,
    pub failed: &'static str,
    pub cancelled: &'static str,
    pub lost: &'static str,
}

static SLURM: Words = Words {
    executor: "Slurm",
    run: "Slurm job",
    command: "sbatch",
    lost_answer: "Slurm may have made a job, which is looked for before sbatch runs again",
    memory_limit: "its --mem",
    unknown: "neither squeue nor sacct know job",
    carrier: "srun",
    reasons: Reasons {
        submitted: "SlurmSubmitted",
        submit_failed: "SlurmSubmitFailed",
        pending: "SlurmPending",
        put_back: "SlurmRequeued",
        duplicate: "SlurmDuplicate",
        failed: "SlurmJobFailed",
        cancelled: "SlurmJobCancelled",
        lost: "SlurmJobLost",
    },
};

impl Kind {
    /// Its words.
    #[must_use]
    pub fn words(self) -> &'static Words {
        match self {
            Self::Slurm => &SLURM,
        }
    }
}
