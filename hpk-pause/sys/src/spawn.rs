//! The one place that forks: clone3 of a child that runs a compiled program, and what its parent holds of it.
//!
//! ```text
//! parent: start() ── clone3 ──▶ Starting ── report socket ──▶ Launched | LaunchError
//!                      │                         ▲
//!                      └─ child: program … exec ─┘ (exec closes the socket; a failure is told first)
//! ```
//! `start` never waits for the child, so that the event loop of PID 1 does not stand still when a volume's file system does:
//! register [`Starting::pid`] before the next [`crate::reap::Reaper::poll`], then wait for the socket to be readable.

use crate::child;
use crate::crossing::Post;
use crate::error::LaunchError;
use crate::process;
use crate::program::{Program, Step};
use crate::signals::MountNs;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socketpair, sockopt,
};
use nix::unistd::Pid;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Standard input and output of a started process, the supervisor's ends. All are blocking and close at exec.
#[derive(Debug)]
pub enum Io {
    /// Pipes: images open /dev/stdout, which a socket would not allow.
    Pipes {
        /// Writing end; None: the process reads /dev/null.
        stdin: Option<OwnedFd>,
        /// Reading end.
        stdout: OwnedFd,
        /// Reading end.
        stderr: OwnedFd,
    },
    /// Master of its terminal.
    Pty {
        /// Reads output, writes input.
        master: OwnedFd,
    },
}

/// A process that executes its command.
#[derive(Debug)]
pub struct Launched {
    /// In the supervisor's PID namespace; leader of its own session and process group.
    pub pid: Pid,
    /// The command's process where Apptainer stands between: `pid` is Apptainer's then.
    pub inner: Option<InnerProcess>,
    /// A hold on the command's process ([`crate::process`]), which means it even after it was reaped.
    pub pidfd: OwnedFd,
    /// Its input and output.
    pub io: Io,
}

/// A process on its way to exec.
#[derive(Debug)]
pub struct Starting {
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
    pipes: Option<Pipes>,
    master: Option<OwnedFd>,
    ops: Vec<(Step, String)>,
    done: bool,
    inner: Option<Inner>,
    /// Where the inner program reports; see [`Starting::go_on`].
    next: Option<OwnedFd>,
    /// The command's process, where it is not the child itself, with its mount namespace.
    main: Option<(OwnedFd, MountNs)>,
    /// Where the descriptor of its filter goes.
    post: Option<Post>,
}

/// A container's own process and mount namespace, where its first process is not the supervisor's child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerProcess {
    /// In the supervisor's PID namespace; None: it has ended already.
    pub pid: Option<Pid>,
    /// Of the container.
    pub mount_ns: MountNs,
}

