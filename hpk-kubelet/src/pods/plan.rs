//! From a pod and everything it refers to, to the supervisor's plan.
//!
//! What concerns one container only (a missing key, a refused securityContext, an image that cannot be
//! pulled) blocks that container; what concerns the whole pod is an error.

mod command;
mod container;
mod input;
mod mounts;
mod restart;
mod stop_signal;

pub(crate) use input::{Image, Input};

use super::ephemeral::as_container;
use super::{ids, launcher, oom, security, step, user};
use crate::executor::slurm::flags;
use crate::executor::slurm::gres;
use crate::render::{hosts, resolv};
use crate::volumes::{self, Ground, Payload, VolumeError, Volumes};
use container::container;
use hpk_api::net::NetworkMode;
use hpk_api::plan::{ContainerPlan, POD_IP_PLACEHOLDER, SandboxPlan, Settings};
use hpk_api::step::StepPlan;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};
use std::collections::BTreeMap;
use thiserror::Error;

/// A plan and what goes with it.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub plan: SandboxPlan,
    /// Volumes that the kubelet fills, by name.
    pub payloads: BTreeMap<String, Payload>,
    /// (reason, message) of Warning events.
    pub warnings: Vec<(&'static str, String)>,
}

/// The pod cannot be planned now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum PlanError {
    /// A volume that cannot be filled; event FailedMount.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Host name; event FailedCreatePodSandBox.
    #[error(transparent)]
    Hostname(#[from] hosts::HostnameTooLong),
    /// A group id; event FailedCreatePodSandBox.
    #[error(transparent)]
    Security(#[from] security::SecurityError),
    /// A mount of a volume that the pod has not.
    #[error("volumeMounts of container {container} name volume {volume}, which spec.volumes does not have")]
    NoVolume { container: String, volume: String },
}

impl PlanError {
    /// Reason of the event.
    #[must_use]
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Volume(_) | Self::NoVolume { .. } => "FailedMount",
            Self::Hostname(_) | Self::Security(_) => "FailedCreatePodSandBox",
        }
    }
}

/// Makes the plan.
///
/// # Errors
/// What concerns the whole pod.
pub(crate) fn plan(input: Input<'_>) -> Result<Planned, PlanError> {
    let spec = input.pod.spec.clone().unwrap_or_default();
    let host_network = input.network.mode == NetworkMode::Host;
    let ground = Ground {
        pod: input.pod,
        user: user::of(input.pod).map(|user| ids::above(input.user_ids(), input.me, user)),
        sources: input.sources,
        facts: input.facts,
        images: input.volume_images,
        mounts: input.mounts,
    };
    let Volumes { plans: volumes, host_binds, payloads } = volumes::plan(ground)?;
    let mut warnings = Vec::new();
    let mut make = |c: &Container| container(&input, c, &mut warnings);
    let mut init_containers: Vec<_> = spec.init_containers.iter().flatten().map(&mut make).collect();
    let mut containers: Vec<_> = spec.containers.iter().map(&mut make).collect();
    let dns = resolv::render(
        input.pod,
        &input.cluster.dns_service_ip.to_string(),
        &input.cluster.cluster_domain,
        input.node_resolv,
    );
    let ranks = step::container(input.pod).map(|container| container.name.as_str());
    for container in containers.iter_mut().filter(|container| Some(container.name.as_str()) == ranks) {
        container.step = Some(step_plan(&input, &dns.text));
    }
    if let Some(shares) = gres::shares(input.pod) {
        for container in init_containers.iter_mut().chain(&mut containers) {
            container.gpus = shares.get(&container.name).copied();
        }
    }
    for container in init_containers.iter().chain(&containers) {
        for mount in &container.mounts {
            if !volumes.contains_key(&mount.volume) {
                return Err(PlanError::NoVolume { container: container.name.clone(), volume: mount.volume.clone() });
            }
        }
    }
    warnings.extend(dns.warnings.into_iter().map(|w| ("DNSConfigForming", w)));
    let context = spec.security_context.clone().unwrap_or_default();
    let groups = context.supplemental_groups.unwrap_or_default();
    let mut plan = SandboxPlan {
        version: hpk_api::VERSION,
        pod: input.who.clone(),
        hostname: hosts::hostname(input.pod, &input.cluster.cluster_domain)?,
        restart_policy: restart::policy(spec.restart_policy.as_deref()).unwrap_or_default(),
        termination_grace_period_seconds: grace_seconds(&spec),
        active_deadline_seconds: spec.active_deadline_seconds.and_then(|s| u64::try_from(s).ok()),
        share_process_namespace: spec.share_process_namespace == Some(true),
        network: input.network.clone(),
        init_containers,
        containers,
        volumes,
        host_binds,
        etc_hosts: Some(if host_network {
            hosts::host_network(input.pod, input.node_hosts)
        } else {
            hosts::managed(input.pod, &pod_ips(&input), &input.cluster.cluster_domain)
        }),
        resolv_conf: Some(dns.text),
        sysctls: context.sysctls.into_iter().flatten().map(|s| (s.name, s.value)).collect(),
        supplemental_groups: groups
            .into_iter()
            .map(|g| security::id("supplementalGroups", g))
            .collect::<Result<_, _>>()?,
        user_ids: input.user_ids(),
        fs_group: context.fs_group.map(|g| security::id("fsGroup", g)).transpose()?,
        settings: Settings {
            launcher: launcher::asked(input.pod).ok().flatten().unwrap_or(input.settings.launcher),
            single_process_oom_kill: oom::single_process(input.pod).unwrap_or_default(),
            ..input.settings.clone()
        },
    };
    volumes::empty_dir::share_with_ranks(&mut plan);
    warnings.extend(ids::warnings(&plan, input.me).into_iter().map(|text| (ids::REASON, text)));
    Ok(Planned { plan, payloads, warnings })
}

