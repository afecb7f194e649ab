//! Terminals. A container's or session's terminal is opened by its own child in the container's devpts, so that `tty` and
//! `ttyname` work there; the supervisor holds the master.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets the window size; the foreground process group gets SIGWINCH.
///
/// # Errors
/// As ioctl(2).
pub fn resize(master: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct lives across the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The window size as (rows, columns).
///
/// # Errors
/// As ioctl(2).
pub fn size(master: BorrowedFd<'_>) -> Result<(u16, u16), Errno> {
    // SAFETY: all-zero is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}
