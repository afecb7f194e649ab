//! The controller's effects: each a task that does one thing and reports by an event.

use super::context::Context;
use super::entry::Labels;
use super::event::Answers;
use super::prepare;
use super::prepared::{Memory, RefreshJob, Resized};
use super::{Event, Sender, no_link};
use crate::api::events::Note;
use crate::api::node;
use crate::executor::run::{self, Run};
use crate::executor::{Past, Submission};
use crate::pods::folder::Record;
use crate::pods::resize;
use crate::pods::submission::Finding;
use hpk_api::control::{Answer, Request};
use hpk_api::ids::{JobId, PodUid};
use hpk_api::link::NetUpdate;
use hpk_api::plan::PodRef;
use hpk_control::stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Error;
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
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

pub(super) fn prepare(
    ctx: &Context,
    tx: &Sender,
    attempt: u32,
    pod: Arc<Pod>,
    record: Record,
    mut memory: Memory,
) -> AbortHandle {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let result = prepare::prepare(&ctx, &pod, &record, &mut memory).await;
        let (result, memory) = (Box::new(result), Box::new(memory));
        Some(Event::Prepared { uid: record.pod.uid.into(), attempt, result, memory })
    })
}

/// sbatch. That it may run is [`crate::pods::submission`]'s to say.
pub(super) fn submit(ctx: &Context, tx: &Sender, uid: &PodUid, arguments: Vec<String>) {
    let (ctx, uid) = (ctx.clone(), uid.clone());
    spawn(tx, async move {
        let script = ctx.folder(&uid).script();
        let submission = Submission { uid: &uid, arguments: &arguments, script: &script };
        let result = ctx.executor.submit(submission).await;
        Some(Event::Submitted { uid, result })
    });
}

/// Gives a job that waits the size that its pod asks for now.
pub(super) fn resize(ctx: &Context, tx: &Sender, pod: Arc<Pod>, record: Record, job: JobId) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let wanted = resize::asked(&pod);
        let result = match prepare::ask(&ctx, &pod, &record) {
            Ok(asked) => {
                let done = ctx.executor.resize(&job, &asked.arguments).await;
                done.map(|()| asked.asked).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        Some(Event::Resized { uid: record.pod.uid.into(), result: Resized { job, wanted, result } })
    });
}

/// Writes a record to the shared file system, however long that takes.
pub(super) fn write_record(ctx: &Context, tx: &Sender, record: Record) {
    let uid = PodUid::from(record.pod.uid.as_str());
    let folder = ctx.folder(&uid);
    spawn(tx, async move {
        let written = tokio::task::spawn_blocking(move || folder.write_record(&record)).await;
        Some(Event::Recorded { uid, result: written.unwrap_or_else(|error| Err(error.into())) })
    });
}

/// How long until a pod whose job waits, and that has changed, is looked at again.
const WAITS: Duration = Duration::from_secs(30);

pub(super) fn refresh(ctx: &Context, tx: &Sender, mut job: RefreshJob) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let uid = PodUid::from(job.record.pod.uid.as_str());
        let mut to_write = None;
        let mut result =
            prepare::refresh(&ctx, &job.pod, &job.record, &job.plan, &job.sent, &job.known, &mut job.memory).await;
        if let Ok(fresh) = &mut result
            && fresh.update != hpk_api::control::Update::default()
            && let Err(error) = ask(&ctx, &uid, &Request::Update(fresh.update.clone())).await
        {
            tracing::info!(%uid, %error, "the supervisor was not told of changes; tried again");
            // As if nothing had changed, so that the next refresh finds it again: the job may have begun meanwhile.
            fresh.update = hpk_api::control::Update::default();
            to_write = if job.waits { fresh.plan.take() } else { None };
            fresh.plan = None;
            fresh.retry = Some(if job.waits { WAITS } else { Duration::from_secs(3) });
        } else if let Ok(fresh) = &result {
            to_write = fresh.plan.clone();
        }
        if let Some(plan) = to_write {
            let folder = ctx.folder(&uid);
            match tokio::task::spawn_blocking(move || folder.write_plan(&plan)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%uid, %error, "plan not updated"),
                Err(error) => tracing::error!(%uid, %error, "plan not updated"),
            }
        }
        Some(Event::Refreshed { uid, result: Box::new(result), memory: Box::new(job.memory) })
    });
}

async fn ask(ctx: &Context, uid: &PodUid, request: &Request) -> anyhow::Result<Answer> {
    let connection = ctx.links.open_supervisor(uid).await?;
    let talk = stream::request(connection, request);
    let (answer, ..) = tokio::time::timeout(Duration::from_secs(20), talk).await??;
    Ok(answer)
}

