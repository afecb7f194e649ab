//! The parent container as a child process: started, signalled, waited for; its stderr passed on while the last
//! lines are kept for the report.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How much of the child's last output a report quotes, bytes.
const TAIL: usize = 2048;

/// Signals that reach hpk-netns and are meant for the pod.
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    user1: Signal,
}

impl Signals {
    /// Must be called before the child starts, so that none is missed.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> nix::sys::signal::Signal {
        use nix::sys::signal::Signal;
        tokio::select! {
            _ = self.term.recv() => Signal::SIGTERM,
            // SIGINT asks for the same orderly end; Apptainer would not forward it as such.
            _ = self.interrupt.recv() => Signal::SIGTERM,
            _ = self.user1.recv() => Signal::SIGUSR1,
        }
    }
}

/// Starts the parent container.
pub(crate) fn start(argv: &[OsString], env: &[(OsString, OsString)]) -> io::Result<Child> {
    let Some((program, args)) = argv.split_first() else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    Command::new(program)
        .args(args)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k, v)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// How the child ended and the last of what it said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) tail: String,
}

/// Runs the child to its end, forwarding signals to it.
pub(crate) async fn supervise(mut child: Child, signals: &mut Signals) -> io::Result<Ended> {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(nix::unistd::Pid::from_raw);
    let stderr = child.stderr.take();
    let reader = tokio::spawn(async move {
        let mut tail = Vec::with_capacity(TAIL);
        let Some(mut stderr) = stderr else { return tail };
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
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            signal = signals.next() => {
                if let Some(pid) = pid {
                    // The child is not reaped yet (wait is pending), so the number is still its own.
                    let _ = nix::sys::signal::kill(pid, signal);
                }
            }
        }
    };
    // Helpers of Apptainer may hold the pipe a little longer; the report does not wait for them for long.
    let tail = tokio::time::timeout(std::time::Duration::from_millis(500), reader).await;
    let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
    Ok(Ended { status, tail: String::from_utf8_lossy(&tail).trim().to_owned() })
}
