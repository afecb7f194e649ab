//! What the controller hears. One queue; every task that waits for something sends its end as one of these.

use super::prepare::{Held, Memory, Ready, Refreshed};
use crate::slurm::client::SlurmError;
use crate::slurm::job::Job;
use hpk_api::state::PodState;
use hpk_link::server::LinkEvent;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The API has this pod.
    Applied(Arc<Pod>),
    /// The API has it no more.
    Deleted(Arc<Pod>),
    /// These are all that the API has (UIDs).
    Listed(HashSet<String>),
    /// An attempt to prepare ended.
    Prepared {
        /// Pod.
        uid: String,
        /// How.
        result: Box<Result<Ready, Held>>,
        /// For the next attempt.
        memory: Box<Memory>,
    },
    /// sbatch ended.
    Submitted {
        /// Pod.
        uid: String,
        /// Job id.
        result: Result<String, SlurmError>,
    },
    /// A refresh of a running pod ended.
    Refreshed {
        /// Pod.
        uid: String,
        /// How.
        result: Box<Result<Refreshed, Held>>,
        /// For the next one.
        memory: Box<Memory>,
    },
    /// An object that this pod refers to is not what the pod has read.
    ReferencesChanged {
        /// Pod.
        uid: String,
    },
    /// Slurm answered about these jobs.
    Jobs {
        /// Ids asked for.
        asked: Vec<String>,
        /// Those that are known.
        found: Vec<Job>,
        /// sacct was asked about the missing ones, too.
        complete: bool,
    },
    /// Slurm did not answer.
    JobsFailed,
    /// A link.
    Link(LinkEvent),
    /// A supervisor reports.
    Report {
        /// Pod.
        uid: String,
        /// Its word.
        state: Box<PodState>,
    },
    /// A status patch ended.
    Posted {
        /// Pod.
        uid: String,
        /// What was posted.
        status: Box<PodStatus>,
        /// None: taken. Some: try again after this long.
        retry: Option<Duration>,
    },
    /// A request to the supervisor to stop failed.
    StopFailed {
        /// Pod.
        uid: String,
    },
    /// Folder and object are gone, or not yet.
    Removed {
        /// Pod.
        uid: String,
        /// Whether all is gone.
        done: bool,
    },
}

/// Sends events to the controller.
pub type Sender = mpsc::Sender<Event>;
