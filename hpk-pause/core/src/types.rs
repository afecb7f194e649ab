//! What goes into [`crate::Supervisor::step`] and what comes out of it.

use hpk_api::cni::CniResult;
use hpk_api::control::Update;
use hpk_api::probe::ProbeKind;
use hpk_api::state::{ContainerUser, StopCause};
use jiff::Timestamp;
use std::time::Duration;

/// The time of one step. Decisions use `mono` only; `wall` is for what people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since any fixed moment; never goes back between steps.
    pub mono: Duration,
    /// UTC.
    pub wall: Timestamp,
}

/// Names a container of the pod: an index over init containers, then containers, then ephemeral ones in the
/// order of their arrival. Stable for the pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerIndex(pub usize);

/// Which of the two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// lifecycle.postStart
    PostStart,
    /// lifecycle.preStop
    PreStop,
}

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// exit(code), 0–255.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl ExitCause {
    /// The exit code that Kubernetes shows: 128+n for signal n, the convention of runtimes.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// The end of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As waitid told it.
    pub cause: ExitCause,
    /// There is evidence (cgroup) that the kernel's OOM killer did it.
    pub oom: bool,
    /// Termination message, already read and cut.
    pub message: String,
    /// When the process was reaped, if that was before now (its output had to be drained first).
    pub at: Option<Timestamp>,
}

/// Why an instance could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchFailure {
    /// The plan cannot be carried out (`CreateContainerConfigError`): no instance was made.
    Config(String),
    /// Setting it up failed (`CreateContainerError`): no instance was made.
    Create(String),
    /// It was made, but its program could not be executed: an instance that ended with 128, `StartError`.
    Start(String),
}

/// Outcome of one probe run, after the prober's own retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    Success,
    /// Success with a warning.
    Warning(String),
    /// Failure, with its output.
    Failure(String),
    /// The probe itself could not be made: the state stays as it is.
    Error(String),
}

/// Why a hook failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookFailure {
    /// Error text.
    pub error: String,
    /// Output of an exec hook.
    pub output: String,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed: what is due is done. Every other event does that as well.
    Tick,
    /// Network, volumes and files stand: containers may start.
    SandboxReady {
        /// What the pod's network namespace was given; the pod's addresses are its.
        network: CniResult,
    },
    /// They could not be made; the pod fails.
    SandboxFailed {
        /// One line with the remedy.
        message: String,
    },
    /// Answer to [`Action::Start`].
    Launched {
        container: ContainerIndex,
        instance: u32,
        /// Identity of its first process.
        user: ContainerUser,
    },
    /// Answer to [`Action::Start`].
    LaunchFailed { container: ContainerIndex, instance: u32, failure: LaunchFailure },
    /// A launched instance has ended: its first process was reaped and its output is drained.
    Exited { container: ContainerIndex, instance: u32, exit: Exit },
    /// Answer to [`Action::Probe`].
    ProbeDone {
        container: ContainerIndex,
        instance: u32,
        kind: ProbeKind,
        /// What came of it.
        outcome: ProbeOutcome,
    },
    /// Answer to [`Action::Hook`].
    HookDone {
        container: ContainerIndex,
        instance: u32,
        hook: Hook,
        /// What came of it.
        result: Result<(), HookFailure>,
    },
    /// End the pod in order.
    Stop {
        /// Why; the first cause stays.
        cause: StopCause,
        /// Seconds; None: the pod's own. A later, shorter one wins.
        grace_seconds: Option<u32>,
    },
    /// The kubelet changed the pod.
    Update(Box<Update>),
    /// Total of container output that could not be kept.
    LogBytesLost(u64),
    /// Something for the pod's events that happened outside of the core.
    Note {
        /// Warning instead of Normal.
        warning: bool,
        /// CamelCase reason.
        reason: String,
        message: String,
        /// Container concerned.
        container: Option<ContainerIndex>,
    },
}

/// Something to do. The driver performs it and answers by an [`Event`] where one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an instance; answered by `Launched` or `LaunchFailed`, after `Launched` once by `Exited`.
    Start {
        container: ContainerIndex,
        /// Instance number: the restart count that its log and status carry.
        instance: u32,
    },
    /// Send a signal to the first process.
    Signal {
        container: ContainerIndex,
        instance: u32,
        /// Signal number.
        signal: i32,
    },
    /// SIGKILL to everything in the container.
    Kill { container: ContainerIndex, instance: u32 },
    /// Run a probe once; answered by `ProbeDone` unless cancelled.
    Probe { container: ContainerIndex, instance: u32, kind: ProbeKind },
    /// Run a hook; answered by `HookDone` unless cancelled.
    Hook { container: ContainerIndex, instance: u32, hook: Hook },
    /// Abandon probes and hooks of this instance; their answers are no longer wanted.
    Cancel { container: ContainerIndex, instance: u32 },
    /// [`crate::Supervisor::state`] has changed: publish it.
    Report,
    /// Everything has ended; nothing will be asked any more.
    Finished {
        /// Every container ended with 0.
        succeeded: bool,
    },
}
