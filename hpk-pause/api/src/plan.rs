//! `plan.json`: everything that the supervisor needs to run one pod. Data only; decided by hpk-kubelet.
//!
//! All references (configMaps, secrets, downward API, `$(VAR)`, named ports) are resolved. The only
//! values unknown before the job starts are marked by placeholders ([`POD_IP_PLACEHOLDER`] …) that the
//! supervisor replaces in environment, command and files. They contain a NUL, which no Kubernetes
//! string may hold, so they cannot be forged.

use crate::net::NetworkPlan;
use crate::probe::{Lifecycle, Probes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Stands for `status.podIP` when it is not known before the start (host and cni networks).
pub const POD_IP_PLACEHOLDER: &str = "\u{0}podIP\u{0}";
/// Stands for `status.podIPs`, comma-separated.
pub const POD_IPS_PLACEHOLDER: &str = "\u{0}podIPs\u{0}";
/// Stands for `status.hostIP`: the compute node's address. Only where [`NetworkPlan::fills_host_ip`] says that the supervisor
/// knows it.
pub const HOST_IP_PLACEHOLDER: &str = "\u{0}hostIP\u{0}";
/// Stands for `status.hostIPs`, comma-separated. Only where [`NetworkPlan::fills_host_ips`] says that the supervisor knows it.
pub const HOST_IPS_PLACEHOLDER: &str = "\u{0}hostIPs\u{0}";

/// Stands for the value of the variable [`ContainerPlan::file_keys`]`[index]`, which the supervisor reads when the
/// container is about to start.
#[must_use]
pub fn file_key_placeholder(index: usize) -> String {
    format!("\u{0}fileKey {index}\u{0}")
}

/// One pod, ready to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// [`crate::VERSION`] of the writer.
    pub version: u32,
    /// Which pod.
    pub pod: PodRef,
    /// Host name inside the pod (UTS namespace), ≤ 64 characters; empty: the node's.
    pub hostname: String,
    /// Pod-level restart policy.
    pub restart_policy: RestartPolicy,
    /// spec.terminationGracePeriodSeconds.
    pub termination_grace_period_seconds: u32,
    /// spec.activeDeadlineSeconds, counted from the pod's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<u64>,
    /// spec.shareProcessNamespace: containers share the supervisor's PID namespace.
    #[serde(default)]
    pub share_process_namespace: bool,
    /// Network.
    pub network: NetworkPlan,
    /// In spec order; those with `restart_policy: Some(Always)` are sidecars.
    #[serde(default)]
    pub init_containers: Vec<ContainerPlan>,
    /// In spec order.
    pub containers: Vec<ContainerPlan>,
    /// Volumes, by name.
    #[serde(default)]
    pub volumes: BTreeMap<String, VolumePlan>,
    /// Host paths that hpk-netns binds into the parent before the start.
    #[serde(default)]
    pub host_binds: Vec<HostBind>,
    /// Content of /etc/hosts; None: not mounted. Placeholders are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etc_hosts: Option<String>,
    /// Content of /etc/resolv.conf; None: the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<String>,
    /// Sysctls of the pod's namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Supplemental groups and fsGroup for all containers.
    #[serde(default)]
    pub supplemental_groups: Vec<u32>,
    /// spec.securityContext.fsGroup: owner group of volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<u32>,
    /// Which number the user has in the containers.
    #[serde(default)]
    pub user_ids: UserIds,
    /// Site-wide settings.
    #[serde(default)]
    pub settings: Settings,
}

/// A plan that cannot be used.
#[derive(Debug)]
pub enum PlanError {
    /// It is not a plan of a version that this program knows.
    Parse(serde_json::Error),
    /// A newer hpk-kubelet wrote it.
    Version {
        /// The plan's version.
        found: u32,
    },
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Parse(source) => {
                write!(f, "not a plan: {source}; was it written by another version of hpk-kubelet?")
            }
            Self::Version { found } => write!(
                f,
                "the plan has version {found}, this program knows up to {}: install the same version of HPK on the login \
                 node and on the compute nodes",
                crate::VERSION
            ),
        }
    }
}

