//! As whom, and with which rights, a container runs.

use serde::{Deserialize, Serialize};

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
