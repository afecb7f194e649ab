//! User namespaces outside of a pod: programs that run with a user's whole range of subordinate ids, for unpacking images
//! with their owners, deleting files that containers left, and a pod's parent container.
//!
//! ```text
//! parent: clone3(NEWUSER, …) ─▶ newuidmap and newgidmap, side by side (or one id) ─▶ "go" ─▶ wait
//! child:  waits for "go" ─▶ becomes uid 0 ─▶ exec
//! ```

use crate::error::LaunchError;
use crate::ids::Ids;
use crate::launch::pipes::pipe;
use crate::process::has_pidfds;
use crate::program::{CStrings, OpKind, Program, Step};
use crate::spawn::{self, Namespaces};
use hpk_api::subids;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Pid, Uid};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use thiserror::Error;

pub use hpk_api::subids::SubIds;

/// The caller's subordinate ids; None when it has none. Its name is looked up in /etc/passwd and taken from `$USER`
/// otherwise.
#[must_use]
pub fn own_subids() -> Option<SubIds> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uid = Uid::current().as_raw();
    let name = subids::name_of(&read("/etc/passwd"), uid).or_else(|| std::env::var("USER").ok());
    SubIds::choose(&read("/etc/subuid"), &read("/etc/subgid"), uid, name.as_deref())
}

/// Why a program could not be run in a user namespace.
#[derive(Debug, Error)]
pub enum UsernsError {
    /// The kernel refuses user namespaces.
    #[error(
        "cannot create a user namespace: {}; the site must allow unprivileged user namespaces \
         (user.max_user_namespaces, kernel.unprivileged_userns_clone)",
        .0.desc()
    )]
    Refused(Errno),
    /// newuidmap or newgidmap failed.
    #[error("{program} failed: {message}; check /etc/subuid and /etc/subgid")]
    Map {
        /// newuidmap or newgidmap.
        program: &'static str,
        message: String,
    },
    /// Writing a map of one id.
    #[error("cannot write {path}: {source}")]
    WriteMap {
        /// File below /proc.
        path: String,
        source: io::Error,
    },
    /// The program itself.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Waiting failed.
    #[error("cannot wait for the program: {}", .0.desc())]
    Wait(Errno),
}

/// Whose ids a program runs with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Users {
    /// The caller's: no user namespace.
    #[default]
    Callers,
    /// Uid and gid 0 are the caller, there are no others.
    One,
    /// Uid and gid 0 are the caller, 1 … the subordinate ids.
    Range(SubIds),
}

impl Users {
    /// The most that the calling user can have: a range where there is one and newuidmap is installed.
    #[must_use]
    pub fn most() -> Self {
        own_subids().filter(|_| has_mappers()).map_or(Self::One, Self::Range)
    }
}

/// What a program starts in. The default is what the caller has.
#[derive(Debug, Default)]
pub struct Surroundings<'a> {
    /// User namespace.
    pub users: Users,
    /// A mount namespace of its own.
    pub mounts: bool,
    /// A network namespace of its own.
    pub network: bool,
    /// The network namespace's owner is a user namespace below the new one, with the same ids ([`crate::below`]).
    pub network_below: bool,
    /// In that namespace below the caller's own uid and gid have these numbers; None: 0.
    pub own_below: Option<(u32, u32)>,
    /// A host name of its own.
    pub host_name: bool,
    /// System V IPC and message queues of its own.
    pub ipc: bool,
    /// The whole environment.
    pub env: Option<&'a [(OsString, OsString)]>,
    /// Working directory.
    pub folder: Option<&'a Path>,
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// A program that [`start`] started.
#[derive(Debug)]
pub struct UsernsChild {
    pid: Pid,
    pidfd: OwnedFd,
}

impl UsernsChild {
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// For signals.
    #[must_use]
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for its end: exit code, or 128 + signal. Blocks.
    ///
    /// # Errors
    /// When something else has waited for it.
    pub fn wait(self) -> Result<i32, UsernsError> {
        loop {
            if let Some(code) = self.ended(WaitPidFlag::WEXITED)? {
                return Ok(code);
            }
        }
    }

    /// As [`UsernsChild::wait`], without blocking: None while it runs. To be called when SIGCHLD came.
    ///
    /// # Errors
    /// When something else has waited for it, or it had been seen to end before.
    pub fn try_wait(&self) -> Result<Option<i32>, UsernsError> {
        self.ended(WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
    }

    fn ended(&self, flags: WaitPidFlag) -> Result<Option<i32>, UsernsError> {
        // By its number where there is no other way: nobody else may wait for it, so the number is its own until then.
        let id = if has_pidfds() { Id::PIDFd(self.pidfd.as_fd()) } else { Id::Pid(self.pid) };
        match waitid(id, flags) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(128 + signal as i32)),
            Ok(_) | Err(Errno::EINTR) => Ok(None),
            Err(errno) => Err(UsernsError::Wait(errno)),
        }
    }
}

