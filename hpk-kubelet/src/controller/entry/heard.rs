//! What an entry hears, what it hears it with, and what it wants done.

use super::labels::Labels;
use crate::api::events::Note;
use crate::controller::prepared::{Held, Memory, Ready, RefreshJob, Refreshed, Resized};
use crate::executor::run::Run;
use crate::executor::words::Words;
use crate::executor::{ExecutorError, Made};
use crate::pods::admit::Refusal;
use crate::pods::folder::Record;
use crate::pods::plan::Image;
use crate::pods::submission::Finding;
use crate::render::sources::Versions;
use hpk_api::ids::JobId;
use hpk_api::net::NetworkMode;
use hpk_api::plan::{PodRef, SandboxPlan};
use hpk_api::state::{LaunchReport, PodState};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What holds for all pods.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The Node's address.
    pub(crate) node_ip: IpAddr,
    pub(crate) network_mode: NetworkMode,
    pub(crate) pod_cidr: String,
    pub(crate) service_cidr: String,
    /// How long slurmctld lets a request wait.
    pub(crate) message_timeout: Duration,
    /// What people are told of runs.
    pub(crate) words: &'static Words,
    /// `HPK_HOME/pods`, for messages.
    pub(crate) pods: PathBuf,
}

impl Rules {
    /// The node's network for hostNetwork pods, else the cluster's mode.
    pub(crate) fn network_mode(&self, pod: &Pod) -> NetworkMode {
        let host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        if host { NetworkMode::Host } else { self.network_mode }
    }
}

/// What an entry may look at when it hears something.
pub(crate) struct Around<'a> {
    pub(crate) now: Instant,
    pub(crate) clock: Timestamp,
    /// The first list of pods has come: an entry without an object has lost it.
    pub(crate) listed: bool,
    pub(crate) rules: &'a Rules,
    /// Whether another living pod has this address.
    pub(crate) taken: &'a dyn Fn(IpAddr) -> bool,
}

/// What happens to a pod.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The kubelet has found the pod on disk and begins to listen.
    Began,
    /// Time has passed.
    Time,
    /// The API has this object. `refusal`: why it would not be admitted.
    Applied { pod: Arc<Pod>, refusal: Option<Refusal> },
    /// The API has no such object (any more).
    Vanished,
    /// There is no address for the attempt that was begun.
    NoAddress(String),
    /// The attempt ended.
    Prepared { attempt: u32, result: Box<Result<Ready, Held>>, memory: Box<Memory> },
    /// A write of the record ended.
    Recorded(io::Result<()>),
    /// sbatch ended, with the job's id.
    Submitted(Result<Made, ExecutorError>),
    /// A change of its waiting job's size ended.
    Resized(Resized),
    /// A look for its job that was begun at `asked` ended.
    Looked { finding: Finding, id: Option<JobId>, asked: Instant, found: Option<Box<Found>> },
    /// A job turned up that nobody looked for.
    Adopted { id: JobId, found: Option<Box<Found>> },
    /// Slurm's word, with those on disk where they are needed ([`super::Entry::needs_words`]).
    Job { job: Box<Run>, words: Option<Box<LastWords>> },
    /// The supervisor's word.
    Report { state: Box<PodState>, found: Option<Box<Found>> },
    /// A link stands; `carried`: Slurm carries it. `way_out`: on which node its other end says to be, and whether that reaches
    /// addresses outside of the cluster.
    LinkUp { carried: bool, way_out: Option<(String, bool)> },
    /// No link stands.
    LinkDown,
    /// Somebody was refused who had the pod's credentials.
    LinkRefused(String),
    /// An object that it refers to is not what it has read.
    ReferencesChanged,
    /// A reading of its references ended.
    Refreshed { result: Box<Result<Refreshed, Held>>, memory: Box<Memory> },
    /// A patch of its status ended; `retry`: it was not taken, and may be after this long.
    Posted { status: Arc<PodStatus>, retry: Option<Duration> },
    /// The supervisor could not be asked to stop.
    NotAsked,
    /// Folder or object are still there.
    NotRemoved,
}

/// What an earlier kubelet and the pod's job have left in its folder.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) plan: Option<Box<SandboxPlan>>,
    pub(crate) words: LastWords,
    /// What runs needs no pull, and no word about one.
    pub(crate) images: BTreeMap<String, Image>,
}

/// The words that the pod's job has left in its folder.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    /// The supervisor's last.
    pub(crate) report: Option<PodState>,
    /// hpk-netns', on a start that failed.
    pub(crate) launch: Option<LaunchReport>,
}

/// What is to be done for a pod.
#[derive(Debug)]
pub(crate) enum Effect {
    /// The pod's owner is told.
    Tell(Arc<Pod>, Note),
    /// An attempt to prepare it begins; ends in [`Heard::Prepared`] or [`Heard::NoAddress`].
    Prepare { attempt: u32 },
    /// The attempt is given up.
    AbortPreparation,
    /// The record goes to the disk; ends in [`Heard::Recorded`].
    Write(Box<Record>),
    /// sbatch runs; ends in [`Heard::Submitted`].
    Sbatch { arguments: Vec<String> },
    /// Its job, which waits, is given the size that the pod asks for; ends in [`Heard::Resized`].
    Resize { pod: Arc<Pod>, job: JobId },
    /// News of these objects is wanted, and of no others.
    Follow(Versions),
    /// No such news is wanted any more.
    Unfollow,
    /// Its references are read; ends in [`Heard::Refreshed`].
    Refresh(Box<RefreshJob>),
    /// It may link, with these addresses.
    AllowLink(Vec<IpAddr>),
    /// It may not link.
    ForbidLink,
    /// The node reaches addresses outside of the cluster, or does not.
    WayOut { node: String, has: bool },
    /// Its supervisor's reports are followed over the link: [`Heard::Report`].
    Watch,
    /// They are not followed any more.
    Unwatch,
    /// Its owner is told that there is no link to it on `node`.
    TellUnlinked { pod: Arc<Pod>, node: Option<String> },
    /// Slurm is to carry the link.
    Carry { job: JobId },
    /// The supervisor is asked to stop; a failure ends in [`Heard::NotAsked`].
    AskStop { grace: u32 },
    /// TERM through Slurm.
    Signal { job: JobId },
    /// scancel.
    Cancel { job: JobId },
    /// Somebody on that node clears up what the pod may have left there.
    ClearUp { node: String },
    /// The API's object gets this patch; ends in [`Heard::Posted`].
    Post { pod: Arc<Pod>, status: Arc<PodStatus>, patch: Value },
    /// The API's object gets these labels. Nothing waits for it.
    Label { pod: Arc<Pod>, labels: Labels },
    /// Folder and object go. A failure ends in [`Heard::NotRemoved`].
    Remove { who: PodRef, object: Option<Arc<Pod>> },
}
