//! A process that joins a running container: exec sessions, exec probes and hooks.
//!
//! The new process is born in the container's PID namespace (`pidns`) and enters the mount namespace, and with it the
//! container's root, itself.

use crate::launch::native::pipes;
use crate::launch::{LaunchError, Places, Security, Starting, compile_join};
use crate::pidns::Home;
use crate::spawn::{self, Namespaces};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

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
    /// Whether the container is in another PID namespace than the supervisor ([`crate::launch::PidNamespace`]).
    pub own_pid: bool,
    /// Give it a pipe as standard input.
    pub stdin: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Rows and columns of the terminal; (0, 0): as the kernel makes it.
    pub size: (u16, u16),
    /// As the container's.
    pub oom_score_adj: Option<i32>,
    /// Open descriptors of the caller that the command is to have, by the same numbers.
    pub inherit: Vec<RawFd>,
    /// As the container's ([`crate::launch::LaunchSpec::identity`]): its user namespace is joined, too.
    pub identity: Option<(u32, u32)>,
}

impl JoinSpec {
    /// This command as root with the default rights, in a container with a PID namespace of its own.
    #[must_use]
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            working_dir: None,
            security: Security::default(),
            own_pid: true,
            stdin: false,
            tty: false,
            size: (0, 0),
            oom_score_adj: None,
            inherit: Vec::new(),
            identity: None,
        }
    }
}

/// Starts processes in containers.
#[derive(Debug)]
pub struct Joiner {
    node: crate::launch::Node,
    home: Home,
}

impl Joiner {
    /// Looks at the node once.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new() -> Result<Self, LaunchError> {
        Ok(Self { node: crate::launch::Node::look(Places::default())?, home: Home::open()? })
    }

    /// Clones the process and returns at once; see [`Starting`]. The process leads a session and process group of its
    /// own: [`crate::signals::kill_group`] reaches all of it. `target` is the pidfd of the container's main process.
    ///
    /// # Errors
    /// [`LaunchError::NotRunning`] when the container has ended; else as a launch.
    pub fn start(&self, target: BorrowedFd<'_>, spec: &JoinSpec) -> Result<Starting, LaunchError> {
        let (pipes, ends) = pipes(spec.stdin, spec.tty)?;
        let program = compile_join(spec, &self.node, target.as_raw_fd(), ends.io())?;
        let start = || spawn::start(program, Namespaces::default(), pipes, ends.fds());
        if spec.own_pid { self.home.child_of(target, start) } else { start() }
    }
}
