//! What an executor says of a run: one pod's processes, from its place in a queue to its end.

use super::words::{self, Kind, Words};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How far a run is. The words are Slurm's (squeue(1), "JOB STATE CODES"); other executors use those that they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunPhase {
    /// Waits for resources, or is held.
    Pending,
    /// Runs (ending, suspended and stopped runs included: their processes may exist).
    Running,
    /// Ended with exit code 0.
    Completed,
    /// Ended with another exit code.
    Failed,
    /// Time limit.
    Timeout,
    /// `--deadline`.
    Deadline,
    /// Killed for memory.
    OutOfMemory,
    Preempted,
    /// A node died.
    NodeFail,
    /// A node did not boot.
    BootFail,
    /// Cancelled by a user or administrator.
    Cancelled,
    /// The executor does not know it any more.
    Lost,
}

impl RunPhase {
    /// The run's processes are gone and it never runs again.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The executor's id.
    pub id: String,
    /// The pod's UID, as the executor was told at the submission (a Slurm job's comment).
    #[serde(alias = "comment")]
    pub pod: String,
    /// The pod's folder, which has the pod's UID for its name.
    #[serde(default)]
    pub folder: String,
    /// How far it is.
    #[serde(alias = "state")]
    pub phase: RunPhase,
    /// Its processes are being cleaned up (Slurm's COMPLETING): over, but not gone from the node.
    #[serde(default)]
    pub completing: bool,
    /// It has its place and does not go on until somebody lets it (Slurm's SUSPENDED).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Why it waits or has ended, in the executor's word (`Resources`, `Priority`, `TimeLimit`, …); `None` when there is none.
    #[serde(default)]
    pub reason: String,
    /// The reason for which it waits, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Node list, as Slurm prints it.
    #[serde(default)]
    pub nodes: String,
    /// The node whose failure ended it; empty: none, or it is not said.
    #[serde(default)]
    pub failed_node: String,
    /// Slurm's partition; empty: none, or not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// Exit code of the first process.
    #[serde(default)]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Its time limit as it is now, minutes. None: it has none, or it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_minutes: Option<u64>,
    /// Who cancelled it: `uid` as a number, when known.
    #[serde(default)]
    pub killed_by: Option<String>,
    /// Whose run it is.
    #[serde(default)]
    pub kind: Kind,
    /// Of a component of a heterogeneous job of Slurm's: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Component>,
}

/// A component of a heterogeneous job. To squeue and sacct it is a job with an id of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// The id of the whole, which is that of its first component.
    pub whole: String,
    /// From 0.
    pub number: u32,
}

impl Run {
    /// What is said of a run that nobody knows any more.
    #[must_use]
    pub fn lost(id: &str, pod: &str) -> Self {
        Self {
            id: id.to_owned(),
            pod: pod.to_owned(),
            folder: String::new(),
            phase: RunPhase::Lost,
            completing: false,
            suspended: false,
            reason: String::new(),
            why: String::new(),
            nodes: String::new(),
            failed_node: String::new(),
            partition: String::new(),
            exit_code: None,
            started_at: None,
            ended_at: None,
            limit_minutes: None,
            killed_by: None,
            kind: Kind::default(),
            component: None,
        }
    }

