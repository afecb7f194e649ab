//! The controller: one task that owns every pod's entry and decides; all that waits are tasks that send it events.
//!
//! ```text
//!  pod watch ─┐                                   ┌─▶ prepare (images, references, plan, files)
//!  squeue    ─┤        ┌─────────────────┐        ├─▶ record, then sbatch
//!  links     ─┼─Event─▶│ entries by UID  │─Step──▶├─▶ ask the supervisor, scancel
//!  reports   ─┤        │ reconcile::next │        ├─▶ status patch, events
//!  tasks     ─┘        └─────────────────┘        └─▶ remove folder and object
//! ```
//! It never waits for I/O itself (but short reads of a pod's own small files), and nothing that a pod contains can end it.

pub mod context;
pub mod entry;
mod event;
mod jobs;
mod labels;
mod local_images;
mod posting;
pub mod prepare;
pub mod pull;
mod records;
mod refresh;
mod reports;
mod submission;
mod tasks;
mod unlinked;

pub use event::{Event, Sender};

use crate::api::events::Note;
use crate::api::references::{NodesWatches, Watches};
use crate::pods::address::Pool;
use crate::pods::admit;
use crate::pods::folder::{self, Progress, Record, RecordError};
use crate::pods::node_fit;
use crate::pods::phase;
use crate::pods::reconcile::{self, Stage, Step};
use crate::pods::resize;
use crate::pods::submission::{self as submission_rule, Submission};
use context::Context;
use entry::{Entry, Saving};
use hpk_api::plan::PodRef;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use prepare::Memory;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A pod as others (the kubelet API) see it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The object, with the kubelet's own status.
    pub pod: Arc<Pod>,
    /// A link stands.
    pub linked: bool,
    /// Its job, while that runs.
    pub job: Option<String>,
}

/// All pods by UID.
pub type Pods = HashMap<String, PodInfo>;

/// The controller.
pub struct Controller {
    ctx: Context,
    tx: Sender,
    watches: NodesWatches,
    entries: HashMap<String, Entry>,
    pool: Option<Pool>,
    /// When to look at an entry again.
    timers: BinaryHeap<Reverse<(Instant, String)>>,
    /// A query of Slurm runs.
    asking: bool,
    asked_at: Instant,
    /// Something about a run has changed since it was asked.
    outdated: bool,
    /// The first list of pods has come: objects that are missing are gone.
    listed: bool,
    /// When to look for jobs that no pod has.
    strays_at: Instant,
    seen: watch::Sender<Pods>,
    /// Labels that were set, by the pod's UID.
    labelled: HashMap<String, labels::Labels>,
}

