//! The supervisor's socket: JSON lines. A client sends one [`Request`] line; the answer is one [`Snapshot`]
//! line for `status`, and for `watch` and `stop` one at every change until the client or the supervisor
//! goes. Also `run/supervisor.json`, which says where the socket is and on which host.

use crate::home::{HomeError, replace_file};
use hpk_layout::Home;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What a client can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub(crate) enum Request {
    Status,
    /// Every change.
    Watch,
    /// Stop everything, and every change until then.
    Stop,
}

/// The whole supervisor at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub pid: u32,
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
    Ready,
    /// Ended; will be started again.
    Backoff,
    /// A one-time task is over, well.
    Done,
    /// Told to stop.
    Stopping,
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
    /// It holds its lock and cannot be talked to.
    #[error("the control plane runs (process {pid}) but does not answer: run hpk down, which ends it")]
    Silent { pid: u32 },
    /// Somewhere else.
    #[error("the control plane runs on {host} (process {pid}): use hpk there; if that host is gone, hpk up starts it here ({} says so)", record.display())]
    OtherHost {
        host: String,
        pid: u32,
        /// The file that says so.
        record: PathBuf,
    },
    /// Its socket takes the question.
    #[error("the control plane's supervisor did not answer within {seconds} s: is its process stopped (SIGSTOP, a debugger), or its disk away? See {}", log.display())]
    Mute { seconds: u64, log: PathBuf },
    /// It went while talking.
    #[error("the supervisor closed the connection: see {}", log.display())]
    Closed { log: PathBuf },
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
    let in_home = home.supervisor_socket();
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
    /// Read already, and not taken.
    first: Option<Snapshot>,
    log: PathBuf,
}

/// Who holds the supervisor's lock: written into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub pid: u32,
    /// Host name.
    pub host: String,
}

impl Holder {
    /// Locks `path` for the supervisor's life; None: somebody else has it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn lock(path: &Path, host: &str) -> io::Result<Option<File>> {
        let mut lock = File::options().create(true).read(true).write(true).truncate(false).mode(0o600).open(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        lock.set_len(0)?;
        lock.write_all(&serde_json::to_vec(&Self { pid: std::process::id(), host: host.to_owned() })?)?;
        Ok(Some(lock))
    }

    /// Who has it now; None: nobody, or not said.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        // Writable: NFS locks no other for one holder alone.
        let lock = File::options().read(true).write(true).open(path).ok()?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => serde_json::from_slice(&std::fs::read(path).ok()?).ok(),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// Sends a signal, if the process is a supervisor.
    pub(crate) fn signal(&self, signal: Signal) {
        if arguments(self.pid).iter().any(|word| word == b"supervise") {
            super::process::signal(self.pid, signal);
        }
    }
}

/// Whether a process of this machine is the supervisor of `home`.
pub(crate) fn is_supervisor(pid: u32, home: &Path) -> bool {
    let words = arguments(pid);
    let has = |wanted: &[u8]| words.iter().any(|word| word == wanted);
    has(b"supervise") && has(home.as_os_str().as_encoded_bytes())
}

fn arguments(pid: u32) -> Vec<Vec<u8>> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// How often a supervisor that was told to make its socket anew is tried, and how long is waited before each.
const SILENT_TRIES: u32 = 20;
const SILENT_WAIT: Duration = Duration::from_millis(100);

impl Client {
    /// Connects and asks. The supervisor's lock says surely whether there is one: when its socket or its record is gone, it
    /// is told to make them anew.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::OtherHost`], [`ControlError::Silent`] or trouble on the way.
    pub(crate) async fn ask(home: &Home, host: &str, request: Request) -> Result<Self, ControlError> {
        let refused = match Self::try_ask(home, host, request).await {
            Err(ControlError::NotRunning) => ControlError::NotRunning,
            other => return other,
        };
        let Some(holder) = Holder::of(&home.supervisor_lock()) else { return Err(refused) };
        let Holder { pid, host: elsewhere } = holder.clone();
        if elsewhere != host {
            return Err(ControlError::OtherHost { host: elsewhere, pid, record: home.supervisor_lock() });
        }
        holder.signal(Signal::SIGHUP);
        for _ in 0..SILENT_TRIES {
            tokio::time::sleep(SILENT_WAIT).await;
            match Self::try_ask(home, host, request).await {
                // It was on its way out, and is gone now.
                Err(ControlError::NotRunning) if Holder::of(&home.supervisor_lock()).is_none() => return Err(refused),
                Err(ControlError::NotRunning) => {}
                other => return other,
            }
        }
        Err(ControlError::Silent { pid })
    }

    async fn try_ask(home: &Home, host: &str, request: Request) -> Result<Self, ControlError> {
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
        match stream.write_all(&line).await {
            Err(e) if is_gone(&e) => return Err(ControlError::NotRunning),
            other => other?,
        }
        Ok(Self { lines: BufReader::new(stream).lines(), first: None, log: home.supervisor_log() })
    }

    /// The next snapshot; None when the supervisor has gone.
    ///
    /// # Errors
    /// Trouble on the way.
    pub(crate) async fn next(&mut self) -> Result<Option<Snapshot>, ControlError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match self.lines.next_line().await {
            Ok(None) => Ok(None),
            // Killed before it had read all.
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e.into()),
            Ok(Some(line)) => Ok(Some(serde_json::from_str(&line).map_err(io::Error::from)?)),
        }
    }

    /// The next snapshot, which stays the next one; None when the supervisor has gone.
    ///
    /// # Errors
    /// Trouble on the way.
    pub(crate) async fn peek(&mut self) -> Result<Option<&Snapshot>, ControlError> {
        self.first = self.next().await?;
        Ok(self.first.as_ref())
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

/// What a process leaves that ends with a connection open.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel resets a connection whose end is closed with something unread.
    #[tokio::test]
    async fn a_supervisor_that_is_killed_while_it_is_asked_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = ours.into_split();
        writer.write_all(b"unread").await.unwrap();
        drop(theirs);
        let stream = reader.reunite(writer).unwrap();
        let mut client = Client { lines: BufReader::new(stream).lines(), first: None, log: PathBuf::new() };
        assert!(matches!(client.next().await, Ok(None)));
        assert!(matches!(client.must().await, Err(ControlError::Closed { .. })));
    }

    #[test]
    fn the_lock_says_who_has_it_and_whether() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.lock");
        assert_eq!(Holder::of(&path), None);
        let lock = Holder::lock(&path, "login-with-a-long-name").unwrap().unwrap();
        drop(lock);
        assert_eq!(Holder::of(&path), None, "what an earlier one wrote says nothing");
        let _lock = Holder::lock(&path, "login").unwrap().unwrap();
        assert!(Holder::lock(&path, "login").unwrap().is_none());
        assert_eq!(Holder::of(&path), Some(Holder { pid: std::process::id(), host: "login".into() }));
    }

    #[tokio::test]
    async fn a_supervisor_without_its_socket_is_not_called_absent() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("h"));
        crate::home::create(&home).unwrap();
        let ask = || Client::ask(&home, "login", Request::Status);
        assert!(matches!(ask().await, Err(ControlError::NotRunning)));
        let lock = Holder::lock(&home.supervisor_lock(), "login").unwrap().unwrap();
        // This process is no supervisor: it gets no signal.
        assert!(matches!(ask().await, Err(ControlError::Silent { pid }) if pid == std::process::id()));
        drop(lock);
        let _lock = Holder::lock(&home.supervisor_lock(), "elsewhere").unwrap().unwrap();
        assert!(matches!(ask().await, Err(ControlError::OtherHost { host, .. }) if host == "elsewhere"));
    }
}