impl std::error::Error for PlanError {}

impl SandboxPlan {
    /// Init containers, then containers.
    pub fn all(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// As [`Self::all`].
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut ContainerPlan> {
        self.init_containers.iter_mut().chain(&mut self.containers)
    }

    /// The container of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&ContainerPlan> {
        self.all().find(|container| container.name == name)
    }

    /// Reads the content of a `plan.json`. The version is read first, because the rest of a newer plan may not parse.
    ///
    /// # Errors
    /// A plan of a newer version, or no plan.
    pub fn parse(bytes: &[u8]) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct OfVersion {
            version: u32,
        }
        let of: OfVersion = serde_json::from_slice(bytes).map_err(PlanError::Parse)?;
        if of.version > crate::VERSION {
            return Err(PlanError::Version { found: of.version });
        }
        serde_json::from_slice(bytes).map_err(PlanError::Parse)
    }
}

/// Which pod a plan or state belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
}

/// restartPolicy of a pod or container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    #[default]
    Always,
    /// Restart unless exit code 0.
    OnFailure,
    /// Never restart.
    Never,
}

/// KEP-5307: container-level rules, first match wins, before any policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRule {
    /// What to do on a match.
    pub action: RestartAction,
    /// Operator on exit codes.
    pub operator: ExitCodeOperator,
    /// Exit codes.
    pub values: Vec<i32>,
}

/// Action of a [`RestartRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartAction {
    /// Restart the container.
    Restart,
    /// Restart all containers of the pod (KEP-5532).
    RestartAllContainers,
}

/// Operator of a [`RestartRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCodeOperator {
    /// Exit code is in the set.
    In,
    /// Exit code is not in the set.
    NotIn,
}

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
    /// Key into [`SandboxPlan::volumes`].
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

/// An image in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// Folder name in the image store (`sha256-<hex>`).
    pub folder: String,
    /// status.imageID: `registry/repo@sha256:…`.
    pub id: String,
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
    /// Key into [`SandboxPlan::volumes`].
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

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VolumePlan {
    /// Folder with the pod's life, on the node's own disk.
    EmptyDir {
        /// tmpfs instead of disk.
        #[serde(default)]
        memory: bool,
        /// Below `hpk_layout::pod::SHARED` in the pod's folder instead, where all nodes of an MPI step see it.
        #[serde(default)]
        shared: bool,
        /// Bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_limit: Option<u64>,
    },
    /// Folder filled by the kubelet below `hpk_layout::pod::VOLUMES`: configMap, secret, projected, downwardAPI.
    Kubelet {
        /// Folder name.
        folder: String,
        /// Mount it read-only. The files lie in the pod's folder on the shared file system (0700), not in a tmpfs.
        #[serde(default)]
        read_only: bool,
    },
    /// A host path, bound by hpk-netns at `/hpk/host/<index>`: a hostPath, or the volume of a claim.
    Host {
        /// Index into [`SandboxPlan::host_binds`].
        index: usize,
        /// No container may write to it.
        #[serde(default)]
        read_only: bool,
        /// [`SandboxPlan::fs_group`] is to own what is in it. None: it stays as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupChange>,
        /// The PersistentVolumeClaim whose volume it is: its use is told. None: a hostPath.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<String>,
    },
    /// An OCI image's content, read-only.
    Image {
        /// Which image.
        image_ref: ImageRef,
    },
}

/// Which number the user, whose job the pod is, has in its containers. All other ids are subordinate ids of the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserIds {
    /// 0.
    #[default]
    Root,
    /// The same as on the nodes.
    Keep,
}

impl UserIds {
    /// `root` or `keep`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "root" => Some(Self::Root),
            "keep" => Some(Self::Keep),
            _ => None,
        }
    }
}

/// fsGroupChangePolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupChange {
    /// Every file is looked at, at each start of a pod.
    Always,
    /// Only when the volume's root does not belong to the group already.
    OnRootMismatch,
}

