//! The nested launcher: Apptainer makes the root file system, for kernels that give a user namespace no overlay.
//!
//! ```text
//! supervisor ── clone ──▶ outer program ── exec ──▶ apptainer (stays, about 23 MB) ──▶ shim ── inner program ── exec ──▶ command
//!      ▲                        │ sources, pipes, report socket: inherited              │
//!      └──── pidfd of the command's process, a report socket of its own ◀───────────────┘
//! ```
//! Volumes, devices, rights and errors are the very operations of the native launcher; only the overlay is Apptainer's. A
//! process that joins such a container needs nothing of Apptainer: it has the pidfd of the command's process.

use super::Launcher;
use super::compile::{INNER_PROGRAM, INNER_REPORT, INNER_SLOTS, Nested, compile_nested};
use super::native::Births;
use super::node::{Node, Places};
use super::pipes::pipes;
use crate::child;
use crate::error::LaunchError;
use crate::launch::spec::{LaunchSpec, PidNamespace};
use crate::pidns::Home;
use crate::process::has_pidfds;
use crate::program::{Op, OpKind, Program, Step};
use crate::signals::{self, MountNs};
use crate::spawn::{Inner, Starting};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Where a job's parent container may have the node's Apptainer.
const PROGRAMS: [&str; 4] =
    ["/usr/bin/apptainer", "/usr/local/bin/apptainer", "/usr/bin/singularity", "/usr/local/bin/singularity"];

/// Makes containers by `apptainer exec`.
#[derive(Debug)]
pub struct NestedApptainer {
    node: Node,
    home: Home,
    births: Births,
    apptainer: PathBuf,
    shim: PathBuf,
}

impl NestedApptainer {
    /// `apptainer`: the program; `shim`: a static program, reached by this path in the supervisor's view, that calls
    /// [`inner`] when its first argument is `inner`.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new(apptainer: impl Into<PathBuf>, shim: impl Into<PathBuf>) -> Result<Self, LaunchError> {
        Self::with(apptainer, shim, Places::default())
    }

    /// As [`NestedApptainer::new`], with devices and GPU libraries in other places (tests).
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn with(apptainer: impl Into<PathBuf>, shim: impl Into<PathBuf>, places: Places) -> Result<Self, LaunchError> {
        let (apptainer, shim) = (apptainer.into(), shim.into());
        Ok(Self { node: Node::look(places)?, home: Home::open()?, births: Births::default(), apptainer, shim })
    }

    /// As [`super::Native::below`].
    #[must_use]
    pub fn below(mut self) -> Self {
        self.births = Births::below(None);
        self
    }

    /// The Apptainer that this process sees; hpk-netns names one that is elsewhere by `$HPK_APPTAINER`.
    #[must_use]
    pub fn find() -> Option<PathBuf> {
        let named = std::env::var_os("HPK_APPTAINER").map(PathBuf::from);
        named.into_iter().chain(PROGRAMS.map(PathBuf::from)).find(|path| path.is_file())
    }
}

impl Launcher for NestedApptainer {
    fn start(&mut self, spec: &LaunchSpec) -> Result<Starting, LaunchError> {
        if spec.identity.is_some() {
            let reason = "a node where Apptainer makes the containers (its kernel gives users no overlay) cannot keep the \
                          user's own number in them: write root, or leave it out";
            return Err(LaunchError::Invalid { field: "user ids", reason: reason.to_owned() });
        }
        let (pipes, ends) = pipes(spec.stdin, spec.tty)?;
        let (mut file, words) = (memory("hpk-inner")?, memory("hpk-apptainer")?);
        let nested = Nested {
            apptainer: &self.apptainer,
            shim: &self.shim,
            words: words.as_raw_fd(),
            program: file.as_raw_fd(),
        };
        let (mut outer, mut inner) = compile_nested(spec, &self.node, ends.io(), nested)?;
        // The process that is started is the outer one.
        outer.post = inner.post.take();
        let labels = write(&mut file, inner)?;
        let mut childs = ends.fds();
        childs.push(file.into());
        let inner = Inner { ended: Box::new(move || LaunchError::Apptainer(last_words(words))), labels };
        self.births.ready(&self.node)?;
        let start = || Ok(self.births.start(outer, false, pipes, childs)?.with_inner(inner));
        match &spec.pid {
            PidNamespace::Of(target) => self.home.child_of(target.as_fd(), start),
            PidNamespace::Own | PidNamespace::Pod => start(),
        }
    }
}

