//! Capabilities and seccomp of the child itself.

use super::below::send;
use super::{Outcome, TAG_LISTENER, check, check_long, close};
use crate::program::SockFilter;
use libc::c_int;

/// `struct __user_cap_header_struct` and data of capset(2), version 3.
#[repr(C)]
pub(super) struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
pub(super) struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[allow(clippy::cast_possible_truncation)]
pub(super) fn set_caps(permitted: u64) -> Outcome {
    const PR_CAP_AMBIENT: c_int = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;
    // SAFETY: plain system call.
    check(unsafe { libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let low = permitted as u32;
    let high = (permitted >> 32) as u32;
    let data = [
        CapData { effective: low, permitted: low, inheritable: 0 },
        CapData { effective: high, permitted: high, inheritable: 0 },
    ];
    // SAFETY: header and two data words, as version 3 wants.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

#[repr(C)]
pub(super) struct SockFprog {
    len: u16,
    filter: *const SockFilter,
}

pub(super) fn seccomp(filter: &[SockFilter]) -> Outcome {
    let program = SockFprog { len: u16::try_from(filter.len()).map_err(|_| libc::E2BIG)?, filter: filter.as_ptr() };
    // SAFETY: the program points to `len` instructions that live across the call.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) })?;
    Ok(())
}

/// Installs a filter whose calls somebody else answers, and sends the parent its descriptor.
pub(super) fn ask(filter: &[SockFilter], report: c_int) -> Outcome {
    let program = SockFprog { len: u16::try_from(filter.len()).map_err(|_| libc::E2BIG)?, filter: filter.as_ptr() };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the program points to `len` instructions that live across the call.
        check_long(unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        })
    };
    // The processor's speculation stays as it is, which kernels before 5.16 would slow down for everything that runs here.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // A call that was taken is not begun anew for each signal (Linux 5.19).
    let listener = match install(flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(libc::EINVAL) => install(flags)?,
        other => other?,
    };
    let sent = send(report, TAG_LISTENER, &[listener]);
    close(listener);
    sent
}
