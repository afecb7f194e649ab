//! From a pod and everything it refers to, to the supervisor's plan.
//!
//! What concerns one container only (a missing key, a refused securityContext, an image that cannot be
//! pulled) blocks that container; what concerns the whole pod is an error.

use super::ephemeral::as_container;
use super::{ids, launcher, oom, probes, security, step, user};
use crate::executor::slurm::flags;
use crate::executor::slurm::gres;
use crate::quantity::amounts;
use crate::render::downward::Facts;
use crate::render::env::{self, Environment};
use crate::render::expand::{expand, try_expand};
use crate::render::sources::Sources;
use crate::render::{hosts, resolv};
use crate::volumes::{self, Ground, Payload, VolumeError, Volumes};
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::{NetworkMode, NetworkPlan};
use hpk_api::plan::{
    Blocked, ContainerPlan, ExitCodeOperator, ImageRef, MountPlan, POD_IP_PLACEHOLDER, PodRef, Resources,
    RestartAction, RestartPolicy, RestartRule, SandboxPlan, Settings, TerminationMessagePolicy, UserIds,
};
use hpk_api::step::StepPlan;
use hpk_images::ImageConfig;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use std::collections::BTreeMap;
use thiserror::Error;

/// An image in the store, with the part of its configuration that a container needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Where it is.
    pub image_ref: ImageRef,
    /// ENTRYPOINT, CMD, ENV, USER, …
    pub config: ImageConfig,
}

/// Everything that a plan is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub pod: &'a Pod,
    pub who: &'a PodRef,
    /// Objects that it refers to.
    pub sources: &'a Sources,
    /// By container name; Err: the image cannot be had now.
    pub images: &'a BTreeMap<String, Result<Image, Blocked>>,
    /// By volume name: volumes of kind image.
    pub volume_images: &'a BTreeMap<String, ImageRef>,
    /// Addresses and sizes.
    pub facts: &'a Facts,
    pub network: &'a NetworkPlan,
    pub cluster: &'a ClusterConfig,
    /// The node's resolv.conf.
    pub node_resolv: &'a resolv::Resolv,
    /// The node's hosts file, for pods in the node's network.
    pub node_hosts: &'a str,
    /// The login node's /proc/self/mountinfo.
    pub mounts: &'a str,
    /// Whose jobs pods are.
    pub me: ids::Me,
    /// Site-wide numbers.
    pub settings: &'a Settings,
}

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
    #[error("{0}")]
    Hostname(String),
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
        user: user::of(input.pod).map(|user| ids::above(user_ids(&input), input.me, user)),
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
        hostname: hosts::hostname(input.pod, &input.cluster.cluster_domain).map_err(PlanError::Hostname)?,
        restart_policy: restart_policy(spec.restart_policy.as_deref()).unwrap_or_default(),
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
        user_ids: user_ids(&input),
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

