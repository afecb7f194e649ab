//! What is read of a process that waits for an answer: an address in its memory, its socket.
//!
//! All of it may be another process's when the caller has died in between: `notify::waits` says so afterwards.

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Longest address of the families that matter (`struct sockaddr_in6`), bytes.
const LONGEST: usize = 28;

/// An address in the caller's memory. `length` is its own word.
pub(super) fn address(tid: libc::pid_t, at: u64, length: u64) -> Result<Vec<u8>, Errno> {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(LONGEST);
    let mut bytes = vec![0; length];
    let base = usize::try_from(at).map_err(|_| Errno::EFAULT)?;
    let read = {
        let mut local = [IoSliceMut::new(&mut bytes)];
        process_vm_readv(Pid::from_raw(tid), &mut local, &[RemoteIoVec { base, len: length }])?
    };
    bytes.truncate(read);
    Ok(bytes)
}

/// The caller's own socket.
pub(super) fn descriptor(tid: libc::pid_t, number: RawFd) -> Result<OwnedFd, Errno> {
    let process = process(tid)?;
    // SAFETY: plain system call.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
    owned(fd)
}

fn process(tid: libc::pid_t) -> Result<OwnedFd, Errno> {
    // A thread's own table of descriptors (PIDFD_THREAD, Linux 6.9), or its process's, which nearly always is the same.
    match open(tid, libc::O_EXCL) {
        Err(Errno::EINVAL) => open(leader(tid).ok_or(Errno::ESRCH)?, 0),
        other => other,
    }
}

fn open(pid: libc::pid_t, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: plain system call.
    owned(Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?) })
}

fn leader(tid: libc::pid_t) -> Option<libc::pid_t> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Whether a descriptor of the caller's closes at exec.
pub(super) fn closes_at_exec(tid: libc::pid_t, number: RawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| libc::c_int::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}