/// Runs `program` with `args` (argv[0] is added) to its end, with the most ids that the user can have and mounts of its own.
/// Its exit code, or 128 + signal. Blocks.
///
/// # Errors
/// See [`UsernsError`].
pub fn run(program: &Path, args: &[OsString]) -> Result<i32, UsernsError> {
    start(program, args, Surroundings { users: Users::most(), mounts: true, ..Surroundings::default() })?.wait()
}

/// Whether the set-uid helpers are installed.
#[must_use]
pub fn has_mappers() -> bool {
    let in_path = |name: &str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
    };
    in_path("newuidmap") && in_path("newgidmap")
}

fn cstring(text: &OsStr) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes())
        .map_err(|_| LaunchError::Invalid { field: "args", reason: "an argument contains a NUL character".to_owned() })
}

/// Starts `program` with `args` (argv[0] is added). Blocks until the program executes.
///
/// # Errors
/// See [`UsernsError`].
pub fn start(program: &Path, args: &[OsString], around: Surroundings<'_>) -> Result<UsernsChild, UsernsError> {
    begin(program, args, around)?.finish()
}

/// A program in its namespaces, whose ids are on their way. Dropped, it ends without having been executed.
pub struct Begun {
    starting: spawn::Starting,
    go: OwnedFd,
    ids: Giver,
}

/// Who gives the ids of a [`Begun`].
enum Giver {
    /// Nobody needs to.
    Given,
    /// Still to be written.
    One,
    /// The helpers, at work.
    Mappers(Result<Mapper, UsernsError>, Result<Mapper, UsernsError>),
}

/// As [`start`], in two halves: makes the child and its namespaces and sets the helpers to work, which takes them a few
/// milliseconds. Does not wait for them: the caller has other things to do meanwhile, then calls [`Begun::finish`].
///
/// # Errors
/// See [`UsernsError`].
pub fn begin(program: &Path, args: &[OsString], around: Surroundings<'_>) -> Result<Begun, UsernsError> {
    let (go_read, go_write) = pipe()?;
    let steps = steps(program, args, &around, (go_read.as_raw_fd(), go_write.as_raw_fd()))?;
    let namespaces = Namespaces {
        mount: around.mounts,
        user: around.users != Users::Callers,
        network: around.network && !around.network_below,
        host_name: around.host_name,
        ipc: around.ipc,
        pid: false,
    };
    let starting = spawn::start(steps, namespaces, None, vec![go_read]).map_err(|error| match error {
        LaunchError::Clone(errno) => UsernsError::Refused(errno),
        other => UsernsError::Launch(other),
    })?;
    let pid = starting.pid();
    let ids = match around.users {
        Users::Callers => Giver::Given,
        Users::One => Giver::One,
        // Side by side: each takes a millisecond or two of a pod's start.
        Users::Range(ids) => Giver::Mappers(
            Mapper::start("newuidmap", pid, Uid::current().as_raw(), ids.uids),
            Mapper::start("newgidmap", pid, Gid::current().as_raw(), ids.gids),
        ),
    };
    Ok(Begun { starting, go: go_write, ids })
}

impl Begun {
    /// Waits for the ids, lets the program go and blocks until it executes.
    ///
    /// # Errors
    /// See [`UsernsError`].
    pub fn finish(self) -> Result<UsernsChild, UsernsError> {
        let Self { starting, go, ids } = self;
        let pid = starting.pid();
        let mapped = match ids {
            Giver::Given => Ok(()),
            Giver::One => map_one(pid),
            // Both are waited for, whatever became of the first.
            Giver::Mappers(uids, gids) => {
                let (uids, gids) = (uids.and_then(Mapper::finish), gids.and_then(Mapper::finish));
                uids.and(gids)
            }
        };
        if let Err(error) = mapped {
            // Closing our end without a word ends the child.
            drop(go);
            let child = UsernsChild { pid, pidfd: starting.into_pidfd() };
            let _ = child.wait();
            return Err(error);
        }
        nix::unistd::write(&go, b"g").map_err(|errno| LaunchError::Resources { what: "start the program", errno })?;
        drop(go);
        match starting.wait_exec() {
            Ok(pidfd) => Ok(UsernsChild { pid, pidfd }),
            Err((error, pidfd)) => {
                let _ = UsernsChild { pid, pidfd }.wait();
                Err(error.into())
            }
        }
    }
}

