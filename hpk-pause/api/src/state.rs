//! `status.json` and the `status` request: what the supervisor knows of its pod.
//!
//! The supervisor reports facts (states, times, counts); the kubelet derives the Kubernetes objects
//! (phase, conditions) from them and from Slurm's word.

use crate::cni::CniResult;
use crate::plan::PodRef;
use crate::probe::ProbeKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The supervisor's whole truth about its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// [`crate::VERSION`] of the writer.
    pub version: u32,
    /// Which pod.
    pub pod: PodRef,
    /// Grows with every change, so that the newer of two reports is known.
    pub sequence: u64,
    /// Slurm job id that runs this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Host name of the compute node.
    #[serde(default)]
    pub node: String,
    /// Address of the compute node, by which others reach its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// All of its addresses, at most one of each family, [`Self::host_ip`] first. Empty: that one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ips: Vec<IpAddr>,
    /// When the supervisor began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Addresses of the pod, known before containers start; those of [`Self::network`] once it stands.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// What the pod's network namespace was given; None until it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<CniResult>,
    /// Namespaces and network stand (condition PodReadyToStartContainers).
    #[serde(default)]
    pub sandbox_ready: bool,
    /// Why the sandbox could not be made, when it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_error: Option<String>,
    /// In plan order.
    #[serde(default)]
    pub init_containers: Vec<ContainerState>,
    /// In plan order.
    #[serde(default)]
    pub containers: Vec<ContainerState>,
    /// In order of arrival.
    #[serde(default)]
    pub ephemeral_containers: Vec<ContainerState>,
    /// Set once the pod is being stopped, with the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<StopCause>,
    /// A RestartAllContainers rule matched and the containers are being ended for it (condition
    /// AllContainersRestarting, KEP-5532).
    #[serde(default)]
    pub restarting_all: bool,
    /// All containers have ended for good; nothing will be started again. The job ends now.
    #[serde(default)]
    pub finished: bool,
    /// Latest happenings, oldest first, at most [`MAX_EVENTS`]; the kubelet posts those it has not seen.
    #[serde(default)]
    pub events: Vec<PodEvent>,
    /// Bytes of container output that could not be written to a log (disk full), all containers.
    #[serde(default)]
    pub log_bytes_lost: u64,
}

impl PodState {
    /// All containers: init containers, containers, ephemeral containers.
    pub fn all(&self) -> impl Iterator<Item = &ContainerState> {
        self.planned().chain(&self.ephemeral_containers)
    }

    /// The containers of the plan: init containers, then containers.
    pub fn planned(&self) -> impl Iterator<Item = &ContainerState> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// As [`Self::planned`].
    pub fn planned_mut(&mut self) -> impl Iterator<Item = &mut ContainerState> {
        self.init_containers.iter_mut().chain(&mut self.containers)
    }

    /// The container of this name, of whichever kind.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&ContainerState> {
        self.all().find(|container| container.name == name)
    }
}

/// How many events a [`PodState`] keeps.
pub const MAX_EVENTS: usize = 128;

/// Why a pod is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The kubelet asked (deletion).
    Requested,
    /// activeDeadlineSeconds passed.
    DeadlineExceeded,
    /// Slurm sent TERM (time limit, preemption, scancel).
    Signal,
    /// An ephemeral-storage limit was exceeded; message for the status.
    Evicted(String),
}

/// One container's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Container name.
    pub name: String,
    /// Current state.
    pub state: RunState,
    /// The state before the last restart: a termination, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_termination: Option<Termination>,
    /// Number of restarts.
    pub restart_count: u32,
    /// Passed its startup probe and postStart hook.
    #[serde(default)]
    pub started: bool,
    /// Ready, as probes say.
    #[serde(default)]
    pub ready: bool,
    /// Of one that has ended: it was told to, by a stop signal or by force, whatever its exit code says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told_to_end: bool,
    /// `hpk://<64 hex>` of the current or last instance; empty before the first.
    #[serde(default)]
    pub container_id: String,
    /// Uid, gid, groups of the running process, for status.user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<ContainerUser>,
}

/// Identity of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    /// uid inside the pod.
    pub uid: u32,
    /// gid inside the pod.
    pub gid: u32,
    /// Supplementary groups, with the primary one first.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// State of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Not running, will or may be started.
    Waiting {
        /// `ContainerCreating`, `PodInitializing`, `CrashLoopBackOff`, …
        reason: String,
        /// Text for people; may be empty.
        #[serde(default)]
        message: String,
    },
    /// Running.
    Running {
        /// When its first process was started.
        started_at: Timestamp,
    },
    /// Ended.
    Terminated(Termination),
}

impl Default for RunState {
    fn default() -> Self {
        Self::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() }
    }
}

/// The end of one instance of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// 0–255; 128+n for a signal n.
    pub exit_code: i32,
    /// Signal that ended it, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerCannotRun`, …
    pub reason: String,
    /// Termination message; may be empty.
    #[serde(default)]
    pub message: String,
    /// Start of the instance (equal to the end when it never ran).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// End of the instance.
    pub finished_at: Timestamp,
    /// Id of the instance.
    #[serde(default)]
    pub container_id: String,
}

impl Termination {
    /// The end of an instance that nobody saw, in upstream's words.
    #[must_use]
    pub fn unseen(started_at: Option<Timestamp>, finished_at: Timestamp, container_id: &str) -> Self {
        Self {
            exit_code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            started_at,
            finished_at,
            container_id: container_id.to_owned(),
        }
    }
}

/// Something that Kubernetes shows as an Event on the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEvent {
    /// Grows by one with each event of this pod.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Warning instead of Normal.
    pub warning: bool,
    /// `Started`, `Killing`, `Unhealthy`, `BackOff`, …
    pub reason: String,
    /// Text, as upstream words it.
    pub message: String,
    /// Container concerned (Event.involvedObject.fieldPath).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Probe concerned, for metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeKind>,
}

/// [`LaunchReport::step`] of a host path that is not as the pod wants it. While the job runs, it looks again.
pub const HOST_PATH: &str = "host_path";

/// `launch.json`, written by hpk-netns when the supervisor could not be started or ended by itself:
/// why the job has no (more) supervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// Compute node.
    pub node: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Step that failed: `scratch`, [`HOST_PATH`], `apptainer`, `supervisor`.
    pub step: String,
    /// Text with the remedy.
    pub message: String,
    /// Exit code or 128+signal of apptainer, when it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}
