//! One attempt to make a pod ready for submission: references, images, plan, files.
//!
//! An attempt ends; when to try again is the controller's to keep.

use super::context::Context;
use super::prepared::{Held, Memory, Ready, Refreshed};
use super::pull;
use crate::api::events::Note;
use crate::api::fetch;
use crate::executor::{AskError, Asked, Asking, script};
use crate::gangs::Gate;
use crate::pods::bandwidth;
use crate::pods::folder::{Folder, Record};
use crate::pods::gifts;
use crate::pods::ids;
use crate::pods::plan::{self, Image, Input};
use crate::pods::runtime_class;
use crate::pods::status::Waiting;
use crate::pods::unsupported::{PRIORITY_CLASS, unsupported};
use crate::render::atomic;
use crate::render::sources::FoundClaim;
use crate::volumes::claim::{ClaimError, ONE_POD};
use crate::volumes::{Payload, exclusive};
use hpk_api::plan::{ContainerPlan, SandboxPlan};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Back-off of attempts that failed for other reasons than images: 1, 2, 4 … 20 s.
fn retry(memory: &mut Memory) -> Option<Duration> {
    memory.failures = memory.failures.saturating_add(1);
    Some(Duration::from_secs(1 << (memory.failures - 1).min(4)).min(Duration::from_secs(20)))
}

pub(super) async fn prepare(
    ctx: &Context,
    pod: &Arc<Pod>,
    record: &Record,
    memory: &mut Memory,
) -> Result<Ready, Held> {
    let tell = |note: Note| ctx.recorder.pod(pod, note);
    let first = !memory.told;
    let network = ctx.network(pod, record);
    let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()).unwrap_or_default();
    let priority = ctx.cluster.priority_classes.get(class);
    let mut list = unsupported(pod);
    list.retain(|u| priority.is_none() || u.field != PRIORITY_CLASS);
    if !memory.told {
        for item in &list {
            tell(Note::warning("Unsupported", item.message()));
        }
        if !network.bandwidth.is_unlimited() && !bandwidth::carried(network.list.as_ref()) {
            tell(Note::warning(
                "Unsupported",
                format!(
                    "metadata.annotations[{}, {}] have no effect: no plug-in with the capability bandwidth is in {}/*.conflist",
                    bandwidth::INGRESS,
                    bandwidth::EGRESS,
                    ctx.home.network_lists().display()
                ),
            ));
        }
        memory.told = true;
    }
    if let Some(fatal) = list.iter().find(|u| u.fatal) {
        return Err(hold_all(pod, "CreateContainerConfigError", &fatal.message(), None));
    }
    let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
    if !class.is_empty()
        && let Err(error) = runtime_class::check(ctx.clients.of_pod(pod).clone(), class).await
    {
        tell(Note::warning("FailedCreatePodSandBox", error.to_string()));
        return Err(Held { retry: retry(memory), ..Held::default() });
    }
    if let Some(gangs) = &ctx.gangs {
        match gangs.arrived(pod).await {
            Ok(Gate::Open) => {}
            Ok(Gate::Wait(text)) => {
                tell(Note::normal(WAITING_FOR_GANG, text.clone()));
                return Err(hold_all(pod, WAITING_FOR_GANG, &text, None));
            }
            Err(error) => {
                tell(Note::warning("FailedSubmit", error.to_string()));
                return Err(hold_all(pod, "CreateContainerConfigError", &error.to_string(), None));
            }
        }
    }
    let folder = ctx.folder(&record.pod.uid);
    let request = match ask(ctx, pod, record) {
        Ok(request) => request,
        Err(error) => {
            let why = error.to_string();
            tell(Note::warning("FailedSubmit", why.clone()));
            return Err(hold_all(pod, "CreateContainerConfigError", &why, None));
        }
    };
    for (reason, message) in request.warnings.iter().filter(|_| first) {
        tell(Note::warning(*reason, message.clone()));
    }
    let made = match make(ctx, pod, record, &network, memory, &BTreeMap::new()).await {
        Ok(made) => made,
        Err(held) => return Err(held),
    };
    if let Err(why) = take_claims(ctx, record, &made.claims).await {
        tell(Note::warning("FailedMount", why));
        return Err(Held { retry: retry(memory), ..Held::default() });
    }
    if !plan::can_begin(&made.plan) {
        let blocked = made.plan.all();
        let waiting: BTreeMap<_, _> = blocked
            .filter_map(|c| {
                c.blocked
                    .as_ref()
                    .map(|b| (c.name.clone(), Waiting { reason: b.reason.clone(), message: b.message.clone() }))
            })
            .collect();
        for (name, wait) in waiting.iter().filter(|(_, w)| w.reason == "CreateContainerConfigError") {
            tell(Note::warning("Failed", format!("Error: {}", wait.message)).of(name));
        }
        let retry = made.retry.or_else(|| retry(memory));
        return Err(Held { waiting, retry });
    }
    let text = script::script(
        &record.pod,
        &ctx.install.netns(),
        folder.path(),
        ctx.executor.words().command,
        &request.arguments,
    );
    let written = match folder.create() {
        Ok(()) => write_volumes(ctx, record, made.payloads).await,
        Err(error) => Err(error),
    };
    if let Err(error) = written.and_then(|()| folder.write_job(&made.plan, &text)) {
        tell(Note::warning(
            "FailedMount",
            format!("cannot write the pod's folder {}: {error}", folder.path().display()),
        ));
        return Err(Held { retry: retry(memory), ..Held::default() });
    }
    // With the plan the use of its images is written down. Who removed one before has not seen that.
    if let Some(gone) = hpk_images::images(&made.plan).find(|image| !ctx.images.has(image)) {
        tell(Note::warning("Failed", format!("image {} was removed meanwhile; it is pulled again", gone.id)));
        return Err(Held { retry: retry(memory), ..Held::default() });
    }
    if let Err(error) = ctx.links.issue(&record.pod.uid, folder.link(), record.addresses()).await {
        tell(Note::warning("FailedCreatePodSandBox", format!("no link credentials: {error}")));
        return Err(Held { retry: retry(memory), ..Held::default() });
    }
    memory.failures = 0;
    if let Some(gangs) = &ctx.gangs
        && let Gate::Wait(text) = gangs.ready(&record.pod.uid).await
    {
        return Err(hold_all(pod, WAITING_FOR_GANG, &text, None));
    }
    Ok(Ready { arguments: request.arguments, asked: request.asked, plan: Box::new(made.plan), images: made.images })
}

