//! Conditions of a pod. Their rules and texts are upstream's (kubelet/status/generate.go), but for [`JOB_STARTED`].

use super::{Input, JOB_STARTED, SILENT, any_regular_started, seconds};
use crate::executor::run::RunPhase;
use crate::pods::phase::{self, is_sidecar};
use crate::pods::resize;
use crate::pods::verdict::Verdict;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

struct Wanted {
    kind: &'static str,
    status: bool,
    reason: Option<String>,
    message: Option<String>,
}

fn wanted(kind: &'static str, status: bool, reason: Option<&str>, message: Option<String>) -> Wanted {
    Wanted { kind, status, reason: reason.map(str::to_owned), message }
}

pub(super) fn conditions(
    input: &Input<'_>,
    spec: &PodSpec,
    all: &[ContainerStatus],
    phase: &str,
    verdict: Option<&Verdict>,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(spec, all, phase);
    let mut ready = pod_ready(input.pod, input.previous, spec, &containers_ready);
    let suspended = input.job.filter(|job| job.is_suspended());
    if let Some(job) = suspended.filter(|_| ready.status) {
        let text = format!("{} {} is suspended", job.words().run, job.id);
        ready = wanted("Ready", false, Some(job.words().reasons.suspended), Some(text));
    } else if ready.status && input.silent {
        let node = input.job.map(|job| job.nodes.as_str()).unwrap_or_default();
        let text = format!("nothing is heard of the pod on node {node}: the node or its network is down");
        ready = wanted("Ready", false, Some(SILENT), Some(text));
    }
    let sandbox =
        input.report.is_some_and(|r| r.sandbox_ready && !r.finished) && !input.job.is_some_and(|j| j.phase.is_over());
    let sandbox_message = input.report.and_then(|r| r.sandbox_error.clone());
    let mut list = vec![
        wanted(
            "PodReadyToStartContainers",
            sandbox,
            (!sandbox && sandbox_message.is_some()).then_some("PodSandboxNotReady"),
            sandbox_message.filter(|_| !sandbox),
        ),
        initialized(input.previous, spec, all, phase),
        ready,
        containers_ready,
        wanted("PodScheduled", true, None, None),
    ];
    list.extend(all_restarting(input, spec, phase));
    if let Some(error) = input.submit_error.filter(|_| input.job.is_none()) {
        list.push(wanted(JOB_STARTED, false, Some("SubmitFailed"), Some(error.to_owned())));
    }
    if let Some(job) = input.job {
        list.push(match job.phase {
            RunPhase::Pending => wanted(
                JOB_STARTED,
                false,
                Some(if job.reason.is_empty() || job.reason == "None" { "Pending" } else { &job.reason }),
                Some(format!("{} {} is pending: {}", job.words().run, job.id, job.why)),
            ),
            _ => wanted(JOB_STARTED, true, None, Some(format!("{} {} on {}", job.words().run, job.id, job.nodes))),
        });
    }
    let stays = !input.is_being_resized && !phase::is_terminal(Some(phase));
    let resize = resize::infeasible(input.pod, input.granted).filter(|_| stays);
    list.extend(resize.map(|message| wanted(resize::PENDING, true, Some(resize::INFEASIBLE), Some(message))));
    if let Some(verdict) = verdict.filter(|v| v.disruption) {
        list.push(wanted("DisruptionTarget", true, Some("TerminationByKubelet"), Some(verdict.message.clone())));
    }
    let mut result: Vec<PodCondition> = input
        .pod
        .status
        .iter()
        .filter_map(|s| s.conditions.as_ref())
        .flatten()
        // Ours, where it is over.
        .filter(|c| c.type_ != resize::PENDING && !list.iter().any(|w| w.kind == c.type_))
        .cloned()
        .collect();
    result.extend(list.into_iter().map(|w| finish(w, input)));
    result
}