    /// What people are told of it.
    #[must_use]
    pub fn words(&self) -> &'static Words {
        words::of(self.kind)
    }

    /// Whether it is the run of the pod `uid`: Slurm gives ids again after a crash. Accounting keeps the comment only where it
    /// is told to, and a site's submit plug-in may write one of its own; the folder stays.
    #[must_use]
    pub fn is_of(&self, uid: &str) -> bool {
        self.pod == uid || Path::new(&self.folder).file_name().is_some_and(|name| name == uid)
    }

    /// The UID of the pod of ours that it was submitted for: its folder is in `pods` (`HPK_HOME/pods`) and its comment says
    /// so, too. None: it is not ours, or of another cluster of the user.
    #[must_use]
    pub fn pod_in(&self, pods: &Path) -> Option<&str> {
        let folder = Path::new(&self.folder);
        let uid = folder.file_name()?.to_str()?;
        (folder.parent() == Some(pods) && self.pod == uid).then_some(uid)
    }

    /// It runs, and does not go on until somebody lets it.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended && self.phase == RunPhase::Running
    }

    /// It waits for something that somebody may have to do something about, not for its turn alone.
    #[must_use]
    pub fn waits_for_more_than_its_turn(&self) -> bool {
        self.phase == RunPhase::Pending && !matches!(self.reason.as_str(), "" | "None" | "Priority" | "Resources")
    }

    /// It waits until somebody releases it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.phase == RunPhase::Pending && self.reason.starts_with("JobHeld")
    }

    /// Between `self` and `later`, what was known before and after, the job has been put back into the queue.
    #[must_use]
    pub fn was_requeued(&self, later: &Self) -> bool {
        let other_start =
            later.started_at.is_some() && self.started_at.is_some() && later.started_at != self.started_at;
        self.phase != RunPhase::Pending && (later.phase == RunPhase::Pending || other_start)
    }

    /// The node of the batch script: the first of [`Self::nodes`]. None: it has none yet.
    #[must_use]
    pub fn batch_host(&self) -> Option<String> {
        let nodes = self.nodes.as_str();
        let (prefix, rest) = nodes.split_once('[').unwrap_or((nodes, ""));
        if let Some((first, _)) = prefix.split_once(',') {
            return Some(first.to_owned());
        }
        let (numbers, after) = rest.split_once(']').unwrap_or((rest, ""));
        let number = numbers.split([',', '-']).next().unwrap_or_default();
        let suffix = after.split(',').next().unwrap_or_default();
        Some(format!("{prefix}{number}{suffix}")).filter(|host| !host.is_empty())
    }

    /// Slurm keeps what it refuses at its submission as a job that has failed and never had a node: it is no run of the pod.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.phase == RunPhase::Failed && matches!(self.nodes.as_str(), "" | "None assigned")
    }

    /// Over and gone from its node.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.phase.is_over() && !self.completing
    }
}

/// The job that counts of all that were found for one pod: one that is alive before one that is over, a running one before
/// one that waits, the first of several alive, the last of several that are over.
#[must_use]
pub(crate) fn choose(jobs: Vec<Run>) -> Option<Run> {
    let number = |job: &Run| job.id.parse::<i64>().unwrap_or(0);
    jobs.into_iter().min_by_key(|job| match job.phase {
        RunPhase::Running => (0, number(job)),
        RunPhase::Pending => (1, number(job)),
        _ => (2, -number(job)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_host_is_the_first_of_the_list() {
        for (nodes, host) in [
            ("", None),
            ("c1", Some("c1")),
            ("c1,d2", Some("c1")),
            ("c[1-2]", Some("c1")),
            ("c[03,07-09]", Some("c03")),
            ("c[1-2]-ib,d4", Some("c1-ib")),
            ("login,c[1-2]", Some("login")),
        ] {
            let job = Run { nodes: nodes.to_owned(), ..Run::lost("7", "") };
            assert_eq!(job.batch_host().as_deref(), host, "{nodes}");
        }
    }

    #[test]
    fn a_refused_job_is_one_that_failed_without_a_node() {
        let of = |phase, nodes: &str| Run { phase, nodes: nodes.to_owned(), ..Run::lost("7", "") }.was_refused();
        assert!(of(RunPhase::Failed, "") && of(RunPhase::Failed, "None assigned"));
        assert!(!of(RunPhase::Failed, "c1") && !of(RunPhase::Cancelled, "") && !of(RunPhase::Pending, ""));
    }

    #[test]
    fn a_job_is_told_by_its_comment_or_folder_and_not_by_its_id() {
        let job = |comment: &str, folder: &str| Run { folder: folder.to_owned(), ..Run::lost("7", comment) };
        for (job, of, ours) in [
            (job("u", "/h/pods/u"), true, true),
            (job("", "/h/pods/u"), true, false),
            (job("of the site", "/h/pods/u"), true, false),
            (job("u", "/other/pods/u"), true, false),
            (job("u", ""), true, false),
            (job("v", "/h/pods/v"), false, true),
            (job("", "/h"), false, false),
            (job("", ""), false, false),
        ] {
            assert_eq!((job.is_of("u"), job.pod_in(Path::new("/h/pods")).is_some()), (of, ours), "{job:?}");
        }
    }

    #[test]
    fn of_several_jobs_the_living_one_counts() {
        let job = |id: &str, state| Run { phase: state, ..Run::lost(id, "u") };
        let (pending, over) = (RunPhase::Pending, RunPhase::Failed);
        for (jobs, id) in [
            (vec![job("9", over), job("10", over)], "10"),
            (vec![job("9", over), job("10", pending), job("11", pending)], "10"),
            (vec![job("9", pending), job("10", RunPhase::Running), job("11", over)], "10"),
        ] {
            assert_eq!(choose(jobs).expect("one").id, id);
        }
        assert_eq!(choose(vec![]), None);
    }
}
