//! seccomp's user notification: the calls on its descriptor.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

// The kernel's numbers are of the sizes of what they take.
nix::ioctl_readwrite!(notif_recv, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(notif_send, b'!', 1, libc::seccomp_notif_resp);
nix::ioctl_write_ptr!(notif_id_valid, b'!', 2, u64);
nix::ioctl_write_ptr!(notif_addfd, b'!', 3, libc::seccomp_notif_addfd);

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) id: u64,
    /// The calling thread, in the reader's PID namespace; 0: it is not in there.
    pub(super) tid: libc::pid_t,
    pub(super) number: libc::c_long,
    pub(super) arguments: [u64; 6],
}

/// Takes the next call.
///
/// # Errors
/// ENOENT: the caller has gone.
pub(super) fn receive(listener: BorrowedFd<'_>) -> Result<Call, Errno> {
    // SAFETY: all-zero is a valid notification, and what the kernel wants to be given.
    let mut found: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the struct has the size that the call's number says and lives across the call.
    unsafe { notif_recv(listener.as_raw_fd(), &raw mut found) }?;
    let tid = libc::pid_t::try_from(found.pid).unwrap_or(0);
    Ok(Call { id: found.id, tid, number: found.data.nr.into(), arguments: found.data.args })
}

/// Whether the caller still waits: what was read of its process since is its own then.
pub(super) fn waits(listener: BorrowedFd<'_>, call: &Call) -> bool {
    // SAFETY: the number lives across the call.
    unsafe { notif_id_valid(listener.as_raw_fd(), &raw const call.id) }.is_ok()
}

/// Puts a descriptor in the place of one of the caller's.
///
/// # Errors
/// ENOENT: the caller has gone.
pub(super) fn replace(
    listener: BorrowedFd<'_>,
    call: &Call,
    new: BorrowedFd<'_>,
    number: u32,
    close_at_exec: bool,
) -> Result<(), Errno> {
    let add = libc::seccomp_notif_addfd {
        id: call.id,
        flags: 1, // SECCOMP_ADDFD_FLAG_SETFD
        srcfd: u32::try_from(new.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        newfd: number,
        newfd_flags: if close_at_exec { u32::try_from(libc::O_CLOEXEC).unwrap_or(0) } else { 0 },
    };
    // SAFETY: the struct has the size that the call's number says and lives across the call.
    unsafe { notif_addfd(listener.as_raw_fd(), &raw const add) }?;
    Ok(())
}

/// Lets the call go on in the kernel, or fail with this number.
///
/// # Errors
/// ENOENT: the caller has gone.
pub(super) fn answer(listener: BorrowedFd<'_>, call: &Call, fail: Option<Errno>) -> Result<(), Errno> {
    let mut answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: fail.map_or(0, |errno| -(errno as i32)),
        flags: if fail.is_none() { 1 } else { 0 }, // SECCOMP_USER_NOTIF_FLAG_CONTINUE
    };
    // SAFETY: the struct has the size that the call's number says and lives across the call.
    unsafe { notif_send(listener.as_raw_fd(), &raw mut answer) }?;
    Ok(())
}
