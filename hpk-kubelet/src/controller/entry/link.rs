//! A pod's link: who may have one, whether it stands, when it was heard of last, and what is done while it is missing.

use super::unlinked::{Act, Unlinked};
use std::time::{Duration, Instant};

/// A pod whose link is down and of which there is no other news for this long is not ready, as upstream has it of a node
/// (kube-controller-manager's `--node-monitor-grace-period`).
pub(crate) const SILENCE: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(crate) struct Link {
    up: bool,
    /// The last news of the supervisor or of the link.
    heard_at: Instant,
    /// The link server was told that the pod may link.
    may: bool,
    unlinked: Unlinked,
}

impl Link {
    pub(crate) fn new(now: Instant) -> Self {
        Self { up: false, heard_at: now, may: false, unlinked: Unlinked::default() }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    pub(crate) fn came(&mut self, now: Instant) {
        self.up = true;
        self.heard_at = now;
    }

    /// Returns whether it stood.
    pub(crate) fn went(&mut self, now: Instant) -> bool {
        let stood = std::mem::replace(&mut self.up, false);
        if stood {
            self.heard_at = now;
        }
        stood
    }

    /// The supervisor has spoken, over the link or by its file.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    pub(crate) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    pub(crate) fn may(&self) -> bool {
        self.may
    }

    /// Sets whether the pod may link. Returns whether that is another answer than before.
    pub(crate) fn allow(&mut self, may: bool) -> bool {
        std::mem::replace(&mut self.may, may) != may
    }

    /// What is to be done; `lacks`: the pod runs and has no link.
    pub(crate) fn next(&mut self, now: Instant, lacks: bool) -> Vec<Act> {
        self.unlinked.next(now, lacks)
    }

    /// When [`Link::next`] has something to do again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.unlinked.due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_goes_once_and_is_heard_of_last_then() {
        let began = Instant::now();
        let later = began + Duration::from_secs(9);
        let mut link = Link::new(began);
        assert!(!link.went(later));
        assert_eq!(link.heard_at(), began, "it never stood");
        link.came(began);
        assert!(link.is_up() && link.went(later) && !link.went(later));
        assert_eq!(link.heard_at(), later);
        assert!(link.allow(true) && !link.allow(true) && link.allow(false));
    }
}
