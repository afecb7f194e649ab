//! What Slurm says of a job: the answers of `squeue --json` and `sacct --json`, reduced to what a pod needs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use thiserror::Error;

/// A base state of a Slurm job (squeue(1), "JOB STATE CODES").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Waits for resources, or is held.
    Pending,
    /// Runs (completing, suspended and stopped jobs included: their processes may exist).
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
    /// Neither squeue nor sacct know it.
    Lost,
}

impl JobState {
    /// The job's processes are gone and it never runs again.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Job id.
    pub id: String,
    /// `--comment`: the pod's UID.
    pub comment: String,
    /// `--chdir`: the pod's folder, which has the pod's UID for its name.
    #[serde(default)]
    pub folder: String,
    /// Base state.
    pub state: JobState,
    /// Its processes are being cleaned up (COMPLETING): over, but not gone from the node.
    #[serde(default)]
    pub completing: bool,
    /// Slurm's reason (`Resources`, `Priority`, `TimeLimit`, …); `None` when there is none.
    #[serde(default)]
    pub reason: String,
    /// Node list, as Slurm prints it.
    #[serde(default)]
    pub nodes: String,
    /// Exit code of the batch script.
    #[serde(default)]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Who cancelled it: `uid` as a number, when known.
    #[serde(default)]
    pub killed_by: Option<String>,
}

impl Job {
    /// What is said of a job that nobody knows any more.
    #[must_use]
    pub fn lost(id: &str, comment: &str) -> Self {
        Self {
            id: id.to_owned(),
            comment: comment.to_owned(),
            folder: String::new(),
            state: JobState::Lost,
            completing: false,
            reason: String::new(),
            nodes: String::new(),
            exit_code: None,
            started_at: None,
            ended_at: None,
            killed_by: None,
        }
    }

    /// Whether it is the job of the pod `uid`: Slurm gives ids again after a crash. Accounting keeps the comment only where it
    /// is told to, and a site's submit plug-in may write one of its own; the folder stays.
    #[must_use]
    pub fn is_of(&self, uid: &str) -> bool {
        self.comment == uid || Path::new(&self.folder).file_name().is_some_and(|name| name == uid)
    }

    /// The UID of the pod of ours that it was submitted for: its folder is in `pods` (`HPK_HOME/pods`) and its comment says
    /// so, too. None: it is not ours, or of another cluster of the user.
    #[must_use]
    pub fn pod_in(&self, pods: &Path) -> Option<&str> {
        let folder = Path::new(&self.folder);
        let uid = folder.file_name()?.to_str()?;
        (folder.parent() == Some(pods) && self.comment == uid).then_some(uid)
    }

    /// Between `self` and `later`, what was known before and after, the job has been put back into the queue.
    #[must_use]
    pub fn was_requeued(&self, later: &Self) -> bool {
        let other_start =
            later.started_at.is_some() && self.started_at.is_some() && later.started_at != self.started_at;
        self.state != JobState::Pending && (later.state == JobState::Pending || other_start)
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

    /// Over and gone from its node.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.state.is_over() && !self.completing
    }
}

