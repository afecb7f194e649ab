//! One pod as the controller knows it. Plain data; only the controller's task changes it.

use super::prepare::Memory;
use super::unlinked::Unlinked;
use crate::executor::pace::Interest;
use crate::executor::run::{Run, RunPhase};
use crate::pods::admit::Refusal;
use crate::pods::folder::Record;
use crate::pods::phase;
use crate::pods::plan::Image;
use crate::pods::reconcile::{Stage, Stopping, View};
use crate::pods::status::{self, Waiting};
use crate::pods::submission::Submission;
use hpk_api::net::NetworkMode;
use hpk_api::plan::SandboxPlan;
use hpk_api::state::{LaunchReport, PodState, RunState, StopCause};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// What was done to end a pod, with times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stop {
    /// The supervisor was asked, with this grace period.
    pub asked: Option<u32>,
    /// TERM was sent through Slurm.
    pub signalled: bool,
    /// First of both.
    pub since: Option<Instant>,
    /// Last scancel.
    pub cancelled: Option<Instant>,
}

/// How the record on disk stands to the one in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Saving {
    /// They are one, or the time to try again is set.
    #[default]
    Idle,
    /// A write is under way.
    Writing,
    /// And the record has changed since it began.
    Outdated,
}

/// A pod whose link is down and of which there is no other news for this long is not ready, as upstream has it of a node
/// (kube-controller-manager's `--node-monitor-grace-period`).
pub const SILENCE: Duration = Duration::from_secs(40);

/// One pod.
#[derive(Debug)]
pub struct Entry {
    /// The API's object; None: it has none (any more).
    pub pod: Option<Arc<Pod>>,
    /// The kubelet's memory on disk.
    pub record: Record,
    /// Where the record's write is.
    pub saving: Saving,
    /// When to write it again, after a failure.
    pub save_at: Option<Instant>,
    /// Failed writes in a row.
    pub save_failures: u32,
    /// How far it is on its way to a job.
    pub submission: Submission,
    /// sbatch's arguments, while the record is being written.
    pub arguments: Vec<String>,
    /// What was wrong with its folder when the kubelet began, until it is told.
    pub trouble: Option<String>,
    /// The preparation that runs.
    pub preparing: Option<AbortHandle>,
    /// What it may have read already has changed since it began: if it does not get through, it is begun anew at once.
    pub outdated: bool,
    /// Not before this.
    pub retry_at: Option<Instant>,
    /// Between attempts; None while one has it.
    pub memory: Option<Memory>,
    /// Containers held back.
    pub held: BTreeMap<String, Waiting>,
    /// The kubelet's refusal.
    pub refused: Option<Refusal>,
    /// sbatch's refusal.
    pub submit_error: Option<String>,
    /// The supervisor's newest word.
    pub report: Option<PodState>,
    /// When it said that all is over.
    pub finished_at: Option<Instant>,
    /// hpk-netns' word.
    pub launch: Option<LaunchReport>,
    /// Slurm's newest word.
    pub job: Option<Run>,
    /// When the job came into its present state.
    pub job_since: Instant,
    /// Slurm has put it back into its queue, and its next supervisor has not spoken yet.
    pub put_back: bool,
    /// Queries in a row that did not find it.
    pub missed: u32,
    /// A link stands; its watcher.
    pub link: Option<AbortHandle>,
    /// Last news of its supervisor, or of its link.
    pub heard_at: Instant,
    /// The link server was told that the pod may link.
    pub may_link: bool,
    /// What is done while it runs without a link.
    pub unlinked: Unlinked,
    /// What was told of addresses that it has not.
    pub claimed: Option<String>,
    /// The stop.
    pub stop: Stop,
    /// The plan in force.
    pub plan: Option<Box<SandboxPlan>>,
    /// Images in use.
    pub images: BTreeMap<String, Image>,
    /// Ephemeral containers that the supervisor was told of.
    pub sent: Vec<String>,
    /// When to look for changed references again.
    pub refresh_at: Option<Instant>,
    /// The time for which there is a timer.
    pub refresh_timer: Option<Instant>,
    /// A refresh runs.
    pub refreshing: bool,
    /// Status that the API took last.
    pub posted: Option<PodStatus>,
    /// Status as it is now; the API may not have it yet.
    pub current: Option<PodStatus>,
    /// A patch is under way with this status.
    pub posting: bool,
    /// The API has the newest status.
    pub settled: bool,
    /// The API was told what was asked of Slurm.
    pub annotated: bool,
    /// Folder and object are being removed.
    pub removing: bool,
}

