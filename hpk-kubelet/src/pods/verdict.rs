//! What the end of a run means for its pod, when the supervisor's own word does not say it all.
//!
//! The supervisor knows how containers ended; only the executor knows time limits, preemption, dead nodes and
//! cancellations. One pure function merges the two.

use crate::executor::run::{Run, RunPhase};
use hpk_api::state::{LaunchReport, PodState, StopCause};
use std::time::Duration;

/// Why a pod has failed, beyond its containers' exit codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// status.reason
    pub reason: &'static str,
    /// status.message
    pub message: String,
    /// Condition DisruptionTarget: the pod was taken away by the cluster, not by a fault of its own.
    pub disruption: bool,
    /// Containers that were alive at the last report are given this reason, with exit code 137.
    pub containers: Lost,
}

/// How containers that nobody saw end are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// `ContainerStatusUnknown`, 137.
    Unknown,
    /// `OOMKilled`, 137.
    OutOfMemory,
    /// They never started: they wait.
    NeverStarted,
}

/// activeDeadlineSeconds and Slurm's time limit read alike.
pub(crate) const DEADLINE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// How much earlier than the pod's grace period before the time limit Slurm may tell a job to end: the kubelet's margin (10 s), the
/// minute that sbatch(1) allows itself, and a little for a busy controller. The supervisor's own rule has the same.
const LEAD: Duration = Duration::from_secs(75);

/// The verdict on a pod. None: its containers' states say everything. `grace`: the pod's own grace period.
#[must_use]
pub(crate) fn verdict(
    report: Option<&PodState>,
    job: Option<&Run>,
    launch: Option<&LaunchReport>,
    grace: Duration,
) -> Option<Verdict> {
    let finished = report.is_some_and(|r| r.finished);
    // As upstream's status manager has it: no terminal phase while containers may still run.
    let over = finished || job.is_some_and(|j| has_ended(j, finished));
    match report.and_then(|r| r.stopping.as_ref()).filter(|_| over) {
        Some(StopCause::DeadlineExceeded) => return Some(deadline(DEADLINE_MESSAGE.to_owned())),
        Some(StopCause::Evicted(message)) => {
            return Some(Verdict {
                reason: "Evicted",
                message: message.clone(),
                disruption: true,
                containers: Lost::Unknown,
            });
        }
        _ => {}
    }
    // It did not come to containers.
    let without = report.filter(|r| r.finished && !r.sandbox_ready).and_then(|r| r.sandbox_error.as_ref());
    if let Some(message) = without {
        let (reason, containers) = ("CreatePodSandboxError", Lost::NeverStarted);
        return Some(Verdict { reason, message: message.clone(), disruption: false, containers });
    }
    let by_slurm = report.is_some_and(|r| r.stopping == Some(StopCause::Signal));
    let job = job.filter(|j| has_ended(j, finished))?;
    if finished && !by_slurm {
        return None;
    }
    let (id, words) = (&job.id, job.words());
    let name = words.run;
    let fail = |reason, message, containers| Some(Verdict { reason, message, disruption: false, containers });
    match job.phase {
        RunPhase::Pending | RunPhase::Running => None,
        RunPhase::Timeout | RunPhase::Deadline => {
            Some(deadline(format!("{DEADLINE_MESSAGE}: {name} {id} was ended at its time limit")))
        }
        RunPhase::OutOfMemory => fail(
            "OOMKilled",
            format!("{name} {id} used more memory than {} allows; raise the pod's memory request", words.memory_limit),
            Lost::OutOfMemory,
        ),
        RunPhase::Preempted => Some(Verdict {
            reason: "Preempted",
            message: format!("{name} {id} was preempted"),
            disruption: true,
            containers: Lost::Unknown,
        }),
        RunPhase::NodeFail | RunPhase::BootFail => Some(Verdict {
            reason: "NodeLost",
            message: format!(
                "the compute node {} of {name} {id} failed",
                if job.failed_node.is_empty() { &job.nodes } else { &job.failed_node }
            ),
            disruption: true,
            containers: Lost::Unknown,
        }),
        RunPhase::Cancelled => {
            let by = job.killed_by.as_deref().map(|who| format!(" by {who}")).unwrap_or_default();
            let at = job.ended_at.map(|t| format!(" at {t}")).unwrap_or_default();
            fail(words.reasons.cancelled, format!("{name} {id} was cancelled{by}{at}"), Lost::Unknown)
        }
        RunPhase::Lost => {
            fail(words.reasons.lost, format!("{} {id}: its end was not recorded", words.unknown), Lost::Unknown)
        }
        // The supervisor knows the limit that the job began with; it was made shorter since.
        RunPhase::Completed | RunPhase::Failed if finished && is_at_limit(job, grace) => {
            Some(deadline(format!("{DEADLINE_MESSAGE}: {name} {id} was told to end before its time limit")))
        }
        // It ended in order, by a TERM that Slurm does not account for: `scancel --signal`, a preemption that the
        // job was faster than. Upstream says so of a node's shutdown.
        RunPhase::Completed | RunPhase::Failed if finished => Some(Verdict {
            reason: "Terminated",
            message: format!("{name} {id} was told to end before its pod was done"),
            disruption: true,
            containers: Lost::Unknown,
        }),
        RunPhase::Completed | RunPhase::Failed => {
            let (message, containers) = match launch {
                // Of a supervisor that was there and is no more, containers may have run.
                Some(l) => {
                    let lost = if l.step == "supervisor" { Lost::Unknown } else { Lost::NeverStarted };
                    (format!("{} on node {}", l.message, l.node), lost)
                }
                None => {
                    let code = job.exit_code.unwrap_or(0);
                    (
                        format!(
                            "{name} {id} ended with exit code {code} before the supervisor reported the pod's end; see job.out in the pod's folder"
                        ),
                        Lost::Unknown,
                    )
                }
            };
            fail(words.reasons.failed, message, containers)
        }
    }
}

