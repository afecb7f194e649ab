//! One poll of a process that has one thread: what it waits for is chosen anew each time.

use hpk_sys::crossing::Desk;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// Descriptors that are waited for. Each has a number.
#[derive(Default)]
pub(super) struct Watch<'fd>(Vec<PollFd<'fd>>);

impl<'fd> Watch<'fd> {
    /// Waits until there is something to read.
    pub(super) fn input(&mut self, fd: BorrowedFd<'fd>) -> usize {
        self.add(fd, PollFlags::POLLIN)
    }

    /// Waits until there is room to write.
    pub(super) fn room(&mut self, fd: BorrowedFd<'fd>) -> usize {
        self.add(fd, PollFlags::POLLOUT)
    }

    /// Waits for connections that ask.
    pub(super) fn desk(&mut self, desk: Option<&'fd Desk>) -> Vec<usize> {
        desk.into_iter().flat_map(Desk::watched).map(|fd| self.input(fd)).collect()
    }

    fn add(&mut self, fd: BorrowedFd<'fd>, flags: PollFlags) -> usize {
        self.0.push(PollFd::new(fd, flags));
        self.0.len() - 1
    }

    /// Until one is ready, a signal comes, or this time has come. None: there is nothing to wait for.
    pub(super) fn wait(mut self, until: Option<Instant>) -> Option<Watched> {
        let timeout = until.map_or(PollTimeout::NONE, |at| {
            PollTimeout::try_from(at.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO)
        });
        match poll(&mut self.0, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        Some(Watched(self.0.iter().map(|fd| fd.any().unwrap_or(false)).collect()))
    }
}

/// Which of them are ready.
pub(super) struct Watched(Vec<bool>);

impl Watched {
    pub(super) fn is_ready(&self, number: usize) -> bool {
        self.0.get(number).copied().unwrap_or(false)
    }
}