/// Ends what a killed Apptainer leaves behind: the command, its container, and the FUSE helpers in Apptainer's namespace,
/// which it did not come to end. Nothing is left to do where it ended by itself.
pub fn sweep(command: BorrowedFd<'_>, apptainer: MountNs, container: Option<MountNs>) {
    // It may be gone already, and with it all of its PID namespace.
    let _ = signals::send(command, libc::SIGKILL);
    let _ = signals::kill_all(apptainer);
    let _ = container.map(signals::kill_all);
}

fn memory(name: &str) -> Result<File, LaunchError> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| LaunchError::Resources { what: "create a file in memory", errno })?;
    Ok(File::from(fd))
}

/// The operations as they are read by [`inner`]; their steps and labels stay here.
fn write(file: &mut File, program: Program) -> Result<Vec<(Step, String)>, LaunchError> {
    let failed = |_| LaunchError::Resources { what: "write the inner program", errno: Errno::EIO };
    let ops: Vec<(&OpKind, bool)> = program.ops.iter().map(|op| (&op.kind, op.optional)).collect();
    let text = serde_json::to_vec(&(ops, program.slots.len())).map_err(|e| failed(e.into()))?;
    file.write_all(&text).and_then(|()| file.seek(SeekFrom::Start(0)).map(drop)).map_err(failed)?;
    Ok(program.ops.into_iter().map(|op| (op.step, op.label)).collect())
}

/// The shim's whole life: takes over from Apptainer, tells the supervisor who it is, and becomes the container's command.
/// Does not return but for an error, when it was not started by [`NestedApptainer`].
///
/// # Errors
/// What is missing.
pub fn inner() -> Result<std::convert::Infallible, Errno> {
    let file = inherited(INNER_PROGRAM)?;
    let report = inherited(INNER_REPORT)?;
    let (ops, slots): (Vec<(OpKind, bool)>, usize) =
        serde_json::from_reader(File::from(file)).map_err(|_| Errno::EBADMSG)?;
    let ops = ops.into_iter().map(|(kind, optional)| Op { kind, step: Step::Exec, label: String::new(), optional });
    let slots = (INNER_SLOTS..).take(slots).map(|number| match inherited(number) {
        Ok(fd) => fd.into_raw_fd(),
        // Its source was optional and missing.
        Err(_) => -1,
    });
    let mut program = Program { ops: ops.collect(), slots: slots.collect(), post: None };
    // Apptainer keeps a copy of the first socket, so that its end would tell nothing: exec closes this one.
    let (own, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let pidfd = if has_pidfds() { Some(crate::process::open(nix::unistd::Pid::this())?) } else { None };
    let mut message = [0u8; child::MESSAGE];
    message[0..4].copy_from_slice(&child::TAG_INNER.to_ne_bytes());
    // Now, when it is far from its command: one that ends at once cannot be asked after its start.
    message[4..8].copy_from_slice(&own_mount_namespace()?.to_ne_bytes());
    let fds: Vec<_> = std::iter::once(theirs.as_fd()).chain(pidfd.as_ref().map(AsFd::as_fd)).collect();
    crate::fdpass::send(&report, &message, &fds)?;
    drop((theirs, pidfd, report));
    child::run(&mut program, own.into_raw_fd())
}

/// A descriptor that was handed over, from now on closed at exec.
fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: only looked at while it is known to be open; nobody else in this process knows it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open and ours by the contract of `OpKind::HandOver`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn own_mount_namespace() -> Result<u32, Errno> {
    let inode = nix::sys::stat::stat("/proc/self/ns/mnt")?.st_ino;
    u32::try_from(inode).map_err(|_| Errno::EOVERFLOW)
}

/// Apptainer's last words, without its colours.
fn last_words(mut file: File) -> String {
    let mut text = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| std::io::Read::read_to_end(&mut file, &mut text));
    let text = String::from_utf8_lossy(&text);
    let plain: String = text.split('\u{1b}').map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)).collect();
    let plain = if text.contains('\u{1b}') { plain } else { text.into_owned() };
    let mut lines: Vec<&str> = plain.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.drain(..lines.len().saturating_sub(3));
    match read {
        Ok(_) if !lines.is_empty() => lines.join("; "),
        _ => "it said nothing".to_owned(),
    }
}
