//! A gang: several pods in one Slurm allocation. What hpk-kubelet orders, and what the allocation's agent
//! (`hpk-netns gang`) says of it, as files in the gang's folder `HPK_HOME/gangs/<id>`.
//!
//! ```text
//! gang.json             hpk-kubelet   which pods belong to it, and what is wanted of each
//! members/<uid>.json    the agent     where the pod's step runs, and how it ended
//! ```

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Environment of a member's step: the id of its run, `<job>/<number in the gang>`.
pub const RUN: &str = crate::local::RUN_ID;

/// `gang.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GangFile {
    /// [`crate::VERSION`] of the writer.
    pub version: u32,
    /// The gang's id, its folder's name.
    pub id: String,
    /// Raised with each change.
    pub generation: u64,
    /// What holds its pods together, for people: `PodGroup ns/name`.
    pub group: String,
    /// Places for pods in the allocation, of all components: Slurm's tasks.
    pub slots: u32,
    /// Flags of srun that the steps of the first component's members have: their size.
    pub step: Vec<String>,
    /// The job's components, in Slurm's order: one, or those of a heterogeneous job. Empty: one, which `slots` and `step` say.
    #[serde(default)]
    pub components: Vec<Component>,
    /// The pods that have, or had, a place.
    pub members: Vec<Member>,
    /// hpk-kubelet's own: sbatch has run, or may have.
    #[serde(default)]
    pub job_id: Option<String>,
}

impl GangFile {
    /// The components, of which there is at least one.
    #[must_use]
    pub fn parts(&self) -> Vec<Component> {
        if self.components.is_empty() {
            return vec![Component { slots: self.slots, step: self.step.clone(), place: None }];
        }
        self.components.clone()
    }

    /// Whether the job is a heterogeneous one.
    #[must_use]
    pub fn is_heterogeneous(&self) -> bool {
        self.components.len() > 1
    }
}

/// Equal places of an allocation: a Slurm job, or a component of a heterogeneous one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Places for pods: Slurm's tasks.
    pub slots: u32,
    /// Flags of srun that its members' steps have: their size.
    pub step: Vec<String>,
    /// hpk-kubelet's own: what one place has. None: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// What one place has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// CPUs.
    pub cpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// Devices, by Slurm's name of them (`gpu:a100`).
    #[serde(default)]
    pub devices: BTreeMap<String, u64>,
}

/// A pod of a gang.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its UID. A UID is started once, whatever becomes of it.
    pub uid: String,
    /// `namespace/name`.
    pub name: String,
    /// What is wanted of it.
    pub wish: Wish,
    /// The component that its place is in, from 0.
    #[serde(default)]
    pub component: u32,
}

/// What is wanted of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Its step is to run.
    Run,
    /// Its step is to end in order.
    Stop,
    /// Its step is to end at once, or not to begin.
    Kill,
}

/// `members/<uid>.json`. Where there is none, the pod's step was never begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// The node that it was given.
    pub node: String,
    /// When its step was asked for.
    pub started_at: Timestamp,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<MemberEnd>,
}

/// The end of a member's step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEnd {
    /// 0–255, as srun says.
    pub exit_code: i32,
    /// When it had ended.
    pub at: Timestamp,
    /// It ended because it was told to at once ([`Wish::Kill`]).
    #[serde(default)]
    pub killed: bool,
}
