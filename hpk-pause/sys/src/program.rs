//! What a child does between clone and exec, as data.
//!
//! Owns the list of operations and the strings that they need. It never executes anything: that is `child`'s.

use crate::crossing::Post;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, c_char, c_int};

/// Stage of a container's set-up, for messages: the step and its path say what failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Signal dispositions, session and umask.
    Process,
    /// Standard input, output, error.
    Stdio,
    /// Controlling terminal.
    Terminal,
    /// Propagation of the new mount namespace.
    Propagation,
    /// Opening the source of a mount.
    Source,
    /// Resolving a subPath under its volume.
    SubPath,
    /// Creating the writable layer.
    Upper,
    /// Mounting the root file system.
    RootFs,
    /// Changing to the new root.
    Pivot,
    /// `/dev` and its nodes.
    Dev,
    /// `/proc`.
    Proc,
    /// `/sys`.
    Sys,
    /// A volume or file at its mount point.
    Mount,
    /// Masked and read-only paths.
    Mask,
    /// Read-only root file system.
    ReadOnly,
    /// Resource limits and OOM score.
    Limits,
    /// Joining namespaces.
    Namespaces,
    /// The working directory.
    WorkingDir,
    /// User, groups.
    Identity,
    Capabilities,
    /// Seccomp filter and no_new_privs.
    Seccomp,
    /// The start of a nested Apptainer.
    Nested,
    /// The command itself.
    Exec,
}

impl Step {
    /// Plain words for a message: what could not be done.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Process => "prepare the process",
            Self::Stdio => "set up standard input and output",
            Self::Terminal => "set up the terminal",
            Self::Propagation => "make the mount namespace private",
            Self::Source => "open the source of a mount",
            Self::SubPath => "resolve subPath",
            Self::Upper => "create the writable layer",
            Self::RootFs => "mount the root file system",
            Self::Pivot => "change to the container's root",
            Self::Dev => "set up /dev",
            Self::Proc => "mount /proc",
            Self::Sys => "mount /sys",
            Self::Mount => "mount",
            Self::Mask => "mask",
            Self::ReadOnly => "make the root file system read-only",
            Self::Limits => "set resource limits",
            Self::Namespaces => "join the container's namespaces",
            Self::WorkingDir => "change to the working directory",
            Self::Identity => "change user and groups",
            Self::Capabilities => "set capabilities",
            Self::Seccomp => "set the seccomp filter",
            Self::Nested => "start Apptainer",
            Self::Exec => "exec",
        }
    }
}

/// A number of the child's table of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot(pub(crate) usize);

