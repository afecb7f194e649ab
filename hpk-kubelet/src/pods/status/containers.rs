//! Statuses of containers: of the supervisor's report, of what the kubelet knows itself, and of a job's end that no report tells.

use super::{Input, seconds};
use crate::pods::ephemeral::as_container;
use crate::pods::phase::{is_sidecar, should_restart};
use crate::pods::verdict::{Lost, Verdict, has_ended};
use hpk_api::state::{self as api, RunState, Termination};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, PodSpec, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Containers that have ended stay as they were told last, but are not ready.
pub(super) fn withhold_ends(statuses: &mut [ContainerStatus], previous: Option<&[ContainerStatus]>) {
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|s| s.terminated.is_some());
    for status in statuses.iter_mut().filter(|s| ended(s)) {
        let before = previous.into_iter().flatten().find(|p| p.name == status.name);
        if let Some(before) = before.filter(|p| !ended(p)) {
            *status = ContainerStatus { ready: false, ..before.clone() };
        }
    }
}

/// Containers whose end the API has for good stay as they were told last: it takes no such end back, and Slurm may have put the
/// job back into its queue.
pub(super) fn keep_ends(
    statuses: &mut [ContainerStatus],
    previous: Option<&[ContainerStatus]>,
    spec: &PodSpec,
    containers: &[Container],
) {
    let end = |status: &ContainerStatus| status.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    if all().any(|c| c.restart_policy_rules.iter().flatten().any(|r| r.action == "RestartAllContainers")) {
        return;
    }
    for status in statuses.iter_mut().filter(|status| end(status).is_none()) {
        let before = previous.into_iter().flatten().find(|p| p.name == status.name);
        let container = containers.iter().find(|c| c.name == status.name);
        if let (Some(before), Some(container)) = (before, container)
            && end(before).is_some_and(|code| !should_restart(container, spec, code))
        {
            *status = before.clone();
        }
    }
}

pub(super) fn init_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
    let reported = input.report.map(|r| r.init_containers.as_slice()).unwrap_or_default();
    spec.init_containers
        .iter()
        .flatten()
        .map(|c| {
            let state = reported.iter().find(|s| s.name == c.name);
            let mut status = container_status(input, c, state, default_reason(spec), judged);
            if !is_sidecar(c) {
                // Init containers are "ready" when they succeeded.
                status.ready =
                    status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
            }
            status
        })
        .collect()
}

pub(super) fn main_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
    let reported = input.report.map(|r| r.containers.as_slice()).unwrap_or_default();
    let find = |name: &str| reported.iter().find(|s| s.name == name);
    spec.containers.iter().map(|c| container_status(input, c, find(&c.name), default_reason(spec), judged)).collect()
}

pub(super) fn ephemeral_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
    let reported = input.report.map(|r| r.ephemeral_containers.as_slice()).unwrap_or_default();
    let find = |name: &str| reported.iter().find(|s| s.name == name);
    spec.ephemeral_containers
        .iter()
        .flatten()
        .map(|e| container_status(input, &as_container(e), find(&e.name), "ContainerCreating", judged))
        .collect()
}

fn default_reason(spec: &PodSpec) -> &'static str {
    if spec.init_containers.as_ref().is_some_and(|c| !c.is_empty()) { "PodInitializing" } else { "ContainerCreating" }
}