/// An answer that cannot be read.
#[derive(Debug, Error)]
pub enum ParseError {
    /// No JSON.
    #[error("{command} --json did not answer in JSON")]
    Json {
        command: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// No list of jobs in it.
    #[error("the answer of {command} --json has no list \"jobs\"")]
    NoJobs { command: &'static str },
}

/// Jobs of `squeue --json`.
///
/// # Errors
/// An answer that is no such thing; single odd jobs are left out.
pub fn from_squeue(text: &[u8]) -> Result<Vec<Job>, ParseError> {
    Ok(jobs(text, "squeue")?.iter().filter_map(squeue_job).collect())
}

/// Jobs of `sacct --json`.
///
/// # Errors
/// As [`from_squeue`].
pub fn from_sacct(text: &[u8]) -> Result<Vec<Job>, ParseError> {
    Ok(jobs(text, "sacct")?.iter().filter_map(sacct_job).collect())
}

fn jobs(text: &[u8], command: &'static str) -> Result<Vec<Value>, ParseError> {
    let mut answer: Value = serde_json::from_slice(text).map_err(|source| ParseError::Json { command, source })?;
    match answer.get_mut("jobs").map(Value::take) {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(ParseError::NoJobs { command }),
    }
}

fn squeue_job(value: &Value) -> Option<Job> {
    let states = strings(&value["job_state"]);
    let (state, completing) = base_state(&states)?;
    Some(Job {
        id: number(&value["job_id"])?.to_string(),
        comment: text(&value["comment"]),
        folder: text(&value["current_working_directory"]),
        state,
        completing,
        reason: text(&value["state_reason"]),
        nodes: text(&value["nodes"]),
        exit_code: exit_code(&value["exit_code"]),
        started_at: time(&value["start_time"]).filter(|_| state != JobState::Pending),
        ended_at: time(&value["end_time"]).filter(|_| state.is_over()),
        killed_by: None,
    })
}

fn sacct_job(value: &Value) -> Option<Job> {
    let states = strings(&value["state"]["current"]);
    let (state, completing) = base_state(&states)?;
    Some(Job {
        id: number(&value["job_id"])?.to_string(),
        comment: text(&value["comment"]["job"]),
        folder: text(&value["working_directory"]),
        state,
        completing,
        reason: text(&value["state"]["reason"]),
        nodes: text(&value["nodes"]),
        exit_code: exit_code(&value["exit_code"]),
        started_at: time(&value["time"]["start"]).filter(|_| state != JobState::Pending),
        ended_at: time(&value["time"]["end"]).filter(|_| state.is_over()),
        killed_by: Some(text(&value["kill_request_user"])).filter(|k| !k.is_empty()),
    })
}

/// The job that counts of all that were found for one pod: one that is alive before one that is over, a running one before
/// one that waits, the first of several alive, the last of several that are over.
#[must_use]
pub fn choose(jobs: Vec<Job>) -> Option<Job> {
    let number = |job: &Job| job.id.parse::<i64>().unwrap_or(0);
    jobs.into_iter().min_by_key(|job| match job.state {
        JobState::Running => (0, number(job)),
        JobState::Pending => (1, number(job)),
        _ => (2, -number(job)),
    })
}

/// Base state out of Slurm's list of base state and flags (`["RUNNING","COMPLETING"]`).
fn base_state(states: &[String]) -> Option<(JobState, bool)> {
    let has = |name: &str| states.iter().any(|s| s == name);
    // A requeued job waits again, whatever ended its last run.
    if has("REQUEUED") || has("REQUEUE_HOLD") || has("SPECIAL_EXIT") || has("REQUEUE_FED") {
        return Some((JobState::Pending, false));
    }
    let state = states.iter().find_map(|s| {
        Some(match s.as_str() {
            "PENDING" => JobState::Pending,
            "RUNNING" | "SUSPENDED" | "CONFIGURING" | "STAGE_OUT" | "STOPPED" | "SIGNALING" | "RESIZING" => {
                JobState::Running
            }
            "COMPLETED" => JobState::Completed,
            "FAILED" => JobState::Failed,
            "TIMEOUT" => JobState::Timeout,
            "DEADLINE" => JobState::Deadline,
            "OUT_OF_MEMORY" => JobState::OutOfMemory,
            "PREEMPTED" => JobState::Preempted,
            "NODE_FAIL" => JobState::NodeFail,
            "BOOT_FAIL" => JobState::BootFail,
            "CANCELLED" | "REVOKED" => JobState::Cancelled,
            _ => return None,
        })
    });
    let completing = has("COMPLETING");
    match state {
        Some(state) => Some((state, completing)),
        None if completing => Some((JobState::Running, true)),
        None => None,
    }
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        // Slurm 22.05 gave one string.
        Value::String(one) => vec![one.clone()],
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A plain number, or Slurm's `{"set": true, "infinite": false, "number": 5}`.
fn number(value: &Value) -> Option<i64> {
    if let Some(n) = value.as_i64() {
        return Some(n);
    }
    if value["set"].as_bool() == Some(false) || value["infinite"].as_bool() == Some(true) {
        return None;
    }
    value["number"].as_i64()
}

fn time(value: &Value) -> Option<Timestamp> {
    number(value).filter(|seconds| *seconds > 0).and_then(|seconds| Timestamp::from_second(seconds).ok())
}

fn exit_code(value: &Value) -> Option<i32> {
    let code = number(&value["return_code"]).and_then(|c| i32::try_from(c).ok());
    let signal = number(&value["signal"]["id"]).and_then(|s| i32::try_from(s).ok()).filter(|s| *s > 0);
    match (code, signal) {
        (_, Some(signal)) => Some(128 + signal),
        (code, None) => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            let job = Job { nodes: nodes.to_owned(), ..Job::lost("7", "") };
            assert_eq!(job.batch_host().as_deref(), host, "{nodes}");
        }
    }

    #[test]
    fn squeue() {
        let set = |n: i64| json!({"set": true, "infinite": false, "number": n});
        let answer = json!({"jobs": [
            {"job_id": 7, "comment": "u", "current_working_directory": "/h/pods/u", "job_state": ["RUNNING"], "state_reason": "None", "nodes": "c1",
             "start_time": set(1_700_000_000), "end_time": set(1_800_000_000),
             "exit_code": {"return_code": set(0), "signal": {"id": {"set": false, "number": 0}}}},
            {"job_id": 8, "comment": "v", "job_state": ["PENDING"], "state_reason": "Resources", "start_time": set(0)},
            {"job_id": 9, "comment": "w", "job_state": ["FAILED", "COMPLETING"], "state_reason": "NonZeroExitCode",
             "exit_code": {"return_code": set(3), "signal": {"id": {"set": false, "number": 0}}}},
            {"job_id": 10, "comment": "x", "job_state": ["PREEMPTED", "REQUEUED"]},
            {"job_id": 11, "comment": "x", "job_state": ["FUTURE_STATE"]},
        ]});
        let jobs = from_squeue(answer.to_string().as_bytes()).expect("jobs");
        let short: Vec<_> =
            jobs.iter().map(|j| (j.id.as_str(), j.state, j.completing, j.reason.as_str(), j.exit_code)).collect();
        assert_eq!(
            short,
            [
                ("7", JobState::Running, false, "None", Some(0)),
                ("8", JobState::Pending, false, "Resources", None),
                ("9", JobState::Failed, true, "NonZeroExitCode", Some(3)),
                ("10", JobState::Pending, false, "", None),
            ]
        );
        assert_eq!(jobs[0].started_at, Some(Timestamp::from_second(1_700_000_000).expect("time")));
        assert_eq!(jobs[0].folder, "/h/pods/u");
        assert_eq!(jobs[0].ended_at, None, "the end of a running job is only planned");
        assert_eq!(jobs[1].started_at, None);
        assert!(!jobs[2].is_gone(), "a completing job still holds its node");
    }

    #[test]
    fn sacct() {
        let answer = json!({"jobs": [{"job_id": 7, "comment": {"job": "u"}, "working_directory": "/h/pods/u", "state": {"current": ["CANCELLED"], "reason": "None"},
            "kill_request_user": "bob", "nodes": "c1", "time": {"start": 1_700_000_000, "end": 1_700_000_060},
            "exit_code": {"return_code": {"set": true, "number": 0}, "signal": {"id": {"set": true, "number": 15}}}}]});
        let jobs = from_sacct(answer.to_string().as_bytes()).expect("jobs");
        assert_eq!(jobs[0].folder, "/h/pods/u");
        assert_eq!(jobs[0].state, JobState::Cancelled);
        assert_eq!(jobs[0].killed_by.as_deref(), Some("bob"));
        assert_eq!(jobs[0].exit_code, Some(143));
        assert_eq!(jobs[0].ended_at, Some(Timestamp::from_second(1_700_000_060).expect("time")));
    }

    #[test]
    fn a_job_is_told_by_its_comment_or_folder_and_not_by_its_id() {
        let job = |comment: &str, folder: &str| Job { folder: folder.to_owned(), ..Job::lost("7", comment) };
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
        let job = |id: &str, state| Job { state, ..Job::lost(id, "u") };
        let (pending, over) = (JobState::Pending, JobState::Failed);
        for (jobs, id) in [
            (vec![job("9", over), job("10", over)], "10"),
            (vec![job("9", over), job("10", pending), job("11", pending)], "10"),
            (vec![job("9", pending), job("10", JobState::Running), job("11", over)], "10"),
        ] {
            assert_eq!(choose(jobs).expect("one").id, id);
        }
        assert_eq!(choose(vec![]), None);
    }

    #[test]
    fn unreadable() {
        assert!(matches!(from_squeue(b"slurm_load_jobs error"), Err(ParseError::Json { .. })));
        assert!(matches!(from_squeue(b"{}"), Err(ParseError::NoJobs { .. })));
    }
}
