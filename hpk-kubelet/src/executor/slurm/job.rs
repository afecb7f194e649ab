//! What Slurm says of a job: the answers of `squeue --json` and `sacct --json`, reduced to what a pod needs.

use super::waiting::{self, Reservation};
use crate::executor::run::{Component, Run, RunPhase};
use crate::executor::words::Kind;
use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

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

/// An answer of `squeue --json`.
pub(crate) struct Queue(Vec<Value>);

impl Queue {
    /// # Errors
    /// An answer that is no such thing.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ParseError> {
        Ok(Self(jobs(text, "squeue")?))
    }

    /// Whether only reservations tell why one of the jobs waits.
    pub(crate) fn concerns_reservations(&self) -> bool {
        self.0.iter().any(waiting::concerns_reservations)
    }

    /// Its jobs; single odd ones are left out.
    pub(crate) fn runs(&self, reservations: &[Reservation], now: Timestamp) -> Vec<Run> {
        self.0.iter().filter_map(|job| squeue_job(job, reservations, now)).collect()
    }
}

/// Jobs of `sacct --json`.
///
/// # Errors
/// An answer that is no such thing; single odd jobs are left out.
pub(crate) fn from_sacct(text: &[u8]) -> Result<Vec<Run>, ParseError> {
    Ok(jobs(text, "sacct")?.iter().filter_map(sacct_job).collect())
}

fn jobs(text: &[u8], command: &'static str) -> Result<Vec<Value>, ParseError> {
    let answer: Answer = serde_json::from_slice(text).map_err(|source| ParseError::Json { command, source })?;
    let list = answer.jobs.ok_or(ParseError::NoJobs { command })?;
    Ok(list.into_iter().map(|Kept(job)| Value::Object(job)).collect())
}

/// Of an answer, which has a hundred fields of each job, only what is read is kept: a thousand jobs would take 60 MB.
#[derive(serde::Deserialize)]
struct Answer {
    jobs: Option<Vec<Kept>>,
}

/// Fields of a job that are read here or in [`waiting`].
const READ: [&str; 21] = [
    "comment",
    "current_working_directory",
    "end_time",
    "exit_code",
    "failed_node",
    "het",
    "het_job_id",
    "het_job_offset",
    "job_id",
    "job_state",
    "kill_request_user",
    "nodes",
    "partition",
    "resv_name",
    "start_time",
    "state",
    "state_description",
    "state_reason",
    "time",
    "time_limit",
    "working_directory",
];

/// A job with these fields.
struct Kept(Map<String, Value>);

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Kept;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a job")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Kept, A::Error> {
                let mut job = Map::new();
                while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
                    if READ.contains(&name.as_ref()) {
                        job.insert(name.into_owned(), fields.next_value()?);
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Kept(job))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn squeue_job(value: &Value, reservations: &[Reservation], now: Timestamp) -> Option<Run> {
    let states = strings(&value["job_state"]);
    let (state, completing) = base_state(&states)?;
    Some(Run {
        id: number(&value["job_id"])?.to_string(),
        pod: text(&value["comment"]),
        folder: text(&value["current_working_directory"]),
        phase: state,
        completing,
        suspended: states.iter().any(|state| state == "SUSPENDED"),
        why: if state == RunPhase::Pending { waiting::why(value, reservations, now) } else { String::new() },
        reason: text(&value["state_reason"]),
        nodes: text(&value["nodes"]),
        failed_node: text(&value["failed_node"]),
        partition: text(&value["partition"]),
        exit_code: exit_code(&value["exit_code"]),
        started_at: time(&value["start_time"]).filter(|_| state != RunPhase::Pending),
        ended_at: time(&value["end_time"]).filter(|_| state.is_over()),
        limit_minutes: minutes(&value["time_limit"]),
        killed_by: None,
        kind: Kind::Slurm,
        component: component(&value["het_job_id"], &value["het_job_offset"]),
    })
}

fn sacct_job(value: &Value) -> Option<Run> {
    let states = strings(&value["state"]["current"]);
    let (state, completing) = base_state(&states)?;
    Some(Run {
        id: number(&value["job_id"])?.to_string(),
        pod: text(&value["comment"]["job"]),
        folder: text(&value["working_directory"]),
        phase: state,
        completing,
        suspended: false,
        reason: text(&value["state"]["reason"]),
        why: String::new(),
        nodes: text(&value["nodes"]),
        failed_node: text(&value["failed_node"]),
        partition: text(&value["partition"]),
        exit_code: exit_code(&value["exit_code"]),
        started_at: time(&value["time"]["start"]).filter(|_| state != RunPhase::Pending),
        ended_at: time(&value["time"]["end"]).filter(|_| state.is_over()),
        limit_minutes: minutes(&value["time"]["limit"]),
        killed_by: Some(text(&value["kill_request_user"])).filter(|k| !k.is_empty()),
        kind: Kind::Slurm,
        component: component(&value["het"]["job_id"], &value["het"]["job_offset"]),
    })
}

/// Which component of a heterogeneous job it is; the id is 0 for all other jobs.
fn component(whole: &Value, offset: &Value) -> Option<Component> {
    let whole = number(whole).filter(|id| *id > 0)?;
    Some(Component { whole: whole.to_string(), number: u32::try_from(number(offset)?).ok()? })
}

