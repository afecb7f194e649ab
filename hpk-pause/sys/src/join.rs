//! A process that joins a running container: exec sessions, exec probes and hooks.
//!
//! The calling thread sets the PID namespace of its *next child* by setns, clones, and sets it back, so the new process is
//! the supervisor's own child (reaped like any other) inside the container's PID namespace, with one fork only. The child enters
//! the mount namespace, and with it the container's root, itself.

use crate::launch::native::{look_at_node, pipes};
use crate::launch::{LaunchError, Security, Starting, compile_join};
use crate::spawn::{self, Namespaces};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What to run in a container. It shares the container's namespaces, nothing else is inherited: environment and rights are
/// the caller's to pass on.
#[derive(Clone, Debug)]
pub struct JoinSpec {
    /// Command and arguments, looked up in the container.
    pub argv: Vec<String>,
    /// Environment, as for the container.
    pub env: Vec<(String, String)>,
    /// Must exist; None: `/`.
    pub working_dir: Option<String>,
    /// As the container's.
    pub security: Security,
    /// Whether the container has a PID namespace of its own (not `share_pid`).
    pub own_pid: bool,
    /// Give it a pipe as standard input.
    pub stdin: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Rows and columns of the terminal; (0, 0): as the kernel makes it.
    pub size: (u16, u16),
    /// As the container's.
    pub oom_score_adj: Option<i32>,
}

/// Starts processes in containers.
#[derive(Debug)]
pub struct Joiner {
    node: crate::launch::Node,
    own_pid_ns: File,
}

impl Joiner {
    /// Looks at the node once.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new() -> Result<Self, LaunchError> {
        let own_pid_ns = File::open("/proc/self/ns/pid").map_err(|e| LaunchError::Resources {
            what: "open /proc/self/ns/pid",
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        Ok(Self { node: look_at_node()?, own_pid_ns })
    }

    /// Clones the process and returns at once; see [`Starting`]. The process leads a session and process group of its
    /// own: [`crate::signals::kill_group`] reaches all of it. `target` is the pidfd of the container's main process.
    ///
    /// # Errors
    /// [`LaunchError::NotRunning`] when the container has ended; else as a launch.
    pub fn start(&self, target: BorrowedFd<'_>, spec: &JoinSpec) -> Result<Starting, LaunchError> {
        let (pipes, ends) = pipes(spec.stdin, spec.tty)?;
        let program = compile_join(spec, &self.node, target.as_raw_fd(), ends.io())?;
        if !spec.own_pid {
            return spawn::start(program, Namespaces::default(), pipes, ends.fds());
        }
        setns(target, CloneFlags::CLONE_NEWPID).map_err(|errno| match errno {
            Errno::ESRCH | Errno::EINVAL => LaunchError::NotRunning,
            errno => LaunchError::Resources { what: "join the container's PID namespace", errno },
        })?;
        let started = spawn::start(program, Namespaces::default(), pipes, ends.fds());
        // Back to our own, which is always allowed, or every later child would land in the container.
        let back = setns(self.own_pid_ns.as_fd(), CloneFlags::CLONE_NEWPID);
        let started = started.map_err(|error| match error {
            // The kernel's answer for a PID namespace whose init is gone.
            LaunchError::Clone(Errno::ENOMEM) => LaunchError::NotRunning,
            other => other,
        })?;
        back.map_err(|errno| LaunchError::Resources { what: "return to the supervisor's PID namespace", errno })?;
        Ok(started)
    }
}
