//! PodStatus out of what the supervisor reports, what Slurm says and what the kubelet itself does.
//!
//! The conditions' rules and texts are upstream's (kubelet/status/generate.go).

mod messages;

use super::admit::Refusal;
use super::phase::{self, is_sidecar};
use super::resize::{self, Granted};
use super::verdict::{Lost, Verdict, has_ended, verdict};
use crate::executor::run::{Run, RunPhase};
use hpk_api::plan::ImageRef;
use hpk_api::pod_flags;
use hpk_api::state::{self as api, LaunchReport, PodState, RunState, StopCause, Termination};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodSpec, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Condition of ours: whether Slurm has started the pod's job, with Slurm's reason while it has not.
pub const JOB_STARTED: &str = "slurm.hpk.io/JobStarted";

/// Reason of Ready being False: upstream's event about pods of a node that is not heard of.
pub const SILENT: &str = "NodeNotReady";

/// Whether the status says that the pod is silent.
#[must_use]
pub fn is_silent(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.reason.as_deref() == Some(SILENT))
}

/// Why a container has not been started, as the kubelet itself knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// `ErrImagePull`, `ImagePullBackOff`, `CreateContainerConfigError`, …
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// Everything that a status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// Status posted last; the API's when none.
    pub previous: &'a PodStatus,
    /// The supervisor's newest word.
    pub report: Option<&'a PodState>,
    /// Slurm's newest word.
    pub job: Option<&'a Run>,
    /// hpk-netns' word on a start that failed.
    pub launch: Option<&'a LaunchReport>,
    /// Containers that the kubelet holds back, by name.
    pub held: &'a BTreeMap<String, Waiting>,
    /// Images in use, by container name.
    pub images: &'a BTreeMap<String, ImageRef>,
    /// Resources that the job was begun with, by container name.
    pub granted: &'a Granted,
    /// The kubelet's refusal of the pod.
    pub refused: Option<&'a Refusal>,
    /// sbatch's refusal of the pod's job.
    pub submit_error: Option<&'a str>,
    /// Slurm has put the job back into its queue, and the pod's next run has not been heard of yet.
    pub put_back: bool,
    /// The link is down, and nothing was heard of the supervisor for a while.
    pub silent: bool,
    /// Its job has made no sandbox, and another one is to come.
    pub again: bool,
    /// The Node's address.
    pub host_ip: IpAddr,
    /// When the kubelet first saw the pod.
    pub seen_at: Timestamp,
    pub now: Timestamp,
}