/// One thing to do in the child. All paths are absolute and NUL-terminated.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum OpKind {
    /// Default dispositions of these signals (bit 0: signal 1), empty mask.
    ResetSignals {
        ignored: u64,
    },
    Setsid,
    Umask(u32),
    /// Writes `data` to an existing file.
    WriteFile {
        path: CString,
        data: Vec<u8>,
    },
    /// Creates an empty file with this mode when there is none.
    Touch {
        path: CString,
        mode: u32,
    },
    /// mkdir -p.
    MkdirAll {
        path: CString,
        mode: u32,
    },
    Symlink {
        target: CString,
        path: CString,
    },
    Mount {
        source: Option<CString>,
        target: CString,
        fstype: Option<CString>,
        flags: u64,
        data: Option<CString>,
    },
    /// A detached copy of a mount tree; follows links.
    OpenTree {
        slot: Slot,
        path: CString,
        recursive: bool,
    },
    /// As [`OpKind::OpenTree`], of a path below `volume` that never leaves it. `prefixes` are the cumulative relative paths.
    OpenSubTree {
        slot: Slot,
        volume: CString,
        prefixes: Vec<CString>,
        last_components: Vec<CString>,
        /// Otherwise it is held as by [`OpKind::HoldTree`].
        copy: bool,
    },
    /// Holds what a path means; follows links.
    HoldTree {
        slot: Slot,
        path: CString,
    },
    /// Makes the stage on a folder and makes it the working directory; see `launch::compile::staged`.
    Stage {
        path: CString,
    },
    /// Binds what the slot holds on the stage.
    StageTree {
        slot: Slot,
        recursive: bool,
    },
    /// Mounts a file system without a source on the stage.
    StageFs {
        slot: Slot,
        fstype: CString,
        flags: u64,
    },
    /// mount(2) with these flags of propagation, on what is staged.
    StagePropagation {
        slot: Slot,
        flags: u64,
    },
    /// Moves a mount from the stage to its place, creating its mount point.
    AttachStaged {
        slot: Slot,
        target: CString,
        /// It is a file in a fresh file system: made at once.
        missing: bool,
        read_only: bool,
    },
    /// chroot(2); the slot keeps the root that was.
    Enter {
        path: CString,
        old: Slot,
    },
    /// Back to the old root, then as [`OpKind::Pivot`].
    Leave {
        path: CString,
        old: Slot,
    },
    /// A detached mount of a file system without a source.
    NewFs {
        slot: Slot,
        fstype: CString,
        attributes: u64,
    },
    /// Below `root`, an empty folder or file for each source's target, and these folders. Where `image` has a link on the
    /// way to a target (`/var/run`), it is made where the link leads.
    Skeleton {
        root: CString,
        image: CString,
        folders: Vec<CString>,
        targets: Vec<(Slot, CString)>,
    },
    /// Attributes of a detached tree.
    SetAttr {
        slot: Slot,
        read_only: bool,
        recursive: bool,
        propagation: u64,
    },
    /// Attaches a detached tree, creating its mount point.
    Attach {
        slot: Slot,
        target: CString,
        /// It is a file in a fresh file system: made at once.
        missing: bool,
        fallback_read_only: bool,
    },
    /// Makes an attached mount read-only in place.
    RemountReadOnly {
        path: CString,
    },
    /// Hides a file or folder; missing ones are fine. `folder` says what it is likely to be, and so what is tried first.
    Mask {
        path: CString,
        folder: bool,
    },
    /// Binds a path on itself, read-only; missing ones are fine.
    ReadOnlyPath {
        path: CString,
    },
    /// pivot_root(".", ".") at this path and drop of the old root.
    Pivot {
        path: CString,
    },
    Chdir {
        path: CString,
    },
    /// setns by a descriptor that the parent opened.
    Setns {
        fd: c_int,
        flags: c_int,
    },
    /// Leaves these namespaces for new ones.
    Unshare {
        flags: c_int,
    },
    /// Enters these namespaces, and goes on as another child of the parent, which is born there with these clone flags. The
    /// parent is sent its pidfd.
    Born {
        user: c_int,
        mount: c_int,
        flags: u64,
    },
    /// Sends the parent descriptors of this child's user and mount namespaces.
    TellNamespaces,
    /// A new network namespace, owned by a new user namespace below this child's with these maps.
    NetworkBelow {
        uid_map: Vec<u8>,
        gid_map: Vec<u8>,
    },
    /// Opens a file into one of the standard descriptors.
    OpenStdio {
        path: CString,
        target: c_int,
    },
    /// dup2 of an inherited descriptor, chowned to the container's user when it is a pipe.
    Dup {
        from: c_int,
        to: c_int,
        owner: Option<(u32, u32)>,
    },
    /// Opens a terminal in the container's devpts, sends its master to the parent, makes it controlling and standard.
    Terminal {
        owner: (u32, u32),
        console: bool,
        rows: u16,
        cols: u16,
    },
    /// Every descriptor from 3 on closes at exec.
    CloseRest,
    Rlimit {
        resource: c_int,
        soft: u64,
        hard: u64,
    },
    /// Drops these from the bounding set.
    DropBounding(Vec<c_int>),
    SetGroups(Vec<u32>),
    SetGid(u32),
    SetUid(u32),
    /// Effective and permitted sets; inheritable and ambient become empty.
    SetCaps {
        permitted: u64,
    },
    NoNewPrivs,
    Seccomp(Vec<SockFilter>),
    /// A filter by which connections ask first ([`crate::crossing`]); the parent is sent its descriptor.
    Ask(Vec<SockFilter>),
    /// The first path that can be executed.
    Exec {
        candidates: Vec<CString>,
        argv: CStrings,
        envp: CStrings,
    },
    /// Executes a program that [`OpKind::Hold`] has opened: it need not be in the container.
    ExecHeld {
        slot: Slot,
        argv: CStrings,
        envp: CStrings,
    },
    /// An inherited descriptor that stays open at exec, after [`OpKind::CloseRest`].
    Inherit {
        fd: c_int,
    },
    /// Waits for a byte; an end without one ends the child. `other` is the parent's end, closed first.
    WaitGo {
        fd: c_int,
        other: c_int,
    },
    /// Lazy umount of what is mounted there.
    Unmount {
        path: CString,
    },
    /// Removes a file.
    Unlink {
        path: CString,
    },
    /// Keeps a file open, a namespace for instance.
    Hold {
        slot: Slot,
        path: CString,
    },
    /// Copies of descriptors that outlive exec, at fixed numbers: the slots from `slots` on, `fds` as (from, to), the
    /// report socket at `report`.
    HandOver {
        slots: c_int,
        fds: Vec<(c_int, c_int)>,
        report: c_int,
    },
    /// End without exec.
    Exit,
}

/// One BPF instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct SockFilter {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

/// A NULL-terminated array of C strings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<CString>", into = "Vec<CString>")]
pub(crate) struct CStrings {
    // Kept for the pointers below: a CString's heap block does not move when the Vec does.
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Self { strings, pointers }
    }

    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

impl From<CStrings> for Vec<CString> {
    fn from(list: CStrings) -> Self {
        list.strings
    }
}

impl From<Vec<CString>> for CStrings {
    fn from(strings: Vec<CString>) -> Self {
        Self::new(strings)
    }
}

/// An operation with what to say and do when it fails.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) kind: OpKind,
    pub(crate) step: Step,
    /// Subject for the message: usually the path inside the container.
    pub(crate) label: String,
    /// Go on when it fails.
    pub(crate) optional: bool,
}

/// Everything a child does.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) ops: Vec<Op>,
    pub(crate) slots: Vec<c_int>,
    /// Where the descriptor of [`OpKind::Ask`] goes.
    pub(crate) post: Option<Post>,
}

impl Program {
    pub(crate) fn push(&mut self, step: Step, label: impl Into<String>, kind: OpKind) {
        self.ops.push(Op { kind, step, label: label.into(), optional: false });
    }

    pub(crate) fn push_optional(&mut self, step: Step, label: impl Into<String>, kind: OpKind) {
        self.ops.push(Op { kind, step, label: label.into(), optional: true });
    }

    pub(crate) fn slot(&mut self) -> Slot {
        self.slots.push(-1);
        Slot(self.slots.len() - 1)
    }
}
