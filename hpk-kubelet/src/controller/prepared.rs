//! What preparing a pod begins with and ends in, and reading a running pod's references anew.

use super::backoff::Backoff;
use crate::api::fetch::Kept;
use crate::pods::folder::Record;
use crate::pods::plan::Image;
use crate::pods::resize::Granted;
use crate::pods::status::Waiting;
use hpk_api::ids::JobId;
use hpk_api::plan::SandboxPlan;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What is remembered between attempts.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Image back-off.
    pub backoff: Backoff,
    /// Of the references.
    pub kept: Kept,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Unsupported fields were told.
    pub told: bool,
}

/// Ready for sbatch.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Arguments of sbatch.
    pub arguments: Vec<String>,
    /// What they ask for, for people.
    pub asked: String,
    /// The plan that was written.
    pub plan: Box<SandboxPlan>,
    /// Images by container.
    pub images: BTreeMap<String, Image>,
}

/// Not ready.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Waiting reasons by container; empty: the default one.
    pub waiting: BTreeMap<String, Waiting>,
    /// Try again after this long; None: only when the pod changes.
    pub retry: Option<Duration>,
}

/// A change of a waiting job's size.
#[derive(Debug)]
pub struct Resized {
    pub(crate) job: JobId,
    /// What the pod's containers asked for.
    pub(crate) wanted: Granted,
    /// What Slurm was asked for, for people; or why it was not done.
    pub(crate) result: Result<String, String>,
}

/// What a reading of a running pod's references works with.
#[derive(Debug)]
pub(crate) struct RefreshJob {
    pub(crate) pod: Arc<Pod>,
    /// Its job waits: the supervisor that is to come reads the plan.
    pub(crate) waits: bool,
    pub(crate) record: Record,
    pub(crate) plan: Box<SandboxPlan>,
    pub(crate) sent: Vec<String>,
    pub(crate) known: BTreeMap<String, Image>,
    pub(crate) memory: Memory,
}

/// What changed in a running pod.
#[derive(Clone, Debug, Default)]
pub struct Refreshed {
    /// For the supervisor.
    pub update: hpk_api::control::Update,
    /// The new plan, when it differs.
    pub plan: Option<Box<SandboxPlan>>,
    /// Images by container.
    pub images: BTreeMap<String, Image>,
    /// Waiting reasons by container.
    pub waiting: BTreeMap<String, Waiting>,
    /// Look again after this long.
    pub retry: Option<Duration>,
}
