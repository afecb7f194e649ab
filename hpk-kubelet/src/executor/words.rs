//! What people are told of runs: in events, conditions and statuses.

pub use hpk_api::cluster::ExecutorKind as Kind;

/// Words and reasons of one executor.
#[derive(Debug)]
pub struct Words {
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
    pub suspended: &'static str,
    pub resumed: &'static str,
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
        suspended: "SlurmSuspended",
        resumed: "SlurmResumed",
        put_back: "SlurmRequeued",
        duplicate: "SlurmDuplicate",
        failed: "SlurmJobFailed",
        cancelled: "SlurmJobCancelled",
        lost: "SlurmJobLost",
    },
};

static LOCAL: Words = Words {
    executor: "the local executor",
    run: "local run",
    command: "asks for",
    lost_answer: "there may be a run, which is looked for before another is begun",
    memory_limit: "its cgroup",
    unknown: "nothing is left of local run",
    carrier: "hpk-netns",
    reasons: Reasons {
        submitted: "RunSubmitted",
        submit_failed: "RunRefused",
        pending: "RunPending",
        suspended: "RunSuspended",
        resumed: "RunResumed",
        put_back: "RunRestarted",
        duplicate: "RunDuplicate",
        failed: "RunFailed",
        cancelled: "RunCancelled",
        lost: "RunLost",
    },
};

/// The words of an executor.
#[must_use]
pub fn of(kind: Kind) -> &'static Words {
    match kind {
        Kind::Slurm => &SLURM,
        Kind::Local => &LOCAL,
    }
}
