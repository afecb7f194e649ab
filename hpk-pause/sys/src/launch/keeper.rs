//! The keeper of a container whose commands come from elsewhere: it holds the namespaces that they join.

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use std::fs::File;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileTypeExt;

/// First argument of the program that is to call [`keep`].
pub const KEEP: &str = "keep";

/// The keeper's whole life. Orphans of the container come to it where it is PID 1 of their namespace, and need no wait.
/// It ends, and with it that namespace, when its standard input ends: a pipe by its last writer, a file by the last lock
/// that somebody else has on it.
///
/// # Errors
/// As sigaction(2) or flock(2).
pub fn keep() -> Result<(), Errno> {
    // SAFETY: SIG_IGN runs no code.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    // SAFETY: standard input is open, and stays so: it is never dropped.
    let mut input = ManuallyDrop::new(unsafe { File::from_raw_fd(0) });
    if input.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
        let mut buffer = [0; 64];
        while input.read(&mut buffer).is_ok_and(|n| n > 0) {}
        return Ok(());
    }
    loop {
        // SAFETY: plain system call.
        match Errno::result(unsafe { libc::flock(input.as_raw_fd(), libc::LOCK_EX) }) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}
