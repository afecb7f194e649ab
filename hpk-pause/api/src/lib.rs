//! The contract between the parts of HPK, as plain data.
//!
//! `hpk-kubelet` writes a [`plan::SandboxPlan`], the supervisor `hpk-pause` lives by it and reports
//! [`state::PodState`]; both speak [`control`] over the supervisor's socket, in [`frame`]s.
//! This crate holds types and their codecs only: no I/O (but [`say`]), no clock, no policy.
//!
//! Compatibility: every struct tolerates unknown fields and defaults missing optional ones, so that an
//! old reader can read what a newer writer wrote. [`VERSION`] is raised only when a meaning changes.
// This crate is a contract: each part of it is explained. Elsewhere a name may say enough.
#![warn(missing_docs)]

pub mod cluster;
pub mod cni;
pub mod control;
pub mod cri_log;
pub mod crossing;
pub mod frame;
pub mod gang;
pub mod go_duration;
pub mod ids;
pub mod images;
pub mod link;
pub mod local;
pub mod net;
pub mod nodes;
pub mod plan;
pub mod pod_flags;
pub mod probe;
pub mod quantity;
pub mod say;
pub mod state;
pub mod step;
pub mod subids;
pub mod time_limit;

/// Version of the contract. A reader refuses a plan or hello whose version is greater than its own.
pub const VERSION: u32 = 1;

/// A line of standard output by which a program tells the control plane's supervisor that it serves.
pub const READY: &str = "ready";

/// Paths inside the parent container, the same for every pod.
pub mod paths {
    /// The pod's folder of `HPK_HOME/pods/<uid>` (shared file system, read-write).
    pub const POD: &str = "/hpk/pod";
    /// The image store: `/hpk/images/<digest>/rootfs` (read-only).
    pub const IMAGES: &str = "/hpk/images";
    /// Images that are files in the store, as folders: `/hpk/mounted/<digest>/rootfs` (read-only).
    pub const MOUNTED: &str = "/hpk/mounted";
    /// Scratch folder of the job on node-local storage (read-write).
    pub const SCRATCH: &str = "/hpk/scratch";
    /// Bind mounts of hostPath volumes: `/hpk/host/<index>`.
    pub const HOST: &str = "/hpk/host";
    /// Node-local 0700 folder shared with hpk-netns; holds the sockets below.
    pub const RUN: &str = "/hpk/run";
    /// The supervisor's control socket, inside [`RUN`].
    pub const SUPERVISOR_SOCK: &str = "supervisor.sock";
    /// hpk-netns' socket (network set-up, TUN hand-over), inside [`RUN`].
    pub const NETNS_SOCK: &str = "netns.sock";
    /// hpk-netns' socket for a carrier of the link, where the kubelet cannot be dialled; inside [`RUN`].
    pub const LINK_SOCK: &str = "link.sock";
    /// Where processes in the node's network get sockets of the pods' network ([`crate::crossing`]); inside [`RUN`].
    pub const CROSSING_SOCK: &str = "crossing.sock";
}

/// File names in `HPK_HOME/pods/<uid>/`, and below it in [`files::INSIDE`], which is all that the pod's own job container sees.
pub mod files {
    use std::path::{Path, PathBuf};

    /// The folder that is bound to [`crate::paths::POD`]: plan, status, logs, volumes and files of steps. The kubelet's record,
    /// the link's credentials, the batch script and Slurm's output are beside it, out of the pod's reach.
    pub const INSIDE: &str = "pod";

    /// That folder of this pod's folder. Pods that an earlier version began have one for all.
    #[must_use]
    pub fn inside(pod: &Path) -> PathBuf {
        let inside = pod.join(INSIDE);
        // Of the pod's folder itself, whose entries no pod can make where the folder inside is.
        if inside.is_dir() || !pod.join(PLAN).is_file() { inside } else { pod.to_owned() }
    }

    /// Written by hpk-kubelet, beside the part that the supervisor has: its own record of the pod.
    pub const RECORD: &str = "kubelet.json";
    /// Written by hpk-kubelet: [`crate::plan::SandboxPlan`].
    pub const PLAN: &str = "plan.json";
    /// Written by hpk-kubelet: the sbatch script.
    pub const JOB_SCRIPT: &str = "job.sh";
    /// Written by Slurm: output of the job outside of its containers.
    pub const JOB_OUTPUT: &str = "job.out";
    /// Written by hpk-pause: [`crate::state::PodState`], its last word.
    pub const STATUS: &str = "status.json";
    /// Written by hpk-kubelet: [`crate::link::LinkCredentials`].
    pub const LINK: &str = "link.json";
    /// Written by hpk-netns: [`crate::state::LaunchReport`].
    pub const LAUNCH: &str = "launch.json";
    /// Written by hpk-netns: path of [`crate::paths::LINK_SOCK`] on its node.
    pub const CARRIER: &str = "carrier";
    /// Folder of CRI logs: `logs/<container>/<restart count>.log`.
    pub const LOGS: &str = "logs";
    /// Folder of volumes that the kubelet fills: `volumes/<name>/`.
    pub const VOLUMES: &str = "volumes";
    /// Folder of emptyDir volumes that all nodes of an MPI step see: `shared/<name>/`.
    pub const SHARED: &str = "shared";
    /// Written by hpk-pause for the ranks of an MPI step: [`crate::step::StepFile`].
    #[must_use]
    pub fn step(instance: u32) -> String {
        format!("step-{instance}.json")
    }
}
