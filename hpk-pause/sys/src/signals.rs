//! Sending signals: to one process by a hold on it, to a session's process group, to everything in a container.

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::fs::MetadataExt;

pub use crate::process::send;

/// Kills a whole process group: every process of a probe, hook or exec session that has not made a session of its own.
/// Only before its leader is reaped, or the id may be another's.
///
/// # Errors
/// ESRCH when there is none.
pub fn kill_group(leader: Pid, signal: Signal) -> Result<(), Errno> {
    killpg(leader, signal)
}

/// Identity of a mount namespace. A container's processes are those in its mount namespace, whatever sessions or
/// process groups they made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MountNs(u64);

impl MountNs {
    /// Of a process; take it right after the launch.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: Pid) -> Result<Self, Errno> {
        namespace(pid.as_raw())
    }

    /// By its inode, of 32 bits as all of the kernel's namespaces have (`ns_common.inum`).
    pub(crate) fn numbered(inode: u32) -> Self {
        Self(u64::from(inode))
    }
}

fn namespace(pid: i32) -> Result<MountNs, Errno> {
    std::fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .map(|meta| MountNs(meta.ino()))
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::ESRCH)))
}

/// Processes in this mount namespace, as seen in /proc. Empty for the caller's own namespace, so that a mistake cannot end the
/// supervisor.
#[must_use]
pub fn members(ns: MountNs) -> Vec<Pid> {
    if namespace(i32::try_from(std::process::id()).unwrap_or(0)) == Ok(ns) {
        return Vec::new();
    }
    pids().filter(|pid| namespace(pid.as_raw()) == Ok(ns)).collect()
}

/// The numbers in /proc.
pub(crate) fn pids() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}

/// Rounds of [`kill_all`]: each kills what the round before let fork.
const ROUNDS: usize = 16;

/// Kills everything in a container that shares the pod's PID namespace. (Where it has its own, the death of its main process
/// does this.) Returns how many processes were signalled; a fork bomb can outrun it, then call it again.
#[must_use]
pub fn kill_all(ns: MountNs) -> usize {
    let mut killed = std::collections::HashSet::new();
    for _ in 0..ROUNDS {
        let found = members(ns);
        let before = killed.len();
        for pid in found {
            if nix::sys::signal::kill(pid, Signal::SIGKILL).is_ok() {
                killed.insert(pid);
            }
        }
        if killed.len() == before {
            break;
        }
    }
    killed.len()
}

/// SIGPIPE must not end the supervisor, whatever its starter left it; Rust's runtime already ignores it. Other dispositions stay.
///
/// # Errors
/// As sigaction(2).
pub fn ignore_sigpipe() -> Result<(), Errno> {
    // SAFETY: SIG_IGN runs no code.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn) }.map(drop)
}

/// Signals that this process ignores, which its children inherit (bit 0: signal 1). All where /proc does not tell.
#[must_use]
pub(crate) fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
}
