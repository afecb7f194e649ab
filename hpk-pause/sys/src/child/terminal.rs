//! A terminal of the container's own devpts, made by the child and sent to its parent.

use super::below::send;
use super::mounts::{attach, open_tree};
use super::paths::{PathBuffer, make_file};
use super::staged::bind;
use super::{Outcome, TAG_TERMINAL, check, close, open};
use libc::c_int;
use std::ffi::CStr;

const CONSOLE: &CStr = c"/dev/console";

pub(super) fn terminal(owner: (u32, u32), console: bool, rows: u16, cols: u16, report: c_int) -> Outcome {
    let master = open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC, 0)?;
    let unlock: c_int = 0;
    // SAFETY: the ioctls take a pointer to an int, none, and a winsize, which live across the calls.
    let slave = unsafe {
        check(libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlock))?;
        check(libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC))?
    };
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: as above; TIOCSCTTY takes an int.
    unsafe {
        if rows > 0 && cols > 0 {
            check(libc::ioctl(slave, libc::TIOCSWINSZ, &raw const size))?;
        }
        libc::fchown(slave, owner.0, owner.1);
        libc::fchmod(slave, 0o620);
        check(libc::ioctl(slave, libc::TIOCSCTTY, 0))?;
    }
    if console {
        bind_console(slave)?;
    }
    send(report, TAG_TERMINAL, &[master])?;
    for target in 0..3 {
        // SAFETY: plain system call.
        check(unsafe { libc::dup2(slave, target) })?;
    }
    close(master);
    close(slave);
    Ok(())
}

/// /dev/console is the terminal, as container engines have it.
pub(super) fn bind_console(slave: c_int) -> Outcome {
    match open_tree(slave, c"", false, libc::AT_EMPTY_PATH) {
        Err(libc::ENOSYS | libc::EPERM) => {
            let _ = make_file(&PathBuffer::new(CONSOLE.to_bytes())?);
            bind(slave, CONSOLE, 0)
        }
        tree => attach(tree?, CONSOLE, true),
    }
}
