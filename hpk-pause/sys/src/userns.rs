//! User namespaces outside of a pod: programs that run with a user's whole range of subordinate ids, for unpacking images
//! with their owners and deleting files that containers left.
//!
//! ```text
//! parent: clone3(NEWUSER, NEWNS) ─▶ newuidmap, newgidmap (or one id) ─▶ "go" ─▶ wait
//! child:  waits for "go" ─▶ becomes uid 0 ─▶ exec
//! ```

use crate::ids::Ids;
use crate::launch::native::pipe;
use crate::program::{CStrings, OpKind, Program, Step};
use crate::spawn::{self, LaunchError};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Pid, Uid};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use thiserror::Error;

/// A user's ranges in /etc/subuid and /etc/subgid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubIds {
    /// First subordinate user id and how many.
    pub uids: (u32, u32),
    /// First subordinate group id and how many.
    pub gids: (u32, u32),
}

impl SubIds {
    /// Of this user, by name or number; None when either file has no range. The largest range of each counts.
    #[must_use]
    pub fn of(uid: u32, name: Option<&str>) -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Some(Self { uids: largest(&read("/etc/subuid"), uid, name)?, gids: largest(&read("/etc/subgid"), uid, name)? })
    }

    /// Of the calling user; the name is looked up in /etc/passwd and taken from `$USER` otherwise.
    #[must_use]
    pub fn of_self() -> Option<Self> {
        let uid = Uid::current().as_raw();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let matches = fields.get(2)?.parse() == Ok(uid);
            if matches { fields.first().map(|&name| name.to_owned()) } else { None }
        });
        let name = name.or_else(|| std::env::var("USER").ok());
        Self::of(uid, name.as_deref())
    }
}

fn largest(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let who = fields.next()?;
            if who != uid && Some(who) != name {
                return None;
            }
            Some((fields.next()?.parse().ok()?, fields.next()?.parse::<u32>().ok()?))
        })
        .filter(|&(_, count)| count > 0)
        .max_by_key(|&(_, count)| count)
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
        /// Its words.
        message: String,
    },
    /// Writing a map of one id.
    #[error("cannot write {path}: {source}")]
    WriteMap {
        /// File below /proc.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The program itself.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Waiting failed.
    #[error("cannot wait for the program: {}", .0.desc())]
    Wait(Errno),
}

/// A program in a user namespace of its own, as its uid 0, with a mount namespace of its own.
/// Standard input, output and error are the caller's.
#[derive(Debug)]
pub struct UsernsChild {
    pid: Pid,
    pidfd: OwnedFd,
}

impl UsernsChild {
    /// Its id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when it has ended; for signals.
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
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(UsernsError::Wait(errno)),
            }
        }
    }
}

/// Starts `program` with `args` (argv[0] is added) and this process's environment. Inside, uid and gid 0 are the caller, and
/// 1 … are the subordinate ids where the user has a range and newuidmap is installed; else only 0 exists.
/// Blocks until the program executes.
///
/// # Errors
/// See [`UsernsError`].
pub fn spawn(program: &Path, args: &[OsString]) -> Result<UsernsChild, UsernsError> {
    let ids = SubIds::of_self().filter(|_| has_mappers());
    spawn_with(program, args, ids)
}

/// [`spawn`] and wait.
///
/// # Errors
/// See [`UsernsError`].
pub fn run(program: &Path, args: &[OsString]) -> Result<i32, UsernsError> {
    spawn(program, args)?.wait()
}

/// Whether the set-uid helpers are installed.
#[must_use]
pub fn has_mappers() -> bool {
    let in_path = |name: &str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
    };
    in_path("newuidmap") && in_path("newgidmap")
}

fn cstring(text: &std::ffi::OsStr) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes())
        .map_err(|_| LaunchError::Invalid { field: "args", reason: "an argument contains a NUL character".to_owned() })
}

/// As [`spawn`], with these subordinate ids, or with only one id.
///
/// # Errors
/// See [`UsernsError`].
pub fn spawn_with(program: &Path, args: &[OsString], ids: Option<SubIds>) -> Result<UsernsChild, UsernsError> {
    let mut argv = vec![cstring(program.as_os_str())?];
    for arg in args {
        argv.push(cstring(arg)?);
    }
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        let mut entry = name;
        entry.push("=");
        entry.push(value);
        env.push(cstring(&entry)?);
    }
    let (go_read, go_write) = pipe()?;
    let mut steps = Program::default();
    steps.push(Step::Process, "signals", OpKind::ResetSignals);
    steps.push(
        Step::Namespaces,
        "wait for id maps",
        OpKind::WaitGo { fd: go_read.as_raw_fd(), other: go_write.as_raw_fd() },
    );
    if ids.is_some() {
        steps.push(Step::Identity, "groups", OpKind::SetGroups(Vec::new()));
    }
    steps.push(Step::Identity, "gid 0", OpKind::SetGid(0));
    steps.push(Step::Identity, "uid 0", OpKind::SetUid(0));
    let candidates = vec![cstring(program.as_os_str())?];
    let exec = OpKind::Exec { candidates, argv: CStrings::new(argv), envp: CStrings::new(env) };
    steps.push(Step::Exec, program.to_string_lossy(), exec);
    let starting = spawn::start_in_userns(steps, vec![go_read]).map_err(|error| match error {
        LaunchError::Clone(errno) => UsernsError::Refused(errno),
        other => UsernsError::Launch(other),
    })?;
    let pid = starting.pid();
    let mapped = match ids {
        Some(ids) => map_range(pid, ids),
        None => map_one(pid),
    };
    if let Err(error) = mapped {
        // Closing our end without a word ends the child.
        drop(go_write);
        let child = UsernsChild { pid, pidfd: starting.into_pidfd() };
        let _ = child.wait();
        return Err(error);
    }
    nix::unistd::write(&go_write, b"g").map_err(|errno| LaunchError::Resources { what: "start the program", errno })?;
    drop(go_write);
    match starting.wait_exec() {
        Ok(pidfd) => Ok(UsernsChild { pid, pidfd }),
        Err((error, pidfd)) => {
            let _ = UsernsChild { pid, pidfd }.wait();
            Err(error.into())
        }
    }
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

fn map_range(pid: Pid, ids: SubIds) -> Result<(), UsernsError> {
    mapper("newuidmap", pid, Uid::current().as_raw(), ids.uids)?;
    mapper("newgidmap", pid, Gid::current().as_raw(), ids.gids)
}

fn mapper(program: &'static str, pid: Pid, own: u32, (first, count): (u32, u32)) -> Result<(), UsernsError> {
    let args =
        [pid.to_string(), "0".into(), own.to_string(), "1".into(), "1".into(), first.to_string(), count.to_string()];
    let failed = |message| UsernsError::Map { program, message };
    let output = Command::new(program).args(args).output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_counts() {
        let text = "root:1:5\nalice:100000:65536\n1000:200000:70000\nbob:300000:99999\nalice:bad:1\n";
        assert_eq!(largest(text, 1000, Some("alice")), Some((200_000, 70_000)));
        assert_eq!(largest(text, 1001, Some("bob")), Some((300_000, 99_999)));
        assert_eq!(largest(text, 1002, Some("carol")), None);
    }
}
