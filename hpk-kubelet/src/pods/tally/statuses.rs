//! What a status tells of a pod's sandbox, of its containers' starts and ends, and of mounted images.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, PodSpec, PodStatus, VolumeMount,
};

pub(super) fn all(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let (init, ephemeral) = (&status.init_container_statuses, &status.ephemeral_container_statuses);
    [init, &status.container_statuses, ephemeral].into_iter().flatten().flatten()
}

/// The sandbox stands, or has stood.
pub(super) fn has_begun(status: &PodStatus) -> bool {
    let stands = |s: &PodStatus| {
        s.conditions.iter().flatten().any(|c| c.type_ == "PodReadyToStartContainers" && c.status == "True")
    };
    stands(status) || all(status).any(|s| starts(s) > 0)
}

pub(super) fn lacks_sandbox(status: &PodStatus) -> bool {
    let by_condition = status.conditions.iter().flatten().any(|c| c.reason.as_deref() == Some("PodSandboxNotReady"));
    by_condition || status.reason.as_deref() == Some("CreatePodSandboxError")
}

/// The newest end of one of its runs.
pub(super) fn last_end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let of = |state: &'_ Option<ContainerState>| state.as_ref().is_some_and(|s| s.terminated.is_some());
    let state = if of(&status.state) { &status.state } else { &status.last_state };
    state.as_ref()?.terminated.as_ref()
}

pub(super) fn runs(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// How often it was started.
pub(super) fn starts(status: &ContainerStatus) -> u64 {
    if runs(status) || last_end(status).is_some() { u64::try_from(status.restart_count).unwrap_or(0) + 1 } else { 0 }
}

/// How often it ended.
pub(super) fn ends(status: &ContainerStatus) -> u64 {
    starts(status) - u64::from(runs(status))
}

/// Its process was never there.
pub(super) fn never_ran(end: &ContainerStateTerminated) -> bool {
    matches!(end.reason.as_deref(), Some("StartError" | "ContainerCannotRun"))
}

/// Why it cannot be started for now, where that is an error.
pub(super) fn waiting_error(status: &ContainerStatus) -> Option<&str> {
    let reason = status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
    let is_error = reason.starts_with("Err")
        || matches!(
            reason,
            "ImagePullBackOff" | "InvalidImageName" | "CreateContainerConfigError" | "CreateContainerError"
        );
    is_error.then_some(reason)
}

/// Mounts of images in the container of this name.
pub(super) fn image_mounts<'a>(spec: &'a PodSpec, name: &str) -> impl Iterator<Item = &'a VolumeMount> {
    let volumes = spec.volumes.iter().flatten();
    let images: Vec<&str> = volumes.filter(|v| v.image.is_some()).map(|v| v.name.as_str()).collect();
    let container = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name);
    let mounts = container.into_iter().flat_map(|c| c.volume_mounts.iter().flatten());
    mounts.filter(move |mount| images.contains(&mount.name.as_str()))
}