/// What the pod asks of the executor now.
pub(super) fn ask(ctx: &Context, pod: &Pod, record: &Record) -> Result<Asked, AskError> {
    let facts = ctx.node.borrow().clone();
    ctx.executor.ask(&Asking {
        pod,
        who: &record.pod,
        node: ctx.nodes.of_pod(pod),
        folder: ctx.folder(&record.pod.uid).path(),
        cluster: &ctx.cluster,
        defaults: &ctx.defaults,
        site: &facts.site,
        there: &facts.cluster,
        avoid: &record.avoid,
    })
}

/// Why the containers of a gang's member wait, until all of it can begin.
const WAITING_FOR_GANG: &str = "WaitingForGang";

/// All containers of the pod wait for the same.
fn hold_all(pod: &Pod, reason: &str, message: &str, retry: Option<Duration>) -> Held {
    let names = pod.spec.iter().flat_map(|s| s.containers.iter().map(|c| c.name.clone()));
    let wait = Waiting { reason: reason.to_owned(), message: message.to_owned() };
    Held { waiting: names.map(|n| (n, wait.clone())).collect(), retry }
}

/// Claims that are deleted are for the pods that have them already; some are for one pod at a time.
async fn take_claims(ctx: &Context, record: &Record, claims: &BTreeMap<String, FoundClaim>) -> Result<(), String> {
    for (name, found) in claims {
        if found.claim.metadata.deletion_timestamp.is_some() {
            return Err(ClaimError::Deleted(name.clone()).to_string());
        }
        let modes = found.claim.spec.as_ref().and_then(|s| s.access_modes.as_ref());
        if !modes.is_some_and(|modes| modes.iter().any(|mode| mode == ONE_POD)) {
            continue;
        }
        let (folder, pods, holders) = (ctx.folder(&record.pod.uid), ctx.home.pods(), ctx.home.one_pod());
        let claim = found.claim.metadata.uid.clone().unwrap_or_default();
        let pod = record.pod.uid.clone();
        let take = move || folder.create().and_then(|()| exclusive::take(&holders, &pods, &claim, &pod));
        match tokio::task::spawn_blocking(take).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(ClaimError::InUse.to_string()),
            Ok(Err(error)) => return Err(format!("claim {name:?}: {error}")),
            Err(error) => return Err(format!("claim {name:?}: {error}")),
        }
    }
    Ok(())
}

