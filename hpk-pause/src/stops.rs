//! Signals that ask for an orderly end, and who sent them.
//!
//! Where containers share the pod's PID namespace the supervisor is PID 1 to them too, and some send TERM to PID 1 and mean
//! their own first process. Slurm and the kubelet send from outside of the namespace, which the kernel shows by a sender
//! without a number (sigaction(2): `si_pid`); only these count.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Who asks for an orderly end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// TERM (or INT): Slurm, which kills soon.
    Slurm,
    /// USR1: the kubelet by `scancel --signal`, when there is no link; nothing kills afterwards.
    Kubelet,
    /// A process of the pod: it is told, and nothing else.
    Pod {
        /// Its number in the pod's PID namespace.
        pid: u32,
        /// What it sent.
        signal: Signal,
    },
}

/// Receives these signals. PID 1 ignores what it does not ask for.
#[derive(Debug)]
pub(crate) struct Stops(AsyncFd<SignalFd>);

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1].into_iter().collect()
}

/// Keeps the signals for [`Stops`], in this thread and in those that it will start.
///
/// # Errors
/// As sigprocmask(2).
pub(crate) fn hold() -> io::Result<()> {
    Ok(signals().thread_block()?)
}

impl Stops {
    /// After [`hold`].
    ///
    /// # Errors
    /// As signalfd(2).
    pub(crate) fn listen() -> io::Result<Self> {
        let fd = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        // The unsafe successor asks for a promise that `SignalFd` keeps anyway.
        #[allow(deprecated)]
        AsyncFd::with_interest(fd, Interest::READABLE).map(Self)
    }

    /// The next one.
    pub(crate) async fn recv(&self) -> StopSignal {
        let init = std::process::id() == 1;
        loop {
            let read = self.0.async_io(Interest::READABLE, |fd| match fd.read_signal()? {
                Some(info) => Ok(info),
                None => Err(io::ErrorKind::WouldBlock.into()),
            });
            match read.await {
                Ok(info) => {
                    if let Some(stop) = meaning(&info, init) {
                        return stop;
                    }
                }
                // A descriptor of ours that cannot be read: nobody can ask by signal any more.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// `init`: this is PID 1, so that a sender with a number is inside.
fn meaning(info: &siginfo, init: bool) -> Option<StopSignal> {
    let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())?;
    if init && info.ssi_pid != 0 {
        return Some(StopSignal::Pod { pid: info.ssi_pid, signal });
    }
    Some(if signal == Signal::SIGUSR1 { StopSignal::Kubelet } else { StopSignal::Slurm })
}
