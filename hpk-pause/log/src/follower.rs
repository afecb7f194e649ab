//! News of a log for its readers.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells a reader that a log has grown or is complete. Poll the descriptor for reading, then
/// [`Follower::acknowledge`], then read the log.
#[derive(Debug)]
pub struct Follower(Arc<FollowerShared>);

#[derive(Debug)]
pub(crate) struct FollowerShared {
    event: EventFd,
    signalled: AtomicBool,
    ended: AtomicBool,
}

impl FollowerShared {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            signalled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    pub(crate) fn grown(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            // A full counter is a signal too.
            let _ = self.event.write(1);
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.grown();
    }
}

impl Follower {
    pub(crate) fn of(shared: Arc<FollowerShared>) -> Self {
        Self(shared)
    }

    /// Resets the signal, before reading.
    pub fn acknowledge(&self) {
        let _ = self.0.event.read();
        self.0.signalled.store(false, Ordering::Release);
    }

    /// Nothing more will be written to the log. Ask before reading: what is read after is then complete.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