/// The condition's time changes only with its status.
fn finish(wanted: Wanted, input: &Input<'_>) -> PodCondition {
    let status = if wanted.status { "True" } else { "False" };
    let find = |s: &PodStatus| s.conditions.iter().flatten().find(|c| c.type_ == wanted.kind).cloned();
    let old = find(input.previous).or_else(|| input.pod.status.as_ref().and_then(find));
    let same = old.as_ref().filter(|c| c.status == status);
    PodCondition {
        last_probe_time: None,
        last_transition_time: same
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(Time(seconds(input.now)))),
        message: wanted.message,
        observed_generation: input.pod.metadata.generation,
        reason: wanted.reason,
        status: status.to_owned(),
        type_: wanted.kind.to_owned(),
    }
}

fn go_list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn containers_ready(spec: &PodSpec, all: &[ContainerStatus], phase: &str) -> Wanted {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => return wanted(kind, false, Some("PodCompleted"), None),
        "Failed" => return wanted(kind, false, Some("PodFailed"), None),
        _ => {}
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let unready: Vec<&str> = sidecars
        .chain(&spec.containers)
        .filter(|c| !all.iter().any(|s| s.name == c.name && s.ready))
        .map(|c| c.name.as_str())
        .collect();
    if unready.is_empty() {
        return wanted(kind, true, None, None);
    }
    wanted(
        kind,
        false,
        Some("ContainersNotReady"),
        Some(format!("containers with unready status: {}", go_list(&unready))),
    )
}

fn pod_ready(pod: &Pod, previous: &PodStatus, spec: &PodSpec, containers: &Wanted) -> Wanted {
    let kind = "Ready";
    if !containers.status {
        return wanted(kind, false, containers.reason.as_deref(), containers.message.clone());
    }
    let current = pod.status.as_ref().unwrap_or(previous);
    let mut missing = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match current.conditions.iter().flatten().find(|c| &c.type_ == name) {
            None => missing.push(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
            Some(c) if c.status != "True" => {
                missing.push(format!("the status of pod readiness gate {name:?} is not \"True\", but {}", c.status));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return wanted(kind, true, None, None);
    }
    wanted(kind, false, Some("ReadinessGatesNotReady"), Some(missing.join(", ")))
}

fn initialized(previous: &PodStatus, spec: &PodSpec, all: &[ContainerStatus], phase: &str) -> Wanted {
    let kind = "Initialized";
    if phase == "Succeeded" {
        return wanted(kind, true, Some("PodCompleted"), None);
    }
    let before = previous.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    if any_regular_started(spec, all) || (before && !spec.init_containers.as_ref().is_none_or(Vec::is_empty)) {
        return wanted(kind, true, None, None);
    }
    let incomplete: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| {
            let done = |s: &ContainerStatus| if is_sidecar(c) { s.started == Some(true) } else { s.ready };
            !all.iter().any(|s| s.name == c.name && done(s))
        })
        .map(|c| c.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return wanted(kind, true, None, None);
    }
    wanted(
        kind,
        false,
        Some("ContainersNotInitialized"),
        Some(format!("containers with incomplete status: {}", go_list(&incomplete))),
    )
}

/// AllContainersRestarting (KEP-5532), for pods that have a rule which may restart all containers.
fn all_restarting(input: &Input<'_>, spec: &PodSpec, phase: &str) -> Option<Wanted> {
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    if !containers.any(|c| c.restart_policy_rules.iter().flatten().any(|r| r.action == "RestartAllContainers")) {
        return None;
    }
    let kind = "AllContainersRestarting";
    Some(match phase {
        "Succeeded" => wanted(kind, false, Some("PodCompleted"), None),
        "Failed" => wanted(kind, false, Some("PodFailed"), None),
        _ if input.report.is_some_and(|r| r.restarting_all) => {
            let message = "container exited with restart policy rule".to_owned();
            wanted(kind, true, Some("RestartAllContainersStarted"), Some(message))
        }
        _ => wanted(kind, false, None, None),
    })
}
