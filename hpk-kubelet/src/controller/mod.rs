//! The controller: one task that hears of everything and owns every pod's entry; all that waits are tasks that send it
//! events.
//!
//! ```text
//!  pod watch ─┐                                                ┌─▶ prepare (images, references, plan, files)
//!  squeue    ─┤        ┌───────────────────────────┐           ├─▶ record, then sbatch
//!  links     ─┼─Event─▶│ Entry::on   entries by UID │─Effects─▶├─▶ ask the supervisor, scancel
//!  reports   ─┤        │ Entry::due  times by UID   │  perform ├─▶ status patch, events
//!  tasks     ─┘        └───────────────────────────┘           └─▶ remove folder and object
//!      ▲                                                                  │
//!      └──────────────────────── what it ends in ─────────────────────────┘
//! ```
//! [`entry`] is the state machine of one pod, with its picture; it decides and does no I/O. This module passes events to
//! entries ([`Controller::hear`]), `perform.rs` does what they want, `jobs.rs` asks Slurm for all of them at once. What needs
//! more than one pod (addresses, ports, strays) is here and there, by index.
//!
//! It never waits for I/O itself (but short reads of a pod's own small files), and nothing that a pod contains can end it.

mod addresses;
mod backoff;
pub(crate) mod context;
mod due;
mod entry;
pub(crate) mod event;
mod jobs;
mod left;
mod local_images;
mod no_link;
mod perform;
mod prepare;
mod prepared;
mod pull;
pub(crate) mod seen;
mod start;
mod tasks;

pub use event::{Event, Sender};
use hpk_api::ids::{JobId, PodUid};
pub(crate) use seen::PodInfo;
pub use seen::Pods;

use crate::api::references::NodesWatches;
use crate::executor::pace;
use crate::pods::address::Pool;
use crate::pods::admit::{self, Refusal};
use crate::pods::folder::{self, Record};
use crate::pods::node_fit;
use crate::pods::submission::{self, Finding, Submission, Way};
use addresses::Addresses;
use context::Context;
use due::Due;
use entry::{Around, Entry, Found, Heard, Rules};
use hpk_api::link::MEMBER;
use hpk_link::server::LinkEvent;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Longest sleep of the loop.
const FAR: Duration = Duration::from_secs(3600);

pub struct Controller {
    ctx: Context,
    tx: Sender,
    watches: NodesWatches,
    rules: Rules,
    entries: HashMap<PodUid, Entry>,
    /// Tasks of pods that may have to be ended.
    running: HashMap<PodUid, Running>,
    addresses: Addresses,
    pool: Option<Pool>,
    /// When an entry wants to hear that time has passed.
    timers: Due<PodUid, Instant>,
    /// Of which pods Slurm is to be asked, how long after it was asked last.
    polls: Due<PodUid, Duration>,
    /// A query of Slurm runs.
    asking: bool,
    asked_at: Instant,
    /// How long its last answer took.
    answer_took: Duration,
    /// Something about a run has changed since it was asked.
    outdated: bool,
    /// The first list of pods has come: objects that are missing are gone.
    listed: bool,
    /// When to look for jobs that no pod has.
    strays_at: Instant,
    seen: watch::Sender<Pods>,
    /// By compute node: whether pods there reach addresses outside of the cluster.
    ways_out: watch::Sender<BTreeMap<String, bool>>,
}

/// A pod's tasks.
#[derive(Debug, Default)]
struct Running {
    preparation: Option<AbortHandle>,
    watch: Option<AbortHandle>,
}

