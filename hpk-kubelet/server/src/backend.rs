//! What the server needs from the kubelet that it speaks for.

use hpk_api::control::{PodStats, Usage};
use hpk_link::server::OpenError;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to a supervisor's control socket.
pub type SupervisorStream = Box<dyn Stream>;

/// What a supervisor sends in a session.
pub(crate) type FrameReader = hpk_control::stream::Reader<SupervisorStream>;
/// What it is sent.
pub(crate) type FrameWriter = hpk_control::stream::Writer<SupervisorStream>;

/// What a client is told when a session's connection ends before the session has said how it ended.
pub(crate) const LOST: &str = "the connection to the pod was lost before the session ended: its node or its link to \
    the kubelet went down, or its supervisor was killed";

/// No connection to a pod's supervisor. The text is for people.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The pod does not run yet or any more, or its link is down.
    #[error(transparent)]
    Link(#[from] OpenError),
    /// Its work is done.
    #[error("the pod has ended: its containers run no more")]
    Ended,
    /// Its link is down, and nothing else brought one.
    #[error(transparent)]
    Carrier(Box<dyn std::error::Error + Send + Sync>),
}

/// The kubelet cannot do its work any more.
#[derive(Debug, Error)]
#[error("the controller's loop has ended")]
pub struct LoopEnded;

/// The kubelet behind the API.
pub trait Backend: Send + Sync + 'static {
    /// All pods of this node, with the kubelet's own latest status.
    fn pods(&self) -> impl Future<Output = Vec<Arc<Pod>>> + Send;

    /// One of them, by its current namespace and name.
    fn find_pod(&self, namespace: &str, name: &str) -> impl Future<Output = Option<Arc<Pod>>> + Send;

    /// A new connection to the control socket of a running pod.
    ///
    /// # Errors
    /// There is none.
    fn open_supervisor(&self, uid: &str) -> impl Future<Output = Result<SupervisorStream, ConnectError>> + Send;

    /// The same for somebody who waits for it: a pod whose link does not stand may be reached by dearer means.
    ///
    /// # Errors
    /// As [`Self::open_supervisor`].
    fn open_session(&self, uid: &str) -> impl Future<Output = Result<SupervisorStream, ConnectError>> + Send {
        self.open_supervisor(uid)
    }

    /// `HPK_HOME/pods/<uid>`, where the logs of pods without a supervisor are read.
    fn pod_folder(&self, uid: &str) -> PathBuf;

    /// Where the control plane's programs and the kubelet log to, for `/logs/`.
    fn log_folder(&self) -> PathBuf;

    /// The node as a whole.
    fn node_stats(&self) -> impl Future<Output = NodeStats> + Send;

    /// Further metrics of the kubelet in Prometheus' text format, for `/metrics`.
    fn metrics(&self) -> impl Future<Output = String> + Send;

    /// Whether the main loop makes progress, for `/healthz/syncloop`.
    ///
    /// # Errors
    /// It does not.
    fn healthy(&self) -> impl Future<Output = Result<(), LoopEnded>> + Send;

    /// What `/configz` says: the configuration under upstream's key, `kubeletconfig`.
    fn configuration(&self) -> serde_json::Value;
}

/// Facts of the virtual node.
#[derive(Clone, Debug, Default)]
pub struct NodeStats {
    /// Start of the kubelet.
    pub started_at: Option<Timestamp>,
    /// Memory of all compute nodes, bytes.
    pub memory_capacity_bytes: u64,
}

/// Resource use of one pod, with its object.
#[derive(Clone, Debug)]
pub(crate) struct PodSample {
    pub(crate) pod: Arc<Pod>,
    pub(crate) stats: PodStats,
}

/// Adds one use to another.
pub(crate) fn add(total: &mut Usage, usage: Usage) {
    total.cpu_nanos += usage.cpu_nanos;
    total.memory_bytes += usage.memory_bytes;
    total.rss_bytes += usage.rss_bytes;
    total.processes += usage.processes;
}
