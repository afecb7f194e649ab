//! PodStatus out of what the supervisor reports, what Slurm says and what the kubelet itself does.
//!
//! Statuses of containers are made in `containers`, conditions in `conditions`; `patch` compares with what the API has.

mod conditions;
mod containers;
mod messages;
mod patch;

use super::admit::Refusal;
use super::phase;
use super::resize::Granted;
use super::verdict::{Lost, Verdict, verdict};
use crate::executor::run::Run;
use conditions::conditions;
use containers::{ephemeral_statuses, init_statuses, keep_ends, main_statuses, withhold_ends};
use hpk_api::plan::ImageRef;
use hpk_api::state::{LaunchReport, PodState, StopCause};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
pub(crate) use patch::patch;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Condition of ours: whether Slurm has started the pod's job, with Slurm's reason while it has not.
pub(crate) const JOB_STARTED: &str = "slurm.hpk.io/JobStarted";

/// Reason of Ready being False: upstream's event about pods of a node that is not heard of.
pub(crate) const SILENT: &str = "NodeNotReady";

/// Whether the status says that the pod is silent.
#[must_use]
pub(crate) fn is_silent(status: &PodStatus) -> bool {
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
pub(crate) struct Input<'a> {
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
    /// Another size is on its way.
    pub is_being_resized: bool,
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
pub(crate) fn status(input: Input<'_>) -> PodStatus {
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
    let had = input.previous;
    keep_ends(
        &mut init,
        had.init_container_statuses.as_deref(),
        spec,
        spec.init_containers.as_deref().unwrap_or_default(),
    );
    keep_ends(&mut main, had.container_statuses.as_deref(), spec, &spec.containers);
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

/// metav1.Time has whole seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn any_regular_started(spec: &PodSpec, all: &[ContainerStatus]) -> bool {
    let regular = |s: &&ContainerStatus| spec.containers.iter().any(|c| c.name == s.name);
    all.iter().filter(regular).any(|s| {
        let state = s.state.as_ref();
        state.is_some_and(|st| st.running.is_some() || st.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|st| st.terminated.is_some())
    })
}

#[cfg(test)]
mod tests;