/// Makes the status.
#[must_use]
pub fn status(input: Input<'_>) -> PodStatus {
    let empty = PodSpec::default();
    let spec = input.pod.spec.as_ref().unwrap_or(&empty);
    let judged = match input.refused {
        Some(refusal) => Some(Verdict {
            reason: refusal.reason,
            message: format!("Pod was rejected: {}", refusal.message),
            disruption: false,
            containers: Lost::NeverStarted,
        }),
        None if input.again => None,
        None => verdict(input.report, input.job, input.launch, grace(spec)),
    };
    // Of a pod that Slurm has told to end only Slurm knows whether it is over: the job may go back into its queue. The API takes
    // no end of a container back.
    let undecided = judged.is_none() && input.report.is_some_and(|r| r.stopping == Some(StopCause::Signal));
    let mut init = init_statuses(&input, spec, judged.as_ref());
    let mut main = main_statuses(&input, spec, judged.as_ref());
    if undecided {
        withhold_ends(&mut init, input.previous.init_container_statuses.as_deref());
        withhold_ends(&mut main, input.previous.container_statuses.as_deref());
    }
    let mut ephemeral = ephemeral_statuses(&input, spec, judged.as_ref());
    for statuses in [&mut init, &mut main, &mut ephemeral] {
        messages::cut(spec, statuses);
    }
    let all: Vec<ContainerStatus> = init.iter().chain(&main).cloned().collect();
    main.sort_by(|a, b| a.name.cmp(&b.name));

    let finished = input.report.is_some_and(|r| r.finished) && !input.again;
    let before = input.previous.phase.as_deref();
    let computed = match &judged {
        Some(_) => "Failed",
        None if input.put_back => "Pending",
        None => phase::phase(spec, &all, finished, any_regular_started(spec, &all)),
    };
    let computed = if undecided && phase::is_terminal(Some(computed)) { before.unwrap_or("Pending") } else { computed };
    // Terminal phases never go back.
    let (phase, kept) = match before {
        Some(old @ ("Succeeded" | "Failed")) if old != computed => (old, true),
        _ => (computed, before == Some(computed) && judged.is_none()),
    };
    let (reason, message) = match (&judged, kept) {
        (Some(v), false) => (Some(v.reason.to_owned()), Some(v.message.clone()).filter(|m| !m.is_empty())),
        // Texts that belong to the phase stay as long as it does.
        (_, true) => (input.previous.reason.clone(), input.previous.message.clone()),
        (None, false) => (None, None),
    };
    let pod_ips: Vec<String> = match input.report.map(|r| &r.pod_ips).filter(|ips| !ips.is_empty()) {
        Some(ips) => ips.iter().map(ToString::to_string).collect(),
        None => input.previous.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect(),
    };
    // In the node's network the pod's address is its compute node's, and so is the host's.
    let host_network = spec.host_network == Some(true);
    let found = input.report.and_then(|r| r.host_ip).map(|ip| ip.to_string());
    let before = || input.previous.host_ip.clone();
    let host_ip = found.or_else(|| pod_ips.first().filter(|_| host_network).cloned()).or_else(before);
    let host_ip = host_ip.unwrap_or_else(|| input.host_ip.to_string());
    let conditions = conditions(&input, spec, &all, phase, judged.as_ref());
    // Of a pod that was refused there is no container to tell of; kubectl would show what it waits for, not the pod's reason.
    let taken = input.refused.is_none();
    PodStatus {
        conditions: Some(conditions),
        container_statuses: taken.then_some(main),
        ephemeral_container_statuses: Some(ephemeral).filter(|e| taken && !e.is_empty()),
        host_ip: Some(host_ip.clone()),
        host_ips: Some(host_ips(&input, host_ip)),
        init_container_statuses: Some(init).filter(|i| taken && !i.is_empty()),
        message,
        observed_generation: input.pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: Some(pod_ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>()).filter(|ips| !ips.is_empty()),
        qos_class: input.pod.status.as_ref().and_then(|s| s.qos_class.clone()),
        reason,
        start_time: input.previous.start_time.clone().or_else(|| Some(Time(seconds(input.seen_at)))),
        resource_claim_statuses: input.previous.resource_claim_statuses.clone(),
        nominated_node_name: input.previous.nominated_node_name.clone(),
        ..PodStatus::default()
    }
}

/// The pod's grace period; the API server gives each one.
fn grace(spec: &PodSpec) -> Duration {
    let seconds = spec.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

/// All addresses of the compute node that `host_ip` is of.
fn host_ips(input: &Input<'_>, host_ip: String) -> Vec<HostIP> {
    let said =
        input.report.map(|r| r.host_ips.iter().map(ToString::to_string).collect()).filter(|l: &Vec<_>| !l.is_empty());
    let before = || input.previous.host_ips.iter().flatten().map(|h| h.ip.clone()).collect();
    let all: Vec<String> = said.unwrap_or_else(before);
    let all = if all.first() == Some(&host_ip) { all } else { vec![host_ip] };
    all.into_iter().map(|ip| HostIP { ip }).collect()
}

/// Containers that have ended stay as they were told last, but are not ready.
fn withhold_ends(statuses: &mut [ContainerStatus], previous: Option<&[ContainerStatus]>) {
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|s| s.terminated.is_some());
    for status in statuses.iter_mut().filter(|s| ended(s)) {
        let before = previous.into_iter().flatten().find(|p| p.name == status.name);
        if let Some(before) = before.filter(|p| !ended(p)) {
            *status = ContainerStatus { ready: false, ..before.clone() };
        }
    }
}

/// metav1.Time has whole seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn init_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
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

fn main_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
    let reported = input.report.map(|r| r.containers.as_slice()).unwrap_or_default();
    let find = |name: &str| reported.iter().find(|s| s.name == name);
    spec.containers.iter().map(|c| container_status(input, c, find(&c.name), default_reason(spec), judged)).collect()
}

