//! What a container, or a process that joins one, is to be: plain data, everything resolved.

use crate::caps::CapSet;
use crate::crossing::Post;
use crate::seccomp::Filter;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

/// A container, everything resolved. Paths of sources are the supervisor's own, targets are inside the container.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// Container name, for messages.
    pub name: String,
    /// The image's root file system (overlay's lower layer).
    pub rootfs: PathBuf,
    /// Writable layer: a folder on node-local storage, made when missing; it gets `upper` and `work`. Every run wants a fresh one,
    /// as a writable layer cannot be mounted twice. How much it may hold is for whoever looks at it from outside to say.
    pub upper: PathBuf,
    /// Command and arguments; the first is looked up in the container's `$PATH` when it has no slash. Not empty.
    pub argv: Vec<String>,
    /// Environment in order; later entries win. PATH, HOME and (for terminals) TERM are added when absent, as engines do.
    pub env: Vec<(String, String)>,
    /// Created when missing; None: `/`.
    pub working_dir: Option<String>,
    /// Volumes and files; shallow targets are mounted before deep ones.
    pub mounts: Vec<Mount>,
    /// Folders and files that are seen, read-only, at places of /proc and /sys; what the node does not have is left out.
    pub shown: Vec<Shown>,
    /// Names below /dev of device nodes that others of the pod's containers get and this one does not.
    pub hidden_devices: Vec<String>,
    /// Folder shared by the pod's containers as /dev/shm (a tmpfs); None: a tmpfs of its own.
    pub shm: Option<PathBuf>,
    /// User, groups, capabilities.
    pub security: Security,
    /// Which processes it sees.
    pub pid: PidNamespace,
    /// Give it a pipe as standard input; else it reads /dev/null. A terminal is its own input.
    pub stdin: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Only higher values than the supervisor's own can be had; lower ones are left at the supervisor's.
    pub oom_score_adj: Option<i32>,
    /// In place of the command [`keep`] is executed, by the caller's own program: the container is there for processes that
    /// join it. This is the keeper's standard input, whose end is the container's. For the native launcher alone.
    pub keeper: Option<Arc<OwnedFd>>,
    /// The caller's own uid and gid have these numbers in the container, in a user namespace of its own; None: it has the
    /// caller's. For the native launcher alone.
    pub identity: Option<(u32, u32)>,
}

impl LaunchSpec {
    /// Whether a path is one of its [`Self::hidden_devices`].
    pub(crate) fn hides(&self, path: &str) -> bool {
        path.strip_prefix("/dev/").is_some_and(|name| self.hidden_devices.iter().any(|hidden| hidden == name))
    }

    /// A container of this image and command: root with the default rights, nothing mounted, its own PID namespace.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        rootfs: impl Into<PathBuf>,
        upper: impl Into<PathBuf>,
        argv: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            name: name.into(),
            rootfs: rootfs.into(),
            upper: upper.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            shown: Vec::new(),
            hidden_devices: Vec::new(),
            shm: None,
            security: Security::default(),
            pid: PidNamespace::Own,
            stdin: false,
            tty: false,
            rlimits: Vec::new(),
            oom_score_adj: None,
            keeper: None,
            identity: None,
        }
    }
}

/// The PID namespace of a container.
#[derive(Clone, Debug)]
pub enum PidNamespace {
    /// Its own: its main process is PID 1 there, and its end ends all of it.
    Own,
    /// The supervisor's, shared by the pod's containers.
    Pod,
    /// That of another container, by a pidfd of its main process (`kubectl debug --target`).
    Of(Arc<OwnedFd>),
}

/// What is seen in place of something of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Folder or file in the supervisor's view.
    pub source: PathBuf,
    /// Where, in the container; it is there already.
    pub target: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Folder or file in the supervisor's view; links are followed.
    pub source: PathBuf,
    /// Path below the source, resolved so that no link leads out of it; missing folders are made with the source's mode.
    pub sub_path: Option<String>,
    /// Absolute path inside the container; made when missing.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// Read-only with everything mounted below it.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    /// An empty file with this mode is made at `source` when there is none (termination log).
    pub create_file: Option<u32>,
}

impl Mount {
    /// A private read-write mount of a whole source.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            sub_path: None,
            target: target.into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            create_file: None,
        }
    }
}

/// mountPropagation of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`.
    #[default]
    Private,
    /// `HostToContainer`: sees what is mounted later in the source, see [`crate::mounts::make_shared`].
    Slave,
    Shared,
}

/// Identity and rights.
#[derive(Clone, Debug)]
pub struct Security {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups (image's, supplementalGroups and fsGroup).
    pub groups: Vec<u32>,
    /// In their place the groups that the caller has, which no number leads to in a user namespace.
    pub keep_groups: bool,
    /// For `$HOME` when the environment has none.
    pub home: Option<String>,
    /// Bounding set; uid 0 has all of it effective.
    pub caps: CapSet,
    /// allowPrivilegeEscalation: false.
    pub no_new_privs: bool,
    /// None: unconfined.
    pub seccomp: Option<Arc<Filter>>,
    /// It is in the node's network, and its connections ask first ([`crate::crossing`]): who answers.
    pub crossing: Option<Post>,
    pub read_only_rootfs: bool,
    /// Leave /proc and /sys unmasked (procMount: Unmasked, privileged).
    pub unmasked: bool,
    /// /sys writable (privileged).
    pub writable_sys: bool,
}

impl Default for Security {
    /// uid 0 with the default capabilities of container engines.
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            keep_groups: false,
            home: None,
            caps: CapSet::container_default(),
            no_new_privs: false,
            seccomp: None,
            crossing: None,
            read_only_rootfs: false,
            unmasked: false,
            writable_sys: false,
        }
    }
}

/// One setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// `libc::RLIMIT_*`.
    pub resource: u32,
    /// Soft limit; `u64::MAX`: none.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

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
    /// Whether the container is in another PID namespace than the supervisor ([`PidNamespace`]).
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
    /// As the container's ([`LaunchSpec::identity`]).
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