impl Controller {
    /// A controller with the pods that earlier runs left on disk.
    ///
    /// # Errors
    /// It cannot be told which pods have jobs: to go on would submit them again.
    pub fn new(ctx: Context, tx: Sender, seen: watch::Sender<Pods>) -> Result<Self, RecordError> {
        let mut entries = HashMap::new();
        let pods = ctx.home.pods();
        let uids = folder::all(&pods).map_err(|source| RecordError::Read { path: pods, source })?;
        for uid in uids {
            match ctx.folder(&uid).record() {
                Ok(Some(record)) => {
                    let (progress, known) = (&record.progress, record.job_id.is_some());
                    let submission = Submission::found(progress, known, Instant::now(), ctx.message_timeout);
                    let mut entry = Entry::new(record, submission);
                    if entry.stage() == Stage::Submitted {
                        submission::take_up(&ctx, &mut entry);
                    }
                    entries.insert(uid, entry);
                }
                // Made but never begun: nothing can run in it.
                Ok(None) => tracing::info!(%uid, "a pod folder without record is left for its pod to come"),
                Err(error @ RecordError::Read { .. }) => return Err(error),
                Err(error @ RecordError::Damaged { .. }) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the pod's job is looked for in Slurm");
                    entries.insert(uid.clone(), without_record(&ctx, &uid, &error));
                }
            }
        }
        let used = entries.values().flat_map(|e: &Entry| e.record.pod_ips.clone());
        let mark = std::fs::read_to_string(ctx.home.addresses()).ok().and_then(|text| text.trim().parse().ok());
        let pool = Pool::new(&ctx.cluster.pod_cidr, used, mark);
        tracing::info!(pods = entries.len(), "pods found on disk");
        let changes = tx.clone();
        let mut watches = NodesWatches::default();
        for node in ctx.nodes.iter() {
            let changes = changes.clone();
            let of_node = Watches::start(ctx.clients.of(&node.name).clone(), node.name.clone(), move |uid| {
                let changes = changes.clone();
                async move {
                    let _ = changes.send(Event::ReferencesChanged { uid }).await;
                }
            });
            watches.add(node.name.clone(), of_node);
        }
        Ok(Self {
            ctx,
            tx,
            watches,
            entries,
            pool,
            timers: BinaryHeap::new(),
            asking: false,
            asked_at: Instant::now(),
            outdated: false,
            listed: false,
            strays_at: Instant::now(),
            seen,
            labelled: HashMap::new(),
        })
    }

    /// Runs until `stop`. Jobs go on without it.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        for uid in self.entries.keys().cloned().collect::<Vec<_>>() {
            // Before anything else: running pods find this kubelet by it.
            self.see_to_link(&uid);
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
                match folder::all(&self.ctx.home.pods()) {
                    // Without a record nothing was ever submitted from them.
                    Ok(uids) => {
                        let without = |uid: &String| matches!(self.ctx.folder(uid).record(), Ok(None));
                        let orphans = uids.into_iter().filter(|u| !self.entries.contains_key(u) && without(u));
                        tasks::remove_orphans(&self.ctx, orphans.collect());
                    }
                    Err(error) => tracing::warn!(%error, "pod folders that nobody claims are not looked for"),
                }
            }
            Event::Prepared { uid, result, memory } => self.prepared(&uid, *result, *memory),
            Event::Submitted { uid, result } => self.submitted(&uid, result),
            Event::Refreshed { uid, result, memory } => self.refreshed(&uid, *result, *memory),
            Event::ReferencesChanged { uid } => self.references_changed(&uid),
            Event::Recorded { uid, result } => self.recorded(&uid, result),
            Event::RunsChanged => self.outdated = true,
            Event::Jobs(answers) => self.jobs(answers),
            Event::JobsFailed { asked, sought } => self.jobs_failed(&sought, asked),
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
        let who = PodRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.clone(),
        };
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| {
            let begun = submission_rule::was_begun(&pod);
            let submission = if begun { Submission::without_record(Instant::now()) } else { Submission::Clear };
            Entry::new(Record::new(who.clone(), Timestamp::now()), submission)
        });
        if let Some(trouble) = entry.trouble.take() {
            self.ctx.recorder.pod(&pod, Note::warning("DamagedRecord", trouble));
            entry.record.pod = who;
        }
        let resize = |pod: &Pod| resize::infeasible(pod, &entry.record.granted);
        if let (Some(None), Some(message)) = (entry.pod.as_deref().map(resize), resize(&pod)) {
            self.ctx.recorder.pod(&pod, Note::warning(resize::EVENT, message));
        }
        let changed = entry.pod.as_ref().is_some_and(|old| {
            old.metadata.generation != pod.metadata.generation
                || old.metadata.annotations != pod.metadata.annotations
                || old.metadata.labels != pod.metadata.labels
        });
        entry.pod = Some(pod.clone());
        entry.settled = false;
        if changed {
            // A pod that is held may be fine now; a running one may have new images or containers.
            entry.retry_at = None;
            entry.refresh_at = entry.refresh_at.map(|_| Instant::now());
            if let Some(task) = entry.preparing.take() {
                task.abort();
                entry.memory = Some(Memory::default());
            }
        }
        self.judge_addresses(&uid);
        self.admit(&uid, &pod);
        self.advance(&uid);
    }

    /// Refuses a pod that is not begun, if it must be.
    fn admit(&mut self, uid: &str, pod: &Pod) {
        let over = phase::is_terminal(pod.status.as_ref().and_then(|s| s.phase.as_deref()));
        if over || !self.entries.get(uid).is_some_and(|e| e.stage() == Stage::New && e.refused.is_none()) {
            return;
        }
        let others = self.entries.iter().filter(|(other, e)| *other != uid && e.holds_ports());
        let taken = || admit::ports_taken(pod, others.filter_map(|(_, e)| e.pod.as_deref()));
        let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        let node = self.ctx.node_objects.get(&ObjectRef::new(name));
        let unfit = || node_fit::refuse(pod, node.as_deref()?);
        let Some(refusal) = admit::refuse(pod).or_else(unfit).or_else(taken) else { return };
        self.ctx.recorder.pod(pod, Note::warning(refusal.reason, refusal.message.clone()));
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.refused = Some(refusal);
        }
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
        self.save_again(uid);
        let now = Instant::now();
        let Some(entry) = self.entries.get(uid).filter(|e| !e.removing) else { return };
        let view = entry.view(now);
        if entry.stage() == Stage::New
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
        self.see_to_link(uid);
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
            // A write that is under way would leave its file behind; its end leads here again.
            Step::Remove if entry.saving != Saving::Idle => {}
            Step::Remove => {
                entry.removing = true;
                tasks::remove(&self.ctx, &self.tx, entry.record.pod.clone(), entry.pod.clone());
            }
            Step::Later(wait) => self.later(uid, wait),
        }
    }
}

/// A pod whose record is of no use: what else is in its folder tells of it, and Slurm of its job.
fn without_record(ctx: &Context, uid: &str, error: &RecordError) -> Entry {
    let plan = ctx.folder(uid).plan();
    let who = PodRef { uid: uid.to_owned(), ..plan.as_ref().map(|p| p.pod.clone()).unwrap_or_default() };
    let mut record = Record::new(who, Timestamp::now());
    record.pod_ips = plan.map(|p| p.network.pod_ips).unwrap_or_default();
    // Where the pod is not known by name, accounting is asked in vain until the API has told it.
    let submission = Submission::found(&Progress::Submitting, false, Instant::now(), ctx.message_timeout);
    let mut entry = Entry::new(record, submission);
    entry.trouble = Some(format!("{error}: the pod's job is looked for in Slurm"));
    entry
}
