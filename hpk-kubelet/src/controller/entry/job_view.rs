//! A pod's job as Slurm and the pod's supervisor tell of it. Neither knows all: only the supervisor knows how containers end,
//! only Slurm that a job is put back into its queue.

use crate::executor::run::{Run, RunPhase};
use crate::pods::folder::Record;
use hpk_api::state::{LaunchReport, PodEvent, PodState, RunState, StopCause};
use std::net::IpAddr;
use std::time::Instant;

/// A job that neither squeue nor sacct know is given up after so many queries.
const MISSES: u32 = 4;

#[derive(Debug)]
pub(crate) struct JobView {
    /// Slurm's newest word.
    job: Option<Run>,
    /// When the job came into its present state.
    since: Instant,
    /// Slurm has put it back into its queue, and its next supervisor has not spoken yet.
    put_back: bool,
    /// Queries in a row that did not find it.
    missed: u32,
    /// The supervisor's newest word.
    report: Option<PodState>,
    /// When it said that all is over.
    finished_at: Option<Instant>,
    /// hpk-netns' word on a start that failed.
    launch: Option<LaunchReport>,
}

impl JobView {
    /// `ended`: how the job ended, where the record says so.
    pub(crate) fn new(ended: Option<Run>, now: Instant) -> Self {
        Self { job: ended, since: now, put_back: false, missed: 0, report: None, finished_at: None, launch: None }
    }

    // ---- what is known

    pub(crate) fn job(&self) -> Option<&Run> {
        self.job.as_ref()
    }

    pub(crate) fn report(&self) -> Option<&PodState> {
        self.report.as_ref()
    }

    pub(crate) fn launch(&self) -> Option<&LaunchReport> {
        self.launch.as_ref()
    }

    /// When the supervisor said that all is over.
    pub(crate) fn finished_at(&self) -> Option<Instant> {
        self.finished_at
    }