/// Base state out of Slurm's list of base state and flags (`["RUNNING","COMPLETING"]`).
fn base_state(states: &[String]) -> Option<(RunPhase, bool)> {
    let has = |name: &str| states.iter().any(|s| s == name);
    // A requeued job waits again, whatever ended its last run.
    if has("REQUEUED") || has("REQUEUE_HOLD") || has("SPECIAL_EXIT") || has("REQUEUE_FED") {
        return Some((RunPhase::Pending, false));
    }
    let state = states.iter().find_map(|s| {
        Some(match s.as_str() {
            "PENDING" => RunPhase::Pending,
            "RUNNING" | "SUSPENDED" | "CONFIGURING" | "STAGE_OUT" | "STOPPED" | "SIGNALING" | "RESIZING" => {
                RunPhase::Running
            }
            "COMPLETED" => RunPhase::Completed,
            "FAILED" => RunPhase::Failed,
            "TIMEOUT" => RunPhase::Timeout,
            "DEADLINE" => RunPhase::Deadline,
            "OUT_OF_MEMORY" => RunPhase::OutOfMemory,
            "PREEMPTED" => RunPhase::Preempted,
            "NODE_FAIL" => RunPhase::NodeFail,
            "BOOT_FAIL" => RunPhase::BootFail,
            "CANCELLED" | "REVOKED" => RunPhase::Cancelled,
            _ => return None,
        })
    });
    let completing = has("COMPLETING");
    match state {
        Some(state) => Some((state, completing)),
        None if completing => Some((RunPhase::Running, true)),
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

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A plain number, or Slurm's `{"set": true, "infinite": false, "number": 5}`.
pub(crate) fn number(value: &Value) -> Option<i64> {
    if let Some(n) = value.as_i64() {
        return Some(n);
    }
    if value["set"].as_bool() == Some(false) || value["infinite"].as_bool() == Some(true) {
        return None;
    }
    value["number"].as_i64()
}

fn minutes(value: &Value) -> Option<u64> {
    number(value).and_then(|minutes| u64::try_from(minutes).ok()).filter(|minutes| *minutes > 0)
}

pub(crate) fn time(value: &Value) -> Option<Timestamp> {
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

    fn from_squeue(answer: &str) -> Vec<Run> {
        Queue::parse(answer.as_bytes()).expect("jobs").runs(&[], Timestamp::UNIX_EPOCH)
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
            {"job_id": 13, "comment": "y", "job_state": ["PENDING"], "het_job_id": set(12), "het_job_offset": set(1)},
            {"job_id": 14, "comment": "z", "job_state": ["PENDING"], "het_job_id": set(0), "het_job_offset": set(0)},
        ]});
        let jobs = from_squeue(&answer.to_string());
        let short: Vec<_> =
            jobs.iter().map(|j| (j.id.as_str(), j.phase, j.completing, j.reason.as_str(), j.exit_code)).collect();
        assert_eq!(
            short,
            [
                ("7", RunPhase::Running, false, "None", Some(0)),
                ("8", RunPhase::Pending, false, "Resources", None),
                ("9", RunPhase::Failed, true, "NonZeroExitCode", Some(3)),
                ("10", RunPhase::Pending, false, "", None),
                ("13", RunPhase::Pending, false, "", None),
                ("14", RunPhase::Pending, false, "", None),
            ]
        );
        assert_eq!(jobs[4].component, Some(Component { whole: "12".to_owned(), number: 1 }));
        assert_eq!(jobs[5].component, None);
        assert_eq!(jobs[0].started_at, Some(Timestamp::from_second(1_700_000_000).expect("time")));
        assert_eq!(jobs[0].folder, "/h/pods/u");
        assert_eq!(jobs[0].ended_at, None, "the end of a running job is only planned");
        assert_eq!(jobs[1].started_at, None);
        assert!(!jobs[2].is_gone(), "a completing job still holds its node");
    }

    #[test]
    fn sacct() {
        let answer = json!({"jobs": [{"job_id": 7, "comment": {"job": "u"}, "working_directory": "/h/pods/u", "state": {"current": ["CANCELLED"], "reason": "None"},
            "kill_request_user": "bob", "nodes": "c1", "het": {"job_id": 6, "job_offset": {"set": true, "number": 1}}, "time": {"start": 1_700_000_000, "end": 1_700_000_060},
            "exit_code": {"return_code": {"set": true, "number": 0}, "signal": {"id": {"set": true, "number": 15}}}}]});
        let jobs = from_sacct(answer.to_string().as_bytes()).expect("jobs");
        assert_eq!(jobs[0].folder, "/h/pods/u");
        assert_eq!(jobs[0].phase, RunPhase::Cancelled);
        assert_eq!(jobs[0].killed_by.as_deref(), Some("bob"));
        assert_eq!(jobs[0].exit_code, Some(143));
        assert_eq!(jobs[0].component, Some(Component { whole: "6".to_owned(), number: 1 }));
        assert_eq!(jobs[0].ended_at, Some(Timestamp::from_second(1_700_000_060).expect("time")));
    }

    #[test]
    fn a_suspended_job_runs() {
        let answer = json!({"jobs": [{"job_id": 7, "job_state": ["SUSPENDED"], "state_reason": "None"}]});
        let jobs = from_squeue(&answer.to_string());
        assert_eq!((jobs[0].phase, jobs[0].suspended), (RunPhase::Running, true));
    }

    #[test]
    fn what_is_not_read_is_not_kept() {
        let job =
            json!({"job_id": 7, "job_state": ["RUNNING"], "job_resources": {"nodes": {"count": 1}}, "name": "n/p"});
        let kept = jobs(json!({"meta": {}, "jobs": [job]}).to_string().as_bytes(), "squeue").expect("jobs");
        assert_eq!(kept, [json!({"job_id": 7, "job_state": ["RUNNING"]})]);
    }

    #[test]
    fn unreadable() {
        assert!(matches!(Queue::parse(b"slurm_load_jobs error"), Err(ParseError::Json { .. })));
        assert!(matches!(Queue::parse(b"{}"), Err(ParseError::NoJobs { .. })));
    }
}