/// Of the container that is an MPI step. Its ranks are in the network of their nodes. They look for names as the pod does where
/// they reach the pods' network, else as their node does.
fn step_plan(input: &Input<'_>, of_pod: &str) -> StepPlan {
    let mut of_node = input.pod.clone();
    if let Some(spec) = of_node.spec.as_mut().filter(|spec| spec.dns_policy.as_deref() != Some("None")) {
        spec.dns_policy = Some("Default".to_owned());
    }
    let cluster = input.cluster;
    let dns = resolv::render(&of_node, &cluster.dns_service_ip.to_string(), &cluster.cluster_domain, input.node_resolv);
    StepPlan {
        // Judged before there is a plan.
        flags: flags::of_step(input.pod.metadata.annotations.as_ref(), cluster.pod_flags).unwrap_or_default(),
        root: step::root(input.pod) == Ok(true),
        etc_hosts: hosts::host_network(input.pod, input.node_hosts),
        resolv_conf: dns.text,
        cluster_resolv_conf: (cluster.network_mode == NetworkMode::Overlay).then(|| of_pod.to_owned()),
    }
}

/// spec.terminationGracePeriodSeconds, 30 when absent.
#[must_use]
fn grace_seconds(spec: &PodSpec) -> u32 {
    spec.termination_grace_period_seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(30)
}

/// Addresses for the hosts file: known ones, or the placeholder that the supervisor replaces.
fn pod_ips(input: &Input<'_>) -> Vec<String> {
    if input.facts.pod_ips.is_empty() { vec![POD_IP_PLACEHOLDER.to_owned()] } else { input.facts.pod_ips.clone() }
}

/// The plan of an ephemeral container that is added to a running pod.
#[must_use]
pub(crate) fn ephemeral(input: Input<'_>, added: &EphemeralContainer) -> (ContainerPlan, Vec<(&'static str, String)>) {
    let mut warnings = Vec::new();
    let mut made = container(&input, &as_container(added), &mut warnings);
    made.target = added.target_container_name.clone().filter(|t| !t.is_empty());
    (made, warnings)
}

/// Whether the supervisor could start anything with this plan: the first init container, else any container.
#[must_use]
pub(crate) fn can_begin(plan: &SandboxPlan) -> bool {
    match plan.init_containers.first() {
        Some(first) => first.blocked.is_none(),
        None => plan.containers.iter().any(|c| c.blocked.is_none()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
