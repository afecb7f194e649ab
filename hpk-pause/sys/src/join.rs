//! A process that joins a running container: exec sessions, exec probes and hooks.
//!
//! The new process is born in the container's PID namespace (`pidns`) and enters the mount namespace, and with it the
//! container's root, itself.

use crate::below::is_other;
use crate::error::LaunchError;
use crate::launch::pipes::pipes;
use crate::launch::{JoinSpec, Node, Places, Starting, compile_join};
use crate::pidns::Home;
use crate::spawn::{self, Namespaces};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts processes in containers.
#[derive(Debug)]
pub struct Joiner {
    node: Node,
    home: Home,
}

impl Joiner {
    /// Looks at the node once.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new() -> Result<Self, LaunchError> {
        Ok(Self { node: Node::look(Places::default())?, home: Home::open()? })
    }

    /// Clones the process and returns at once; see [`Starting`]. The process leads a session and process group of its
    /// own: [`crate::signals::kill_group`] reaches all of it. `target` is the pidfd of the container's main process.
    ///
    /// # Errors
    /// [`LaunchError::NotRunning`] when the container has ended; else as a launch.
    pub fn start(&self, target: BorrowedFd<'_>, spec: &JoinSpec) -> Result<Starting, LaunchError> {
        let (pipes, ends) = pipes(spec.stdin, spec.tty)?;
        let program = compile_join(spec, &self.node, target.as_raw_fd(), is_other(target), ends.io())?;
        let start = || spawn::start(program, Namespaces::default(), pipes, ends.fds());
        if spec.own_pid { self.home.child_of(target, start) } else { start() }
    }
}
