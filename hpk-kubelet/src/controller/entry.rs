//! One pod as the controller knows it. Plain data; only the controller's task changes it.

use super::prepare::Memory;
use crate::pods::admit::Refusal;
use crate::pods::folder::{Progress, Record};
use crate::pods::phase;
use crate::pods::plan::Image;
use crate::pods::reconcile::{Stage, Stopping, View};
use crate::pods::status::{self, Waiting};
use crate::slurm::job::Job;
use crate::slurm::pace::Interest;
use hpk_api::plan::SandboxPlan;
use hpk_api::state::{LaunchReport, PodState, RunState};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
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

/// One pod.
#[derive(Debug)]
pub struct Entry {
    /// The API's object; None: it has none (any more).
    pub pod: Option<Arc<Pod>>,
    /// The kubelet's memory on disk.
    pub record: Record,
    /// How far it is.
    pub stage: Stage,
    /// The preparation that runs.
    pub preparing: Option<AbortHandle>,
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
    pub job: Option<Job>,
    /// When the job came into its present state.
    pub job_since: Instant,
    /// Queries in a row that did not find it.
    pub missed: u32,
    /// A link stands; its watcher.
    pub link: Option<AbortHandle>,
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
    /// Folder and object are being removed.
    pub removing: bool,
}

impl Entry {
    /// A pod, new or found again.
    #[must_use]
    pub fn new(record: Record, pod: Option<Arc<Pod>>) -> Self {
        let stage = match record.progress {
            Progress::New => Stage::New,
            Progress::Submitting => Stage::Submitting,
            Progress::Submitted => Stage::Submitted,
        };
        let job = record.ended.clone();
        Self {
            pod,
            record,
            stage,
            preparing: None,
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
            missed: 0,
            link: None,
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
            removing: false,
        }
    }

    /// Takes a report of the supervisor if it is newer than what is known. Returns whether it was.
    pub fn take_report(&mut self, report: PodState, now: Instant) -> bool {
        let same_job = self.report.as_ref().is_some_and(|r| r.job_id == report.job_id);
        if same_job && self.report.as_ref().is_some_and(|r| r.sequence >= report.sequence) {
            return false;
        }
        if report.finished && self.finished_at.is_none() {
            self.finished_at = Some(now);
        }
        self.report = Some(report);
        true
    }

    /// Takes Slurm's word. Returns whether it says something new.
    pub fn take_job(&mut self, job: Job, now: Instant) -> bool {
        self.missed = 0;
        if self.job.as_ref() == Some(&job) {
            return false;
        }
        if self.job.as_ref().is_none_or(|j| j.state != job.state) {
            self.job_since = now;
        }
        if self.job.as_ref().is_some_and(|old| old.was_requeued(&job)) {
            self.requeued();
        }
        self.job = Some(job);
        true
    }

    /// Slurm runs the job from its beginning once more. The next supervisor goes on from this one's counts, but it
    /// numbers its reports and events from 1 again.
    fn requeued(&mut self) {
        self.record.last_event = 0;
        self.launch = None;
        let Some(report) = self.report.as_mut().filter(|report| !report.finished) else { return };
        report.sequence = 0;
        report.events.clear();
        report.pod_ips.clear();
        report.sandbox_ready = false;
        for container in report.init_containers.iter_mut().chain(&mut report.containers) {
            if matches!(container.state, RunState::Running { .. }) {
                container.state = RunState::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
            }
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
            stage: self.stage,
            job: self.job.as_ref().map(|j| (j.state, j.is_gone())),
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

    /// For [`crate::slurm::pace`]; None: Slurm need not be asked about it.
    #[must_use]
    pub fn interest(&self, now: Instant) -> Option<Interest> {
        if self.stage != Stage::Submitted || self.job.as_ref().is_some_and(Job::is_gone) {
            return None;
        }
        let age = now.saturating_duration_since(self.job_since);
        if let Some(at) = [self.finished_at, self.stop.cancelled, self.stop.since].into_iter().flatten().max() {
            return Some(Interest::Ending(now.saturating_duration_since(at)));
        }
        Some(match &self.job {
            Some(job) if job.state.is_over() => Interest::Ending(age),
            Some(job) if job.state == crate::slurm::job::JobState::Running => {
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
        Some(status::status(status::Input {
            pod,
            previous,
            report: self.report.as_ref(),
            job: self.job.as_ref(),
            launch: self.launch.as_ref(),
            held: &self.held,
            images: &self.record.images,
            refused: self.refused.as_ref(),
            submit_error: self.submit_error.as_deref(),
            host_ip,
            seen_at: self.record.seen_at,
            now,
        }))
    }
}
