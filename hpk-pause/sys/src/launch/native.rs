//! The native launcher: a container of our own making in the pod's user namespace, with no process beside it.

use super::Launcher;
use super::compile;
use super::node::{Node, Places};
use super::pipes::{ChildEnds, pipe, pipes};
use crate::below::Below;
use crate::error::LaunchError;
use crate::launch::spec::{LaunchSpec, PidNamespace};
use crate::pidns::Home;
use crate::program::{OpKind, Program, Step};
use crate::spawn::Starting;
use crate::spawn::{self, Namespaces, Pipes};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Makes containers itself. Knows the node, holds nothing of the containers.
#[derive(Debug)]
pub struct Native {
    node: Node,
    home: Home,
    births: Births,
}

impl Native {
    /// Looks at the node: id maps, devices, capabilities, the kernel's abilities.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new() -> Result<Self, LaunchError> {
        Self::with(Places::default())
    }

    /// As [`Native::new`], where the parent container's devices and GPU libraries are in other places (tests).
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn with(places: Places) -> Result<Self, LaunchError> {
        Ok(Self { node: Node::look(places)?, home: Home::open()?, births: Births::default() })
    }

    /// From now on containers are born in a user namespace below the caller's own ([`crate::below`]). It is made with the
    /// first of them: what is to be seen there is mounted by then.
    #[must_use]
    pub fn below(mut self) -> Self {
        self.births = Births::below(None);
        self
    }

    /// As [`Native::below`], where the caller's uid and gid have these numbers in that namespace
    /// ([`LaunchSpec::identity`]).
    #[must_use]
    pub fn keeping(mut self, own: (u32, u32)) -> Self {
        self.births = Births::below(Some(own));
        self
    }

    /// Tries what a launch needs of the kernel: a mount namespace and an overlay of `rootfs` with its upper layer below
    /// `scratch`.
    ///
    /// # Errors
    /// The step that this node cannot do.
    pub fn probe(&self, rootfs: &Path, scratch: &Path) -> Result<(), LaunchError> {
        let mut program = Program::default();
        compile::process(&mut program, self.node.ignored_signals);
        let upper = scratch.join("probe");
        let root = OpKind::Mount {
            source: None,
            target: compile::c("/", "/")?,
            fstype: None,
            flags: libc::MS_REC | libc::MS_PRIVATE,
            data: None,
        };
        program.push(Step::Propagation, "/", root);
        compile::overlay(&mut program, rootfs, &upper, &[])?;
        program.push(Step::Exec, "", OpKind::Exit);
        let (stdout, childs_out) = pipe()?;
        let (stderr, childs_err) = pipe()?;
        let pipes = Pipes { stdin: None, stdout, stderr };
        let starting = spawn::start(
            program,
            Namespaces { mount: true, ..Namespaces::default() },
            Some(pipes),
            vec![childs_out, childs_err],
        )?;
        starting.wait().map(drop)
    }
}

impl Launcher for Native {
    fn makes_keepers(&self) -> bool {
        true
    }

    fn start(&mut self, spec: &LaunchSpec) -> Result<Starting, LaunchError> {
        let (pipes, mut ends) = pipes(spec.stdin && spec.keeper.is_none(), spec.tty && spec.keeper.is_none())?;
        if let Some(input) = &spec.keeper {
            let failed = |e: std::io::Error| LaunchError::Resources {
                what: "duplicate a descriptor",
                errno: nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            };
            ends.stdin = Some(input.try_clone().map_err(failed)?);
        }
        let born = self.births.own();
        if let Some(identity) = spec.identity.filter(|identity| Some(*identity) != born) {
            return self.start_as(spec, identity, pipes, ends);
        }
        let node = born.map(|own| Node { ids: self.node.ids.with_own(own).1, ..self.node.clone() });
        let program = compile::compile(spec, node.as_ref().unwrap_or(&self.node), ends.io())?;
        let pid = matches!(spec.pid, PidNamespace::Own);
        self.births.ready(&self.node)?;
        match &spec.pid {
            PidNamespace::Of(target) => {
                // Processes of another user namespace, as a rank's, are seen from above it alone.
                let births = if self.births.has(target.as_fd()) { &self.births } else { &Births::Here };
                self.home.child_of(target.as_fd(), || births.start(program, pid, pipes, ends.fds()))
            }
            PidNamespace::Own | PidNamespace::Pod => self.births.start(program, pid, pipes, ends.fds()),
        }
    }
}

