//! Connections whose other end has not shown yet who it is: bounded in number, so that strangers cost little, and the one
//! that has waited longest makes room for a newcomer, so that strangers keep nobody out. Who belongs here has shown it
//! within milliseconds; who says nothing, or a byte a second, is the first to go.
//!
//! How long one may stay is its server's to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// The connections that wait at one listener.
#[derive(Debug)]
pub struct Doorway {
    limit: usize,
    /// By number of arrival.
    waiting: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// One of them. Dropped when it is known who it is, or when it has gone.
#[derive(Debug)]
pub struct Visitor {
    number: u64,
    doorway: Arc<Doorway>,
    out: CancellationToken,
}

impl Doorway {
    /// For at most so many connections at once.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), waiting: Mutex::new((0, BTreeMap::new())) })
    }

    /// A connection arrives; the one that has waited longest is shown out when there are too many.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Visitor {
        let out = CancellationToken::new();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, list) = &mut *waiting;
        if list.len() >= self.limit
            && let Some((_, longest)) = list.pop_first()
        {
            longest.cancel();
        }
        *next += 1;
        list.insert(*next, out.clone());
        Visitor { number: *next, doorway: self.clone(), out }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).1.len()
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Visitor {
    /// Cancelled when it is to leave; never after it was dropped.
    #[must_use]
    pub fn out(&self) -> CancellationToken {
        self.out.clone()
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.doorway.waiting.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_waited_longest_makes_room() {
        let doorway = Doorway::new(2);
        let (a, b) = (doorway.enter(), doorway.enter());
        let c = doorway.enter();
        assert_eq!((a.out().is_cancelled(), b.out().is_cancelled(), c.out().is_cancelled()), (true, false, false));
        // Known now: it takes no place, and nobody shows it out.
        let b_out = b.out();
        drop(b);
        let _d = doorway.enter();
        assert_eq!((b_out.is_cancelled(), c.out().is_cancelled(), doorway.len()), (false, false, 2));
        drop((a, c));
        assert_eq!(doorway.len(), 1);
    }
}
