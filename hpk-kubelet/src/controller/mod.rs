//! The controller: one task that owns every pod's entry and decides; all that waits are tasks that send it events.
//!
//! ```text
//!  pod watch ─┐                                   ┌─▶ prepare (images, references, plan, files)
//!  squeue    ─┤        ┌─────────────────┐        ├─▶ submit (look, sbatch)
//!  links     ─┼─Event─▶│ entries by UID  │─Step──▶├─▶ ask the supervisor, scancel
//!  reports   ─┤        │ reconcile::next │        ├─▶ status patch, events
//!  tasks     ─┘        └─────────────────┘        └─▶ remove folder and object
//! ```
//! It never waits for I/O itself (but short reads and writes of a pod's own small files), and nothing that a pod
//! contains can end it.

pub mod context;
pub mod entry;
pub mod prepare;
pub mod pull;
mod tasks;

use crate::api::events::Note;
use crate::pods::address::Pool;
use crate::pods::admit;
use crate::pods::folder::{self, Progress, Record};
use crate::pods::reconcile::{self, Stage, Step};
use crate::pods::status::{self, Waiting};
use crate::slurm::client::SlurmError;
use crate::slurm::job::{Job, JobState};
use crate::slurm::pace;
use context::Context;
use entry::Entry;
use hpk_api::net::NetworkMode;
use hpk_api::plan::PodRef;
use hpk_api::state::PodState;
use hpk_link::server::LinkEvent;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use prepare::{Held, Memory, Ready, Refreshed};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// References are looked at again this often (upstream's syncFrequency).
const REFRESH: Duration = Duration::from_secs(45);
/// A job that neither squeue nor sacct know is given up after so many queries.
const MISSES: u32 = 4;

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The API has this pod.
    Applied(Arc<Pod>),
    /// The API has it no more.
    Deleted(Arc<Pod>),
    /// These are all that the API has (UIDs).
    Listed(HashSet<String>),
    /// An attempt to prepare ended.
    Prepared {
        /// Pod.
        uid: String,
        /// How.
        result: Box<Result<Ready, Held>>,
        /// For the next attempt.
        memory: Box<Memory>,
    },
    /// sbatch ended.
    Submitted {
        /// Pod.
        uid: String,
        /// Job id.
        result: Result<String, SlurmError>,
    },
    /// A refresh of a running pod ended.
    Refreshed {
        /// Pod.
        uid: String,
        /// How.
        result: Box<Result<Refreshed, Held>>,
        /// For the next one.
        memory: Box<Memory>,
    },
    /// Slurm answered about these jobs.
    Jobs {
        /// Ids asked for.
        asked: Vec<String>,
        /// Those that are known.
        found: Vec<Job>,
        /// sacct was asked about the missing ones, too.
        complete: bool,
    },
    /// Slurm did not answer.
    JobsFailed,
    /// A link.
    Link(LinkEvent),
    /// A supervisor reports.
    Report {
        /// Pod.
        uid: String,
        /// Its word.
        state: Box<PodState>,
    },
    /// A status patch ended.
    Posted {
        /// Pod.
        uid: String,
        /// What was posted.
        status: Box<PodStatus>,
        /// None: taken. Some: try again after this long.
        retry: Option<Duration>,
    },
    /// A request to the supervisor to stop failed.
    StopFailed {
        /// Pod.
        uid: String,
    },
    /// Folder and object are gone, or not yet.
    Removed {
        /// Pod.
        uid: String,
        /// Whether all is gone.
        done: bool,
    },
}

/// Sends events to the controller.
pub type Sender = mpsc::Sender<Event>;

/// A pod as others (the kubelet API) see it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The object, with the kubelet's own status.
    pub pod: Arc<Pod>,
    /// A link stands.
    pub linked: bool,
}

/// All pods by UID.
pub type Pods = HashMap<String, PodInfo>;

/// The controller.
pub struct Controller {
    ctx: Context,
    tx: Sender,
    entries: HashMap<String, Entry>,
    pool: Option<Pool>,
    /// When to look at an entry again.
    timers: BinaryHeap<Reverse<(Instant, String)>>,
    /// A query of Slurm runs.
    asking: bool,
    asked_at: Instant,
    /// The first list of pods has come: objects that are missing are gone.
    listed: bool,
    seen: watch::Sender<Pods>,
}

