//! One container: what is started, with which environment, mounts and rights.

use super::image::ImageRef;
use super::restart::{RestartPolicy, RestartRule};
use super::security::SecurityPlan;
use crate::probe::{Lifecycle, Probes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Unique within the pod (init, main and ephemeral together).
    pub name: String,
    /// spec image, as the user wrote it (for status).
    pub image: String,
    /// Resolved image: folder name below `hpk_layout::parent::IMAGES` and digest reference for status.imageID.
    pub image_ref: ImageRef,
    /// Full argv (image ENTRYPOINT/CMD already merged, `$(VAR)` expanded).
    pub argv: Vec<String>,
    /// Environment in final order (image env first), expanded.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Variables whose values lie in files that earlier containers write (env.valueFrom.fileKeyRef).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_keys: Vec<FileKey>,
    /// Working directory; None: the image's or `/`. Created when missing, as runtimes do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Mounts in order.
    #[serde(default)]
    pub mounts: Vec<MountPlan>,
    /// Security settings.
    #[serde(default)]
    pub security: SecurityPlan,
    /// How many of the job's GPUs are this container's. None: no container asks for GPUs, and each sees all of the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Container-level restart policy: sidecars (`Always` on an init container) and KEP-5307.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// KEP-5307 rules.
    #[serde(default)]
    pub restart_rules: Vec<RestartRule>,
    /// Probes.
    #[serde(default)]
    pub probes: Probes,
    /// Hooks.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Signal that asks for an orderly end, by number (image STOPSIGNAL, lifecycle.stopSignal, else 15).
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// Keep a stdin open for attach.
    #[serde(default)]
    pub stdin: bool,
    /// Close stdin after the first attach ends.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Path of the termination message inside the container.
    #[serde(default = "termination_log")]
    pub termination_message_path: String,
    /// Where the message comes from.
    #[serde(default)]
    pub termination_message_policy: TerminationMessagePolicy,
    /// Resources, for status, oom_score_adj and back-off identity.
    #[serde(default)]
    pub resources: Resources,
    /// Ephemeral containers only: container whose namespaces are joined (`kubectl debug --target`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// It is an MPI step: as many processes as the job has tasks, on all of its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<crate::step::StepPlan>,
    /// Set when the kubelet could not make this container's configuration (a missing configMap key, an image
    /// that cannot be pulled after the start …): it is not started and waits with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Blocked>,
}

/// A variable whose value lies in a file of an emptyDir (env.valueFrom.fileKeyRef).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileKey {
    /// The variable's name.
    pub variable: String,
    /// Key into [`crate::plan::SandboxPlan::volumes`].
    pub volume: String,
    /// The file, relative to the volume.
    pub path: String,
    /// Which of the file's variables.
    pub key: String,
    /// The container starts without the variable when the file or the key is missing.
    #[serde(default)]
    pub optional: bool,
    /// What the variable is then: what it would be without this source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<String>,
}

/// Why a container cannot be created now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Waiting reason, such as `CreateContainerConfigError`, `ErrImagePull`.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

fn sigterm() -> i32 {
    15
}

fn termination_log() -> String {
    "/dev/termination-log".to_owned()
}

/// Where a termination message comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminationMessagePolicy {
    /// The file only.
    #[default]
    File,
    /// The file, or the log's tail when it is empty and the exit was a failure.
    FallbackToLogsOnError,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Key into [`crate::plan::SandboxPlan::volumes`].
    pub volume: String,
    /// Absolute path inside the container.
    pub path: String,
    /// Read-only.
    #[serde(default)]
    pub read_only: bool,
    /// subPath, resolved under the volume without following links out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
    /// `None`, `HostToContainer`, `Bidirectional`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<String>,
    /// recursiveReadOnly asked for.
    #[serde(default)]
    pub recursive_read_only: bool,
}

/// Requests and limits: CPU in millicores, memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// requests, by resource name, in milli-units (`cpu`) or units.
    #[serde(default)]
    pub requests: BTreeMap<String, u64>,
    /// limits, as requests.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
}

/// Stands for the value of the variable [`ContainerPlan::file_keys`]`[index]`, which the supervisor reads when the
/// container is about to start.
#[must_use]
pub fn file_key_placeholder(index: usize) -> String {
    format!("\u{0}fileKey {index}\u{0}")
}