/// Slurm calls a job over when it begins to end it; until its processes are gone the supervisor may still have a word
/// to say. From a node that failed there is none to come.
#[must_use]
pub(crate) fn has_ended(job: &Run, finished: bool) -> bool {
    job.is_gone() || job.phase.is_over() && (finished || matches!(job.phase, RunPhase::NodeFail | RunPhase::BootFail))
}

/// Whether the job has ended where Slurm warns of its time limit.
fn is_at_limit(job: &Run, grace: Duration) -> bool {
    let lasted = job.ended_at.zip(job.started_at).map(|(end, start)| end.duration_since(start));
    let limit = job.limit_minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
    let lasted = lasted.and_then(|lasted| Duration::try_from(lasted).ok());
    lasted.zip(limit).is_some_and(|(lasted, limit)| lasted + grace + LEAD >= limit)
}

fn deadline(message: String) -> Verdict {
    Verdict { reason: "DeadlineExceeded", message, disruption: false, containers: Lost::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(report: Option<&PodState>, job: Option<&Run>, launch: Option<&LaunchReport>) -> Option<Verdict> {
        super::verdict(report, job, launch, Duration::from_secs(30))
    }

    fn job(state: RunPhase) -> Run {
        Run { phase: state, nodes: "c1".into(), ..Run::lost("7", "u") }
    }

    fn report(finished: bool, stopping: Option<StopCause>) -> PodState {
        PodState { finished, stopping, ..PodState::default() }
    }

    #[test]
    fn table() {
        use RunPhase as J;
        let natural = report(true, None);
        let signal = report(true, Some(StopCause::Signal));
        let alive = report(false, None);
        let deleted = report(true, Some(StopCause::Requested));
        for (report, state, reason) in [
            (None, J::Pending, None),
            (None, J::Running, None),
            (Some(&alive), J::Running, None),
            (Some(&natural), J::Completed, None),
            (Some(&natural), J::Failed, None),
            (Some(&natural), J::Cancelled, None),
            (Some(&deleted), J::Cancelled, None),
            (Some(&signal), J::Timeout, Some("DeadlineExceeded")),
            (Some(&signal), J::Cancelled, Some("SlurmJobCancelled")),
            (Some(&signal), J::Preempted, Some("Preempted")),
            (Some(&signal), J::Failed, Some("Terminated")),
            (Some(&alive), J::Completed, Some("SlurmJobFailed")),
            (Some(&alive), J::NodeFail, Some("NodeLost")),
            (Some(&alive), J::OutOfMemory, Some("OOMKilled")),
            (Some(&alive), J::Lost, Some("SlurmJobLost")),
            (None, J::Failed, Some("SlurmJobFailed")),
            (None, J::Cancelled, Some("SlurmJobCancelled")),
            (None, J::Lost, Some("SlurmJobLost")),
        ] {
            assert_eq!(verdict(report, Some(&job(state)), None).map(|v| v.reason), reason, "{report:?} {state:?}");
        }
        let late = |finished| report(finished, Some(StopCause::DeadlineExceeded));
        let reason = |report: PodState, state| verdict(Some(&report), Some(&job(state)), None).map(|v| v.reason);
        assert_eq!(reason(late(false), J::Running), None, "its containers are still ending");
        assert_eq!(reason(late(true), J::Running), Some("DeadlineExceeded"));
        assert_eq!(reason(late(false), J::Failed), Some("DeadlineExceeded"));
    }

    #[test]
    fn a_limit_that_was_made_shorter_is_a_deadline() {
        let told = report(true, Some(StopCause::Signal));
        let reason = |minutes: Option<u64>, seconds: i64, phase| {
            let end = jiff::Timestamp::from_second(seconds).expect("a time");
            let started_at = Some(jiff::Timestamp::UNIX_EPOCH);
            let job = Run { limit_minutes: minutes, started_at, ended_at: Some(end), ..job(phase) };
            verdict(Some(&told), Some(&job), None).map(|v| v.reason)
        };
        for (minutes, seconds, wanted) in [
            (Some(10), 500, "DeadlineExceeded"),
            (Some(10), 495, "DeadlineExceeded"),
            (Some(10), 494, "Terminated"),
            (Some(60), 500, "Terminated"),
            (None, 500, "Terminated"),
        ] {
            for phase in [RunPhase::Completed, RunPhase::Failed] {
                assert_eq!(reason(minutes, seconds, phase), Some(wanted), "{minutes:?} {seconds}");
            }
        }
        assert_eq!(reason(Some(10), 599, RunPhase::Cancelled), Some("SlurmJobCancelled"), "Slurm has said more");
    }

    /// What is left of a job's nodes are those that live.
    #[test]
    fn the_node_that_failed_is_named() {
        let message = |failed: &str| {
            let job = Run { nodes: "c1".into(), failed_node: failed.into(), ..job(RunPhase::NodeFail) };
            verdict(Some(&report(false, None)), Some(&job), None).map(|v| v.message).unwrap_or_default()
        };
        assert!(message("c2").contains("node c2 of"), "{}", message("c2"));
        assert!(message("").contains("node c1 of"), "{}", message(""));
    }

    #[test]
    fn a_job_that_is_ending_is_not_judged_yet() {
        let ending = |state| Run { completing: true, ..job(state) };
        let alive = report(false, Some(StopCause::Signal));
        assert_eq!(verdict(Some(&alive), Some(&ending(RunPhase::Cancelled)), None), None);
        let done = report(true, Some(StopCause::Signal));
        let reason = |report, state| verdict(Some(report), Some(&ending(state)), None).map(|v| v.reason);
        assert_eq!(reason(&done, RunPhase::Cancelled), Some("SlurmJobCancelled"));
        assert_eq!(reason(&alive, RunPhase::NodeFail), Some("NodeLost"));
    }

    #[test]
    fn a_sandbox_that_was_not_made_is_the_reason() {
        let report = PodState { finished: true, sandbox_error: Some("no TUN".into()), ..PodState::default() };
        let verdict = verdict(Some(&report), Some(&job(RunPhase::Failed)), None).expect("a verdict");
        assert_eq!((verdict.reason, verdict.message.as_str()), ("CreatePodSandboxError", "no TUN"));
    }

    #[test]
    fn launch_trouble_is_told() {
        let launch = LaunchReport {
            node: "c1".into(),
            message: "host path /x does not exist".into(),
            ..LaunchReport::default()
        };
        let verdict = verdict(None, Some(&job(RunPhase::Failed)), Some(&launch)).expect("a verdict");
        assert_eq!(verdict.message, "host path /x does not exist on node c1");
        assert_eq!(verdict.containers, Lost::NeverStarted);
        let killed = LaunchReport { step: "supervisor".into(), ..launch };
        let verdict = self::verdict(None, Some(&job(RunPhase::Failed)), Some(&killed)).expect("a verdict");
        assert_eq!(verdict.containers, Lost::Unknown, "it may have run containers");
    }
}