impl Entry {
    /// A pod, new or found again.
    #[must_use]
    pub fn new(record: Record, submission: Submission) -> Self {
        let job = record.ended.clone();
        Self {
            pod: None,
            record,
            saving: Saving::Idle,
            save_at: None,
            save_failures: 0,
            submission,
            arguments: Vec::new(),
            trouble: None,
            preparing: None,
            outdated: false,
            retry_at: None,
            memory: Some(Memory::default()),
            held: BTreeMap::new(),
            refused: None,
            submit_error: None,
            report: None,
            finished_at: None,
            launch: None,
            job,
            job_since: Instant::now(),
            put_back: false,
            missed: 0,
            link: None,
            heard_at: Instant::now(),
            may_link: false,
            unlinked: Unlinked::default(),
            claimed: None,
            stop: Stop::default(),
            plan: None,
            images: BTreeMap::new(),
            sent: Vec::new(),
            refresh_at: None,
            refresh_timer: None,
            refreshing: false,
            posted: None,
            current: None,
            posting: false,
            settled: false,
            annotated: false,
            removing: false,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.submission {
            Submission::Clear if self.preparing.is_some() => Stage::Preparing,
            Submission::Clear => Stage::New,
            Submission::Recording | Submission::Asking | Submission::Looking(_) => Stage::Submitting,
            Submission::Made => Stage::Submitted,
        }
    }

    /// Since when its supervisor, which had a link, is silent. None: it is not, or its end is known. Where a node cannot dial
    /// the kubelet there is no link to lose, and of a quiet pod no news.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        let runs = self.stage() == Stage::Submitted && self.job.as_ref().is_none_or(|j| j.phase == RunPhase::Running);
        let lost = runs && self.record.linked && self.link.is_none() && self.finished_at.is_none();
        lost.then_some(self.heard_at)
    }

    /// Takes a report of the supervisor if it is newer than what is known. Returns whether it was.
    pub fn take_report(&mut self, report: PodState, now: Instant) -> bool {
        if self.record.former_run.is_some() && self.record.former_run == report.started_at {
            return false;
        }
        let same_job = self.report.as_ref().is_some_and(|r| r.job_id == report.job_id);
        let same_run = self.report.as_ref().is_some_and(|r| r.started_at == report.started_at);
        if same_job && self.report.as_ref().is_some_and(|r| r.sequence >= report.sequence) {
            return false;
        }
        self.put_back &= same_run;
        self.heard_at = now;
        self.finished_at = report.finished.then(|| self.finished_at.unwrap_or(now));
        self.report = Some(report);
        // The last word of a supervisor whose job Slurm has put back meanwhile.
        if self.job.as_ref().is_some_and(|j| j.phase == RunPhase::Pending) && self.ended_by_slurm() {
            self.requeued();
        }
        true
    }

    /// The supervisor has ended its pod because Slurm told it to, not because it was done.
    fn ended_by_slurm(&self) -> bool {
        self.report.as_ref().is_some_and(|r| r.finished && r.stopping == Some(StopCause::Signal))
    }

    /// Takes Slurm's word. Returns whether it says something new.
    pub fn take_job(&mut self, job: Run, now: Instant) -> bool {
        self.missed = 0;
        if self.job.as_ref() == Some(&job) {
            return false;
        }
        if self.job.as_ref().is_none_or(|j| j.phase != job.phase) {
            self.job_since = now;
        }
        // A job that waits has no supervisor: what ended in its name was an earlier run.
        let waits_again = job.phase == RunPhase::Pending && self.ended_by_slurm();
        if waits_again || self.job.as_ref().is_some_and(|old| old.was_requeued(&job)) {
            self.requeued();
        }
        // Until its next supervisor speaks.
        self.put_back &= !job.phase.is_over();
        self.job = Some(job);
        true
    }