/// The second half of a nested launch.
pub(crate) struct Inner {
    /// Called when the child ends before it came to the inner program: the error that this is.
    pub(crate) ended: Box<dyn FnOnce() -> LaunchError + Send + Sync>,
    /// Of the inner program's operations.
    pub(crate) labels: Vec<(Step, String)>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("labels", &self.labels).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl AsFd for Starting {
    /// Readable when [`Starting::try_finish`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

impl AsRawFd for Starting {
    fn as_raw_fd(&self) -> RawFd {
        self.report.as_raw_fd()
    }
}

impl Starting {
    /// Id of the child, ours to reap whatever comes of it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Descriptor of the child, to kill it while it is being set up.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// None: not yet known, wait until the descriptor is readable. After an error the child ends by itself
    /// and is reaped like any other.
    pub fn try_finish(&mut self) -> Option<Result<Launched, LaunchError>> {
        self.receive(MsgFlags::MSG_DONTWAIT)
    }

    /// Does the launch go on in another process? Then [`Starting::go_on`] is due.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.next.is_some()
    }

    /// Follows the launch into the next process: the descriptor becomes another one, so whatever waits for it begins anew.
    pub fn go_on(&mut self) {
        if let Some(next) = self.next.take() {
            self.report = next;
        }
    }

    /// Blocks until the command is executed or failed. Not for the event loop: a set-up can hang on a file system.
    ///
    /// # Errors
    /// What failed.
    pub fn wait(mut self) -> Result<Launched, LaunchError> {
        loop {
            if let Some(result) = self.receive(MsgFlags::empty()) {
                return result;
            }
            self.go_on();
        }
    }

    /// The program ends in Apptainer, which runs the inner one.
    pub(crate) fn with_inner(mut self, inner: Inner) -> Self {
        self.inner = Some(inner);
        if !process::has_pidfds() {
            // The inner program cannot tell who it is: /proc is the container's there. The kernel does.
            let _ = setsockopt(&self.report, sockopt::PassCred, &true);
        }
        self
    }

    pub(crate) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// For children without pipes of ours: waits for exec and keeps only the pidfd, also beside an error.
    pub(crate) fn wait_exec(mut self) -> Result<OwnedFd, (LaunchError, OwnedFd)> {
        loop {
            match self.receive(MsgFlags::empty()) {
                None => {}
                Some(Ok(_)) | Some(Err(LaunchError::Killed)) => return Ok(self.pidfd),
                Some(Err(error)) => return Err((error, self.pidfd)),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> Option<Result<Launched, LaunchError>> {
        if self.done {
            return Some(Err(LaunchError::Killed));
        }
        loop {
            let mut buffer = [0u8; child::MESSAGE];
            let mut control = nix::cmsg_space!([RawFd; 2], libc::ucred);
            let (bytes, mut fds, sender) = {
                let mut iov = [IoSliceMut::new(&mut buffer)];
                match recvmsg::<()>(
                    self.report.as_raw_fd(),
                    &mut iov,
                    Some(&mut control),
                    flags | MsgFlags::MSG_CMSG_CLOEXEC,
                ) {
                    Ok(message) => (message.bytes, received_fds(&message), sender(&message)),
                    Err(Errno::EINTR) => continue,
                    Err(Errno::EAGAIN) => return None,
                    // The child died with unread data on its side: as an end.
                    Err(_) => (0, Vec::new(), None),
                }
            };
            if bytes == 0 {
                self.done = true;
                return Some(self.finished());
            }
            match word(&buffer, 0) {
                child::TAG_TERMINAL => self.master = fds.pop(),
                child::TAG_LISTENER => {
                    if let (Some(post), Some(listener)) = (&self.post, fds.pop()) {
                        post.send(listener);
                    }
                }
                child::TAG_INNER => {
                    let hold = match sender {
                        Some(pid) => process::folder(pid).ok(),
                        None => fds.pop(),
                    };
                    self.main = hold.map(|hold| (hold, MountNs::numbered(word(&buffer, 1))));
                    self.next = fds.pop();
                    if let Some(inner) = self.inner.take() {
                        self.ops = inner.labels;
                    }
                    return None;
                }
                child::TAG_ERROR => {
                    self.done = true;
                    return Some(Err(self.failed(word(&buffer, 1), word(&buffer, 2))));
                }
                _ => {}
            }
        }
    }

    /// Blocks until the child has sent this word, and returns the descriptors that came with it.
    fn first_word(&self, tag: u32) -> Result<Vec<OwnedFd>, LaunchError> {
        let mut buffer = [0u8; child::MESSAGE];
        let (bytes, fds) = loop {
            match crate::fdpass::receive(&self.report, &mut buffer) {
                Err(Errno::EINTR) => {}
                Err(_) => return Err(LaunchError::Killed),
                Ok(message) => break message,
            }
        };
        match word(&buffer, 0) {
            child::TAG_ERROR if bytes > 0 => Err(self.failed(word(&buffer, 1), word(&buffer, 2))),
            found if bytes > 0 && found == tag => Ok(fds),
            _ => Err(LaunchError::Killed),
        }
    }

    /// Of a child that tells its user and mount namespaces. Blocks.
    pub(crate) fn namespaces(&self) -> Result<(OwnedFd, OwnedFd), LaunchError> {
        let mut fds = self.first_word(child::TAG_NAMESPACES)?;
        fds.pop().and_then(|mount| Some((fds.pop()?, mount))).ok_or(LaunchError::Killed)
    }

    fn failed(&self, index: u32, errno: u32) -> LaunchError {
        let errno = Errno::from_raw(i32::try_from(errno).unwrap_or(0));
        let op = usize::try_from(index).ok().and_then(|index| self.ops.get(index));
        match op {
            Some((Step::Exec, command)) => LaunchError::Exec { command: command.clone(), errno },
            Some((Step::Namespaces, _)) if matches!(errno, Errno::ESRCH | Errno::EINVAL) => LaunchError::NotRunning,
            Some((step, path)) => LaunchError::Setup { step: *step, path: path.clone(), errno },
            None => LaunchError::Killed,
        }
    }

    /// The socket is closed: by exec, or by death before it.
    fn finished(&mut self) -> Result<Launched, LaunchError> {
        if let Some(inner) = self.inner.take() {
            return Err((inner.ended)());
        }
        let pidfd = self.pidfd.try_clone().map_err(|e| LaunchError::Resources {
            what: "duplicate a descriptor",
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        let (inner, pidfd) = match self.main.take() {
            Some((main, mount_ns)) => (Some(InnerProcess { pid: crate::procfs::pid_of(main.as_fd()), mount_ns }), main),
            None => (None, pidfd),
        };
        let io = match (self.master.take(), self.pipes.take()) {
            (Some(master), _) => Io::Pty { master },
            (None, Some(pipes)) => Io::Pipes { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr },
            (None, None) => return Err(LaunchError::Killed),
        };
        Ok(Launched { pid: self.pid, inner, pidfd, io })
    }
}

fn word(buffer: &[u8; child::MESSAGE], index: usize) -> u32 {
    let at = index * 4;
    buffer.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn received_fds(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these descriptors for us, nobody else knows them.
            found.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    found
}

/// Handlers of the parent must not run in the child (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Who sent a message, where the socket was asked to tell.
fn sender(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Option<Pid> {
    message.cmsgs().into_iter().flatten().find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(sender) if sender.pid() > 0 => Some(Pid::from_raw(sender.pid())),
        _ => None,
    })
}

/// Namespaces that the child gets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) mount: bool,
    pub(crate) pid: bool,
    pub(crate) user: bool,
    pub(crate) network: bool,
    pub(crate) host_name: bool,
    pub(crate) ipc: bool,
}

/// As [`start`], of a program whose first operation is [`crate::program::OpKind::Born`]. Blocks until that is done, which
/// takes as long as a clone.
pub(crate) fn start_born(
    program: Program,
    pipes: Option<Pipes>,
    child_ends: Vec<OwnedFd>,
) -> Result<Starting, LaunchError> {
    let mut starting = start(program, Namespaces::default(), pipes, child_ends)?;
    let first = starting.pid;
    let born = starting.first_word(child::TAG_BORN);
    // It has gone its way; whoever reaps all children may have been faster.
    let _ = nix::sys::wait::waitpid(first, None);
    let pidfd = born?.pop().ok_or(LaunchError::Killed)?;
    starting.pid = crate::procfs::pid_of(pidfd.as_fd()).ok_or(LaunchError::Killed)?;
    starting.pidfd = pidfd;
    Ok(starting)
}

/// Clones a child that runs the program. `child_ends` are closed in the parent.
pub(crate) fn start(
    mut program: Program,
    namespaces: Namespaces,
    pipes: Option<Pipes>,
    child_ends: Vec<OwnedFd>,
) -> Result<Starting, LaunchError> {
    let (report, childs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| LaunchError::Resources { what: "create a socket", errno })?;
    let mut flags = 0;
    if namespaces.mount {
        flags |= libc::CLONE_NEWNS as u64;
    }
    if namespaces.user {
        flags |= libc::CLONE_NEWUSER as u64;
    }
    if namespaces.pid {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if namespaces.network {
        flags |= libc::CLONE_NEWNET as u64;
    }
    if namespaces.host_name {
        flags |= libc::CLONE_NEWUTS as u64;
    }
    if namespaces.ipc {
        flags |= libc::CLONE_NEWIPC as u64;
    }
    let post = program.post.take();
    let report_fd = childs.as_raw_fd();
    let (pid, pidfd) = match clone(flags).map_err(LaunchError::Clone)? {
        Fork::Child => child::run(&mut program, report_fd),
        Fork::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(childs);
    drop(child_ends);
    let ops = program.ops.into_iter().map(|op| (op.step, op.label)).collect();
    let none = (None, None, None, None);
    let (master, inner, next, main) = none;
    Ok(Starting { pid, pidfd, report, pipes, master, ops, done: false, inner, next, main, post })
}

enum Fork {
    /// Only what is async-signal-safe may be done.
    Child,
    Parent(Pid, OwnedFd),
}

/// A fork with flags and a hold on the child, which gets a copy of the address space. Its one caller then only runs
/// `child::run`, which is async-signal-safe and never returns.
fn clone(flags: u64) -> Result<Fork, Errno> {
    if !process::has_pidfds() {
        return clone_old(flags);
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no stack is given, so the child goes on with a copy of this one, as after fork.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?), pidfd))
        }
        _ => Err(Errno::last()),
    }
}

/// By clone(2). No handler of the parent runs in the child: all signals wait until [`crate::program::OpKind::ResetSignals`]
/// has taken the handlers away.
fn clone_old(flags: u64) -> Result<Fork, Errno> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD as u64, 0, 0, 0, 0) };
    if result == 0 {
        return Ok(Fork::Child);
    }
    let result = Errno::result(result);
    before.thread_set_mask()?;
    let pid = Pid::from_raw(i32::try_from(result?).map_err(|_| Errno::EOVERFLOW)?);
    match process::folder(pid) {
        Ok(folder) => Ok(Fork::Parent(pid, folder)),
        Err(errno) => {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
            Err(errno)
        }
    }
}
