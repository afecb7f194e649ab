//! `plan.json`: everything that the supervisor needs to run one pod. Data only; decided by hpk-kubelet.
//!
//! All references (configMaps, secrets, downward API, `$(VAR)`, named ports) are resolved. The only
//! values unknown before the job starts are marked by placeholders ([`POD_IP_PLACEHOLDER`] …) that the
//! supervisor replaces in environment, command and files. They contain a NUL, which no Kubernetes
//! string may hold, so they cannot be forged.

mod container;
mod image;
mod restart;
mod security;
mod settings;
mod volume;

pub use container::{
    Blocked, ContainerPlan, FileKey, MountPlan, Resources, TerminationMessagePolicy, file_key_placeholder,
};
pub use image::ImageRef;
pub use restart::{ExitCodeOperator, RestartAction, RestartPolicy, RestartRule};
pub use security::{Seccomp, SecurityPlan, UserIds};
pub use settings::{LauncherChoice, Settings};
pub use volume::{GroupChange, HostBind, VolumePlan};

use crate::net::NetworkPlan;
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