    /// Slurm runs the job from its beginning once more. The next supervisor goes on from this one's counts and event
    /// numbers.
    fn requeued(&mut self) {
        self.launch = None;
        self.put_back = true;
        self.record.linked = false;
        let ended = self.ended_by_slurm();
        let Some(report) = self.report.as_mut().filter(|report| !report.finished || ended) else { return };
        if ended {
            self.finished_at = None;
            self.record.former_run = report.started_at;
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

    /// For [`crate::pods::reconcile`].
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let meta = self.pod.as_ref().map(|p| &p.metadata);
        let deleting = meta
            .filter(|m| m.deletion_timestamp.is_some())
            .map(|m| m.deletion_grace_period_seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(0));
        let age = |at: Option<Instant>| at.map(|t| now.saturating_duration_since(t));
        View {
            in_api: self.pod.is_some(),
            deleting,
            terminal: self
                .pod
                .as_ref()
                .and_then(|p| p.status.as_ref())
                .is_some_and(|s| phase::is_terminal(s.phase.as_deref())),
            refused: self.refused.is_some(),
            stage: self.stage(),
            job: self.job.as_ref().map(|j| (j.phase, j.is_gone())),
            finished: age(self.finished_at),
            linked: self.link.is_some(),
            stopping: Stopping {
                asked: self.stop.asked,
                signalled: self.stop.signalled,
                since: age(self.stop.since),
                cancelled: age(self.stop.cancelled),
            },
            posted: self.settled,
        }
    }

    /// Whether it may have a link: as long as there is, or may be, a job of its that runs or will.
    #[must_use]
    pub fn is_to_link(&self) -> bool {
        match self.stage() {
            Stage::New => false,
            // The preparation issues what the job finds.
            Stage::Preparing => self.may_link,
            Stage::Submitting | Stage::Submitted => !self.job.as_ref().is_some_and(Run::is_gone),
        }
    }

    /// Its network, as its job was begun.
    #[must_use]
    pub fn network_mode(&self) -> Option<NetworkMode> {
        self.plan.as_ref().map(|plan| plan.network.mode)
    }

    /// Whether an address is its own; one of the node's network is not.
    #[must_use]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let lives = self.stage() != Stage::New && !self.job.as_ref().is_some_and(Run::is_gone);
        let said = self.report.as_ref().filter(|_| self.network_mode() != Some(NetworkMode::Host));
        lives && (self.record.pod_ips.contains(&ip) || said.is_some_and(|report| report.pod_ips.contains(&ip)))
    }

    /// It runs, is not being ended, and has no link.
    #[must_use]
    pub fn lacks_link(&self) -> bool {
        let runs = self.job.as_ref().is_some_and(|job| job.phase == RunPhase::Running);
        self.stage() == Stage::Submitted
            && runs
            && self.link.is_none()
            && self.finished_at.is_none()
            && self.stop.since.is_none()
    }

    /// Whether the Node's ports that it asks for are its own: from when it was taken until it has ended.
    #[must_use]
    pub fn holds_ports(&self) -> bool {
        let known = self.current.as_ref().or_else(|| self.pod.as_ref()?.status.as_ref());
        self.refused.is_none() && !phase::is_terminal(known.and_then(|s| s.phase.as_deref()))
    }

    /// The node where its job ended in another way than by itself: what it had there may have stayed.
    #[must_use]
    pub fn left_on(&self) -> Option<String> {
        let job = self.job.as_ref().filter(|job| job.is_gone())?;
        let by_itself = matches!(job.phase, RunPhase::Completed | RunPhase::Failed);
        let in_order = by_itself && self.report.as_ref().is_some_and(|report| report.finished);
        if in_order { None } else { job.batch_host() }
    }

    /// For [`crate::executor::pace`]; None: Slurm need not be asked about it.
    #[must_use]
    pub fn interest(&self, now: Instant) -> Option<Interest> {
        if let Some(search) = self.submission.search() {
            return Some(Interest::Sought(now.saturating_duration_since(search.since()), search.is_fresh()));
        }
        if self.stage() != Stage::Submitted || self.job.as_ref().is_some_and(Run::is_gone) {
            return None;
        }
        let age = now.saturating_duration_since(self.job_since);
        if let Some(at) = [self.finished_at, self.stop.cancelled, self.stop.since].into_iter().flatten().max() {
            return Some(Interest::Ending(now.saturating_duration_since(at)));
        }
        Some(match &self.job {
            Some(job) if job.phase.is_over() => Interest::Ending(age),
            Some(job) if job.phase == RunPhase::Running => {
                if self.link.is_some() {
                    Interest::Linked
                } else {
                    Interest::Unlinked(age)
                }
            }
            _ => Interest::Pending(age),
        })
    }

