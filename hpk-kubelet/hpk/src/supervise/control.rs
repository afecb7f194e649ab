//! The supervisor's socket: JSON lines. A client sends one [`Request`] line; the answer is one [`Snapshot`]
//! line for `status`, and for `watch` and `stop` one at every change until the client or the supervisor
//! goes. Also `run/supervisor.json`, which says where the socket is and on which host.

use crate::home::{Home, HomeError, replace_file};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What a client can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub(crate) enum Request {
    /// One snapshot.
    Status,
    /// Every change.
    Watch,
    /// Stop everything, and every change until then.
    Stop,
}

/// The whole supervisor at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Process.
    pub pid: u32,
    /// Host.
    pub host: String,
    /// Since, RFC 3339.
    pub started: String,
    /// On its way out.
    pub stopping: bool,
    /// Every component serves.
    pub ready: bool,
    /// In the order of their start.
    pub components: Vec<ComponentStatus>,
}

/// One component at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ComponentStatus {
    /// Name.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// Process, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Times it was started again.
    pub restarts: u32,
    /// Why it is where it is: the last error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// [`crate::supervise::core::State`] without times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// For those it needs.
    Waiting,
    /// Started, does not serve yet.
    Starting,
    /// Serves.
    Ready,
    /// Ended; will be started again.
    Backoff,
    /// A one-time task is over, well.
    Done,
    /// Told to stop.
    Stopping,
    /// Ended.
    Stopped,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Backoff => "restarting",
            Self::Done => "done",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// `run/supervisor.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Process.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// Path of the socket, on that host.
    pub socket: PathBuf,
}

/// What can go wrong between the two.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody there.
    #[error("the control plane is not running: start it with hpk up")]
    NotRunning,
    /// Somewhere else.
    #[error("the control plane runs on {host} (process {pid}): use hpk there; if that host is gone for good, remove {} and run hpk up", record.display())]
    OtherHost {
        /// Where.
        host: String,
        /// Which.
        pid: u32,
        /// The file that says so.
        record: PathBuf,
    },
    /// It went while talking.
    #[error("the supervisor closed the connection: see {}", log.display())]
    Closed {
        /// Its log.
        log: PathBuf,
    },
    /// Socket trouble.
    #[error("supervisor's socket: {0}")]
    Io(#[from] io::Error),
    /// The record or folder.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Binds the socket and writes the record. The socket is in HPK_HOME's run folder, or, on file systems that
/// know no sockets, in a private folder of /tmp.
///
/// # Errors
/// When neither can be had.
pub(crate) fn listen(home: &Home, host: &str) -> Result<UnixListener, ControlError> {
    let in_home = home.run().join("supervisor.sock");
    let bind = |path: &PathBuf| {
        // Left by a supervisor that was killed; whoever calls holds the supervisor's lock.
        hpk_layout::remove_stale_socket(path)?;
        UnixListener::bind(path)
    };
    let (socket, listener) = match bind(&in_home) {
        Ok(l) => (in_home, l),
        Err(_) => {
            let base = std::env::temp_dir();
            let dir = hpk_sys::folders::own(&base, nix::unistd::geteuid().as_raw())
                .map_err(|source| HomeError::Io { path: base, source })?;
            // Another HPK_HOME of this user has its own.
            let path = dir.join(format!("supervisor-{}.sock", std::process::id()));
            let listener = bind(&path)?;
            (path, listener)
        }
    };
    let record = Record { pid: std::process::id(), host: host.to_owned(), socket };
    let json = serde_json::to_vec(&record).unwrap_or_default();
    replace_file(&home.supervisor_json(), &json)?;
    Ok(listener)
}

/// Whether the peer of `stream` is this user.
#[must_use]
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|c| c.uid() == nix::unistd::geteuid().as_raw())
}

/// The client's end.
#[derive(Debug)]
pub(crate) struct Client {
    lines: tokio::io::Lines<BufReader<UnixStream>>,
    log: PathBuf,
}

impl Client {
    /// Connects and asks.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::OtherHost`] or trouble on the way.
    pub(crate) async fn ask(home: &Home, host: &str, request: Request) -> Result<Self, ControlError> {
        let Ok(text) = std::fs::read(home.supervisor_json()) else { return Err(ControlError::NotRunning) };
        let Ok(record) = serde_json::from_slice::<Record>(&text) else { return Err(ControlError::NotRunning) };
        if record.host != host {
            let Record { host, pid, .. } = record;
            return Err(ControlError::OtherHost { host, pid, record: home.supervisor_json() });
        }
        let mut stream = match UnixStream::connect(&record.socket).await {
            Ok(s) => s,
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                return Err(ControlError::NotRunning);
            }
            Err(e) => return Err(e.into()),
        };
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        stream.write_all(&line).await?;
        Ok(Self { lines: BufReader::new(stream).lines(), log: home.log().join("supervisor.log") })
    }

    /// The next snapshot; None when the supervisor has gone.
    ///
    /// # Errors
    /// Trouble on the way.
    pub(crate) async fn next(&mut self) -> Result<Option<Snapshot>, ControlError> {
        match self.lines.next_line().await? {
            None => Ok(None),
            Some(line) => Ok(Some(serde_json::from_str(&line).map_err(io::Error::from)?)),
        }
    }

    /// The next snapshot, which must come.
    ///
    /// # Errors
    /// [`ControlError::Closed`] or trouble on the way.
    pub(crate) async fn must(&mut self) -> Result<Snapshot, ControlError> {
        let log = self.log.clone();
        self.next().await?.ok_or(ControlError::Closed { log })
    }
}