/// As the pod or the cluster has it; a word that is none has been refused before.
fn user_ids(input: &Input<'_>) -> UserIds {
    ids::asked(input.pod).ok().flatten().unwrap_or(input.cluster.user_ids)
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
pub(crate) fn grace_seconds(spec: &PodSpec) -> u32 {
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

/// `Always`, `OnFailure`, `Never`.
#[must_use]
pub(crate) fn restart_policy(text: Option<&str>) -> Option<RestartPolicy> {
    match text {
        Some("Always") => Some(RestartPolicy::Always),
        Some("OnFailure") => Some(RestartPolicy::OnFailure),
        Some("Never") => Some(RestartPolicy::Never),
        _ => None,
    }
}

/// The plan of one container; trouble of its own blocks it.
fn container(input: &Input<'_>, container: &Container, warnings: &mut Vec<(&'static str, String)>) -> ContainerPlan {
    let mut plan = skeleton(container);
    let image = match input.images.get(&container.name) {
        Some(Ok(image)) => image,
        Some(Err(blocked)) => {
            plan.blocked = Some(blocked.clone());
            return plan;
        }
        None => {
            let message = format!("image {:?} has not been pulled", plan.image);
            plan.blocked = Some(Blocked { reason: "ErrImagePull".to_owned(), message });
            return plan;
        }
    };
    plan.image_ref = image.image_ref.clone();
    if let Err(message) = fill(input, container, image, &mut plan, warnings) {
        plan.blocked = Some(Blocked { reason: "CreateContainerConfigError".to_owned(), message });
    }
    plan
}

/// What needs no image and cannot fail.
fn skeleton(container: &Container) -> ContainerPlan {
    let resources = container.resources.as_ref();
    ContainerPlan {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_ref: ImageRef::default(),
        argv: Vec::new(),
        env: Vec::new(),
        file_keys: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        security: hpk_api::plan::SecurityPlan { allow_privilege_escalation: true, ..Default::default() },
        restart_policy: restart_policy(container.restart_policy.as_deref()),
        restart_rules: restart_rules(container),
        probes: probes::probes(container),
        lifecycle: probes::lifecycle(container),
        stop_signal: 15,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        termination_message_path: container
            .termination_message_path
            .clone()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_policy: match container.termination_message_policy.as_deref() {
            Some("FallbackToLogsOnError") => TerminationMessagePolicy::FallbackToLogsOnError,
            _ => TerminationMessagePolicy::File,
        },
        resources: Resources {
            requests: amounts(resources.and_then(|r| r.requests.as_ref())),
            limits: amounts(resources.and_then(|r| r.limits.as_ref())),
        },
        gpus: None,
        target: None,
        step: None,
        blocked: None,
    }
}

fn restart_rules(container: &Container) -> Vec<RestartRule> {
    let rules = container.restart_policy_rules.iter().flatten();
    rules
        .filter_map(|rule| {
            let codes = rule.exit_codes.as_ref()?;
            Some(RestartRule {
                action: match rule.action.as_str() {
                    "Restart" => RestartAction::Restart,
                    "RestartAllContainers" => RestartAction::RestartAllContainers,
                    _ => return None,
                },
                operator: match codes.operator.as_str() {
                    "In" => ExitCodeOperator::In,
                    "NotIn" => ExitCodeOperator::NotIn,
                    _ => return None,
                },
                values: codes.values.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn fill(
    input: &Input<'_>,
    container: &Container,
    image: &Image,
    plan: &mut ContainerPlan,
    warnings: &mut Vec<(&'static str, String)>,
) -> Result<(), String> {
    let image_env: Vec<(String, String)> = image
        .config
        .env
        .iter()
        .map(|e| e.split_once('=').unwrap_or((e, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let environment =
        env::environment(input.pod, container, &image_env, input.sources, input.facts).map_err(|e| e.to_string())?;
    warnings.extend(environment.warnings.iter().map(|w| ("InvalidEnvironmentVariableNames", w.clone())));
    let keep = user_ids(input) == UserIds::Keep;
    plan.security = security::security(input.pod, container, &image.config.user, keep).map_err(|e| e.to_string())?;
    plan.argv = argv(container, image, &environment, &own_names(container, input.sources));
    if plan.argv.is_empty() {
        return Err(format!(
            "no command: neither the container's command nor the image's ENTRYPOINT or CMD is set in {}",
            plan.image
        ));
    }
    plan.working_dir = container
        .working_dir
        .clone()
        .filter(|d| !d.is_empty())
        .or_else(|| Some(image.config.working_dir.clone()).filter(|d| !d.is_empty()));
    plan.mounts = mounts(container, &environment)?;
    plan.stop_signal = stop_signal(container, image);
    plan.env = environment.variables;
    plan.file_keys = environment.file_keys;
    if !plan.env.iter().any(|(name, _)| name == "PATH") {
        plan.env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    plan.env.retain(|(name, _)| name != "HOSTNAME" || declares(container, "HOSTNAME"));
    if !plan.env.iter().any(|(name, _)| name == "HOSTNAME") {
        let hostname = hosts::hostname(input.pod, &input.cluster.cluster_domain).unwrap_or_default();
        // In the node's network it is the node's name, which the supervisor knows.
        plan.env.extend(Some(("HOSTNAME".to_owned(), hostname)).filter(|(_, name)| !name.is_empty()));
    }
    Ok(())
}

/// What container runtimes set when an image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn declares(container: &Container, name: &str) -> bool {
    container.env.iter().flatten().any(|e| e.name == name)
}

/// Names that `$(VAR)` in command and args may refer to: the container's own and the services', not the image's.
fn own_names(container: &Container, sources: &Sources) -> std::collections::BTreeSet<String> {
    let mut names: std::collections::BTreeSet<String> = sources.service_variables.keys().cloned().collect();
    names.extend(container.env.iter().flatten().map(|e| e.name.clone()));
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let map =
            source.config_map_ref.as_ref().and_then(|r| sources.config_maps.get(&r.name)).and_then(|m| m.data.as_ref());
        names.extend(map.into_iter().flatten().map(|(k, _)| format!("{prefix}{k}")));
        let secret =
            source.secret_ref.as_ref().and_then(|r| sources.secrets.get(&r.name)).and_then(|s| s.data.as_ref());
        names.extend(secret.into_iter().flatten().map(|(k, _)| format!("{prefix}{k}")));
    }
    names
}

/// command replaces ENTRYPOINT and CMD; args alone replace CMD.
fn argv(
    container: &Container,
    image: &Image,
    environment: &Environment,
    names: &std::collections::BTreeSet<String>,
) -> Vec<String> {
    let lookup = |name: &str| environment.get(name).filter(|_| names.contains(name));
    let expanded = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|l| !l.is_empty())?;
        Some(list.iter().map(|text| expand(text, lookup)).collect())
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    match (command, args) {
        (Some(mut command), args) => {
            command.extend(args.unwrap_or_default());
            command
        }
        (None, args) => {
            let mut list = image.config.entrypoint.clone();
            list.extend(args.unwrap_or_else(|| image.config.cmd.clone()));
            list
        }
    }
}

fn mounts(container: &Container, environment: &Environment) -> Result<Vec<MountPlan>, String> {
    let mut list = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let mut sub_path = mount.sub_path.clone().filter(|p| !p.is_empty());
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            let path = try_expand(expression, |name| match environment.get(name).filter(|v| !v.is_empty()) {
                Some(value) => Ok(Some(value)),
                None => Err(format!("missing value for {name:?}")),
            })?;
            sub_path = Some(path).filter(|p| !p.is_empty());
        }
        if let Some(path) = &sub_path {
            if path.starts_with('/') {
                return Err(format!("error SubPath `{path}` must not be an absolute path"));
            }
            if path.split('/').any(|part| part == "..") {
                return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
            }
        }
        let path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        list.push(MountPlan {
            volume: mount.name.clone(),
            path,
            read_only: mount.read_only == Some(true),
            sub_path,
            propagation: mount.mount_propagation.clone(),
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        });
    }
    // Outer mounts first, whatever the order of the spec: a mount must not hide another below it.
    list.sort_by_key(|m| m.path.split('/').filter(|p| !p.is_empty()).count());
    Ok(list)
}

fn stop_signal(container: &Container, image: &Image) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    own.or(image.config.stop_signal.as_deref()).and_then(signal_number).unwrap_or(15)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn signal_number(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    for (base, number, sign) in [("RTMIN", 34, 1), ("RTMAX", 64, -1)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset: i32 = if rest.is_empty() { 0 } else { rest.trim_start_matches(['+', '-']).parse().ok()? };
            return Some(number + sign * offset).filter(|n| (34..=64).contains(n));
        }
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some(signal as i32)
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