struct Made {
    plan: SandboxPlan,
    ephemeral: Vec<ContainerPlan>,
    payloads: BTreeMap<String, Payload>,
    images: BTreeMap<String, Image>,
    claims: BTreeMap<String, FoundClaim>,
    retry: Option<Duration>,
}

async fn make(
    ctx: &Context,
    pod: &Arc<Pod>,
    record: &Record,
    network: &hpk_api::net::NetworkPlan,
    memory: &mut Memory,
    known: &BTreeMap<String, Image>,
) -> Result<Made, Held> {
    let tell = |note: Note| ctx.recorder.pod(pod, note);
    let services = ctx.services.state();
    let sources = match fetch::sources(ctx.clients.of_pod(pod), pod, &services, &mut memory.kept).await {
        Ok(sources) => sources,
        Err(error) => {
            // Just bound pods are unknown to the Node authorizer for a moment: told only when it lasts.
            if memory.failures > 2 {
                tell(Note::warning("FailedMount", format!("{error}")));
            }
            tracing::debug!(pod = %record.pod.name, error = &error as &dyn std::error::Error, "references not read");
            return Err(Held { retry: retry(memory), ..Held::default() });
        }
    };
    for refusal in memory.kept.refusals.drain(..) {
        tell(Note::warning("FailedCertificateRenewal", refusal.to_string()));
    }
    let images = pull::pull(ctx, pod, &sources.secrets, known, &mut memory.backoff).await;
    if let Some(blocked) = &images.volume_blocked {
        return Err(hold_all(pod, &blocked.reason, &blocked.message, images.retry));
    }
    let facts = ctx.facts(pod, network);
    let node_resolv = Context::node_resolv();
    let input = Input {
        pod,
        who: &record.pod,
        sources: &sources,
        images: &images.containers,
        volume_images: &images.volumes,
        facts: &facts,
        network,
        cluster: &ctx.cluster,
        node_resolv: &node_resolv,
        node_hosts: &std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        mounts: &std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
        me: ids::Me::look(),
        settings: &ctx.settings,
    };
    let planned = match plan::plan(input) {
        Ok(planned) => planned,
        Err(error) => {
            tell(Note::warning(error.reason(), error.to_string()));
            return Err(Held { retry: retry(memory), ..Held::default() });
        }
    };
    for (reason, message) in &planned.warnings {
        tell(Note::warning(*reason, message.clone()));
    }
    let added = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    let ephemeral = added.map(|e| plan::ephemeral(input, e).0).collect();
    let had = images.containers.into_iter().filter_map(|(name, image)| Some((name, image.ok()?))).collect();
    let retry = images.retry;
    Ok(Made { plan: planned.plan, ephemeral, payloads: planned.payloads, images: had, claims: sources.claims, retry })
}

