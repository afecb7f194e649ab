//! A process from outside of a pod that runs commands in one of its containers: a rank of an MPI step.
//!
//! The rank's process is Slurm's child on the node, in none of the pod's namespaces. It may enter them since they belong
//! to a user namespace that its own user has made. It enters those of users, IPC and (for its children) processes for good;
//! its command enters the mount namespace as well. Network and host name stay the node's.

use crate::launch::JoinSpec;
use crate::launch::pipes::{pipe, pipes};
use crate::launch::{LaunchError, Node, Places, Starting, compile_join};
use crate::process::join;
use crate::program::{OpKind, Program, Step};
use crate::spawn::{self, Namespaces, Pipes};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A container that the calling process has entered. The process must have one thread.
#[derive(Debug)]
pub struct Entered {
    keeper: OwnedFd,
    node: Node,
}

pub use crate::process::open as pidfd;

impl Entered {
    /// Enters the container of `keeper`. There is no way back.
    ///
    /// # Errors
    /// [`LaunchError::NotRunning`] when it has ended; EPERM where its user namespace is not the caller's to enter.
    pub fn enter(keeper: OwnedFd) -> Result<Self, LaunchError> {
        // At once: each of them is the caller's to enter by what it has outside, and not by what it would have in the first.
        let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWPID;
        let entered = match join(keeper.as_fd(), all) {
            // It is in the same user namespace: root, who needs no other.
            Err(Errno::EINVAL) => join(keeper.as_fd(), all - CloneFlags::CLONE_NEWUSER),
            other => other,
        };
        entered.map_err(|errno| match errno {
            Errno::ESRCH => LaunchError::NotRunning,
            errno => LaunchError::Resources { what: "join the container's namespaces", errno },
        })?;
        Ok(Self { keeper, node: Node::look(Places::default())? })
    }

    /// Clones a process of the container that executes the command; see [`Starting`].
    ///
    /// # Errors
    /// As a join.
    pub fn start(&self, spec: &JoinSpec) -> Result<Starting, LaunchError> {
        let (pipes, ends) = pipes(spec.stdin, spec.tty)?;
        let program = compile_join(spec, &self.node, self.keeper.as_raw_fd(), false, ends.io())?;
        spawn::start(program, Namespaces::default(), pipes, ends.fds()).map_err(gone)
    }

    /// Mounts folders of the node in the container, by the same paths. Blocks.
    ///
    /// # Errors
    /// The first that cannot be mounted.
    pub fn bring(&self, folders: &[PathBuf]) -> Result<(), LaunchError> {
        let path = |folder: &PathBuf| {
            CString::new(folder.as_os_str().as_bytes()).map_err(|_| LaunchError::Invalid {
                field: "folder",
                reason: format!("{} contains a NUL character", folder.display()),
            })
        };
        let mut program = Program::default();
        let p = &mut program;
        crate::launch::compile_process(p, self.node.ignored_signals);
        // In a copy of the node's mounts, which is the pod's user namespace's, trees may be copied; then they are carried over.
        let root = CString::from(c"/");
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        p.push(Step::Propagation, "/", OpKind::Mount { source: None, target: root, fstype: None, flags, data: None });
        let mut slots = Vec::with_capacity(folders.len());
        for folder in folders {
            let slot = p.slot();
            slots.push(slot);
            p.push(
                Step::Source,
                folder.to_string_lossy(),
                OpKind::OpenTree { slot, path: path(folder)?, recursive: true },
            );
        }
        let join = OpKind::Setns { fd: self.keeper.as_raw_fd(), flags: libc::CLONE_NEWNS };
        p.push(Step::Namespaces, "mount namespace", join);
        for (folder, slot) in folders.iter().zip(slots) {
            let kind = OpKind::Attach { slot, target: path(folder)?, missing: false, fallback_read_only: false };
            p.push(Step::Mount, folder.to_string_lossy(), kind);
        }
        p.push(Step::Exec, "", OpKind::Exit);
        let ((stdout, childs_out), (stderr, childs_err)) = (pipe()?, pipe()?);
        let pipes = Pipes { stdin: None, stdout, stderr };
        let namespaces = Namespaces { mount: true, ..Namespaces::default() };
        let starting = spawn::start(program, namespaces, Some(pipes), vec![childs_out, childs_err]).map_err(gone)?;
        let child = starting.pid();
        let ended = starting.wait().map(drop);
        let _ = nix::sys::wait::waitpid(child, None);
        ended
    }
}

/// The kernel's answer for a PID namespace whose init is gone.
fn gone(error: LaunchError) -> LaunchError {
    if error == LaunchError::Clone(Errno::ENOMEM) { LaunchError::NotRunning } else { error }
}
