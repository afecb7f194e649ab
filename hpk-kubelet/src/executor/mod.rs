//! What runs pods, and the seam to it.
//!
//! ```text
//!  controller, pods/*  ── Asking ──▶ trait Executor ──▶ slurm: sbatch, squeue, sacct, scancel, srun
//!                      ◀── Run ────                └──▶ local: processes of this machine
//! ```
//! [`run`] is all that the rest of the kubelet knows of a pod's processes; [`words`] says what people are told of them.
//! Pure: [`run`], [`words`], [`pace`] (when to ask again), [`script`] (the first program of a run).

mod environment;
pub(crate) mod local;
pub(crate) mod pace;
pub(crate) mod run;
pub(crate) mod script;
pub(crate) mod slurm;
pub mod words;

use crate::nodes::VirtualNode;
use futures::future::BoxFuture;
use hpk_api::cluster::ClusterConfig;
use hpk_api::ids::PodUid;
use hpk_api::plan::PodRef;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use run::Run;
use slurm::cluster::Cluster;
use slurm::limits::Site;
use slurm::request::Defaults;
use std::fmt;
use std::path::Path;
use thiserror::Error;
use tokio::process::Child;
use tokio::sync::watch;
use words::Words;

/// Runs pods. Every call is one question or one command; who waits and who tries again is the caller's to say.
pub trait Executor: fmt::Debug + Send + Sync {
    /// What people are told.
    fn words(&self) -> &'static Words;

    /// Changes when something about a run has. None: it has to be asked for.
    fn news(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// What a pod asks for. Pure.
    ///
    /// # Errors
    /// The pod asks for what this executor does not carry out.
    fn ask(&self, asking: &Asking<'_>) -> Result<Asked, AskError>;

    /// Begins a run of `script`, or has it wait for its turn.
    fn submit<'a>(&'a self, submission: Submission<'a>) -> Answer<'a, Made>;

    /// Gives a run that waits another size: what [`Self::ask`] says now. One that has begun keeps its own.
    fn resize<'a>(&'a self, _id: &'a str, _arguments: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async { Err(ExecutorError::new(KeepsItsSize, false, true)) })
    }

    /// The given runs as far as they are known; all of the user's when `ids` is None.
    fn query<'a>(&'a self, ids: Option<&'a [String]>) -> Answer<'a, Vec<Run>>;

    /// What a second memory, if there is one, says of runs that [`Self::query`] does not know. None: there is none.
    fn remembered<'a>(&'a self, which: Past<'a>) -> Answer<'a, Option<Vec<Run>>>;

    /// Ends a run: first by word, then by force. One that is over already is no error.
    fn cancel<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Begins a run's orderly end, with no force after it.
    fn terminate<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Starts `netns carry <folder>` beside the others of a run, where its first process is, with its standard streams piped
    /// to us.
    ///
    /// # Errors
    /// It cannot be started.
    fn step(&self, id: &str, netns: &Path, folder: &Path) -> Result<Child, ExecutorError>;

    /// What there is for pods, node by node.
    fn cluster(&self) -> Answer<'_, Cluster>;

    /// The partitions' limits; None: they are not known.
    fn site(&self) -> Answer<'_, Option<Site>>;

    /// How long things take.
    fn times(&self) -> Answer<'_, Times>;
}

/// What comes of a question or a command.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ExecutorError>>;

/// Times of an executor, seconds; None: it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From the word that ends a run to the force.
    pub kill_wait: Option<u32>,
    /// How long a command can be at work after its client has given up.
    pub message_timeout: Option<u32>,
}

/// A pod that is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub pod: &'a Pod,
    pub who: &'a PodRef,
    /// The Node that it is bound to.
    pub node: Option<&'a VirtualNode>,
    /// The pod's folder.
    pub folder: &'a Path,
    pub cluster: &'a ClusterConfig,
    pub defaults: &'a Defaults,
    pub site: &'a Site,
    /// What there is for pods.
    pub there: &'a Cluster,
    /// Nodes from which it keeps away.
    pub avoid: &'a [String],
}

/// What a pod asks of the executor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// In the executor's own language: arguments of sbatch, say.
    pub arguments: Vec<String>,
    /// Those of them that say what the run takes, for people.
    pub asked: String,
    /// What the user should know: reason and message of a Warning event each.
    pub warnings: Vec<(&'static str, String)>,
}

/// A run to come.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    pub uid: &'a PodUid,
    /// [`Asked::arguments`].
    pub arguments: &'a [String],
    /// The first program, in the pod's folder.
    pub script: &'a Path,
}

/// A run that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The executor's id.
    pub id: String,
    /// What was said of it beside that, for people: by a site's submit plug-in, say.
    pub said: String,
}

/// The size of a run is not changed.
#[derive(Clone, Copy, Debug, Error)]
#[error("its run keeps the size that it was submitted with; delete the pod and make it anew with other resources")]
struct KeepsItsSize;

/// Which runs a memory is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Past<'a> {
    Ids(&'a [String]),
    /// By the names of their pods, `<namespace>/<name>`, and not older than this.
    Names(&'a [String], Timestamp),
}

/// What a pod asks for and its executor does not carry out; its text is for people, and says what can be done. It is no
/// [`std::error::Error`] itself, so that each executor's own error becomes one by `?`.
#[derive(Debug)]
pub struct AskError(Box<dyn std::error::Error + Send + Sync>);

impl<E: std::error::Error + Send + Sync + 'static> From<E> for AskError {
    fn from(source: E) -> Self {
        Self(Box::new(source))
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An executor that did not do its work.
#[derive(Debug)]
pub struct ExecutorError {
    source: Box<dyn std::error::Error + Send + Sync>,
    /// Another try can help.
    pub is_transient: bool,
    /// Of a submission: it is certain that no run comes of it.
    pub is_refusal: bool,
}

impl ExecutorError {
    #[must_use]
    pub fn new(source: impl std::error::Error + Send + Sync + 'static, is_transient: bool, is_refusal: bool) -> Self {
        Self { source: Box::new(source), is_transient, is_refusal }
    }
}

impl fmt::Display for ExecutorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for ExecutorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}
