//! What the controller hears. One queue; every task that waits for something sends its end as one of these.

use super::prepared::{Held, Memory, Ready, Refreshed, Resized};
use crate::executor::run::Run;
use crate::executor::{ExecutorError, Made};
use crate::pods::submission::Finding;
use hpk_api::ids::{JobId, PodUid};
use hpk_api::state::PodState;
use hpk_link::server::LinkEvent;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

#[derive(Debug)]
pub enum Event {
    /// The API has this pod.
    Applied(Arc<Pod>),
    /// The API has it no more.
    Deleted(Arc<Pod>),
    /// These are all that the API has (UIDs).
    Listed(HashSet<PodUid>),
    /// An attempt to prepare ended.
    Prepared {
        uid: PodUid,
        /// Number of the attempt: the answer to an earlier one is out of date.
        attempt: u32,
        result: Box<Result<Ready, Held>>,
        /// For the next attempt.
        memory: Box<Memory>,
    },
    /// sbatch ended.
    Submitted {
        uid: PodUid,
        result: Result<Made, ExecutorError>,
    },
    /// A change of a waiting job's size ended.
    Resized {
        uid: PodUid,
        result: Resized,
    },
    /// A refresh of a running pod ended.
    Refreshed {
        uid: PodUid,
        result: Box<Result<Refreshed, Held>>,
        /// For the next one.
        memory: Box<Memory>,
    },
    /// An object that this pod refers to is not what the pod has read.
    ReferencesChanged {
        uid: PodUid,
    },
    /// A write of the pod's record ended.
    Recorded {
        uid: PodUid,
        result: io::Result<()>,
    },
    /// Something about a run has changed: the executor is to be asked now.
    RunsChanged,
    /// Slurm answered.
    Jobs(Answers),
    /// Slurm did not answer.
    JobsFailed {
        /// When it was asked.
        asked: Instant,
        /// The pods whose jobs were sought.
        sought: Vec<PodUid>,
    },
    Link(LinkEvent),
    /// A supervisor reports.
    Report {
        uid: PodUid,
        state: Box<PodState>,
    },
    /// A status patch ended.
    Posted {
        uid: PodUid,
        /// What was posted.
        status: Arc<PodStatus>,
        /// None: taken. Some: try again after this long.
        retry: Option<Duration>,
    },
    /// A request to the supervisor to stop failed.
    StopFailed {
        uid: PodUid,
    },
    /// Folder and object are gone, or not yet.
    Removed {
        uid: PodUid,
        /// Whether all is gone.
        done: bool,
    },
}

/// What one question to Slurm brought.
#[derive(Debug)]
pub struct Answers {
    /// When it was asked.
    pub asked: Instant,
    /// By pod and job id: what is said of the job, if it is known, and is the pod's.
    pub known: Vec<(PodUid, JobId, Option<Run>)>,
    /// sacct was asked about the missing ones, too.
    pub complete: bool,
    /// By pod: whether it has a job, and which.
    pub sought: Vec<(PodUid, Finding, Option<JobId>)>,
    /// All jobs of the user, if they were asked for.
    pub all: Option<Vec<Run>>,
}

/// Sends events to the controller.
pub type Sender = mpsc::Sender<Event>;
