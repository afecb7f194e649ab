//! What the registry of gangs hears, and what it wants done.

use super::Gate;
use super::claim::{Claim, Key, Policy};
use super::shape::{Request, ShapeError};
use hpk_api::gang::{Component, GangFile, Wish};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use std::time::Instant;

/// Names a question that is to be answered.
pub(super) type Ticket = u64;

/// What is heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// An attempt to prepare this pod begins.
    Arrived { ticket: Ticket, claim: Claim, pod: Arc<Pod> },
    /// All of the pod is ready.
    Ready { ticket: Ticket, uid: String },
    /// The pod is to be submitted.
    Submit { ticket: Ticket, uid: String },
    /// Why the members of a gang that was to begin do not fit into one allocation, or what is asked for.
    Shaped { id: String, result: Result<Request, ShapeError> },
    /// `gang.json` of this generation was written, or not.
    Written { id: String, generation: u64, ok: bool },
    /// sbatch has ended. Err: whether it is sure that no job comes of it, and why.
    Submitted { id: String, result: Result<String, (bool, String)> },
    /// A member's run is to end: in order, or at once.
    End { run: String, wish: Wish },
    /// An allocation's job was found, of which sbatch did not tell.
    Found { id: String, job: String },
    /// The allocation's job has ended, or is not known any more.
    Over { id: String },
    /// PodGroups, or pods, have changed; or time has passed.
    Look,
}

/// What is wanted.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    Gate {
        ticket: Ticket,
        gate: Gate,
    },
    /// It is submitted by itself.
    Alone {
        ticket: Ticket,
    },
    /// It is submitted, as this run.
    Made {
        ticket: Ticket,
        run: String,
    },
    /// It is not submitted. bool: no job can come of it.
    Failed {
        ticket: Ticket,
        sure: bool,
        why: String,
    },
    /// Has the pod prepared anew.
    Wake {
        uid: String,
    },
    /// Finds what to ask Slurm for, and ends in [`Heard::Shaped`].
    Shape {
        id: String,
        group: Key,
        members: Vec<Arc<Pod>>,
        all: bool,
    },
    Write(GangFile),
    Sbatch {
        id: String,
        arguments: Vec<String>,
    },
    /// Has the agent of this job read its orders.
    Nudge {
        job: String,
    },
    Cancel {
        job: String,
    },
    /// The gang's folder is not needed any more.
    Remove {
        id: String,
    },
}

/// What is known of pods and PodGroups elsewhere.
pub(super) trait World {
    /// The PodGroup's policy; None: it is not there.
    fn policy(&self, namespace: &str, name: &str) -> Option<Policy>;
    /// Whether the pod has room in a place of this component.
    fn fits(&self, pod: &Pod, component: &Component) -> bool;
    /// The pod as the kubelet has it now.
    fn pod(&self, uid: &str) -> Seen;
    fn now(&self) -> Instant;
}

/// How a pod is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is not there.
    Nothing,
    Alive,
    /// It is being deleted.
    Ending,
    /// Succeeded or Failed.
    Over,
}
