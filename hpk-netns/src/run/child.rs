//! The parent container as a child process: started, signalled, waited for; its stderr passed on while the last
//! lines are kept for the report.

use hpk_sys::userns::{self, Surroundings, UsernsChild, UsernsError, Users};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How much of the child's last output a report quotes, bytes.
const TAIL: usize = 2048;

/// Signals that reach hpk-netns and are meant for the pod.
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    user1: Signal,
    child: Signal,
}

impl Signals {
    /// Must be called before the child starts, so that none is missed.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            child: signal(SignalKind::child())?,
        })
    }

    /// The next one for the pod, or None when a child ended.
    pub(crate) async fn next(&mut self) -> Option<nix::sys::signal::Signal> {
        use nix::sys::signal::Signal;
        tokio::select! {
            _ = self.term.recv() => Some(Signal::SIGTERM),
            // SIGINT asks for the same orderly end; Apptainer would not forward it as such.
            _ = self.interrupt.recv() => Some(Signal::SIGTERM),
            _ = self.user1.recv() => Some(Signal::SIGUSR1),
            _ = self.child.recv() => None,
        }
    }
}

/// What the parent container is started as.
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// User and UTS namespaces are made for it, and a network namespace if so; else it makes its own.
    pub(crate) namespaces: Option<NewNamespaces>,
    /// The user's numbers in the pod's containers; None: 0.
    pub(crate) own: Option<(u32, u32)>,
    /// A mount namespace too, for a program that mounts before it becomes the container.
    pub(crate) mounts: bool,
}

/// See [`Start::namespaces`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewNamespaces {
    pub(crate) network: bool,
}

/// The parent container at work.
pub(crate) struct Child {
    child: UsernsChild,
    stderr: pipe::Receiver,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Namespace(#[from] UsernsError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Start {
    /// Begins to start it: its namespaces are there, its ids on their way.
    pub(crate) fn begin(self) -> Result<Beginning, StartError> {
        let (reader, writer) = io::pipe()?;
        let stdin = std::fs::File::open("/dev/null")?;
        let around = Surroundings {
            users: self.namespaces.map_or(Users::Callers, |_| Users::most()),
            host_name: self.namespaces.is_some(),
            network: self.namespaces.is_some_and(|n| n.network),
            network_below: true,
            own_below: self.own,
            mounts: self.mounts,
            ipc: false,
            env: Some(&self.env),
            folder: Some(Path::new("/")),
            stdin: Some(stdin.into()),
            stderr: Some(writer.into()),
        };
        let begun = userns::begin(&self.program, &self.args, around)?;
        Ok(Beginning { begun, stderr: pipe::Receiver::from_owned_fd(reader.into())? })
    }
}

/// The parent container on its way.
pub(crate) struct Beginning {
    begun: userns::Begun,
    stderr: pipe::Receiver,
}

impl Beginning {
    /// Waits, a few milliseconds, until it executes. It blocks, for the runtime has nothing better to do yet: another
    /// thread would have to share the processors with the pod's start.
    pub(crate) fn finish(self) -> Result<Child, StartError> {
        Ok(Child { child: self.begun.finish()?, stderr: self.stderr })
    }
}

/// How the child ended and the last of what it said.
pub(crate) struct Ended {
    /// 0–255, or 128+n for a signal n.
    pub(crate) code: i32,
    pub(crate) tail: String,
}

/// How often it is looked whether the supervisor listens, while a signal waits for that.
const LOOK: Duration = Duration::from_millis(20);

/// Signals for a supervisor that may not be there yet: what stands in its place so long, Apptainer's starter, would die of
/// them, and PID 1 ignores what it does not listen for. The supervisor makes its socket when it listens.
struct Forward<'a> {
    socket: &'a Path,
    listens: bool,
    waiting: Vec<nix::sys::signal::Signal>,
}

impl Forward<'_> {
    /// Takes one more signal, and gives out all that may go on.
    fn due(&mut self, signal: Option<nix::sys::signal::Signal>) -> Vec<nix::sys::signal::Signal> {
        self.waiting.extend(signal);
        self.listens = self.listens || (!self.waiting.is_empty() && self.socket.exists());
        if self.listens { std::mem::take(&mut self.waiting) } else { Vec::new() }
    }
}

/// Runs the child to its end, forwarding signals to it once `socket` shows that the supervisor listens.
pub(crate) async fn supervise(child: Child, signals: &mut Signals, socket: &Path) -> io::Result<Ended> {
    let Child { child, mut stderr } = child;
    let reader = tokio::spawn(async move {
        let mut tail = Vec::with_capacity(TAIL);
        let mut own = tokio::io::stderr();
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
            let part = buffer.get(..n).unwrap_or_default();
            // A full disk must not stop the reading, the child would block.
            let _ = own.write_all(part).await;
            tail.extend_from_slice(part);
            if tail.len() > TAIL {
                tail.drain(..tail.len() - TAIL);
            }
        }
        let _ = own.flush().await;
        tail
    });
    let mut forward = Forward { socket, listens: false, waiting: Vec::new() };
    let code = loop {
        // After each listening: an end between two of them is not missed.
        if let Some(code) = child.try_wait().map_err(io::Error::other)? {
            break code;
        }
        let signal = if forward.waiting.is_empty() {
            signals.next().await
        } else {
            tokio::time::timeout(LOOK, signals.next()).await.unwrap_or_default()
        };
        for signal in forward.due(signal) {
            // The child is not reaped yet, so the number is still its own.
            let _ = nix::sys::signal::kill(child.pid(), signal);
        }
    };
    // Helpers of Apptainer may hold the pipe a little longer; the report does not wait for them for long.
    let tail = tokio::time::timeout(Duration::from_millis(500), reader).await;
    let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
    Ok(Ended { code, tail: String::from_utf8_lossy(&tail).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn signals_wait_for_the_supervisor() {
        let tmp = tempfile::tempdir().unwrap();
        let socket = tmp.path().join("supervisor.sock");
        let mut forward = Forward { socket: &socket, listens: false, waiting: Vec::new() };
        assert_eq!(forward.due(Some(Signal::SIGUSR1)), []);
        assert_eq!(forward.due(None), []);
        assert_eq!(forward.due(Some(Signal::SIGTERM)), []);
        std::fs::write(&socket, "").unwrap();
        assert_eq!(forward.due(None), [Signal::SIGUSR1, Signal::SIGTERM]);
        // At its end it removes the socket.
        std::fs::remove_file(&socket).unwrap();
        assert_eq!(forward.due(Some(Signal::SIGTERM)), [Signal::SIGTERM]);
    }
}
