//! The controller's effects: each a task that does one thing and reports by an event.

use super::context::Context;
use super::prepare::{self, Memory};
use super::{Event, Sender};
use crate::api::node;
use crate::pods::folder::Record;
use crate::pods::plan::Image;
use crate::slurm::client::SlurmError;
use crate::slurm::job::Job;
use hpk_api::control::{Answer, Request};
use hpk_api::link::NetUpdate;
use hpk_api::plan::{PodRef, SandboxPlan};
use hpk_control::stream;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Error;
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Runs a future and sends the event that it ends in. A full queue holds the task up, never the controller.
fn spawn(tx: &Sender, work: impl Future<Output = Option<Event>> + Send + 'static) -> AbortHandle {
    let tx = tx.clone();
    tokio::spawn(async move {
        if let Some(event) = work.await {
            let _ = tx.send(event).await;
        }
    })
    .abort_handle()
}

pub(super) fn prepare(ctx: &Context, tx: &Sender, pod: Arc<Pod>, record: Record, mut memory: Memory) -> AbortHandle {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let result = prepare::prepare(&ctx, &pod, &record, &mut memory).await;
        Some(Event::Prepared { uid: record.pod.uid, result: Box::new(result), memory: Box::new(memory) })
    })
}

/// sbatch; `look`: an earlier sbatch may have succeeded without our knowing, so the queue is searched first.
/// Without arguments nothing is submitted: the pod is prepared anew when no job is found.
pub(super) fn submit(ctx: &Context, tx: &Sender, uid: &str, arguments: Option<Vec<String>>, look: bool) {
    let (ctx, uid) = (ctx.clone(), uid.to_owned());
    spawn(tx, async move {
        let result = match find_then_submit(&ctx, &uid, arguments, look).await {
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(SlurmError::NoJob),
            Err(error) => Err(error),
        };
        Some(Event::Submitted { uid, result })
    });
}

async fn find_then_submit(
    ctx: &Context,
    uid: &str,
    arguments: Option<Vec<String>>,
    look: bool,
) -> Result<Option<String>, SlurmError> {
    if look {
        let jobs = loop {
            match ctx.slurm.queue(None).await {
                Ok(jobs) => break jobs,
                Err(error) if error.is_transient() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "looking for a pod's job");
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(job) =
            jobs.into_iter().filter(|j| j.comment == uid).max_by_key(|j| j.id.parse::<u64>().unwrap_or(0))
        {
            tracing::info!(%uid, job = %job.id, "job found again");
            return Ok(Some(job.id));
        }
    }
    match arguments {
        Some(arguments) => ctx.slurm.submit(&arguments, &ctx.folder(uid).script()).await.map(Some),
        None => Ok(None),
    }
}

pub(super) struct Refresh {
    pub(super) pod: Arc<Pod>,
    pub(super) record: Record,
    pub(super) plan: Box<SandboxPlan>,
    pub(super) sent: Vec<String>,
    pub(super) known: BTreeMap<String, Image>,
    pub(super) memory: Memory,
}

pub(super) fn refresh(ctx: &Context, tx: &Sender, mut job: Refresh) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let uid = job.record.pod.uid.clone();
        let mut result =
            prepare::refresh(&ctx, &job.pod, &job.record, &job.plan, &job.sent, &job.known, &mut job.memory).await;
        if let Ok(fresh) = &mut result
            && fresh.update != hpk_api::control::Update::default()
            && let Err(error) = ask(&ctx, &uid, &Request::Update(fresh.update.clone())).await
        {
            tracing::info!(%uid, %error, "the supervisor was not told of changes; tried again");
            // As if nothing had changed, so that the next refresh finds it again.
            fresh.update = hpk_api::control::Update::default();
            fresh.plan = None;
            fresh.retry = Some(Duration::from_secs(3));
        }
        Some(Event::Refreshed { uid, result: Box::new(result), memory: Box::new(job.memory) })
    });
}

async fn ask(ctx: &Context, uid: &str, request: &Request) -> anyhow::Result<Answer> {
    let connection = ctx.links.open_supervisor(uid).await?;
    let talk = stream::request(connection, request);
    let (answer, ..) = tokio::time::timeout(Duration::from_secs(20), talk).await??;
    Ok(answer)
}

pub(super) fn ask_stop(ctx: &Context, tx: &Sender, uid: &str, grace: u32) {
    let (ctx, uid) = (ctx.clone(), uid.to_owned());
    spawn(tx, async move {
        match ask(&ctx, &uid, &Request::Stop { grace_period_seconds: grace }).await {
            Ok(_) => None,
            Err(error) => {
                tracing::info!(%uid, %error, "the supervisor was not asked to stop");
                Some(Event::StopFailed { uid })
            }
        }
    });
}

pub(super) fn scancel(ctx: &Context, id: String, whole: bool) {
    let slurm = ctx.slurm.clone();
    tokio::spawn(async move {
        let done = if whole { slurm.cancel(&id).await } else { slurm.terminate(&id).await };
        if let Err(error) = done {
            tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "scancel");
        }
    });
}