    /// The status as it should be; None without an API object.
    #[must_use]
    pub fn status(&self, host_ip: IpAddr, now: Timestamp) -> Option<PodStatus> {
        let pod = self.pod.as_ref()?;
        let empty = PodStatus::default();
        let previous = self.posted.as_ref().or(pod.status.as_ref()).unwrap_or(&empty);
        // It was over before this kubelet began anything for it (an earlier one refused it, say): there is nothing to add.
        if self.stage() == Stage::New && self.refused.is_none() && phase::is_terminal(previous.phase.as_deref()) {
            return Some(previous.clone());
        }
        Some(status::status(status::Input {
            pod,
            previous,
            report: self.report.as_ref(),
            job: self.job.as_ref(),
            launch: self.launch.as_ref(),
            held: &self.held,
            images: &self.record.images,
            granted: &self.record.granted,
            refused: self.refused.as_ref(),
            submit_error: self.submit_error.as_deref(),
            put_back: self.put_back,
            silent: self.silent_since().is_some_and(|since| since.elapsed() >= SILENCE),
            host_ip,
            seen_at: self.record.seen_at,
            now,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::PodRef;
    use hpk_api::state::{ContainerState, Termination};

    fn entry() -> Entry {
        let record = Record::new(PodRef::default(), Timestamp::UNIX_EPOCH);
        Entry::new(record, Submission::Made)
    }

    fn job(state: RunPhase) -> Run {
        Run { phase: state, ..Run::lost("7", "") }
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
    fn waits(entry: &Entry) -> bool {
        let report = entry.report.as_ref().unwrap();
        let container = &report.containers[0];
        !report.finished
            && entry.finished_at.is_none()
            && matches!(container.state, RunState::Waiting { .. })
            && container.last_termination.as_ref().is_some_and(|t| t.exit_code == 137)
    }

    #[test]
    fn a_pod_that_ended_for_a_requeue_goes_on_whoever_says_it_first() {
        let now = Instant::now();
        for slurm_first in [false, true] {
            let mut entry = entry();
            entry.take_job(job(RunPhase::Running), now);
            entry.take_report(report(1, 5, false), now);
            if slurm_first {
                entry.take_job(job(RunPhase::Pending), now);
            }
            entry.take_report(report(1, 6, true), now);
            if !slurm_first {
                assert!(entry.finished_at.is_some());
                entry.take_job(job(RunPhase::Pending), now);
            }
            assert!(waits(&entry) && entry.put_back, "{slurm_first}");
            // As it stays on disk, seen when the job runs again and its supervisor has not spoken yet.
            assert!(!entry.take_report(report(1, 6, true), now) && waits(&entry));
            entry.take_job(job(RunPhase::Running), now);
            assert!(entry.take_report(report(2, 7, false), now) && !entry.put_back);
            let now_runs = &entry.report.as_ref().unwrap().containers[0].state;
            assert!(matches!(now_runs, RunState::Running { .. }), "{now_runs:?}");
        }
    }

    #[test]
    fn a_job_that_did_not_end_by_itself_may_have_left_something() {
        let now = Instant::now();
        let left = |state, finished, completing| {
            let mut entry = entry();
            entry.take_report(report(1, 5, finished), now);
            entry.take_job(Run { nodes: "c[1-2]".to_owned(), completing, ..job(state) }, now);
            entry.left_on()
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
    fn what_was_over_before_stays_as_it_was_told() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"generation": 2},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Failed", "reason": "NodePorts"},
        }))
        .unwrap();
        let told = pod.status.clone();
        let entry = Entry { pod: Some(Arc::new(pod)), submission: Submission::Clear, ..entry() };
        assert_eq!(entry.status("10.0.0.1".parse().unwrap(), Timestamp::UNIX_EPOCH), told);
    }

    #[test]
    fn a_kubelet_that_was_away_meanwhile_takes_it_the_same() {
        let now = Instant::now();
        let mut entry = entry();
        // From the disk, before Slurm was asked.
        entry.take_report(report(1, 6, true), now);
        entry.take_job(job(RunPhase::Pending), now);
        assert!(waits(&entry) && entry.put_back);
        // And after one more restart, by what it has written down.
        let mut again = Entry::new(entry.record.clone(), Submission::Made);
        again.take_job(job(RunPhase::Running), now);
        assert!(!again.take_report(report(1, 6, true), now));
    }

    #[test]
    fn silence_is_that_of_a_link_that_stood() {
        let now = Instant::now();
        let mut entry = entry();
        entry.take_job(job(RunPhase::Running), now);
        entry.take_report(report(1, 5, false), now);
        assert_eq!(entry.silent_since(), None, "its node may be one that cannot dial");
        entry.record.linked = true;
        assert_eq!(entry.silent_since(), Some(now));
        let later = now + Duration::from_secs(5);
        entry.take_report(report(1, 6, false), later);
        assert_eq!(entry.silent_since(), Some(later), "by its file");
        entry.take_job(job(RunPhase::NodeFail), later);
        assert_eq!(entry.silent_since(), None, "Slurm has said what became of it");
    }

    #[test]
    fn a_pod_that_was_done_is_done() {
        let now = Instant::now();
        let mut entry = entry();
        // Its link was faster than Slurm's word of its start.
        entry.take_job(job(RunPhase::Pending), now);
        entry.take_report(PodState { stopping: None, ..report(1, 6, true) }, now);
        assert!(entry.finished_at.is_some() && entry.report.as_ref().is_some_and(|r| r.finished));
    }
}