impl Controller {
    /// Runs until `stop`. Jobs go on without it.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        for uid in self.entries.keys().cloned().collect::<Vec<_>>() {
            // Before anything else: running pods find this kubelet by it.
            self.hear(&uid, Heard::Began);
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
            let now = Instant::now();
            while let Some(uid) = self.timers.pop(now) {
                self.hear(&uid, Heard::Time);
            }
            self.ask_slurm();
        }
    }

    fn next_wake(&self) -> Instant {
        let poll = self.poll_at().filter(|_| !self.asking);
        let far = Instant::now() + FAR;
        self.timers.first().into_iter().chain(poll).fold(far, Instant::min)
    }

    /// Passes an event to the pod that it is about.
    fn take(&mut self, event: Event) {
        match event {
            Event::Applied(pod) => self.applied(pod),
            Event::Deleted(pod) => self.hear(&pod.metadata.uid.clone().unwrap_or_default().into(), Heard::Vanished),
            Event::Listed(all) => self.all_listed(&all),
            Event::Prepared { uid, attempt, result, memory } => {
                self.hear(&uid, Heard::Prepared { attempt, result, memory });
            }
            Event::Recorded { uid, result } => self.hear(&uid, Heard::Recorded(result)),
            Event::Submitted { uid, result } => self.hear(&uid, Heard::Submitted(result)),
            Event::Resized { uid, result } => self.hear(&uid, Heard::Resized(result)),
            Event::Refreshed { uid, result, memory } => self.hear(&uid, Heard::Refreshed { result, memory }),
            Event::ReferencesChanged { uid } => self.hear(&uid, Heard::ReferencesChanged),
            Event::RunsChanged => self.outdated = true,
            Event::Jobs(answers) => self.jobs(answers),
            Event::JobsFailed { asked, sought } => self.jobs_failed(&sought, asked),
            Event::Link(event) => self.link(event),
            Event::Report { uid, state } => {
                let found = self.found(&uid, |entry| entry.is_sought() && state.job_id.is_some());
                self.hear(&uid, Heard::Report { state, found });
            }
            Event::Posted { uid, status, retry } => self.hear(&uid, Heard::Posted { status, retry }),
            Event::StopFailed { uid } => self.hear(&uid, Heard::NotAsked),
            Event::Removed { uid, done: true } => self.forget(&uid),
            Event::Removed { uid, done: false } => self.hear(&uid, Heard::NotRemoved),
        }
    }

    /// Has a pod's entry hear something, and does what it wants done.
    fn hear(&mut self, uid: &PodUid, heard: Heard) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let taken = |ip| self.addresses.is_anothers(ip, uid);
        let around = Around {
            now: Instant::now(),
            clock: Timestamp::now(),
            listed: self.listed,
            rules: &self.rules,
            taken: &taken,
        };
        let effects = entry.on(heard, &around);
        let (due, poll) = (entry.due(&around), entry.interest(around.now).map(pace::of));
        self.timers.set(uid, due);
        self.polls.set(uid, poll);
        self.addresses.set(uid, entry.addresses());
        // Seen by the kubelet API before it is seen at the API server, never after.
        self.publish(uid);
        for effect in effects {
            self.perform(uid, effect);
        }
    }

    /// Lets others see the pod as it is.
    fn publish(&self, uid: &PodUid) {
        let info = self.entries.get(uid).and_then(|entry| {
            let job = entry.running_job().map(|job| job.id.as_str().into());
            Some(PodInfo::new(entry.object()?.clone(), entry.current_status().cloned(), entry.is_linked(), job))
        });
        self.seen.send_if_modified(|pods| pods.set(uid, info));
    }

    fn applied(&mut self, pod: Arc<Pod>) {
        let Some(uid) = pod.metadata.uid.clone().map(PodUid::from) else { return };
        let now = Instant::now();
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| {
            let way = match submission::was_begun(&pod) {
                true => Way::Open(Submission::without_record(now)),
                false => Way::Clear,
            };
            Entry::new(Record::new(entry::who(&pod), Timestamp::now()), way, now)
        });
        let refusal = match entry.is_to_be_admitted() {
            true => self.refusal(&uid, &pod),
            false => None,
        };
        self.hear(&uid, Heard::Applied { pod, refusal });
    }

    /// Why a pod that is not begun is not admitted: its own fault, its Node's, or that of others that have its ports.
    fn refusal(&self, uid: &PodUid, pod: &Pod) -> Option<Refusal> {
        let unfit = || {
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            node_fit::refuse(pod, self.ctx.node_objects.get(&ObjectRef::new(name)).as_deref()?)
        };
        let taken = || {
            let others = self.entries.iter().filter(|(other, entry)| *other != uid && entry.holds_ports());
            admit::ports_taken(pod, others.filter_map(|(_, entry)| entry.object().map(AsRef::as_ref)))
        };
        admit::refuse(pod).or_else(unfit).or_else(taken)
    }

    /// These are all pods of the Node: the others are gone, and so is what nobody claims.
    fn all_listed(&mut self, all: &HashSet<PodUid>) {
        self.listed = true;
        let missing: Vec<PodUid> = self.entries.keys().filter(|uid| !all.contains(*uid)).cloned().collect();
        for uid in missing {
            self.hear(&uid, Heard::Vanished);
        }
        match folder::all(&self.ctx.home.pods()) {
            // Without a record nothing was ever submitted from them.
            Ok(uids) => {
                let without = |uid: &PodUid| matches!(self.ctx.folder(uid).record(), Ok(None));
                let orphans =
                    uids.into_iter().map(PodUid::from).filter(|uid| !self.entries.contains_key(uid) && without(uid));
                tasks::remove_orphans(&self.ctx, orphans.collect());
            }
            Err(error) => tracing::warn!(%error, "pod folders that nobody claims are not looked for"),
        }
    }

    fn link(&mut self, event: LinkEvent) {
        match event {
            // The control plane's own place in the pod network is no pod.
            LinkEvent::Up { hello, .. } if hello.pod_uid == MEMBER => {}
            LinkEvent::Up { hello, carried } => {
                let way_out = hello.outward.map(|has| (hello.node, has));
                self.hear(&hello.pod_uid.into(), Heard::LinkUp { carried, way_out });
            }
            LinkEvent::Down { uid, reason } => {
                tracing::debug!(%uid, %reason, "link down");
                self.hear(&uid.into(), Heard::LinkDown);
            }
            LinkEvent::Refused { uid, why } => {
                tracing::warn!(%uid, %why, "link refused");
                self.hear(&uid.into(), Heard::LinkRefused(why));
            }
        }
    }

    /// A look for the pod's job has ended.
    fn looked(&mut self, uid: &PodUid, finding: Finding, id: Option<JobId>, asked: Instant) {
        let found = self.found(uid, |entry| entry.is_sought() && finding == Finding::Job);
        self.hear(uid, Heard::Looked { finding, id, asked, found });
    }

    /// What is in the pod's folder, where its entry is about to need it.
    fn found(&self, uid: &PodUid, is_needed: impl FnOnce(&Entry) -> bool) -> Option<Box<Found>> {
        let entry = self.entries.get(uid).filter(|entry| entry.lacks_plan() && is_needed(entry))?;
        Some(Box::new(left::read_folder(&self.ctx, entry.record())))
    }

    /// Folder and object are gone.
    fn forget(&mut self, uid: &PodUid) {
        self.watches.release(uid);
        if let (Some(entry), Some(pool)) = (self.entries.remove(uid), &mut self.pool) {
            pool.release(&entry.record().addresses());
        }
        let running = self.running.remove(uid).unwrap_or_default();
        for task in running.preparation.into_iter().chain(running.watch) {
            task.abort();
        }
        self.timers.set(uid, None);
        self.polls.set(uid, None);
        self.addresses.set(uid, std::iter::empty());
        self.ctx.links.withdraw(uid);
        self.publish(uid);
    }
}