fn ephemeral_statuses(input: &Input<'_>, spec: &PodSpec, judged: Option<&Verdict>) -> Vec<ContainerStatus> {
    let reported = input.report.map(|r| r.ephemeral_containers.as_slice()).unwrap_or_default();
    let find = |name: &str| reported.iter().find(|s| s.name == name);
    spec.ephemeral_containers
        .iter()
        .flatten()
        .map(|e| {
            container_status(input, &super::ephemeral::as_container(e), find(&e.name), "ContainerCreating", judged)
        })
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
    let (exit_code, reason, message) = match verdict.containers {
        // The pod's message says why; the container waits for ever.
        Lost::NeverStarted => return,
        _ if unheard && never_ran => return,
        Lost::OutOfMemory => (137, "OOMKilled", ""),
        Lost::Unknown => {
            (137, "ContainerStatusUnknown", "The container could not be located when the pod was terminated")
        }
    };
    let started_at = match current.state {
        RunState::Running { started_at } => Some(started_at),
        _ => None,
    };
    current.state = RunState::Terminated(Termination {
        exit_code,
        signal: None,
        reason: reason.to_owned(),
        message: message.to_owned(),
        started_at,
        finished_at: input.job.and_then(|j| j.ended_at).unwrap_or(input.now),
        container_id: current.container_id.clone(),
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

fn any_regular_started(spec: &PodSpec, all: &[ContainerStatus]) -> bool {
    let regular = |s: &&ContainerStatus| spec.containers.iter().any(|c| c.name == s.name);
    all.iter().filter(regular).any(|s| {
        let state = s.state.as_ref();
        state.is_some_and(|st| st.running.is_some() || st.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|st| st.terminated.is_some())
    })
}

struct Wanted {
    kind: &'static str,
    status: bool,
    reason: Option<String>,
    message: Option<String>,
}

fn wanted(kind: &'static str, status: bool, reason: Option<&str>, message: Option<String>) -> Wanted {
    Wanted { kind, status, reason: reason.map(str::to_owned), message }
}

fn conditions(
    input: &Input<'_>,
    spec: &PodSpec,
    all: &[ContainerStatus],
    phase: &str,
    verdict: Option<&Verdict>,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(spec, all, phase);
    let mut ready = pod_ready(input.pod, input.previous, spec, &containers_ready);
    if ready.status && input.silent {
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
    let resize = resize::infeasible(input.pod, input.granted).filter(|_| !phase::is_terminal(Some(phase)));
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

/// The strategic-merge patch that brings the API from `old` to `new`. None: nothing to say.
///
/// `requested`: what was asked of Slurm, for the pod's annotation. (A kubelet may write annotations with the status only.)
///
/// Lists that merge by key cannot lose fields by being silent, so texts that vanished are null.
#[must_use]
pub fn patch(pod: &Pod, old: &PodStatus, new: &PodStatus, requested: Option<&str>) -> Option<serde_json::Value> {
    use serde_json::{Map, Value, json};
    let object = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (before, mut after) = (object(old), object(new));
    let mut changes = Map::new();
    for key in before.keys() {
        if !after.contains_key(key) {
            after.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in after {
        if before.get(&key) == Some(&value) || (value.is_null() && !before.contains_key(&key)) {
            continue;
        }
        changes.insert(key, value);
    }
    if let Some(Value::Array(list)) = changes.get_mut("conditions") {
        let kinds = |s: &PodStatus| s.conditions.iter().flatten().map(|c| c.type_.clone()).collect::<BTreeSet<_>>();
        let gone: Vec<String> = kinds(old).difference(&kinds(new)).cloned().collect();
        for condition in list.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
        list.extend(gone.into_iter().map(|kind| json!({"type": kind, "$patch": "delete"})));
    }
    // Both merge by address: without this an address that changed would stay beside its successor.
    for field in ["podIPs", "hostIPs"] {
        if let Some(Value::Array(list)) = changes.get_mut(field) {
            list.push(json!({"$patch": "replace"}));
        }
    }
    let told = |text: &str| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get(pod_flags::REQUESTED)).is_some_and(|old| old == text)
    };
    let requested = requested.filter(|text| !told(text));
    if changes.is_empty() && requested.is_none() {
        return None;
    }
    let mut metadata = json!({"uid": pod.metadata.uid});
    if let Some(text) = requested {
        metadata["annotations"] = json!({pod_flags::REQUESTED: text});
    }
    Some(json!({"metadata": metadata, "status": changes}))
}

#[cfg(test)]
mod tests;