impl Controller {
    /// A controller with the pods that earlier runs left on disk.
    #[must_use]
    pub fn new(ctx: Context, tx: Sender, seen: watch::Sender<Pods>) -> Self {
        let mut entries = HashMap::new();
        for uid in folder::all(&ctx.home.pods()) {
            let home = ctx.folder(&uid);
            let Some(record) = home.record() else {
                // Made but never begun: nothing can run in it.
                tracing::info!(%uid, "a pod folder without record is left for its pod to come");
                continue;
            };
            let mut entry = Entry::new(record, None);
            if entry.stage == Stage::Submitted {
                entry.plan = home.plan().map(Box::new);
                entry.launch = home.launch();
                if let Some(report) = home.status() {
                    entry.take_report(report, Instant::now());
                }
            }
            entries.insert(uid, entry);
        }
        let used = entries.values().flat_map(|e: &Entry| e.record.pod_ips.clone());
        let pool = Pool::new(&ctx.cluster.pod_cidr, used);
        tracing::info!(pods = entries.len(), "pods found on disk");
        Self {
            ctx,
            tx,
            entries,
            pool,
            timers: BinaryHeap::new(),
            asking: false,
            asked_at: Instant::now(),
            listed: false,
            seen,
        }
    }

    /// Runs until `stop`. Jobs go on without it.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        for uid in self.entries.keys().cloned().collect::<Vec<_>>() {
            if self.entries[&uid].stage == Stage::Submitting {
                self.submit(&uid, None);
            }
        }
        loop {
            let wake = self.next_wake();
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.run_timers();
            self.ask_slurm();
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let timer = self.timers.peek().map_or(far, |Reverse((at, _))| *at);
        let poll = if self.asking { far } else { self.poll_at().unwrap_or(far) };
        timer.min(poll)
    }

    fn poll_at(&self) -> Option<Instant> {
        let now = Instant::now();
        pace::wait(self.entries.values().filter_map(|e| e.interest(now))).map(|wait| self.asked_at + wait)
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, uid))) = self.timers.pop() {
                self.advance(&uid);
            }
        }
    }

    fn later(&mut self, uid: &str, wait: Duration) {
        self.timers.push(Reverse((Instant::now() + wait, uid.to_owned())));
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Applied(pod) => self.applied(pod),
            Event::Deleted(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.vanished(&uid);
            }
            Event::Listed(all) => {
                self.listed = true;
                let missing: Vec<String> = self.entries.keys().filter(|u| !all.contains(*u)).cloned().collect();
                for uid in missing {
                    self.vanished(&uid);
                }
                // Without a record nothing was ever submitted from them.
                let orphans = folder::all(&self.ctx.home.pods())
                    .into_iter()
                    .filter(|uid| !self.entries.contains_key(uid) && self.ctx.folder(uid).record().is_none());
                tasks::remove_orphans(&self.ctx, orphans.collect());
            }
            Event::Prepared { uid, result, memory } => self.prepared(&uid, *result, *memory),
            Event::Submitted { uid, result } => self.submitted(&uid, result),
            Event::Refreshed { uid, result, memory } => self.refreshed(&uid, *result, *memory),
            Event::Jobs { asked, found, complete } => self.jobs(&asked, found, complete),
            Event::JobsFailed => self.asking = false,
            Event::Link(event) => self.link(event),
            Event::Report { uid, state } => self.report(&uid, *state),
            Event::Posted { uid, status, retry } => self.posted(&uid, *status, retry),
            Event::StopFailed { uid } => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.stop.asked = None;
                }
                self.later(&uid, Duration::from_secs(1));
            }
            Event::Removed { uid, done } => self.removed(&uid, done),
        }
    }

    fn applied(&mut self, pod: Arc<Pod>) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| {
            let who = PodRef {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid: uid.clone(),
            };
            Entry::new(Record::new(who, Timestamp::now()), None)
        });
        let changed = entry.pod.as_ref().is_some_and(|old| {
            old.metadata.generation != pod.metadata.generation
                || old.metadata.annotations != pod.metadata.annotations
                || old.metadata.labels != pod.metadata.labels
        });
        if entry.stage == Stage::New && entry.refused.is_none() {
            entry.refused = admit::refuse(&pod);
            if let Some(refusal) = &entry.refused {
                self.ctx.recorder.pod(&pod, Note::warning(refusal.reason, refusal.message.clone()));
            }
        }
        entry.pod = Some(pod);
        entry.settled = false;
        if changed {
            // A pod that is held may be fine now; a running one may have new images or containers.
            entry.retry_at = None;
            entry.refresh_at = entry.refresh_at.map(|_| Instant::now());
            if entry.stage == Stage::Preparing
                && let Some(task) = entry.preparing.take()
            {
                task.abort();
                entry.stage = Stage::New;
                entry.memory = Some(Memory::default());
            }
        }
        self.advance(&uid);
    }

    fn vanished(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.pod = None;
            self.advance(uid);
        }
    }

    /// Does what [`reconcile::next`] says, then sees to status and references.
    fn advance(&mut self, uid: &str) {
        if !self.listed && self.entries.get(uid).is_some_and(|e| e.pod.is_none()) {
            // Not known yet whether it is gone or only not listed.
            return;
        }
        let now = Instant::now();
        let Some(entry) = self.entries.get(uid).filter(|e| !e.removing) else { return };
        let view = entry.view(now);
        if entry.stage == Stage::New
            && view.in_api
            && view.deleting.is_none()
            && let Some(at) = entry.retry_at.filter(|at| *at > now)
        {
            self.later(uid, at - now);
        } else {
            for step in reconcile::next(&view) {
                self.perform(uid, step);
            }
        }
        self.refresh(uid);
        self.post(uid);
    }

    fn perform(&mut self, uid: &str, step: Step) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match step {
            Step::Prepare => self.prepare(uid),
            Step::Abort => {
                if let Some(task) = entry.preparing.take() {
                    task.abort();
                }
                entry.stage = Stage::New;
                entry.memory = Some(Memory::default());
            }
            Step::AskStop(grace) => {
                entry.stop.asked = Some(grace);
                entry.stop.since = Some(now);
                tasks::ask_stop(&self.ctx, &self.tx, uid, grace);
            }
            Step::Terminate => {
                entry.stop.signalled = true;
                entry.stop.since = Some(entry.stop.since.unwrap_or(now));
                if let Some(id) = entry.record.job_id.clone() {
                    tasks::scancel(&self.ctx, id, false);
                }
            }
            Step::Cancel => {
                entry.stop.cancelled = Some(now);
                if let Some(id) = entry.record.job_id.clone() {
                    tasks::scancel(&self.ctx, id, true);
                }
            }
            Step::Remove => {
                entry.removing = true;
                tasks::remove(&self.ctx, &self.tx, entry.record.pod.clone(), entry.pod.is_some());
            }
            Step::Later(wait) => self.later(uid, wait),
        }
    }

    fn prepare(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let Some(pod) = entry.pod.clone() else { return };
        if self.ctx.network_mode(&pod) == NetworkMode::Overlay && entry.record.pod_ips.is_empty() {
            match self.pool.as_mut().and_then(Pool::take) {
                Some(ip) => entry.record.pod_ips = vec![ip],
                None => {
                    let text = format!(
                        "no free pod address in {}: it can be enlarged in cluster.json",
                        self.ctx.cluster.pod_cidr
                    );
                    self.ctx.recorder.pod(&pod, Note::warning("FailedCreatePodSandBox", text));
                    entry.retry_at = Some(Instant::now() + Duration::from_secs(20));
                    self.later(uid, Duration::from_secs(20));
                    return;
                }
            }
        }
        let memory = entry.memory.take().unwrap_or_default();
        entry.stage = Stage::Preparing;
        entry.preparing = Some(tasks::prepare(&self.ctx, &self.tx, pod, entry.record.clone(), memory));
    }

    fn prepared(&mut self, uid: &str, result: Result<Ready, Held>, memory: Memory) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| e.stage == Stage::Preparing) else { return };
        entry.preparing = None;
        entry.memory = Some(memory);
        match result {
            Ok(ready) => {
                entry.held.clear();
                entry.record.images = ready.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())).collect();
                entry.plan = Some(ready.plan);
                entry.images = ready.images;
                self.submit(uid, Some(ready.arguments));
            }
            Err(held) => {
                entry.stage = Stage::New;
                entry.held = held.waiting;
                // Without a time the pod waits for a change of its own object.
                let wait = held.retry.unwrap_or(Duration::from_secs(24 * 3600));
                entry.retry_at = Some(Instant::now() + wait);
                self.advance(uid);
            }
        }
    }

    /// Begins a submission; without arguments (after a restart) it looks for the job first.
    fn submit(&mut self, uid: &str, arguments: Option<Vec<String>>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let first = entry.record.progress == Progress::New;
        entry.record.progress = Progress::Submitting;
        if let Err(error) = self.ctx.folder(uid).write_record(&entry.record) {
            // Without a record the job could be submitted twice after a crash.
            entry.record.progress = Progress::New;
            entry.stage = Stage::New;
            entry.retry_at = Some(Instant::now() + Duration::from_secs(20));
            if let Some(pod) = &entry.pod {
                self.ctx
                    .recorder
                    .pod(pod, Note::warning("FailedSubmit", format!("cannot write the pod's folder: {error}")));
            }
            self.advance(uid);
            return;
        }
        entry.stage = Stage::Submitting;
        tasks::submit(&self.ctx, &self.tx, uid, arguments, !first);
    }

    fn submitted(&mut self, uid: &str, result: Result<String, SlurmError>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let now = Instant::now();
        match result {
            Ok(id) => {
                tracing::info!(pod = %format!("{}/{}", entry.record.pod.namespace, entry.record.pod.name), job = %id, "job submitted");
                entry.submit_error = None;
                entry.held.clear();
                entry.record.progress = Progress::Submitted;
                entry.record.job_id = Some(id);
                entry.stage = Stage::Submitted;
                entry.job_since = now;
                entry.refresh_at = Some(now + REFRESH);
                if let Err(error) = self.ctx.folder(uid).write_record(&entry.record) {
                    // The comment of the job finds it again.
                    tracing::error!(%uid, %error, "record not written");
                }
            }
            Err(SlurmError::NoJob) => {
                entry.record.progress = Progress::New;
                entry.stage = Stage::New;
                entry.retry_at = None;
            }
            Err(error) => {
                let transient = error.is_transient();
                // A time-out leaves open whether there is a job: the record stays at Submitting, so that it is looked for.
                if !matches!(error, SlurmError::Timeout { .. }) {
                    entry.record.progress = Progress::New;
                    let _ = self.ctx.folder(uid).write_record(&entry.record);
                }
                entry.stage = Stage::New;
                let failures = entry.memory.as_mut().map_or(1, |m| {
                    m.failures = m.failures.saturating_add(1);
                    m.failures
                });
                let base = if transient { 2 } else { 30 };
                let wait = Duration::from_secs((base << (failures - 1).min(5)).min(300));
                entry.retry_at = Some(now + wait);
                let text = error.to_string();
                if let Some(pod) = &entry.pod {
                    self.ctx.recorder.pod(pod, Note::warning("FailedSubmit", text.clone()));
                }
                let waiting = Waiting { reason: "SlurmSubmitFailed".to_owned(), message: text.clone() };
                let containers = entry.pod.iter().filter_map(|p| p.spec.as_ref()).flat_map(|s| &s.containers);
                entry.held = containers.map(|c| (c.name.clone(), waiting.clone())).collect();
                entry.submit_error = Some(text);
            }
        }
        self.advance(uid);
    }

    /// Looks at a running pod's references when it is time.
    fn refresh(&mut self, uid: &str) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let alive = entry.stage == Stage::Submitted
            && !entry.refreshing
            && entry.finished_at.is_none()
            && entry.job.as_ref().is_none_or(|j| !j.state.is_over());
        if !alive {
            return;
        }
        let (Some(pod), Some(plan)) = (entry.pod.clone(), entry.plan.clone()) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let at = *entry.refresh_at.get_or_insert(now);
        if at > now {
            self.later(uid, at - now);
            return;
        }
        entry.refreshing = true;
        let memory = entry.memory.take().unwrap_or_default();
        let known = entry.images.clone();
        tasks::refresh(
            &self.ctx,
            &self.tx,
            tasks::Refresh { pod, record: entry.record.clone(), plan, sent: entry.sent.clone(), known, memory },
        );
    }

    fn refreshed(&mut self, uid: &str, result: Result<Refreshed, Held>, memory: Memory) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.refreshing = false;
        entry.memory = Some(memory);
        let mut wait = REFRESH;
        match result {
            Ok(fresh) => {
                entry.held = fresh.waiting;
                entry.images = fresh.images;
                entry.record.images.extend(entry.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())));
                entry.sent.extend(fresh.update.ephemeral_containers.iter().map(|c| c.name.clone()));
                if let Some(plan) = fresh.plan {
                    if let Err(error) = self.ctx.folder(uid).write_plan(&plan) {
                        tracing::warn!(%uid, %error, "plan not updated");
                    }
                    entry.plan = Some(plan);
                }
                let _ = self.ctx.folder(uid).write_record(&entry.record);
                wait = fresh.retry.unwrap_or(REFRESH).min(REFRESH);
            }
            Err(held) => {
                if let Some(retry) = held.retry {
                    wait = retry.min(REFRESH);
                }
            }
        }
        entry.refresh_at = Some(now + wait);
        self.advance(uid);
    }

    fn ask_slurm(&mut self) {
        let now = Instant::now();
        if self.asking || self.poll_at().is_none_or(|at| at > now) {
            return;
        }
        let ids: Vec<String> = self
            .entries
            .values()
            .filter(|e| e.interest(now).is_some())
            .filter_map(|e| e.record.job_id.clone())
            .collect();
        if ids.is_empty() {
            return;
        }
        self.asking = true;
        self.asked_at = now;
        tasks::ask_slurm(&self.ctx, &self.tx, ids);
    }

    fn jobs(&mut self, asked: &[String], found: Vec<Job>, complete: bool) {
        self.asking = false;
        self.asked_at = Instant::now();
        let by_id: HashMap<String, String> =
            self.entries.iter().filter_map(|(uid, e)| e.record.job_id.clone().map(|id| (id, uid.clone()))).collect();
        let mut found: HashMap<String, Job> = found.into_iter().map(|j| (j.id.clone(), j)).collect();
        for id in asked {
            let Some(uid) = by_id.get(id).cloned() else { continue };
            match found.remove(id) {
                Some(job) => self.job(&uid, job),
                None => {
                    let Some(entry) = self.entries.get_mut(&uid) else { continue };
                    entry.missed += 1;
                    if complete && entry.missed >= MISSES {
                        let job = Job::lost(id, &uid);
                        self.job(&uid, job);
                    }
                }
            }
        }
    }

    fn job(&mut self, uid: &str, job: Job) {
        let now = Instant::now();
        let home = self.ctx.folder(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let unlinked = entry.link.is_none();
        let over = job.state.is_over();
        let running = job.state == JobState::Running;
        let before = entry.job.as_ref().map(|j| (j.state, j.reason.clone()));
        let news = entry.take_job(job.clone(), now);
        // Without a link, or at the end, the supervisor's word on disk is the newest there is.
        if (unlinked && running) || (over && news) {
            if let Some(report) = home.status() {
                entry.take_report(report, now);
            }
            entry.launch = home.launch();
        }
        if news {
            if job.state == JobState::Pending
                && before.is_some_and(|(_, reason)| reason != job.reason)
                && !matches!(job.reason.as_str(), "" | "None" | "Priority")
                && let Some(pod) = &entry.pod
            {
                let text = format!("Slurm job {} waits: {}", job.id, status::pending_text(&job.reason));
                self.ctx.recorder.pod(pod, Note::normal("SlurmPending", text));
            }
            if job.is_gone() {
                entry.record.ended = Some(job.clone());
                let _ = home.write_record(&entry.record);
            }
        }
        self.tell_events(uid);
        if news || unlinked {
            self.advance(uid);
        }
    }

    fn link(&mut self, event: LinkEvent) {
        match event {
            // The control plane's own place in the pod network is no pod.
            LinkEvent::Up { hello } if hello.pod_uid == hpk_api::link::MEMBER => {}
            LinkEvent::Up { hello } => {
                let Some(entry) = self
                    .entries
                    .get_mut(&hello.pod_uid)
                    .filter(|e| e.stage == Stage::Submitted || e.stage == Stage::Submitting)
                else {
                    if self.listed {
                        tasks::refuse(&self.ctx, hello.pod_uid);
                    }
                    return;
                };
                if let Some(old) = entry.link.replace(tasks::watch(&self.ctx, &self.tx, hello.pod_uid.clone())) {
                    old.abort();
                }
                // Slurm will say RUNNING at the next query: no need to wait for it to see the report.
                self.advance(&hello.pod_uid);
            }
            LinkEvent::Down { uid, reason } => {
                tracing::debug!(%uid, %reason, "link down");
                if let Some(task) = self.entries.get_mut(&uid).and_then(|e| e.link.take()) {
                    task.abort();
                    self.advance(&uid);
                }
            }
        }
    }

    fn report(&mut self, uid: &str, state: PodState) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !entry.take_report(state, Instant::now()) {
            return;
        }
        self.tell_events(uid);
        self.advance(uid);
    }

    /// Posts the supervisor's events that were not posted before.
    fn tell_events(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (Some(pod), Some(report)) = (&entry.pod, &entry.report) else { return };
        let mut last = entry.record.last_event;
        for event in report.events.iter().filter(|e| e.sequence > entry.record.last_event) {
            last = last.max(event.sequence);
            self.ctx.recorder.pod(
                pod,
                Note {
                    warning: event.warning,
                    reason: event.reason.clone(),
                    message: event.message.clone(),
                    container: event.container.clone(),
                    at: Some(event.at),
                },
            );
        }
        if last != entry.record.last_event {
            entry.record.last_event = last;
            if let Err(error) = self.ctx.folder(uid).write_record(&entry.record) {
                tracing::warn!(%uid, %error, "record not written: events may be told twice");
            }
        }
    }

    fn post(&mut self, uid: &str) {
        let host_ip = self.ctx.cluster.node_ip;
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (Some(pod), Some(wanted)) = (entry.pod.clone(), entry.status(host_ip, Timestamp::now())) else {
            self.publish(uid);
            return;
        };
        entry.current = Some(wanted.clone());
        if entry.posting {
            self.publish(uid);
            return;
        }
        let base = entry.posted.as_ref().or(pod.status.as_ref()).cloned().unwrap_or_default();
        let patch = status::patch(&pod, &base, &wanted);
        let settled = patch.is_none();
        entry.posting = !settled;
        let news = settled && !entry.settled;
        entry.settled = settled;
        // Seen by the kubelet API before it is seen at the API server, never after.
        self.publish(uid);
        if let Some(patch) = patch {
            tasks::post(&self.ctx, &self.tx, pod, wanted, patch);
        } else if news {
            self.later(uid, Duration::ZERO);
        }
    }

    fn posted(&mut self, uid: &str, status: PodStatus, retry: Option<Duration>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match retry {
            None => {
                entry.posting = false;
                entry.posted = Some(status);
                self.advance(uid);
            }
            Some(wait) => {
                entry.posting = false;
                self.later(uid, wait);
            }
        }
    }

    fn removed(&mut self, uid: &str, done: bool) {
        if !done {
            if let Some(entry) = self.entries.get_mut(uid) {
                entry.removing = false;
            }
            self.later(uid, Duration::from_secs(5));
            return;
        }
        if let Some(entry) = self.entries.remove(uid) {
            if let Some(pool) = &mut self.pool {
                pool.release(&entry.record.pod_ips);
            }
            if let Some(task) = entry.link {
                task.abort();
            }
        }
        tasks::readmit(&self.ctx, uid.to_owned());
        self.publish(uid);
    }

    /// Lets the kubelet API see the pod as it is: with the newest status, which the API server may not have yet.
    fn publish(&self, uid: &str) {
        let info = self.entries.get(uid).and_then(|entry| {
            let mut pod = (**entry.pod.as_ref()?).clone();
            if let Some(status) = entry.current.as_ref().or(entry.posted.as_ref()) {
                pod.status = Some(status.clone());
            }
            Some(PodInfo { pod: Arc::new(pod), linked: entry.link.is_some() })
        });
        self.seen.send_modify(|pods| match info {
            Some(info) => {
                pods.insert(uid.to_owned(), info);
            }
            None => {
                pods.remove(uid);
            }
        });
    }
}
