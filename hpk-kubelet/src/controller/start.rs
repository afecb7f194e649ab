//! How a controller begins: with the pods that earlier kubelets left on disk.

use super::context::Context;
use super::entry::{Around, Entry, Rules};
use super::{Controller, Event, Pods, Sender, left};
use crate::api::references::{NodesWatches, Watches};
use crate::pods::address::Pool;
use crate::pods::folder::{self, Progress, Record, RecordError};
use crate::pods::reconcile::Stage;
use crate::pods::submission::Submission;
use hpk_api::ids::PodUid;
use hpk_api::plan::PodRef;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use tokio::sync::watch;

impl Controller {
    /// A controller with the pods that earlier runs left on disk.
    ///
    /// # Errors
    /// It cannot be told which pods have jobs: to go on would submit them again.
    pub fn new(
        ctx: Context,
        tx: Sender,
        seen: watch::Sender<Pods>,
        ways_out: watch::Sender<BTreeMap<String, bool>>,
    ) -> Result<Self, RecordError> {
        let rules = Rules {
            node_ip: ctx.cluster.node_ip,
            network_mode: ctx.cluster.network_mode,
            pod_cidr: ctx.cluster.pod_cidr.clone(),
            service_cidr: ctx.cluster.service_cidr.clone(),
            message_timeout: ctx.message_timeout,
            words: ctx.executor.words(),
            pods: ctx.home.pods(),
        };
        let entries = entries_on_disk(&ctx, &rules)?;
        let used = entries.values().flat_map(|entry| entry.record().addresses());
        let mark = std::fs::read_to_string(ctx.home.addresses()).ok().and_then(|text| text.trim().parse().ok());
        let pool = Pool::new(&ctx.cluster.pod_cidr, used, mark);
        tracing::info!(pods = entries.len(), "pods found on disk");
        let mut watches = NodesWatches::default();
        for node in ctx.nodes.iter() {
            let changes = tx.clone();
            let of_node = Watches::start(ctx.clients.of(&node.name).clone(), node.name.clone(), move |uid| {
                let changes = changes.clone();
                async move {
                    let _ = changes.send(Event::ReferencesChanged { uid }).await;
                }
            });
            watches.add(node.name.clone(), of_node);
        }
        let mut addresses = super::Addresses::default();
        for (uid, entry) in &entries {
            addresses.set(uid, entry.addresses());
        }
        Ok(Self {
            ctx,
            tx,
            watches,
            rules,
            entries,
            running: HashMap::new(),
            addresses,
            pool,
            timers: Default::default(),
            polls: Default::default(),
            asking: false,
            outdated: false,
            asked_at: Instant::now(),
            answer_took: Duration::ZERO,
            listed: false,
            strays_at: Instant::now(),
            seen,
            ways_out,
        })
    }
}

fn entries_on_disk(ctx: &Context, rules: &Rules) -> Result<HashMap<PodUid, Entry>, RecordError> {
    let uids = folder::all(&rules.pods).map_err(|source| RecordError::Read { path: rules.pods.clone(), source })?;
    let mut entries = HashMap::new();
    for uid in uids.into_iter().map(PodUid::from) {
        let entry = match ctx.folder(&uid).record() {
            Ok(Some(record)) => by_record(ctx, rules, record),
            // Made but never begun: nothing can run in it.
            Ok(None) => {
                tracing::info!(%uid, "a pod folder without record is left for its pod to come");
                continue;
            }
            Err(error @ RecordError::Read { .. }) => return Err(error),
            Err(error @ RecordError::Damaged { .. }) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the pod's job is looked for in Slurm");
                without_record(ctx, &uid, &error)
            }
        };
        entries.insert(uid, entry);
    }
    Ok(entries)
}

fn by_record(ctx: &Context, rules: &Rules, record: Record) -> Entry {
    let now = Instant::now();
    let found = left::read_folder(ctx, &record);
    let way = Submission::found(&record.progress, record.job_id.is_some(), now, ctx.message_timeout);
    let mut entry = Entry::new(record, way, now);
    if entry.stage() == Stage::Submitted {
        let around = Around { now, clock: Timestamp::now(), listed: false, rules, taken: &|_| false };
        // Without an object nothing follows from it yet.
        entry.take_up(found, &around, &mut Vec::new());
    }
    entry
}

/// A pod whose record is of no use: what else is in its folder tells of it, and Slurm of its job.
fn without_record(ctx: &Context, uid: &PodUid, error: &RecordError) -> Entry {
    let now = Instant::now();
    let plan = ctx.folder(uid).plan();
    let who = PodRef { uid: uid.as_str().to_owned(), ..plan.as_ref().map(|p| p.pod.clone()).unwrap_or_default() };
    let mut record = Record::new(who, Timestamp::now());
    let network = plan.map(|p| p.network).unwrap_or_default();
    (record.pod_ips, record.outposts) = (network.pod_ips, network.outposts);
    // Where the pod is not known by name, accounting is asked in vain until the API has told it.
    let way = Submission::found(&Progress::Submitting, false, now, ctx.message_timeout);
    Entry::new(record, way, now).in_trouble(format!("{error}: the pod's job is looked for in Slurm"))
}
