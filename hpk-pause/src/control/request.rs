//! What the control server asks of the driver, the one task that owns the pod's state.
//!
//! The server holds an `mpsc::Sender<DriverRequest>` and the driver answers each request through the oneshot
//! inside it. A dropped oneshot reads as "the supervisor is ending" and is not an error of the driver's.

use hpk_api::control::{ContainerStats, ControlError, ExecOptions, Update, Usage, VolumeStats};
use hpk_api::probe::ProbeCounts;
use hpk_api::step::Rank;
use hpk_sys::spawn::Io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::oneshot;

/// Answers go here.
pub type Answer<T> = oneshot::Sender<Result<T, ControlError>>;

/// One request to the driver. The current state is not asked for: the driver publishes it in a
/// `tokio::sync::watch` channel that the server reads.
#[derive(Debug)]
pub enum DriverRequest {
    /// Start a command in a running container (setns), in a session of its own.
    Exec {
        /// What to run.
        options: ExecOptions,
        /// Answered when the process exists.
        answer: Answer<ExecSession>,
    },
    /// Where a rank of an MPI step runs.
    Rank {
        /// Container name.
        container: String,
        /// From 0.
        rank: u32,
        /// Answered at once: which instance of the container, and the rank's place. None: it is no MPI step.
        answer: Answer<Option<(u32, Rank)>>,
    },
    /// Ask the nodes of MPI steps what they use.
    MeasureSteps {
        /// Sent, or dropped, when all have answered.
        done: oneshot::Sender<()>,
    },
    /// A client of an exec session is gone: end the session's whole process group, SIGHUP then SIGKILL when it
    /// has a terminal, SIGKILL at once otherwise. No answer.
    EndExec {
        /// [`ExecSession::id`]
        id: u64,
        /// It has a terminal.
        tty: bool,
    },
    /// The stdio of a running container's first process.
    Attach {
        /// Container name.
        container: String,
        /// Give the input side along: None in the answer when the container has no stdin (or it was closed).
        stdin: bool,
        /// Answered at once.
        answer: Answer<AttachSession>,
    },
    /// The first attach with stdin has ended and the container asked for stdinOnce (the driver checks that):
    /// close the driver's own copy of its stdin. No answer.
    StdinEnded {
        /// Container name.
        container: String,
    },
    /// Where the log of a container is.
    Log {
        /// Container name.
        container: String,
        /// The instance before the current one.
        previous: bool,
        /// Answered at once.
        answer: Answer<LogSource>,
    },
    /// Resource use now.
    Stats {
        /// Sampled by the driver (`hpk_sys::proc`).
        answer: Answer<StatsSample>,
    },
    /// How often probes have run.
    Probes {
        /// Answered at once.
        answer: Answer<Vec<ProbeCounts>>,
    },
    /// Stop the pod in order.
    Stop {
        /// deletionGracePeriodSeconds.
        grace_period_seconds: u32,
        /// Answered when taken.
        answer: Answer<()>,
    },
    /// Change the running pod.
    Update {
        update: Box<Update>,
        /// Answered when taken.
        answer: Answer<()>,
    },
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct ExecSession {
    /// Names the session in [`DriverRequest::EndExec`].
    pub id: u64,
    /// Our ends of its standard input and output.
    pub stdio: Io,
    /// Exit code, 128+n for a signal; sent by the driver once the process was reaped.
    pub exit: oneshot::Receiver<i32>,
}

/// What a client needs to attach to a container.
#[derive(Debug)]
pub struct AttachSession {
    /// The container's output, to be tapped.
    pub log: hpk_log::LogId,
    /// It has a terminal: one stream of output, resizable.
    pub tty: bool,
    /// Write end of stdin, or the terminal's master: a duplicate of the driver's.
    pub stdin: Option<OwnedFd>,
    /// The terminal's master for resizing, when there is one: a duplicate of the driver's.
    pub terminal: Option<OwnedFd>,
    /// plan.stdin_once
    pub stdin_once: bool,
}

/// Where a container's log is.
#[derive(Clone, Debug)]
pub struct LogSource {
    /// Folder of the container's logs.
    pub dir: PathBuf,
    /// Which instance: `<restart_count>.log`.
    pub restart_count: u32,
    /// Its live writer, while it runs; None: the log is complete.
    pub live: Option<hpk_log::LogId>,
}

/// Resource use, as sampled by the driver.
#[derive(Clone, Debug, Default)]
pub struct StatsSample {
    /// The pod as a whole.
    pub pod: Usage,
    /// Each container that runs.
    pub containers: Vec<ContainerStats>,
    /// Volumes of claims.
    pub volumes: Vec<VolumeStats>,
}
