//! Fields of a pod that HPK does not carry out: each is told by an event, never ignored in silence.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

/// A field that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
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
    pub fn message(&self) -> String {
        let what = if self.fatal { "the pod is not started" } else { "the field has no effect" };
        format!("{} is not supported by HPK, {what}: {}", self.field, self.remedy)
    }
}

/// Everything in the pod that HPK does not carry out.
#[must_use]
pub fn unsupported(pod: &Pod, host_network: bool) -> Vec<Unsupported> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let mut list = Vec::new();
    let mut tell = |fatal: bool, field: String, remedy: &'static str| list.push(Unsupported { field, remedy, fatal });
    pod_fields(spec, &mut tell);
    for volume in spec.volumes.iter().flatten() {
        volume_fields(volume, &mut tell);
    }
    for (kind, container) in containers(spec) {
        container_fields(&kind, container, host_network, &mut tell);
    }
    list
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|c| (format!("initContainers[{}]", c.name), c));
    let main = spec.containers.iter().map(|c| (format!("containers[{}]", c.name), c));
    init.chain(main)
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
    if spec.runtime_class_name.as_deref().is_some_and(|n| !n.is_empty()) {
        tell(false, "spec.runtimeClassName".into(), "every pod runs under Apptainer");
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
        if context.app_armor_profile.as_ref().is_some_and(|p| p.type_ == "Localhost") {
            tell(false, "spec.securityContext.appArmorProfile".into(), "profiles are the site's to load");
        }
        if context.windows_options.is_some() {
            tell(false, "spec.securityContext.windowsOptions".into(), "only linux runs here");
        }
    }
}

fn volume_fields(volume: &Volume, tell: &mut impl FnMut(bool, String, &'static str)) {
    let field = |name: &str| format!("spec.volumes[{}].{name}", volume.name);
    let supported = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some();
    if !supported {
        let kind = volume_kind(volume);
        tell(
            true,
            field(kind),
            "use hostPath on the shared file system, emptyDir, configMap, secret, projected, downwardAPI or image",
        );
    }
    if volume.empty_dir.as_ref().and_then(|e| e.medium.as_deref()).is_some_and(|m| m.starts_with("HugePages")) {
        tell(true, field("emptyDir.medium"), "use Memory or the node's disk");
    }
    for (index, source) in volume.projected.iter().filter_map(|p| p.sources.as_ref()).flatten().enumerate() {
        if source.cluster_trust_bundle.is_some() {
            tell(
                true,
                field(&format!("projected.sources[{index}].clusterTrustBundle")),
                "put the certificates into a configMap",
            );
        }
        if source.pod_certificate.is_some() {
            tell(
                true,
                field(&format!("projected.sources[{index}].podCertificate")),
                "put the certificate into a secret",
            );
        }
    }
}

fn volume_kind(volume: &Volume) -> &'static str {
    match volume {
        v if v.persistent_volume_claim.is_some() => "persistentVolumeClaim",
        v if v.ephemeral.is_some() => "ephemeral",
        v if v.csi.is_some() => "csi",
        v if v.nfs.is_some() => "nfs",
        v if v.git_repo.is_some() => "gitRepo",
        v if v.iscsi.is_some() => "iscsi",
        v if v.fc.is_some() => "fc",
        v if v.cephfs.is_some() => "cephfs",
        v if v.rbd.is_some() => "rbd",
        v if v.glusterfs.is_some() => "glusterfs",
        _ => "(source)",
    }
}

fn container_fields(
    path: &str,
    container: &Container,
    host_network: bool,
    tell: &mut impl FnMut(bool, String, &'static str),
) {
    let field = |name: &str| format!("spec.{path}.{name}");
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        tell(true, field("volumeDevices"), "block devices belong to the node's administrator");
    }
    if !host_network && container.ports.iter().flatten().any(|p| p.host_port.is_some_and(|n| n > 0)) {
        tell(false, field("ports.hostPort"), "use a Service, or hostNetwork");
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
    let context = container.security_context.as_ref();
    if context.is_some_and(|c| c.se_linux_options.is_some()) {
        tell(false, field("securityContext.seLinuxOptions"), "labels are the site's to set");
    }
    if context.and_then(|c| c.app_armor_profile.as_ref()).is_some_and(|p| p.type_ == "Localhost") {
        tell(false, field("securityContext.appArmorProfile"), "profiles are the site's to load");
    }
    for variable in container.env.iter().flatten() {
        if variable.value_from.as_ref().is_some_and(|v| v.file_key_ref.is_some()) {
            tell(
                false,
                field(&format!("env[{}].valueFrom.fileKeyRef", variable.name)),
                "let the container read the file",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_is_named() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"hostPID": true, "hostIPC": false,
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 2}],
                "volumeMounts": [{"name": "e", "mountPath": "/e", "mountPropagation": "Bidirectional"}]}]}}))
        .expect("pod");
        let found = unsupported(&pod, false);
        let fields: Vec<_> = found.iter().map(|u| (u.field.as_str(), u.fatal)).collect();
        assert_eq!(
            fields,
            [
                ("spec.hostPID", false),
                ("spec.volumes[d].persistentVolumeClaim", true),
                ("spec.containers[c].ports.hostPort", false),
                ("spec.containers[c].volumeMounts[/e].mountPropagation", false),
            ]
        );
        assert!(unsupported(&Pod::default(), false).is_empty());
    }
}
