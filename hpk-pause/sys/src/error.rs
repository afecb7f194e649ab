//! Why a container's process could not be started, and what a kubelet makes of it.

use crate::program::Step;
use nix::errno::Errno;
use thiserror::Error;

/// Why a process could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// A value that no system call could take.
    #[error("{field}: {reason}")]
    Invalid {
        /// Field of the container's spec.
        field: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// securityContext asks for a user or group that this user namespace does not have.
    #[error(
        "{field}: id {id} does not exist in this pod, which has {range}: the user's account has no range of subordinate ids \
         that reaches it (/etc/subuid, /etc/subgid); use one of these, or ask for a range"
    )]
    IdNotMapped {
        /// Field of the pod's spec.
        field: &'static str,
        id: u32,
        /// Those that exist.
        range: String,
    },
    /// Supplementary groups in a namespace that denies setgroups(2).
    #[error(
        "securityContext.supplementalGroups: this account has no range of subordinate group ids (/etc/subgid), so groups cannot be added"
    )]
    GroupsDenied,
    /// A stage of the set-up failed. The container does not exist.
    #[error("cannot {} {path}: {}", .step.words(), .errno.desc())]
    Setup {
        step: Step,
        /// Path or other subject.
        path: String,
        errno: Errno,
    },
    /// The command could not be executed.
    #[error("{}", exec_text(.command, .errno))]
    Exec {
        /// argv[0].
        command: String,
        errno: Errno,
    },
    /// Nested Apptainer ended before it came to the container's command.
    #[error("apptainer could not make the container: {0}")]
    Apptainer(String),
    /// clone3 failed: usually a limit on processes.
    #[error("cannot create a process: {}", .0.desc())]
    Clone(Errno),
    /// No pipes, sockets or descriptors left, or another failure on the supervisor's side.
    #[error("cannot {what}: {}", .errno.desc())]
    Resources {
        /// What was tried.
        what: &'static str,
        errno: Errno,
    },
    /// The container to join has ended.
    #[error("container is not running")]
    NotRunning,
    /// The child was killed before it could execute the command.
    #[error("the process was killed while it was being set up")]
    Killed,
}

/// What a kubelet makes of a [`LaunchError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The spec cannot be met: waiting, `CreateContainerConfigError`.
    Config,
    /// The container could not be made: waiting, `CreateContainerError`.
    Create,
    /// The container was made and its command could not be started: terminated, `StartError`, exit code 128.
    Start,
}

impl LaunchError {
    /// Which of the kubelet's errors this is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Invalid { .. }
            | Self::IdNotMapped { .. }
            | Self::GroupsDenied
            | Self::Setup { step: Step::SubPath, .. } => FailureKind::Config,
            Self::Exec { .. } | Self::Setup { step: Step::WorkingDir, .. } => FailureKind::Start,
            Self::Setup { .. }
            | Self::Apptainer(_)
            | Self::Clone(_)
            | Self::Resources { .. }
            | Self::NotRunning
            | Self::Killed => FailureKind::Create,
        }
    }
}

/// As container engines word it: users search for these texts.
fn exec_text(command: &str, errno: &Errno) -> String {
    match errno {
        Errno::ENOENT if !command.contains('/') => format!("exec: \"{command}\": executable file not found in $PATH"),
        Errno::ENOENT => format!("exec: \"{command}\": stat {command}: no such file or directory"),
        Errno::EACCES => format!("exec: \"{command}\": permission denied"),
        Errno::ENOEXEC => format!("exec {command}: exec format error"),
        other => format!("exec {command}: {}", other.desc().to_lowercase()),
    }
}
