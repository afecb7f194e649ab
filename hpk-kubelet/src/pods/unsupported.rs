//! Fields of a pod that HPK does not carry out: each is told by an event, never ignored in silence.
//!
//! The table of all fields of a pod, with what becomes of each, is in this module's tests; it fails when
//! Kubernetes' API gains a field.

use super::ephemeral::as_container;
use super::{bandwidth, ids, launcher, oom, step};
use crate::volumes::PodVolume;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};
use std::borrow::Cow;

/// Carried out where the user has said what the class means to Slurm.
pub(crate) const PRIORITY_CLASS: &str = "spec.priorityClassName";

/// A field that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    /// Path of the field in the pod.
    pub field: String,
    /// What happens and what to do instead.
    pub remedy: &'static str,
    /// The pod cannot run without it and is kept from starting.
    pub fatal: bool,
}

impl Unsupported {
    /// Text for the event.
    #[must_use]
    pub(crate) fn message(&self) -> String {
        let what = if self.fatal { "the pod is not started" } else { "the field has no effect" };
        format!("{} is not supported by HPK, {what}: {}", self.field, self.remedy)
    }
}

/// Everything in the pod that HPK does not carry out.
#[must_use]
pub(crate) fn unsupported(pod: &Pod) -> Vec<Unsupported> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let mut list = Vec::new();
    let mut tell = |fatal: bool, field: String, remedy: &'static str| list.push(Unsupported { field, remedy, fatal });
    step::unsupported(pod, &mut tell);
    if launcher::asked(pod).is_err() {
        let field = format!("metadata.annotations[{}]", launcher::ANNOTATION);
        tell(true, field, "write auto, native or apptainer, or leave it out");
    }
    if ids::asked(pod).is_err() {
        tell(true, format!("metadata.annotations[{}]", ids::ANNOTATION), "write root or keep, or leave it out");
    }
    if oom::single_process(pod).is_err() {
        tell(true, format!("metadata.annotations[{}]", oom::ANNOTATION), "write true or false, or leave it out");
    }
    if let Err(key) = bandwidth::asked(pod) {
        let remedy = "write bits a second as a quantity from 1k to 1P, such as 10M, or leave it out";
        tell(true, format!("metadata.annotations[{key}]"), remedy);
    }
    pod_fields(spec, &mut tell);
    PodVolume::all(pod).for_each(|volume| volume.unsupported(&mut tell));
    for (path, container) in containers(spec) {
        container_fields(&path, &container, &mut tell);
    }
    list
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = (String, Cow<'_, Container>)> {
    let init = spec.init_containers.iter().flatten().map(|c| ("initContainers", Cow::Borrowed(c)));
    let main = spec.containers.iter().map(|c| ("containers", Cow::Borrowed(c)));
    let added =
        spec.ephemeral_containers.iter().flatten().map(|e| ("ephemeralContainers", Cow::Owned(as_container(e))));
    init.chain(main).chain(added).map(|(kind, container)| (format!("{kind}[{}]", container.name), container))
}