pub(super) fn ask_stop(ctx: &Context, tx: &Sender, uid: &PodUid, grace: u32) {
    let (ctx, uid) = (ctx.clone(), uid.clone());
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

pub(super) fn scancel(ctx: &Context, id: JobId, whole: bool) {
    let executor = ctx.executor.clone();
    tokio::spawn(async move {
        let done = if whole { executor.cancel(&id).await } else { executor.terminate(&id).await };
        if let Err(error) = done {
            tracing::warn!(job = %id, error = &error as &dyn std::error::Error, "scancel");
        }
    });
}

/// Tells a pod that one whose job did not end in order was on its node.
pub(super) fn sweep(ctx: &Context, neighbour: PodUid) {
    let links = ctx.links.clone();
    tokio::spawn(async move { links.push(&neighbour, &[NetUpdate::Sweep]).await });
}

/// Follows the supervisor's status for as long as the link stands.
pub(super) fn watch(ctx: &Context, tx: &Sender, uid: PodUid) -> AbortHandle {
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

async fn follow(ctx: &Context, tx: &Sender, uid: &PodUid) -> anyhow::Result<()> {
    let connection = ctx.links.open_supervisor(uid).await?;
    let (answer, mut reader, _writer) = stream::request(connection, &Request::Status { watch: true }).await?;
    let Answer::Status(mut state) = answer else { anyhow::bail!("not a status") };
    loop {
        tx.send(Event::Report { uid: uid.clone(), state }).await?;
        match reader.line().await? {
            Some(next) => state = next,
            None => return Ok(()),
        }
    }
}

/// Tells a pod's owner that its link is away: why, in the words of its node, and what to do.
pub(super) fn tell_unlinked(ctx: &Context, pod: Arc<Pod>, uid: &PodUid, node: Option<String>) {
    let (recorder, folder, address) = (ctx.recorder.clone(), ctx.folder(uid), ctx.links.address());
    tokio::task::spawn_blocking(move || {
        let output = folder.output_tail(4096);
        let note = Note::warning("NoLink", no_link::text(&output, address, node.as_deref()));
        recorder.pod(&pod, note);
    });
}

/// Has Slurm carry a pod's link.
pub(super) fn carry(ctx: &Context, uid: &PodUid, job: JobId) {
    let (carriers, uid, folder) = (ctx.carriers.clone(), uid.clone(), ctx.home.pod(uid));
    tokio::spawn(async move { carriers.offer(uid, job, folder).await });
}

/// What Slurm is asked, all at once.
pub(super) struct Question {
    pub(super) asked: Instant,
    /// Pods with their jobs' ids.
    pub(super) known: Vec<(PodUid, JobId)>,
    /// Pods whose jobs are sought.
    pub(super) sought: Vec<Sought>,
    /// All jobs of the user are wanted.
    pub(super) all: bool,
}

impl Question {
    /// There is nothing to ask; squeue would take it for all jobs of all users.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.sought.is_empty() && !self.all
    }
}

/// A pod whose job is sought.
pub(super) struct Sought {
    pub(super) pod: PodRef,
    /// No job of it is older.
    pub(super) since: Timestamp,
    /// Jobs of it that ended without a sandbox: none of them is sought.
    pub(super) failed: Vec<JobId>,
}

pub(super) fn ask_slurm(ctx: &Context, tx: &Sender, question: Question) {
    let ctx = ctx.clone();
    spawn(tx, async move {
        let Question { asked, known, sought, all } = question;
        let ids: Vec<String> = known.iter().map(|(_, id)| id.as_str().to_owned()).collect();
        let whole = all || !sought.is_empty();
        let queue = match ctx.executor.query((!whole).then_some(ids.as_slice())).await {
            Ok(queue) => queue,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "squeue");
                tokio::time::sleep(Duration::from_secs(2)).await;
                return Some(Event::JobsFailed {
                    asked,
                    sought: sought.into_iter().map(|s| s.pod.uid.into()).collect(),
                });
            }
        };
        let (known, complete) = look_up(&ctx, &queue, known).await;
        let sought = seek(&ctx, &queue, sought).await;
        Some(Event::Jobs(Answers { asked, known, complete, sought, all: all.then_some(queue) }))
    });
}

