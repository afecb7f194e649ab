//! Who answers for whom: the descriptors of filters come here from wherever a process was started, and one thread or loop
//! waits for all of them.

use super::Crossing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

/// Takes descriptors of filters; clones lead to the same [`Desk`].
#[derive(Clone, Debug)]
pub struct Post {
    listeners: mpsc::Sender<OwnedFd>,
    wake: Arc<EventFd>,
}

impl Post {
    pub(crate) fn send(&self, listener: OwnedFd) {
        // Without a desk it is closed, and the calls of its processes fail as unknown ones (ENOSYS).
        if self.listeners.send(listener).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// All filters that are answered for.
#[derive(Debug)]
pub struct Desk {
    come: mpsc::Receiver<OwnedFd>,
    wake: Arc<EventFd>,
    listeners: Vec<OwnedFd>,
    crossing: Crossing,
}

impl Desk {
    /// A desk without filters, and the way to it.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn new(crossing: Crossing) -> io::Result<(Self, Post)> {
        let (listeners, come) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let post = Post { listeners, wake: Arc::clone(&wake) };
        Ok((Self { come, wake, listeners: Vec::new(), crossing }, post))
    }

    /// What a loop of somebody else's waits for, readable; then [`Self::work`] is due.
    pub fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.wake.as_fd()).chain(self.listeners.iter().map(AsFd::as_fd))
    }

    /// Answers one call of each filter that has one, and forgets filters whose processes have all ended.
    pub fn work(&mut self) {
        let _ = self.wake.read();
        self.listeners.extend(self.come.try_iter());
        let events = self.ready(PollTimeout::ZERO);
        self.serve(events);
    }

    /// Answers for as long as the process lives. For a thread of its own.
    pub fn run(mut self) {
        loop {
            let events = self.ready(PollTimeout::NONE);
            let _ = self.wake.read();
            self.serve(events);
            self.listeners.extend(self.come.try_iter());
        }
    }

    /// What is there of each listener.
    fn ready(&self, timeout: PollTimeout) -> Vec<PollFlags> {
        let mut fds: Vec<PollFd<'_>> = self.watched().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, timeout) {
            Ok(_) => fds.iter().skip(1).map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn serve(&mut self, events: Vec<PollFlags>) {
        let mut events = events.into_iter();
        let crossing = &mut self.crossing;
        self.listeners.retain(|listener| {
            let event = events.next().unwrap_or(PollFlags::empty());
            if event.contains(PollFlags::POLLIN) {
                return crossing.serve(listener.as_fd()) != Err(Errno::EBADF);
            }
            !event.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
        });
    }
}
