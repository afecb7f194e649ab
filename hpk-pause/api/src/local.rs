//! Runs of the local executor: what hpk-kubelet, which starts them, and their first process, `hpk-netns run`, agree on.
//!
//! A run has a folder of its own below `HPK_HOME/runs` (`hpk_layout::run`). The kubelet writes the run's record there. The
//! run's first process writes its [`Process`] when it begins and its [`End`] when all is over. The file of the [`Process`] is
//! made once: of two processes that are started for one run the second ends at once. So a kubelet that was killed in between may start one again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Variable of a run's processes: the run's folder. The processes of a run are known by it.
pub const RUN: &str = "HPK_RUN";
/// Variable of a run's processes: the run's id.
pub const RUN_ID: &str = "HPK_RUN_ID";
/// Variable of a run's first process: seconds from TERM to KILL.
pub const KILL_WAIT: &str = "HPK_RUN_KILL_WAIT";

/// The first process of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it was started, clock ticks since the machine's boot.
    pub started: u64,
    /// The machine's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Exit code of its first process.
    pub code: i32,
    /// When it had ended.
    pub at: Timestamp,
    /// It was ended while it waited for its turn.
    #[serde(default)]
    pub cancelled: bool,
}

/// Id of a run or a Slurm job, as its processes find it in their environment.
#[must_use]
pub fn run_id(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    [RUN_ID, "SLURM_JOB_ID"].into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_run_inside_a_slurm_job_has_its_own_id() {
        let of = |list: &[(&str, &str)]| {
            run_id(|name| list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[(RUN_ID, "3"), ("SLURM_JOB_ID", "7")]).as_deref(), Some("3"));
        assert_eq!(of(&[(RUN_ID, ""), ("SLURM_JOB_ID", "7")]).as_deref(), Some("7"));
        assert_eq!(of(&[]), None);
    }
}