fn container_status(
    input: &Input<'_>,
    container: &Container,
    reported: Option<&api::ContainerState>,
    default_reason: &str,
    judged: Option<&Verdict>,
) -> ContainerStatus {
    let fresh = api::ContainerState {
        name: container.name.clone(),
        state: RunState::Waiting { reason: default_reason.to_owned(), message: String::new() },
        ..api::ContainerState::default()
    };
    let mut current = reported.unwrap_or(&fresh).clone();
    if let (RunState::Waiting { reason, message }, Some(held)) = (&mut current.state, input.held.get(&container.name)) {
        // The supervisor may repeat what the plan told it; the kubelet's own word on an image is newer.
        reason.clone_from(&held.reason);
        message.clone_from(&held.message);
    }
    if let Some(verdict) = judged {
        settle(&mut current, verdict, input, reported.is_some());
    }
    let resources = input.granted.get(&container.name).or(container.resources.as_ref()).cloned();
    let running = matches!(current.state, RunState::Running { .. });
    ContainerStatus {
        allocated_resources: resources.as_ref().filter(|_| running).and_then(|r| r.requests.clone()),
        container_id: Some(current.container_id.clone()).filter(|id| !id.is_empty()),
        image: container.image.clone().unwrap_or_default(),
        image_id: if current.container_id.is_empty() {
            String::new()
        } else {
            input.images.get(&container.name).map(|i| i.id.clone()).unwrap_or_default()
        },
        last_state: Some(ContainerState {
            terminated: current.last_termination.as_ref().map(terminated),
            ..ContainerState::default()
        }),
        name: container.name.clone(),
        ready: current.ready && running,
        resources: resources.filter(|_| running),
        restart_count: i32::try_from(current.restart_count).unwrap_or(i32::MAX),
        started: Some(current.started && running),
        state: Some(match &current.state {
            RunState::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(reason.clone()).filter(|r| !r.is_empty()),
                    message: Some(message.clone()).filter(|m| !m.is_empty()),
                }),
                ..ContainerState::default()
            },
            RunState::Running { started_at } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(seconds(*started_at))) }),
                ..ContainerState::default()
            },
            RunState::Terminated(t) => ContainerState { terminated: Some(terminated(t)), ..ContainerState::default() },
        }),
        user: current.user.as_ref().map(|u| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: i64::from(u.uid),
                gid: i64::from(u.gid),
                supplemental_groups: Some(u.groups.iter().map(|g| i64::from(*g)).collect()),
            }),
        }),
        volume_mounts: mount_statuses(container),
        ..ContainerStatus::default()
    }
}

fn mount_statuses(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let list: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| VolumeMountStatus {
            mount_path: m.mount_path.clone(),
            name: m.name.clone(),
            read_only: m.read_only.filter(|r| *r),
            recursive_read_only: (m.read_only == Some(true)).then(|| match m.recursive_read_only.as_deref() {
                Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
            ..VolumeMountStatus::default()
        })
        .collect();
    Some(list).filter(|l| !l.is_empty())
}

/// Containers whose end nobody saw.
fn settle(current: &mut api::ContainerState, verdict: &Verdict, input: &Input<'_>, reported: bool) {
    let finished = input.report.is_some_and(|r| r.finished);
    let job_over = input.job.is_some_and(|j| has_ended(j, finished));
    let alive = matches!(current.state, RunState::Running { .. });
    let unheard = !reported && matches!(current.state, RunState::Waiting { .. });
    if !job_over || finished || !(alive || unheard) {
        return;
    }
    // Accounting gives a job that was cancelled in the queue a start, but no node.
    let never_ran = input.job.is_some_and(|j| j.started_at.is_none() || matches!(j.nodes.as_str(), "None assigned"));
    let started_at = match current.state {
        RunState::Running { started_at } => Some(started_at),
        _ => None,
    };
    let finished_at = input.job.and_then(|j| j.ended_at).unwrap_or(input.now);
    let unseen = Termination::unseen(started_at, finished_at, &current.container_id);
    current.state = RunState::Terminated(match verdict.containers {
        // The pod's message says why; the container waits for ever.
        Lost::NeverStarted => return,
        _ if unheard && never_ran => return,
        Lost::OutOfMemory => Termination { reason: "OOMKilled".to_owned(), message: String::new(), ..unseen },
        Lost::Unknown => unseen,
    });
    current.ready = false;
    current.started = false;
}

fn terminated(t: &Termination) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(t.container_id.clone()).filter(|id| !id.is_empty()),
        exit_code: t.exit_code,
        finished_at: Some(Time(seconds(t.finished_at))),
        message: Some(t.message.clone()).filter(|m| !m.is_empty()),
        reason: Some(t.reason.clone()).filter(|r| !r.is_empty()),
        signal: None,
        started_at: Some(Time(seconds(t.started_at.unwrap_or(t.finished_at)))),
    }
}