/// What squeue and, of those that it does not know, sacct say of these jobs; false: sacct did not answer.
async fn look_up(
    ctx: &Context,
    queue: &[Run],
    known: Vec<(PodUid, JobId)>,
) -> (Vec<(PodUid, JobId, Option<Run>)>, bool) {
    let by_id: HashMap<&str, &Run> = queue.iter().map(|job| (job.id.as_str(), job)).collect();
    let queued =
        |uid: &PodUid, id: &JobId| by_id.get(id.as_str()).filter(|job| job.is_of(uid)).map(|job| (*job).clone());
    let mut list: Vec<_> = known
        .into_iter()
        .map(|(uid, id)| {
            let job = queued(&uid, &id);
            (uid, id, job)
        })
        .collect();
    let missing: Vec<String> =
        list.iter().filter(|(.., job)| job.is_none()).map(|(_, id, _)| id.as_str().to_owned()).collect();
    if missing.is_empty() {
        return (list, true);
    }
    match ctx.executor.remembered(Past::Ids(&missing)).await {
        Ok(remembered) => {
            // A job that accounting still holds for alive but squeue does not know has not been written down yet.
            let over: Vec<Run> = remembered.into_iter().flatten().filter(|job| job.phase.is_over()).collect();
            for (uid, id, job) in list.iter_mut().filter(|(.., job)| job.is_none()) {
                // A requeued job is listed once for each run: the last one counts.
                let runs = over.iter().filter(|job| job.id == id.as_str() && job.is_of(uid));
                *job = runs.max_by_key(|job| job.ended_at).cloned();
            }
            (list, true)
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "sacct");
            (list, false)
        }
    }
}

/// Looks for the jobs of pods in squeue, then in sacct, then in what a supervisor has left in the pod's folder.
async fn seek(ctx: &Context, queue: &[Run], sought: Vec<Sought>) -> Vec<(PodUid, Finding, Option<JobId>)> {
    let is_failed = |s: &Sought, id: &str| s.failed.iter().any(|failed| failed.as_str() == id);
    let of = |jobs: &[Run], s: &Sought| {
        let counts = |j: &&Run| j.is_of(&s.pod.uid) && !j.was_refused() && !is_failed(s, &j.id);
        run::choose(jobs.iter().filter(counts).cloned().collect())
    };
    let (found, missing): (Vec<_>, Vec<_>) =
        sought.into_iter().map(|s| (of(queue, &s), s)).partition(|(job, _)| job.is_some());
    let mut list: Vec<_> =
        found.into_iter().filter_map(|(job, s)| Some((s.pod.uid.into(), Finding::Job, Some(job?.id.into())))).collect();
    let Some(since) = missing.iter().map(|(_, s)| s.since).min() else { return list };
    let names: Vec<String> = missing.iter().map(|(_, s)| format!("{}/{}", s.pod.namespace, s.pod.name)).collect();
    // The clocks of the machines may differ.
    let since = since - Duration::from_secs(3600);
    let remembered = match ctx.executor.remembered(Past::Names(&names, since)).await {
        Ok(jobs) => Some(jobs.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "sacct, looking for pods' jobs");
            None
        }
    };
    for (_, s) in missing {
        let uid = PodUid::from(s.pod.uid.as_str());
        let folder = ctx.folder(&uid);
        let word = match tokio::task::spawn_blocking(move || folder.last_word()).await {
            Ok(Ok(word)) => Some(word),
            Ok(Err(error)) => {
                tracing::warn!(%uid, %error, "the supervisor's last word cannot be read");
                None
            }
            Err(_) => None,
        };
        let by_accounting = remembered.as_deref().and_then(|jobs| of(jobs, &s)).map(|job| job.id);
        let by_word = word.iter().flatten().find_map(|state| state.job_id.clone()).filter(|id| !is_failed(&s, id));
        let finding = match by_accounting.or(by_word) {
            Some(id) => (uid, Finding::Job, Some(id.into())),
            None if remembered.is_some() && word.is_some() => (uid, Finding::Nothing, None),
            None => (uid, Finding::Unknown, None),
        };
        list.push(finding);
    }
    list
}

pub(super) fn post(ctx: &Context, tx: &Sender, pod: Arc<Pod>, status: Arc<PodStatus>, patch: Value) {
    let client = ctx.clients.of_pod(&pod).clone();
    spawn(tx, async move {
        let uid = PodUid::from(pod.metadata.uid.clone().unwrap_or_default());
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
        Some(Event::Posted { uid, status, retry })
    });
}

/// Sets labels of a pod. They are for people: where it fails nothing is lost.
pub(super) fn label(ctx: &Context, pod: Arc<Pod>, labels: Labels) {
    let client = ctx.clients.labeller().clone();
    tokio::spawn(async move {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or("default"));
        // Of this very pod: another one of its name is left alone.
        let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {}
            Err(Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {}
            Err(error) => tracing::warn!(pod = %name, %error, "labels not set"),
        }
    });
}

/// Removes folders that no pod and no record claims.
pub(super) fn remove_orphans(ctx: &Context, orphans: Vec<PodUid>) {
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
pub(super) fn remove(ctx: &Context, tx: &Sender, who: PodRef, pod: Option<Arc<Pod>>) {
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
        if let Some(pod) = pod {
            let api: Api<Pod> = Api::namespaced(ctx.clients.of_pod(&pod).clone(), &who.namespace);
            if let Err(error) = node::delete_pod(&api, &who.name, &who.uid).await {
                tracing::warn!(pod = %who.name, %error, "pod object not deleted");
                done = false;
            }
        }
        Some(Event::Removed { uid: who.uid.into(), done })
    });
}
