//! Processes on their way: waiting for a start, and a joined process with its output and end.

use hpk_sys::launch::{Io, LaunchError, Launched, Starting};
use nix::unistd::Pid;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};

/// Most output of a probe or hook that is kept, bytes (upstream's 10 KiB).
pub(crate) const MAX_OUTPUT: usize = 10 << 10;

/// How long after the process's end its pipes are still read: a process that it left behind may hold them.
const DRAIN: Duration = Duration::from_millis(200);

/// Waits, without blocking the event loop, until the command is executed or has failed.
///
/// # Errors
/// What failed.
pub(crate) async fn started(starting: Starting) -> Result<Launched, LaunchError> {
    let resources = |e: std::io::Error| LaunchError::Resources {
        what: "wait for a process to start",
        errno: hpk_sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    };
    // The unsafe successor asks for a promise that `Starting`, which owns its descriptor, keeps anyway.
    #[allow(deprecated)]
    let mut waiting = AsyncFd::with_interest(starting, Interest::READABLE).map_err(resources)?;
    loop {
        let mut guard = waiting.readable_mut().await.map_err(resources)?;
        let starting = guard.get_inner_mut();
        if let Some(result) = starting.try_finish() {
            return result;
        }
        if starting.goes_on() {
            // From here it is another descriptor that tells.
            let mut starting = waiting.into_inner();
            starting.go_on();
            #[allow(deprecated)]
            let next = AsyncFd::with_interest(starting, Interest::READABLE).map_err(resources)?;
            waiting = next;
        } else {
            guard.clear_ready();
        }
    }
}

/// A process in a container, on its way; ends are told by the driver, which waits for all children.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Its first steps.
    pub starting: Starting,
    /// Exit code, 128+n for a signal.
    pub exit: oneshot::Receiver<i32>,
    /// Where to ask for its death: the driver knows whether it is still there.
    pub kill: mpsc::UnboundedSender<Pid>,
}

/// How a joined process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Exit {
        /// 0–255.
        code: i32,
        /// Standard output, then standard error, at most [`MAX_OUTPUT`].
        output: Vec<u8>,
        /// Standard error alone.
        stderr: Vec<u8>,
    },
    /// Its time was up; its process group was killed.
    TimedOut,
}

impl Joined {
    /// Collects its output and waits for its end; after `timeout` its whole process group is killed.
    ///
    /// # Errors
    /// When it could not be started.
    pub(crate) async fn run(self, timeout: Option<Duration>) -> Result<Ended, LaunchError> {
        let pid = self.starting.pid();
        let work = async {
            let launched = started(self.starting).await?;
            let Io::Pipes { stdout, stderr, .. } = launched.io else { return Err(LaunchError::Killed) };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut exit = self.exit;
            let code = {
                let reading = async { tokio::join!(collect(stdout, &mut out), collect(stderr, &mut err)) };
                tokio::pin!(reading);
                let mut open = true;
                let code = loop {
                    tokio::select! {
                        code = &mut exit => break code.unwrap_or(137),
                        _ = &mut reading, if open => open = false,
                    }
                };
                if open {
                    let _ = tokio::time::timeout(DRAIN, &mut reading).await;
                }
                code
            };
            let mut output = out;
            output.extend_from_slice(&err);
            output.truncate(MAX_OUTPUT);
            Ok(Ended::Exit { code, output, stderr: err })
        };
        let timer = async {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = work => ended,
            () = timer => {
                // The driver may have ended; then the process has as well.
                let _ = self.kill.send(pid);
                Ok(Ended::TimedOut)
            }
        }
    }
}

/// Reads to the end of file, keeps the beginning.
async fn collect(fd: OwnedFd, into: &mut Vec<u8>) {
    let Ok(mut pipe) = Receiver::from_owned_fd(fd) else { return };
    let mut buffer = [0u8; 4096];
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let room = MAX_OUTPUT.saturating_sub(into.len()).min(n);
        into.extend_from_slice(&buffer[..room]);
    }
}
