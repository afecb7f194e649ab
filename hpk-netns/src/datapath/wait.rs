//! How the thread waits: it sleeps until something comes, and gives memory back when a long rest begins.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Silence after which a long rest begins.
const REST: Duration = Duration::from_secs(30);

/// What is waited for.
pub(super) struct Sources<'a> {
    pub(super) wake: BorrowedFd<'a>,
    pub(super) udp: BorrowedFd<'a>,
    pub(super) tun: Option<BorrowedFd<'a>>,
    pub(super) local: Option<BorrowedFd<'a>>,
    /// True: it waits for room, too.
    pub(super) outward: Option<(BorrowedFd<'a>, bool)>,
}

/// Which sources have something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready {
    pub(super) commands: bool,
    pub(super) udp: bool,
    pub(super) tun: bool,
    pub(super) local: bool,
    pub(super) outward: bool,
}

/// What is remembered from one time to the next.
#[derive(Debug)]
pub(super) struct Wait {
    /// When something came last.
    since: Instant,
    /// The last wait ended by it: its time is told with the next.
    came: bool,
}

impl Wait {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, came: true }
    }

    /// Whether a long rest begins with the next wait: nothing has come for long, and there is nothing to be done by time.
    /// `now`: when the last wait ended.
    pub(super) fn rests(&mut self, now: Instant, timers: bool) -> bool {
        if self.came {
            self.since = now;
        }
        !timers && self.left(now).is_none()
    }

    /// Time until a long rest begins, if nothing comes.
    fn left(&self, now: Instant) -> Option<Duration> {
        REST.checked_sub(now.duration_since(self.since)).filter(|left| !left.is_zero())
    }

    /// Waits until a source is ready or `tick` has passed. Without a `tick` it waits for a source, or for the beginning of a
    /// long rest. Returns None when the system refuses to wait: the thread must end then.
    pub(super) fn wait<'a>(&mut self, sources: &Sources<'a>, now: Instant, tick: Option<Duration>) -> Option<Ready> {
        // A millisecond more: what is due at its end is due then.
        let whole =
            |left: Duration| PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let timeout = tick.or_else(|| self.left(now)).map_or(PollTimeout::NONE, whole);
        let mut fds = vec![PollFd::new(sources.wake, PollFlags::POLLIN), PollFd::new(sources.udp, PollFlags::POLLIN)];
        // A negative descriptor cannot be expressed: absent ones are left out, and their places remembered.
        let mut add = |fd: Option<BorrowedFd<'a>>, flags| {
            fds.push(PollFd::new(fd?, flags));
            Some(fds.len() - 1)
        };
        let tun = add(sources.tun, PollFlags::POLLIN);
        let local = add(sources.local, PollFlags::POLLIN);
        let room = if sources.outward.is_some_and(|(_, full)| full) { PollFlags::POLLOUT } else { PollFlags::empty() };
        let outward = add(sources.outward.map(|(fd, _)| fd), PollFlags::POLLIN | room);
        let mut polled = || poll(&mut fds, timeout);
        let result = if timeout == PollTimeout::NONE { hpk_sys::memory::settle_then(polled) } else { polled() };
        self.came = match result {
            Ok(count) => count > 0,
            Err(Errno::EINTR) => false,
            Err(_) => return None,
        };
        let is = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
        Some(Ready {
            commands: is(0),
            udp: is(1),
            tun: tun.is_some_and(is),
            local: local.is_some_and(is),
            outward: outward.is_some_and(is),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_has_something_is_named_and_time_ends_a_wait() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let [wake, udp, local] = [0, 1, 2].map(|n: usize| pairs[n].0.as_fd());
        let sources = Sources { wake, udp, tun: None, local: Some(local), outward: None };
        let now = Instant::now();
        let mut wait = Wait::new(now);
        let ready = wait.wait(&sources, now, Some(Duration::ZERO)).unwrap();
        assert!(!(ready.commands || ready.udp || ready.tun || ready.local || ready.outward));
        (&pairs[2].1).write_all(b"x").unwrap();
        let ready = wait.wait(&sources, now, None).unwrap();
        assert!(ready.local && !(ready.commands || ready.udp || ready.tun || ready.outward));
        let room = Sources { local: None, outward: Some((local, true)), ..sources };
        assert!(wait.wait(&room, now, None).unwrap().outward);
    }

    #[test]
    fn a_long_rest_begins_when_nothing_came_for_long_and_ends_with_what_comes() {
        let (a, b) = UnixStream::pair().unwrap();
        let sources = Sources { wake: a.as_fd(), udp: a.as_fd(), tun: None, local: None, outward: None };
        let now = Instant::now();
        let mut wait = Wait::new(now);
        assert!(!wait.rests(now, false));
        // A tick that brings nothing leaves the silence as long as it was.
        wait.wait(&sources, now, Some(Duration::ZERO)).unwrap();
        assert!(!wait.rests(now + REST, true), "timers run");
        assert!(wait.rests(now + REST, false));
        (&b).write_all(b"x").unwrap();
        assert!(wait.wait(&sources, now + REST, None).unwrap().udp, "after memory was given back");
        assert!(!wait.rests(now + REST, false));
    }
}
