//! A terminal of the container's own devpts, made by the child and sent to its parent.

use super::mounts::{attach, open_tree};
use super::{MESSAGE, Outcome, TAG_TERMINAL, check, close, errno, open};
use libc::c_int;

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
    send_terminal(report, master)?;
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
    let tree = open_tree(slave, c"", false, libc::AT_EMPTY_PATH)?;
    attach(tree, c"/dev/console", true)
}

pub(super) fn send_terminal(report: c_int, master: c_int) -> Outcome {
    let mut message = [0u8; MESSAGE];
    message[0..4].copy_from_slice(&TAG_TERMINAL.to_ne_bytes());
    let mut iov = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE };
    // Room for one descriptor, aligned as cmsghdr wants it.
    let mut control = [0u64; 4];
    // SAFETY: all-zero is a valid msghdr; the control buffer is large enough for one descriptor (CMSG_SPACE(4) = 24).
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if cmsg.is_null() {
            return Err(libc::EINVAL);
        }
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(cmsg).cast::<c_int>().write_unaligned(master);
        if libc::sendmsg(report, &raw const header, libc::MSG_NOSIGNAL) < 0 {
            return Err(errno());
        }
    }
    Ok(())
}
