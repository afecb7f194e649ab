//! The standard streams of a rank's process.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long srun may take for the last of it.
const FLUSH: Duration = Duration::from_secs(30);

pub(super) fn non_blocking(fd: BorrowedFd<'_>) {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).unwrap_or(OFlag::empty());
    let _ = fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
}

/// Writes to srun all of it, for as long as srun takes some.
pub(super) fn write_all(mut bytes: &[u8]) {
    let until = Instant::now() + FLUSH;
    while !bytes.is_empty() && Instant::now() < until {
        match nix::unistd::write(io::stdout(), bytes) {
            Ok(0) => return,
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let stdout = io::stdout();
                let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::from(1000u16));
            }
            Err(_) => return,
        }
    }
}

/// Whether a number is an open descriptor.
pub(super) fn is_open(fd: i32) -> bool {
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}
