//! Volumes, and where their content comes from.

use super::image::ImageRef;
use serde::{Deserialize, Serialize};

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
        /// Index into [`crate::plan::SandboxPlan::host_binds`].
        index: usize,
        /// No container may write to it.
        #[serde(default)]
        read_only: bool,
        /// [`crate::plan::SandboxPlan::fs_group`] is to own what is in it. None: it stays as it is.
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
