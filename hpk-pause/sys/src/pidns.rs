//! PID namespaces of children to come.
//!
//! setns(2) with a PID namespace changes where the calling *thread's next child* is born, not the thread itself. So a process
//! of another namespace is made with one fork, and is still the supervisor's own child, reaped like any other.

use crate::error::LaunchError;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// The supervisor's own PID namespace, to come back to.
#[derive(Debug)]
pub(crate) struct Home(File);

impl Home {
    pub(crate) fn open() -> Result<Self, LaunchError> {
        let file = File::open("/proc/self/ns/pid").map_err(|e| LaunchError::Resources {
            what: "open /proc/self/ns/pid",
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        Ok(Self(file))
    }

    /// Calls `start` while this thread's children are born in the PID namespace of `member`.
    pub(crate) fn child_of<T>(
        &self,
        member: BorrowedFd<'_>,
        start: impl FnOnce() -> Result<T, LaunchError>,
    ) -> Result<T, LaunchError> {
        crate::process::join(member, CloneFlags::CLONE_NEWPID).map_err(|errno| match errno {
            Errno::ESRCH | Errno::EINVAL => LaunchError::NotRunning,
            errno => LaunchError::Resources { what: "join the container's PID namespace", errno },
        })?;
        let started = start();
        // Back to our own, which is always allowed, or every later child would land in the container.
        let back = setns(self.0.as_fd(), CloneFlags::CLONE_NEWPID);
        let started = started.map_err(|error| match error {
            // The kernel's answer for a PID namespace whose init is gone.
            LaunchError::Clone(Errno::ENOMEM) => LaunchError::NotRunning,
            other => other,
        })?;
        back.map_err(|errno| LaunchError::Resources { what: "return to the supervisor's PID namespace", errno })?;
        Ok(started)
    }
}