async fn write_volumes(ctx: &Context, record: &Record, payloads: BTreeMap<String, Payload>) -> std::io::Result<()> {
    let pod = ctx.folder(&record.pod.uid).inside();
    let stamp = Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%6f").to_string();
    let write = move || {
        let give = |folder: &Path, gifts: &[(&str, u32)]| gifts::give(&pod, folder, gifts);
        payloads.iter().try_for_each(|(name, payload)| {
            atomic::write(&pod, &Folder::volume(name), payload, &stamp, &give).map(drop)
        })
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
}

/// Brings a running pod's volumes up to date and finds what the supervisor must be told: ephemeral containers,
/// containers that would be made in another way now.
///
/// `known`: images by container whose spec image has not changed: they are not pulled again.
pub(super) async fn refresh(
    ctx: &Context,
    pod: &Arc<Pod>,
    record: &Record,
    old: &SandboxPlan,
    sent: &[String],
    known: &BTreeMap<String, Image>,
    memory: &mut Memory,
) -> Result<Refreshed, Held> {
    let mut network = ctx.network(pod, record);
    // A supervisor of before the placeholder would take it for the value.
    network.fills_host_ip = old.network.fills_host_ip;
    network.fills_host_ips = old.network.fills_host_ips;
    let unchanged: BTreeMap<String, Image> = known
        .iter()
        .filter(|(name, _)| sent.contains(name) || spec_image(pod, name) == plan_image(old, name))
        .map(|(n, i)| (n.clone(), i.clone()))
        .collect();
    let made = make(ctx, pod, record, &network, memory, &unchanged).await?;
    if let Err(error) = write_volumes(ctx, record, made.payloads).await {
        ctx.recorder.pod(pod, Note::warning("FailedMount", format!("cannot update the pod's volumes: {error}")));
    }
    memory.failures = 0;
    // The pod's images are mounted once, before its first container.
    let had: Vec<&str> = hpk_images::images(old).map(|image| image.folder.as_str()).collect();
    for image in
        made.images.values().map(|image| &image.image_ref).filter(|image| !had.contains(&image.folder.as_str()))
    {
        if let Err(error) = ctx.images.unfold(image).await {
            ctx.recorder.pod(pod, Note::warning("Failed", error.to_string()));
            return Err(Held { retry: retry(memory), ..Held::default() });
        }
    }
    let before: BTreeMap<&str, &ContainerPlan> = old.all().map(|c| (c.name.as_str(), c)).collect();
    let mut update = hpk_api::control::Update::default();
    let mut plan = old.clone();
    for fresh in made.plan.all() {
        let Some(was) = before.get(fresh.name.as_str()) else { continue };
        if is_news(was, fresh) {
            update.containers.push(fresh.clone());
            let slot = plan.all_mut().find(|c| c.name == fresh.name);
            if let Some(slot) = slot {
                *slot = fresh.clone();
            }
        }
    }
    update.ephemeral_containers =
        made.ephemeral.iter().filter(|e| e.blocked.is_none() && !sent.contains(&e.name)).cloned().collect();
    if made.plan.active_deadline_seconds != old.active_deadline_seconds {
        update.active_deadline_seconds = made.plan.active_deadline_seconds;
        plan.active_deadline_seconds = made.plan.active_deadline_seconds;
    }
    for added in &update.ephemeral_containers {
        let path = format!("spec.ephemeralContainers[{}]", added.name);
        for item in unsupported(pod).iter().filter(|u| u.field.starts_with(&path)) {
            ctx.recorder.pod(pod, Note::warning("Unsupported", item.message()));
        }
    }
    let waiting = made
        .plan
        .init_containers
        .iter()
        .chain(&made.plan.containers)
        .chain(&made.ephemeral)
        .filter_map(|c| {
            c.blocked
                .as_ref()
                .map(|b| (c.name.clone(), Waiting { reason: b.reason.clone(), message: b.message.clone() }))
        })
        .collect();
    let changed = plan != *old;
    Ok(Refreshed { update, plan: changed.then(|| Box::new(plan)), images: made.images, waiting, retry: made.retry })
}

/// Whether the supervisor is to know the plan that a container would have now. A running container keeps what it was made
/// with; its next start is by the plan of then, as upstream makes the configuration anew at each start.
fn is_news(was: &ContainerPlan, fresh: &ContainerPlan) -> bool {
    match &fresh.blocked {
        None => was != fresh,
        // A start needs what is missing. An image does not need to be had again.
        Some(blocked) => blocked.reason == "CreateContainerConfigError" && was.blocked.as_ref() != Some(blocked),
    }
}

fn spec_image(pod: &Pod, name: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let find = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name);
    match find {
        Some(container) => container.image.clone(),
        None => spec.ephemeral_containers.iter().flatten().find(|e| e.name == name)?.image.clone(),
    }
}

fn plan_image(plan: &SandboxPlan, name: &str) -> Option<String> {
    let known = plan.all().find(|c| c.name == name);
    known.map(|c| c.image.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::Blocked;
    use serde_json::json;

    #[test]
    fn a_start_to_come_follows_what_the_pod_refers_to() {
        let plan = |mode: &str| -> ContainerPlan {
            let plan = json!({"name": "c", "image": "i", "image_ref": {"folder": "f", "id": "d"}, "argv": ["a"], "env": [["MODE", mode]]});
            serde_json::from_value(plan).expect("a container")
        };
        let blocked = |reason: &str, message: &str| {
            let why = Blocked { reason: reason.to_owned(), message: message.to_owned() };
            ContainerPlan { blocked: Some(why), ..plan("old") }
        };
        let config = "CreateContainerConfigError";
        for (was, fresh, news) in [
            (plan("old"), plan("old"), false),
            (plan("old"), plan("new"), true),
            (plan("old"), blocked(config, "no key"), true),
            (blocked(config, "no key"), blocked(config, "no key"), false),
            (blocked(config, "no key"), blocked(config, "no map"), true),
            (blocked(config, "no key"), plan("old"), true),
            (plan("old"), blocked("ErrImagePull", "no registry"), false),
        ] {
            assert_eq!(is_news(&was, &fresh), news, "{was:?} {fresh:?}");
        }
    }
}