    /// When the job came into its present state.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn put_back(&self) -> bool {
        self.put_back
    }

    /// Its processes are gone, and so is what they had on their node.
    pub(crate) fn is_gone(&self) -> bool {
        self.job.as_ref().is_some_and(Run::is_gone)
    }

    /// Nothing of the pod runs any more, whoever says so.
    pub(crate) fn is_over(&self) -> bool {
        self.finished_at.is_some() || self.job.as_ref().is_some_and(|job| job.phase.is_over())
    }

    /// The node where the job ended in another way than by itself: what it had there may have stayed.
    pub(crate) fn left_on(&self) -> Option<String> {
        let job = self.job.as_ref().filter(|job| job.is_gone())?;
        let by_itself = matches!(job.phase, RunPhase::Completed | RunPhase::Failed);
        let in_order = by_itself && self.report.as_ref().is_some_and(|report| report.finished);
        if in_order { None } else { job.batch_host() }
    }

    /// The supervisor's events after number `last`.
    pub(crate) fn events_after(&self, last: u64) -> impl Iterator<Item = &PodEvent> {
        self.report.iter().flat_map(|report| &report.events).filter(move |event| event.sequence > last)
    }

    // ---- what is heard

    /// The job has just been made.
    pub(crate) fn made(&mut self, now: Instant) {
        self.since = now;
    }

    /// Takes a report of the supervisor if it is newer than what is known. Returns whether it was.
    pub(crate) fn take_report(&mut self, report: PodState, record: &mut Record, now: Instant) -> bool {
        if record.former_run.is_some() && record.former_run == report.started_at {
            return false;
        }
        if record.failed_jobs.iter().any(|id| report.job_id.as_deref() == Some(id.as_str())) {
            return false;
        }
        let same_job = self.report.as_ref().is_some_and(|r| r.job_id == report.job_id);
        let same_run = self.report.as_ref().is_some_and(|r| r.started_at == report.started_at);
        if same_job && self.report.as_ref().is_some_and(|r| r.sequence >= report.sequence) {
            return false;
        }
        self.put_back &= same_run;
        self.finished_at = report.finished.then(|| self.finished_at.unwrap_or(now));
        self.report = Some(report);
        // The last word of a supervisor whose job Slurm has put back meanwhile.
        if self.job.as_ref().is_some_and(|j| j.phase == RunPhase::Pending) && self.ended_by_slurm() {
            self.requeued(record);
        }
        true
    }

    /// Takes Slurm's word. Returns whether it says something new.
    pub(crate) fn take_job(&mut self, job: Run, record: &mut Record, now: Instant) -> bool {
        self.missed = 0;
        if self.job.as_ref() == Some(&job) {
            return false;
        }
        if self.job.as_ref().is_none_or(|j| j.phase != job.phase) {
            self.since = now;
        }
        // A job that waits has no supervisor: what ended in its name was an earlier run.
        let waits_again = job.phase == RunPhase::Pending && self.ended_by_slurm();
        if waits_again || self.job.as_ref().is_some_and(|old| old.was_requeued(&job)) {
            self.requeued(record);
        }
        // Until its next supervisor speaks.
        self.put_back &= !job.phase.is_over();
        self.job = Some(job);
        true
    }

    /// A query did not find job `id`. Returns it as lost once it is given up; where it ran is still known.
    pub(crate) fn missed(&mut self, id: &str, uid: &str, complete: bool) -> Option<Run> {
        self.missed = self.missed.saturating_add(1);
        let given_up = complete && self.missed >= MISSES;
        given_up.then(|| {
            let nodes = self.job.as_ref().map(|job| job.nodes.clone()).unwrap_or_default();
            Run { nodes, ..Run::lost(id, uid) }
        })
    }

    pub(crate) fn take_launch(&mut self, launch: Option<LaunchReport>) {
        self.launch = launch;
    }

    /// Only these of the addresses in the newest report are believed.
    pub(crate) fn believe(&mut self, addresses: Vec<IpAddr>) {
        if let Some(report) = &mut self.report {
            report.pod_ips = addresses;
        }
    }

    /// The supervisor has ended its pod because Slurm told it to, not because it was done.
    fn ended_by_slurm(&self) -> bool {
        self.report.as_ref().is_some_and(|r| r.finished && r.stopping == Some(StopCause::Signal))
    }

    /// Slurm runs the job from its beginning once more. The next supervisor goes on from this one's counts and event
    /// numbers.
    fn requeued(&mut self, record: &mut Record) {
        self.launch = None;
        self.put_back = true;
        record.linked = false;
        let ended = self.ended_by_slurm();
        let Some(report) = self.report.as_mut().filter(|report| !report.finished || ended) else { return };
        if ended {
            self.finished_at = None;
            record.former_run = report.started_at;
            report.finished = false;
            report.stopping = None;
        }
        report.sequence = 0;
        report.events.clear();
        report.pod_ips.clear();
        report.sandbox_ready = false;
        for container in report.planned_mut() {
            match &container.state {
                RunState::Terminated(end) if ended => container.last_termination = Some(end.clone()),
                RunState::Running { .. } => {}
                _ => continue,
            }
            container.state = RunState::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
            container.ready = false;
            container.started = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::PodRef;
    use hpk_api::state::{ContainerState, Termination};
    use jiff::Timestamp;

    fn new() -> (JobView, Record) {
        (JobView::new(None, Instant::now()), Record::new(PodRef::default(), Timestamp::UNIX_EPOCH))
    }

    fn job(phase: RunPhase) -> Run {
        Run { phase, ..Run::lost("7", "") }
    }

    /// Of the run that began at second `run`; `finished` because Slurm told it to end.
    fn report(run: i64, sequence: u64, finished: bool) -> PodState {
        let started_at = Timestamp::from_second(run).unwrap();
        let state = if finished {
            RunState::Terminated(Termination {
                exit_code: 137,
                signal: Some(9),
                reason: "Error".to_owned(),
                message: String::new(),
                started_at: Some(started_at),
                finished_at: started_at,
                container_id: "hpk://1".to_owned(),
            })
        } else {
            RunState::Running { started_at }
        };
        PodState {
            job_id: Some("7".to_owned()),
            started_at: Some(started_at),
            sequence,
            finished,
            stopping: finished.then_some(StopCause::Signal),
            containers: vec![ContainerState { name: "c".to_owned(), state, ..ContainerState::default() }],
            ..PodState::default()
        }
    }

    /// It waits, with the former run's end, and is not over.
    fn waits(view: &JobView) -> bool {
        let report = view.report.as_ref().unwrap();
        let container = &report.containers[0];
        !report.finished
            && view.finished_at.is_none()
            && matches!(container.state, RunState::Waiting { .. })
            && container.last_termination.as_ref().is_some_and(|t| t.exit_code == 137)
    }

    #[test]
    fn a_pod_that_ended_for_a_requeue_goes_on_whoever_says_it_first() {
        let now = Instant::now();
        for slurm_first in [false, true] {
            let (mut view, mut record) = new();
            view.take_job(job(RunPhase::Running), &mut record, now);
            view.take_report(report(1, 5, false), &mut record, now);
            if slurm_first {
                view.take_job(job(RunPhase::Pending), &mut record, now);
            }
            view.take_report(report(1, 6, true), &mut record, now);
            if !slurm_first {
                assert!(view.finished_at.is_some());
                view.take_job(job(RunPhase::Pending), &mut record, now);
            }
            assert!(waits(&view) && view.put_back, "{slurm_first}");
            // As it stays on disk, seen when the job runs again and its supervisor has not spoken yet.
            assert!(!view.take_report(report(1, 6, true), &mut record, now) && waits(&view));
            view.take_job(job(RunPhase::Running), &mut record, now);
            assert!(view.take_report(report(2, 7, false), &mut record, now) && !view.put_back);
            let now_runs = &view.report.as_ref().unwrap().containers[0].state;
            assert!(matches!(now_runs, RunState::Running { .. }), "{now_runs:?}");
        }
    }

    #[test]
    fn a_job_that_did_not_end_by_itself_may_have_left_something() {
        let now = Instant::now();
        let left = |state, finished, completing| {
            let (mut view, mut record) = new();
            view.take_report(report(1, 5, finished), &mut record, now);
            view.take_job(Run { nodes: "c[1-2]".to_owned(), completing, ..job(state) }, &mut record, now);
            view.left_on()
        };
        for state in [RunPhase::Completed, RunPhase::Failed] {
            assert_eq!(left(state, true, false), None, "{state:?}");
            assert_eq!(left(state, false, false).as_deref(), Some("c1"), "{state:?}: nobody saw its end");
        }
        // Its supervisor had the time to end, what came after it perhaps not.
        for state in [RunPhase::Timeout, RunPhase::Cancelled, RunPhase::OutOfMemory, RunPhase::Lost] {
            assert_eq!(left(state, true, false).as_deref(), Some("c1"), "{state:?}");
            assert_eq!(left(state, true, true), None, "{state:?}: not yet");
        }
        assert_eq!(left(RunPhase::Running, false, false), None);
    }

    #[test]
    fn a_kubelet_that_was_away_meanwhile_takes_it_the_same() {
        let now = Instant::now();
        let (mut view, mut record) = new();
        // From the disk, before Slurm was asked.
        view.take_report(report(1, 6, true), &mut record, now);
        view.take_job(job(RunPhase::Pending), &mut record, now);
        assert!(waits(&view) && view.put_back);
        // And after one more restart, by what it has written down.
        let mut again = JobView::new(None, now);
        again.take_job(job(RunPhase::Running), &mut record, now);
        assert!(!again.take_report(report(1, 6, true), &mut record, now));
    }

    #[test]
    fn a_pod_that_was_done_is_done() {
        let now = Instant::now();
        let (mut view, mut record) = new();
        // Its link was faster than Slurm's word of its start.
        view.take_job(job(RunPhase::Pending), &mut record, now);
        view.take_report(PodState { stopping: None, ..report(1, 6, true) }, &mut record, now);
        assert!(view.finished_at.is_some() && view.report.as_ref().is_some_and(|r| r.finished));
    }

    #[test]
    fn a_job_that_nobody_knows_is_given_up_after_complete_answers_alone() {
        let now = Instant::now();
        let (mut view, mut record) = new();
        view.take_job(Run { nodes: "c1".to_owned(), ..job(RunPhase::Running) }, &mut record, now);
        for _ in 1..MISSES {
            assert_eq!(view.missed("7", "u", true), None);
        }
        assert_eq!(view.missed("7", "u", false), None, "sacct did not answer");
        let lost = view.missed("7", "u", true).unwrap();
        assert_eq!((lost.phase, lost.nodes.as_str()), (RunPhase::Lost, "c1"));
        view.take_job(job(RunPhase::Running), &mut record, now);
        assert_eq!(view.missed("7", "u", true), None, "counted anew");
    }
}
