//! How the thread waits: it sleeps until something comes, and gives memory back when a long rest begins.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::time::Duration;

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
#[derive(Debug, Default)]
pub(super) struct Wait {
    /// Memory was given back, and nothing came since.
    settled: bool,
}

impl Wait {
    /// Until something comes, or `tick` is over: None where there is nothing to be done by time. None: no more waiting.
    pub(super) fn wait<'a>(&mut self, sources: &Sources<'a>, tick: Option<Duration>) -> Option<Ready> {
        let timeout = match tick {
            // A millisecond more: what is due at its end is due then.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO),
            None if self.settled => PollTimeout::NONE,
            None => PollTimeout::try_from(REST).unwrap_or(PollTimeout::NONE),
        };
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
        match poll(&mut fds, timeout) {
            Ok(0) if tick.is_none() => {
                hpk_sys::memory::settle();
                self.settled = true;
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => self.settled = false,
            Err(_) => return None,
        }
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
        let mut wait = Wait::default();
        let ready = wait.wait(&sources, Some(Duration::ZERO)).unwrap();
        assert!(!(ready.commands || ready.udp || ready.tun || ready.local || ready.outward));
        (&pairs[2].1).write_all(b"x").unwrap();
        let ready = wait.wait(&sources, None).unwrap();
        assert!(ready.local && !(ready.commands || ready.udp || ready.tun || ready.outward));
        let room = Sources { local: None, outward: Some((local, true)), ..sources };
        assert!(wait.wait(&room, None).unwrap().outward);
    }
}
