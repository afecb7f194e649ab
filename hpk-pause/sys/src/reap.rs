//! Waiting for children: the only module that waits.
//!
//! As PID 1 the supervisor inherits every orphan of its PID namespace; its own children and the orphans come out of the same
//! call. Telling them apart is the caller's: it knows the ids that it started.

use nix::errno::Errno;
use nix::unistd::Pid;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// exit(n), 0–255.
    Exited(i32),
    /// Killed by a signal.
    Signaled {
        /// Signal number.
        signal: i32,
        /// It left a core file.
        core: bool,
    },
}

impl ExitCause {
    /// Exit code as container runtimes report it: 128+n for a signal.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled { signal, .. } => 128 + signal,
        }
    }
}

/// A process that has ended and is gone from the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Id in our PID namespace; free for reuse from now on.
    pub pid: Pid,
    /// How it ended.
    pub cause: ExitCause,
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// One more child ended; there may be others.
    Reaped(Reaped),
    /// Children run, none has ended.
    NoneEnded,
    /// There is no child at all.
    NoChildren,
}

/// Reaps children, one system call each. Ids that a poll returned are free at once, so signals go by pidfd.
#[derive(Debug, Default)]
pub struct Reaper {
    _private: (),
}

impl Reaper {
    /// The caller promises that nothing else in the program waits for any child.
    #[must_use]
    pub const fn new() -> Self {
        Self { _private: () }
    }

    /// Reaps at most one child and never blocks. Call it until it returns something else than [`Poll::Reaped`]:
    /// SIGCHLD does not count.
    pub fn poll(&mut self) -> Poll {
        let mut status = 0;
        loop {
            // __WALL: also children that were cloned with another end signal than SIGCHLD.
            // SAFETY: the status lives across the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            return match pid {
                0 => Poll::NoneEnded,
                pid if pid > 0 => match cause(status) {
                    Some(cause) => Poll::Reaped(Reaped { pid: Pid::from_raw(pid), cause }),
                    // Stops are not asked for; a traced child may still report one.
                    None => continue,
                },
                _ if Errno::last() == Errno::EINTR => continue,
                _ => Poll::NoChildren,
            };
        }
    }
}

fn cause(status: i32) -> Option<ExitCause> {
    if libc::WIFEXITED(status) {
        Some(ExitCause::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Some(ExitCause::Signaled { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) })
    } else {
        None
    }
}

/// Makes orphans of descendants come to this process where it is not PID 1 of its namespace (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// As prctl(2).
pub fn become_subreaper() -> Result<(), Errno> {
    // SAFETY: plain system call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_status_words() {
        assert_eq!(cause(0), Some(ExitCause::Exited(0)));
        assert_eq!(cause(7 << 8), Some(ExitCause::Exited(7)));
        assert_eq!(cause(9), Some(ExitCause::Signaled { signal: 9, core: false }));
        assert_eq!(cause(11 | 0x80), Some(ExitCause::Signaled { signal: 11, core: true }));
        assert_eq!(cause(0x137f), None);
        assert_eq!(ExitCause::Signaled { signal: 15, core: false }.code(), 143);
    }
}
