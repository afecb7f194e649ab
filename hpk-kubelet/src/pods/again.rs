//! Whether a pod whose sandbox was not made gets another job. Pure.
//!
//! Upstream's kubelet makes a pod's sandbox again and again, with a growing wait, until it stands: the pod stays Pending. Here a
//! sandbox is a job. Another one is submitted only when the former is gone from its node and nothing of the pod has begun in it:
//! so there is never a second supervisor. It keeps away from the nodes where it failed (`--exclude`). It is tried a few
//! times; then the pod has failed.

use crate::executor::run::{Run, RunPhase};
use hpk_api::state::{ContainerState, LaunchReport, PodState, RunState};
use std::time::Duration;

/// Before each further job, seconds.
const WAITS: [u64; 5] = [1, 2, 4, 8, 16];

/// How long to wait before the next job; None: no further one is submitted. `failures`: jobs that made no sandbox so far, the last
/// one included.
#[must_use]
pub(crate) fn wait(failures: u32) -> Option<Duration> {
    let index = usize::try_from(failures.checked_sub(1)?).ok()?;
    WAITS.get(index).map(|seconds| Duration::from_secs(*seconds))
}

/// Why the job has made no sandbox, where that may be its node's fault and it is certain that nothing of the pod has begun.
/// `is_plain`: the pod's network is HPK's alone. A list of plug-ins that the user has written fails as well elsewhere, and so does a
/// network of the site's.
#[must_use]
pub(crate) fn not_made(
    report: Option<&PodState>,
    job: Option<&Run>,
    launch: Option<&LaunchReport>,
    is_plain: bool,
) -> Option<String> {
    // What Slurm has done to the job (cancelled, out of time) has another meaning.
    if job.is_some_and(|job| job.phase.is_over() && !matches!(job.phase, RunPhase::Failed | RunPhase::Completed)) {
        return None;
    }
    match report {
        Some(report) => {
            let is_untouched = !report.sandbox_ready && report.stopping.is_none() && report.all().all(has_not_begun);
            report.sandbox_error.clone().filter(|_| report.finished && is_untouched && is_plain)
        }
        // Without a supervisor no container was made. What the plan says, and host paths, are no node's.
        None => {
            let is_nodes = |l: &&LaunchReport| matches!(l.step.as_str(), "scratch" | "image" | "apptainer");
            let is_over = job.is_some_and(|job| job.phase.is_over());
            launch.filter(is_nodes).filter(|_| is_over).map(|l| l.message.clone())
        }
    }
}

fn has_not_begun(container: &ContainerState) -> bool {
    let waits = matches!(container.state, RunState::Waiting { .. });
    waits && container.restart_count == 0 && container.container_id.is_empty() && container.last_termination.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::state::StopCause;

    fn job(phase: RunPhase) -> Run {
        Run { phase, nodes: "c1".into(), ..Run::lost("7", "u") }
    }

    fn launch(step: &str) -> LaunchReport {
        LaunchReport { node: "c1".into(), step: step.into(), message: "no space".into(), ..LaunchReport::default() }
    }

    fn failed(change: impl FnOnce(&mut PodState)) -> PodState {
        let waits = ContainerState { name: "c".into(), ..ContainerState::default() };
        let mut state = PodState { finished: true, sandbox_error: Some("no TUN".into()), ..PodState::default() };
        state.containers = vec![waits];
        change(&mut state);
        state
    }

    #[test]
    fn only_where_nothing_has_begun() {
        let failed_job = job(RunPhase::Failed);
        let by = |state: &PodState| not_made(Some(state), Some(&failed_job), None, true);
        assert_eq!(not_made(Some(&failed(|_| ())), Some(&failed_job), None, false), None, "of plug-ins");
        assert_eq!(by(&failed(|_| ())).as_deref(), Some("no TUN"));
        assert_eq!(by(&failed(|s| s.finished = false)), None, "it is still at work");
        assert_eq!(by(&failed(|s| s.sandbox_error = None)), None);
        assert_eq!(by(&failed(|s| s.sandbox_ready = true)), None);
        assert_eq!(by(&failed(|s| s.stopping = Some(StopCause::Requested))), None);
        assert_eq!(by(&failed(|s| s.containers[0].restart_count = 1)), None);
        assert_eq!(by(&failed(|s| s.containers[0].container_id = "hpk://1".into())), None);
        assert_eq!(
            by(&failed(|s| s.containers[0].state = RunState::Running { started_at: jiff::Timestamp::UNIX_EPOCH })),
            None
        );
    }

    #[test]
    fn without_a_supervisor_the_step_tells() {
        for (step, phase, again) in [
            ("scratch", RunPhase::Failed, true),
            ("apptainer", RunPhase::Failed, true),
            ("image", RunPhase::Failed, true),
            ("scratch", RunPhase::Running, false),
            ("scratch", RunPhase::Cancelled, false),
            ("scratch", RunPhase::OutOfMemory, false),
            ("plan", RunPhase::Failed, false),
            ("supervisor", RunPhase::Failed, false),
            (hpk_api::state::HOST_PATH, RunPhase::Failed, false),
        ] {
            let found = not_made(None, Some(&job(phase)), Some(&launch(step)), false);
            assert_eq!(found.is_some(), again, "{step} {phase:?}");
        }
        assert_eq!(not_made(None, Some(&job(RunPhase::Failed)), None, true), None, "nobody says why");
    }

    #[test]
    fn the_tries_are_bounded() {
        let waits: Vec<_> = (1..).map_while(wait).map(|w| w.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        assert_eq!(wait(0), None, "nothing has failed");
    }
}