/// A path of the node, bound into the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBind {
    /// Path on the node.
    pub source: String,
    /// hostPath type: ``, `Directory`, `DirectoryOrCreate`, `File`, `FileOrCreate`, `Socket`, `CharDevice`, `BlockDevice`.
    #[serde(default)]
    pub kind: String,
}

/// securityContext of pod and container, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityPlan {
    /// runAsUser or the image's USER, numeric.
    #[serde(default)]
    pub uid: u32,
    /// runAsGroup or the image's group.
    #[serde(default)]
    pub gid: u32,
    /// User name from the image, resolved by the supervisor in the image's /etc/passwd when not numeric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_name: Option<String>,
    /// The pod's spec names a user, so that [`UserIds::Keep`] puts nobody in the place of root.
    #[serde(default)]
    pub user_asked: bool,
    /// The pod's spec names a group.
    #[serde(default)]
    pub group_asked: bool,
    /// runAsNonRoot was asked: refuse uid 0.
    #[serde(default)]
    pub non_root: bool,
    /// privileged: keep every capability of the user namespace.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities added to the default set (`NET_ADMIN`, `ALL`).
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Root file system read-only.
    #[serde(default)]
    pub read_only_rootfs: bool,
    /// allowPrivilegeEscalation; false sets no_new_privs.
    #[serde(default = "yes")]
    pub allow_privilege_escalation: bool,
    /// Seccomp profile.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// procMount: Unmasked.
    #[serde(default)]
    pub unmasked_proc: bool,
}

fn yes() -> bool {
    true
}

/// seccompProfile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// No filter.
    #[default]
    Unconfined,
    /// The default filter of container engines.
    RuntimeDefault,
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

/// Numbers that a site can change; defaults are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// First back-off, milliseconds (10 s).
    pub backoff_initial_ms: u64,
    /// Longest back-off, milliseconds (300 s).
    pub backoff_max_ms: u64,
    /// A run longer than this resets the back-off, milliseconds (600 s).
    pub backoff_reset_ms: u64,
    /// containerLogMaxSize, bytes (10 MiB).
    pub log_max_bytes: u64,
    /// containerLogMaxFiles (5).
    pub log_max_files: u32,
    /// Who makes the containers.
    pub launcher: LauncherChoice,
    /// `User-Agent` version of probes: `kube-probe/<this>`.
    pub kube_version: String,
    /// Slurm's KillWait, seconds: from its TERM to its KILL (30 s, slurm.conf(5)).
    pub kill_wait_seconds: u32,
    /// A process that is killed for memory leaves the rest of its container alone (upstream's `singleProcessOOMKill`).
    pub single_process_oom_kill: bool,
}

/// Who makes the containers of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LauncherChoice {
    /// The supervisor itself where the kernel gives a user namespace an overlay, else Apptainer.
    #[default]
    Auto,
    /// The supervisor itself.
    Native,
    /// An Apptainer inside the job's.
    Apptainer,
}

impl LauncherChoice {
    /// `auto`, `native` or `apptainer`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "native" => Some(Self::Native),
            "apptainer" => Some(Self::Apptainer),
            _ => None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let logs = crate::cluster::ContainerLogs::default();
        Self {
            backoff_initial_ms: 10_000,
            backoff_max_ms: 300_000,
            backoff_reset_ms: 600_000,
            log_max_bytes: logs.max_bytes,
            log_max_files: logs.max_files,
            launcher: LauncherChoice::Auto,
            kube_version: "1.37".to_owned(),
            kill_wait_seconds: 30,
            single_process_oom_kill: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_plan_is_told_by_its_version_whatever_else_is_in_it() {
        let said = |text: &str| SandboxPlan::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(said(r#"{"version": 99, "containers": "of another shape"}"#).contains("the plan has version 99"));
        assert!(said(r#"{"version": 1, "containers": "of another shape"}"#).starts_with("not a plan: "));
        assert!(said("{").starts_with("not a plan: "));
        assert!(said("{}").contains("missing field `version`"));
    }
}