fn pod_fields(spec: &PodSpec, tell: &mut impl FnMut(bool, String, &'static str)) {
    if spec.host_pid == Some(true) {
        tell(
            false,
            "spec.hostPID".into(),
            "a job cannot see the node's processes; containers of the pod see each other with shareProcessNamespace",
        );
    }
    if spec.host_ipc == Some(true) {
        tell(false, "spec.hostIPC".into(), "containers of one pod share IPC among themselves");
    }
    if spec.host_users == Some(true) {
        tell(
            false,
            "spec.hostUsers".into(),
            "every pod is in a user namespace, where root is you and the other ids are your subordinate ids",
        );
    }
    if spec.priority.is_some_and(|p| p != 0) {
        tell(
            false,
            PRIORITY_CLASS.into(),
            "Slurm orders the jobs: say what the class means to it (hpk up --priority-class), or write --qos or --nice in the annotation slurm-job.hpk.io/flags",
        );
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        tell(
            true,
            "spec.resourceClaims".into(),
            "ask for GPUs by resources.limits, or for other devices by the annotation slurm-job.hpk.io/flags (--gres=…)",
        );
    }
    if let Some(context) = &spec.security_context {
        if context.se_linux_options.is_some() {
            tell(false, "spec.securityContext.seLinuxOptions".into(), "labels are the site's to set");
        }
        if context.se_linux_change_policy.is_some() {
            tell(false, "spec.securityContext.seLinuxChangePolicy".into(), "labels are the site's to set");
        }
        if context.supplemental_groups_policy.as_deref() == Some("Strict") {
            tell(
                false,
                "spec.securityContext.supplementalGroupsPolicy".into(),
                "groups that the image gives the user are kept, as with Merge",
            );
        }
        if context.app_armor_profile.as_ref().is_some_and(|p| p.type_ == "Localhost") {
            tell(false, "spec.securityContext.appArmorProfile".into(), "profiles are the site's to load");
        }
        if context.windows_options.is_some() {
            tell(false, "spec.securityContext.windowsOptions".into(), "only linux runs here");
        }
    }
}

fn container_fields(path: &str, container: &Container, tell: &mut impl FnMut(bool, String, &'static str)) {
    let field = |name: &str| format!("spec.{path}.{name}");
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        tell(true, field("volumeDevices"), "block devices belong to the node's administrator");
    }
    for mount in container.volume_mounts.iter().flatten() {
        if mount.mount_propagation.as_deref() == Some("Bidirectional") {
            tell(
                false,
                field(&format!("volumeMounts[{}].mountPropagation", mount.mount_path)),
                "mounts cannot reach the node from a user namespace; HostToContainer works",
            );
        }
    }
    for mount in container.volume_mounts.iter().flatten().filter(|m| m.bind_mount_options.is_some()) {
        tell(
            false,
            field(&format!("volumeMounts[{}].bindMountOptions", mount.mount_path)),
            "mounts are nosuid and nodev as it is, for a job has no rights of root",
        );
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, _) in probes.iter().filter(|(_, probe)| probe.as_ref().is_some_and(asks_for_tls)) {
        tell(false, field(&format!("{name}.grpc.mode")), "the probe connects without TLS");
    }
    for (name, _) in probes.iter().filter(|(_, probe)| probe.as_ref().is_some_and(asks_for_http2)) {
        tell(false, field(&format!("{name}.httpGet.protocol")), "the probe speaks HTTP/1.1");
    }
    let restarted = container.resize_policy.iter().flatten().find(|p| p.restart_policy == "RestartContainer");
    if let Some(policy) = restarted {
        tell(
            false,
            field(&format!("resizePolicy[{}]", policy.resource_name)),
            "a container goes on while its resources change",
        );
    }
    let resources = container.resources.iter();
    let mut asked: Vec<&String> =
        resources.flat_map(|r| [&r.requests, &r.limits]).flatten().flat_map(|m| m.keys()).collect();
    asked.sort();
    asked.dedup();
    for name in asked.into_iter().filter(|name| name.starts_with("hugepages-")) {
        tell(false, field(&format!("resources[{name}]")), "huge pages are the site's to share out");
    }
    let context = container.security_context.as_ref();
    if context.is_some_and(|c| c.windows_options.is_some()) {
        tell(false, field("securityContext.windowsOptions"), "only linux runs here");
    }
    if context.is_some_and(|c| c.se_linux_options.is_some()) {
        tell(false, field("securityContext.seLinuxOptions"), "labels are the site's to set");
    }
    if context.and_then(|c| c.app_armor_profile.as_ref()).is_some_and(|p| p.type_ == "Localhost") {
        tell(false, field("securityContext.appArmorProfile"), "profiles are the site's to load");
    }
}

fn asks_for_tls(probe: &Probe) -> bool {
    probe.grpc.as_ref().and_then(|g| g.mode.as_deref()).is_some_and(|mode| mode != "Plaintext")
}

fn asks_for_http2(probe: &Probe) -> bool {
    probe
        .http_get
        .as_ref()
        .and_then(|g| g.protocol.as_deref())
        .is_some_and(|p| !p.starts_with("HTTP1") && p != "HTTP/1.1")
}

#[cfg(test)]
mod fields;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_is_named() {
        let annotations = json!({launcher::ANNOTATION: "runc", ids::ANNOTATION: "own", oom::ANNOTATION: "yes"});
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"annotations": annotations}, "spec": {"hostPID": true, "hostIPC": false,
            "volumes": [{"name": "d", "csi": {"driver": "x"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c",
                "volumeMounts": [{"name": "e", "mountPath": "/e", "mountPropagation": "Bidirectional"}]}]}}),
        )
        .expect("pod");
        let found = unsupported(&pod);
        let fields: Vec<_> = found.iter().map(|u| (u.field.as_str(), u.fatal)).collect();
        assert_eq!(
            fields,
            [
                ("metadata.annotations[runtime.hpk.io/launcher]", true),
                ("metadata.annotations[runtime.hpk.io/user-ids]", true),
                ("metadata.annotations[runtime.hpk.io/single-process-oom-kill]", true),
                ("spec.hostPID", false),
                ("spec.volumes[d].csi", true),
                ("spec.containers[c].volumeMounts[/e].mountPropagation", false),
            ]
        );
        assert!(unsupported(&Pod::default()).is_empty());
    }
}