/// What the child does: `go` is the pipe that tells it that its ids are there.
fn steps(
    program: &Path,
    args: &[OsString],
    around: &Surroundings<'_>,
    go: (RawFd, RawFd),
) -> Result<Program, LaunchError> {
    let mut steps = Program::default();
    steps.push(Step::Process, "signals", OpKind::ResetSignals { ignored: u64::MAX });
    steps.push(Step::Namespaces, "wait for id maps", OpKind::WaitGo { fd: go.0, other: go.1 });
    if around.users != Users::Callers {
        steps.push(Step::Identity, "gid 0", OpKind::SetGid(0));
        steps.push(Step::Identity, "uid 0", OpKind::SetUid(0));
    }
    if around.network && around.network_below {
        let ids = match around.users {
            Users::Callers | Users::One => Ids::of_user(0, 0),
            Users::Range(ids) => Ids::of_user(ids.uids.1, ids.gids.1),
        };
        let (uid_map, gid_map) = around.own_below.map_or_else(|| ids.same(), |own| ids.with_own(own).0);
        let kind = OpKind::NetworkBelow { uid_map: uid_map.into_bytes(), gid_map: gid_map.into_bytes() };
        steps.push(Step::Namespaces, "the pod's network", kind);
    }
    for (fd, to, name) in [(&around.stdin, 0, "standard input"), (&around.stderr, 2, "standard error")] {
        if let Some(fd) = fd {
            steps.push(Step::Stdio, name, OpKind::Dup { from: fd.as_raw_fd(), to, owner: None });
        }
    }
    if let Some(folder) = around.folder {
        let path = cstring(folder.as_os_str())?;
        steps.push(Step::WorkingDir, folder.to_string_lossy(), OpKind::Chdir { path });
    }
    let argv = std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str));
    let argv = argv.map(cstring).collect::<Result<_, _>>()?;
    let entry = |(name, value): (&OsStr, &OsStr)| {
        let mut entry = name.to_owned();
        entry.push("=");
        entry.push(value);
        cstring(&entry)
    };
    let env = match around.env {
        Some(env) => env.iter().map(|(n, v)| entry((n, v))).collect::<Result<_, _>>()?,
        None => std::env::vars_os().map(|(n, v)| entry((&n, &v))).collect::<Result<_, _>>()?,
    };
    let candidates = vec![cstring(program.as_os_str())?];
    let exec = OpKind::Exec { candidates, argv: CStrings::new(argv), envp: CStrings::new(env) };
    steps.push(Step::Exec, program.to_string_lossy(), exec);
    Ok(steps)
}

fn map_one(pid: Pid) -> Result<(), UsernsError> {
    let write = |name: &str, text: String| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, text).map_err(|source| UsernsError::WriteMap { path, source })
    };
    write("uid_map", format!("0 {} 1\n", Uid::current()))?;
    write("setgroups", "deny".to_owned())?;
    write("gid_map", format!("0 {} 1\n", Gid::current()))
}

/// One of the set-uid helpers at work.
struct Mapper {
    program: &'static str,
    child: Child,
}

impl Mapper {
    fn start(program: &'static str, pid: Pid, own: u32, (first, count): (u32, u32)) -> Result<Self, UsernsError> {
        let numbers = [0, own, 1, 1, first, count].map(|n| n.to_string());
        let mut command = Command::new(program);
        command.arg(pid.to_string()).args(numbers).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|e| UsernsError::Map { program, message: e.to_string() })?;
        Ok(Self { program, child })
    }

    fn finish(self) -> Result<(), UsernsError> {
        let failed = |message| UsernsError::Map { program: self.program, message };
        let output = self.child.wait_with_output().map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Whether the calling process is already uid 0 of a namespace with more ids than one.
#[must_use]
pub fn inside() -> bool {
    Uid::current().is_root() && Ids::of_self().is_ok_and(|ids| ids.uids.count() > 1)
}

/// Deletes a tree with files of subordinate ids, by `rm -rf` in a user namespace where needed. Missing is fine.
///
/// # Errors
/// When the namespace cannot be made; the exit code of rm otherwise.
pub fn remove_tree(path: &Path) -> Result<i32, UsernsError> {
    if !path.exists() || std::fs::remove_dir_all(path).is_ok() {
        return Ok(0);
    }
    run(Path::new("/bin/rm"), &["-rf".into(), "--".into(), path.as_os_str().to_owned()])
}