/// Tells a pod that one whose job did not end in order was on its node.
pub(super) fn sweep(ctx: &Context, neighbour: String) {
    let links = ctx.links.clone();
    tokio::spawn(async move { links.push(&neighbour, &[NetUpdate::Sweep]).await });
}

/// Follows the supervisor's status for as long as the link stands.
pub(super) fn watch(ctx: &Context, tx: &Sender, uid: String) -> AbortHandle {
    let (ctx, tx) = (ctx.clone(), tx.clone());
    tokio::spawn(async move {
        let mut wait = Duration::from_millis(50);
        loop {
            match follow(&ctx, &tx, &uid).await {
                Ok(()) => wait = Duration::from_millis(50),
                Err(error) => tracing::debug!(%uid, %error, "status watch"),
            }
            // The supervisor's socket may not be there yet; the link's end aborts this task.
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    })
    .abort_handle()
}

async fn follow(ctx: &Context, tx: &Sender, uid: &str) -> anyhow::Result<()> {
    let connection = ctx.links.open_supervisor(uid).await?;
    let (answer, mut reader, _writer) = stream::request(connection, &Request::Status { watch: true }).await?;
    let Answer::Status(mut state) = answer else { anyhow::bail!("not a status") };
    loop {
        tx.send(Event::Report { uid: uid.to_owned(), state }).await?;
        match reader.line().await? {
            Some(next) => state = next,
            None => return Ok(()),
        }
    }
}

pub(super) fn refuse(ctx: &Context, uid: String) {
    let links = ctx.links.clone();
    tokio::spawn(async move { links.refuse(&uid, "this pod is not known to the kubelet").await });
}

pub(super) fn readmit(ctx: &Context, uid: String) {
    let links = ctx.links.clone();
    tokio::spawn(async move { links.readmit(&uid).await });
}

pub(super) fn ask_slurm(ctx: &Context, tx: &Sender, asked: Vec<String>) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let mut found = match ctx.slurm.queue(Some(&asked)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "squeue");
                tokio::time::sleep(Duration::from_secs(2)).await;
                return Some(Event::JobsFailed);
            }
        };
        let known: HashSet<&str> = found.iter().map(|j| j.id.as_str()).collect();
        let missing: Vec<String> = asked.iter().filter(|id| !known.contains(id.as_str())).cloned().collect();
        let mut complete = true;
        if !missing.is_empty() {
            match ctx.slurm.accounting(&missing).await {
                // A job that accounting still holds for alive but squeue does not know has not been written down yet.
                Ok(Some(jobs)) => found.extend(jobs.into_iter().filter(|j| j.state.is_over())),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "sacct");
                    complete = false;
                }
            }
        }
        Some(Event::Jobs { asked, found: newest(found), complete })
    });
}

/// A requeued job is listed once for each run: the last one counts.
fn newest(jobs: Vec<Job>) -> Vec<Job> {
    let mut by_id: BTreeMap<String, Job> = BTreeMap::new();
    for job in jobs {
        match by_id.get(&job.id) {
            Some(old) if old.ended_at > job.ended_at => {}
            _ => {
                by_id.insert(job.id.clone(), job);
            }
        }
    }
    by_id.into_values().collect()
}

pub(super) fn post(ctx: &Context, tx: &Sender, pod: Arc<Pod>, status: PodStatus, patch: Value) {
    let client = ctx.client.clone();
    spawn(tx, async move {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or("default"));
        let retry = match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => None,
            // Gone, or another pod of the same name: the watch will say so.
            Err(Error::Api(answer)) if answer.code == 404 || answer.code == 409 => None,
            // A status that the API server will never take must not keep the pod from being deleted.
            Err(Error::Api(answer)) if answer.code == 422 => {
                tracing::error!(pod = %name, message = %answer.message, "status refused");
                None
            }
            Err(error) => {
                tracing::warn!(pod = %name, %error, "status not posted");
                Some(Duration::from_secs(2))
            }
        };
        Some(Event::Posted { uid, status: Box::new(status), retry })
    });
}

/// Removes folders that no pod and no record claims.
pub(super) fn remove_orphans(ctx: &Context, orphans: Vec<String>) {
    let ctx = ctx.clone();
    tokio::task::spawn_blocking(move || {
        for uid in orphans {
            match ctx.folder(&uid).remove() {
                Ok(()) => tracing::info!(%uid, "a pod folder that nobody claims is removed"),
                Err(error) => tracing::warn!(%uid, %error, "pod folder not removed"),
            }
        }
    });
}

/// The folder first: an object that is gone no longer leads to it.
pub(super) fn remove(ctx: &Context, tx: &Sender, who: PodRef, in_api: bool) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let folder = ctx.folder(&who.uid);
        let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(pod = %who.name, %error, "pod folder not removed"),
            Err(error) => tracing::error!(pod = %who.name, %error, "removal of a pod folder"),
        }
        let mut done = true;
        if in_api {
            let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &who.namespace);
            if let Err(error) = node::delete_pod(&api, &who.name, &who.uid).await {
                tracing::warn!(pod = %who.name, %error, "pod object not deleted");
                done = false;
            }
        }
        Some(Event::Removed { uid: who.uid, done })
    });
}