/// Where containers are born.
#[derive(Debug, Default)]
pub(super) enum Births {
    /// In the caller's user namespace.
    #[default]
    Here,
    /// Below it.
    Below {
        /// The numbers there of who is 0 here; None: 0, too.
        own: Option<(u32, u32)>,
        /// Once it is made.
        made: Option<Below>,
    },
}

impl Births {
    pub(super) fn below(own: Option<(u32, u32)>) -> Self {
        Self::Below { own, made: None }
    }

    /// The caller's numbers there, where they are others than here.
    fn own(&self) -> Option<(u32, u32)> {
        match self {
            Self::Here => None,
            Self::Below { own, .. } => *own,
        }
    }

    /// Makes what is still to be made.
    pub(super) fn ready(&mut self, node: &Node) -> Result<(), LaunchError> {
        if let Self::Below { own, made: made @ None } = self {
            *made = Some(Below::make(&node.ids, *own, node.ignored_signals)?);
        }
        Ok(())
    }

    /// Whether this process was born there.
    fn has(&self, pidfd: BorrowedFd<'_>) -> bool {
        match self {
            Self::Here => true,
            Self::Below { made, .. } => made.as_ref().is_some_and(|below| below.has(pidfd)),
        }
    }

    /// Starts the program with a mount namespace of its own and, if so, a PID namespace.
    pub(super) fn start(
        &self,
        mut program: Program,
        pid: bool,
        pipes: Option<Pipes>,
        child_ends: Vec<OwnedFd>,
    ) -> Result<Starting, LaunchError> {
        let Self::Below { made: Some(below), .. } = self else {
            let namespaces = Namespaces { mount: true, pid, ..Namespaces::default() };
            return spawn::start(program, namespaces, pipes, child_ends);
        };
        let pid = if pid { libc::CLONE_NEWPID.cast_unsigned() } else { 0 };
        let kind = OpKind::Born {
            user: below.user.as_raw_fd(),
            mount: below.mount.as_raw_fd(),
            flags: u64::from(libc::CLONE_NEWNS.cast_unsigned() | pid),
        };
        program.push(Step::Namespaces, "the containers' user namespace", kind);
        program.ops.rotate_right(1);
        spawn::start_born(program, pipes, child_ends)
    }
}

impl Native {
    /// In a user namespace in which the caller's ids have the numbers of `identity`.
    fn start_as(
        &self,
        spec: &LaunchSpec,
        identity: (u32, u32),
        pipes: Option<Pipes>,
        ends: ChildEnds,
    ) -> Result<Starting, LaunchError> {
        let (maps, ids) = self.node.ids.with_own(identity);
        let mut program = compile::compile(spec, &Node { ids, ..self.node.clone() }, ends.io())?;
        let (go_read, go_write) = pipe()?;
        let wait = OpKind::WaitGo { fd: go_read.as_raw_fd(), other: go_write.as_raw_fd() };
        program.push(Step::Namespaces, "wait for id maps", wait);
        program.ops.rotate_right(1);
        let pid = matches!(spec.pid, PidNamespace::Own);
        let namespaces = Namespaces { mount: true, pid, user: true, ..Namespaces::default() };
        let mut childs = ends.fds();
        childs.push(go_read);
        let start = || spawn::start(program, namespaces, pipes, childs);
        let starting = match &spec.pid {
            PidNamespace::Of(target) => self.home.child_of(target.as_fd(), start)?,
            PidNamespace::Own | PidNamespace::Pod => start()?,
        };
        // Without the byte the child ends by itself.
        let failed = |what| move |errno| LaunchError::Resources { what, errno };
        for (name, map) in [("uid_map", &maps.0), ("gid_map", &maps.1)] {
            let written = std::fs::write(format!("/proc/{}/{name}", starting.pid()), map);
            let errno = |e: std::io::Error| nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
            written.map_err(|e| failed("give the container the user's own ids")(errno(e)))?;
        }
        nix::unistd::write(&go_write, b"g").map_err(failed("start the container"))?;
        Ok(starting)
    }
}
