//! What a gang's job and its agent's word mean for one member: the view of a job that the rest of the kubelet has of any pod.
//! It does no I/O.

use crate::executor::run::{Run, RunPhase};
use hpk_api::gang::{MemberFile, Wish};
use std::path::Path;

/// What is known of one member of an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    pub uid: &'a str,
    /// Its number in the gang.
    pub number: usize,
    /// The pod's folder.
    pub folder: &'a Path,
    /// The allocation's job.
    pub job: &'a Run,
    /// The agent's word; None: the member's step was never begun.
    pub file: Option<&'a MemberFile>,
    /// What is wanted of it, as it stands in `gang.json` on disk.
    pub wish: Wish,
}

/// The member's own job, as it were: that of its step, as far as there is one.
#[must_use]
pub(crate) fn view(known: &Known<'_>) -> Run {
    let Known { uid, number, folder, job, file, wish } = *known;
    let id = super::run_id(&job.id, number);
    let own = Run { id, pod: uid.to_owned(), folder: folder.display().to_string(), ..job.clone() };
    let gone = |phase, exit_code, ended_at| Run { phase, completing: false, exit_code, ended_at, ..own.clone() };
    match file {
        Some(MemberFile { node, started_at, ended: Some(end) }) => {
            let state = match (end.killed, end.exit_code) {
                (true, _) => RunPhase::Cancelled,
                // When all of the job ends, the steps end first: Slurm knows why.
                (false, code) if code != 0 && ends_all(job) => job.phase,
                (false, 0) => RunPhase::Completed,
                (false, _) => RunPhase::Failed,
            };
            Run { nodes: node.clone(), started_at: Some(*started_at), ..gone(state, Some(end.exit_code), Some(end.at)) }
        }
        Some(MemberFile { node, started_at, ended: None }) => {
            Run { nodes: node.clone(), started_at: Some(*started_at), ..own }
        }
        None if job.phase.is_over() => own,
        // Taken out before it began; by then the agent, if there is one, has been told.
        None if job.phase == RunPhase::Pending && wish != Wish::Run => gone(RunPhase::Cancelled, None, job.ended_at),
        // The allocation is there, its own step not yet.
        None => {
            let why = "its place in the allocation is being given to it".to_owned();
            let (reason, why) = if job.phase == RunPhase::Pending {
                (job.reason.clone(), job.why.clone())
            } else {
                (String::new(), why)
            };
            Run { phase: RunPhase::Pending, started_at: None, reason, why, ..own }
        }
    }
}

/// Slurm, not the members, ended the job.
fn ends_all(job: &Run) -> bool {
    job.phase.is_over() && !matches!(job.phase, RunPhase::Completed | RunPhase::Failed | RunPhase::Lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::gang::MemberEnd;
    use jiff::Timestamp;

    #[test]
    fn views() {
        use RunPhase as J;
        let job = |phase: J| Run { phase, nodes: "c[1-2]".into(), pod: "g".into(), ..Run::lost("7", "g") };
        let at = Timestamp::UNIX_EPOCH;
        let file = |code: Option<i32>, killed| MemberFile {
            node: "c2".into(),
            started_at: at,
            ended: code.map(|exit_code| MemberEnd { exit_code, at, killed }),
        };
        let runs = file(None, false);
        let (done, failed, killed) = (file(Some(0), false), file(Some(7), false), file(Some(137), true));
        for (state, file, wish, want, gone, node) in [
            (J::Pending, None, Wish::Run, J::Pending, false, "c[1-2]"),
            (J::Pending, None, Wish::Kill, J::Cancelled, true, "c[1-2]"),
            (J::Running, None, Wish::Run, J::Pending, false, "c[1-2]"),
            (J::Running, None, Wish::Kill, J::Pending, false, "c[1-2]"),
            (J::Running, Some(&runs), Wish::Run, J::Running, false, "c2"),
            (J::Running, Some(&done), Wish::Run, J::Completed, true, "c2"),
            (J::Running, Some(&failed), Wish::Run, J::Failed, true, "c2"),
            (J::Running, Some(&killed), Wish::Kill, J::Cancelled, true, "c2"),
            (J::Failed, Some(&failed), Wish::Run, J::Failed, true, "c2"),
            (J::Failed, Some(&done), Wish::Run, J::Completed, true, "c2"),
            (J::Timeout, Some(&failed), Wish::Run, J::Timeout, true, "c2"),
            (J::Timeout, Some(&done), Wish::Run, J::Completed, true, "c2"),
            (J::NodeFail, Some(&runs), Wish::Run, J::NodeFail, true, "c2"),
            (J::Cancelled, None, Wish::Run, J::Cancelled, true, "c[1-2]"),
        ] {
            let job = job(state);
            let view = view(&Known { uid: "u", number: 3, folder: Path::new("/h/pods/u"), job: &job, file, wish });
            assert_eq!((view.phase, view.is_gone(), view.nodes.as_str()), (want, gone, node), "{state:?} {file:?}");
            assert!(view.pod_in(Path::new("/h/pods")) == Some("u") && view.id == "7/3");
        }
    }
}
