//! An MPI step: a container that runs as many times as the job has tasks, on every node of the job.
//!
//! ```text
//! hpk-pause ── StepStart, descriptors ─▶ netns.sock ─▶ srun … hpk-netns rank <pod folder> <instance>
//!           ◀─ StepNews, a line each ──              ◀─ records on the standard output of the ranks ──
//!           ── StepOrder, a line each ─▶             ── StepOrder, a line each, on their standard input ─▶
//! ```
//! The connection is the step's life: when the supervisor closes it, the step is ended.
//!
//! A session beside a rank ([`SESSION_PREFIX`]) takes the same way, from the supervisor to the rank's node:
//!
//! ```text
//! hpk-pause ── StepSession ─▶ netns.sock ─▶ srun --overlap … hpk-netns session <pod folder> <instance> <rank>
//!           ◀─ one line: Reply, then frames in both directions, as on the control socket ─▶
//! ```

use crate::session::{ExecOptions, Usage};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A command of an exec session that begins with this and a number is run beside that rank, on its node and with its
/// environment: `rank:5 ps`.
pub const SESSION_PREFIX: &str = "rank:";

/// What the kubelet decides of a step; its container has it in its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Flags of srun, the user's.
    #[serde(default)]
    pub flags: Vec<String>,
    /// The ranks are uid 0, as in other containers; else they have the user's own uid, by which PMIx knows them.
    #[serde(default)]
    pub root: bool,
    /// /etc/hosts of the ranks, which are in the node's network.
    #[serde(default)]
    pub etc_hosts: String,
    /// /etc/resolv.conf likewise.
    #[serde(default)]
    pub resolv_conf: String,
    /// The same for nodes where the ranks reach the pods' network, and with it the cluster's name server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_resolv_conf: Option<String>,
}

/// What a rank executes in its container, and with which rights: resolved, the same on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankPlan {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Environment of the container; the job's facts are added by the rank.
    pub env: Vec<(String, String)>,
    /// None: `/`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The user's groups on the node in their place.
    #[serde(default)]
    pub keep_groups: bool,
    /// For `$HOME`.
    #[serde(default)]
    pub home: Option<String>,
    /// Bounding set of capabilities, bit 0 is CAP_CHOWN.
    pub caps: u64,
    /// allowPrivilegeEscalation: false.
    #[serde(default)]
    pub no_new_privs: bool,
    /// seccompProfile RuntimeDefault.
    #[serde(default)]
    pub seccomp: bool,
    /// See proc(5).
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

/// [`crate::net::NetnsRequest::Step`]. Descriptors: a pidfd of the container's keeper on the first node, then where the
/// ranks' standard output and standard error go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStart {
    /// Container name.
    pub container: String,
    /// Which instance of it.
    pub instance: u32,
    /// Flags of srun, the user's.
    pub flags: Vec<String>,
}

/// [`crate::net::NetnsRequest::Session`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSession {
    /// Which instance of the step's container.
    pub instance: u32,
    /// Which rank, and where.
    pub of: Rank,
    /// What to run, without the prefix.
    pub options: ExecOptions,
}

/// `step-<instance>.json` in the pod's folder, written by the supervisor: what every rank reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFile {
    /// Container name.
    pub container: String,
    /// For every rank.
    pub rank: RankPlan,
    /// Addresses of the pod, which the plan may not know.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// The ranks reach the pods' network; None: as the node does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crossing: Option<Crossing>,
}

/// How ranks, which are in their node's network, reach the pods' ([`crate::crossing`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    /// Ranges of pods and Services: [`crate::net::NetworkPlan::pod_cidr`] and `service_cidr`.
    pub ranges: String,
}

/// What a rank is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOrder {
    /// Send this signal to the command.
    Signal(i32),
    /// Tell what the step uses: one rank of each node answers with [`StepNews::Used`].
    Usage,
}

/// Where a rank is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// From 0.
    pub rank: u32,
    /// Host name of its node.
    pub node: String,
}

/// What a step has to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepNews {
    /// A rank executes its command.
    Started {
        /// Which.
        of: Rank,
        /// How many ranks the step has.
        ranks: u32,
    },
    /// A rank could not be started.
    Failed {
        /// Which.
        of: Rank,
        /// Why, with the remedy where there is one.
        message: String,
    },
    /// A rank's command has ended.
    Exited {
        /// Which.
        of: Rank,
        /// 0–255, or 128+n for a signal n.
        code: i32,
        /// The signal that ended it.
        #[serde(default)]
        signal: Option<i32>,
        /// The kernel's OOM killer has killed in the rank's cgroup meanwhile.
        #[serde(default)]
        oom: bool,
    },
    /// What the step's container on this node uses.
    Used {
        /// The node's first rank.
        of: Rank,
        /// Now.
        usage: Usage,
    },
    /// srun has ended: the step is over.
    Ended {
        /// Its exit code, or 128+n.
        code: i32,
        /// The last of what it said.
        words: String,
    },
}

/// The keeper of a step's container on one node: it holds the namespaces that the ranks there join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// In the node's PID namespace.
    pub pid: i32,
    /// When it was started, field 22 of proc_pid_stat(5): the number alone may be another's by now.
    pub start: u64,
    /// What the ranks need of Slurm is mounted in it.
    #[serde(default)]
    pub ready: bool,
}
