//! Connections whose other end has not shown yet who it is: bounded in number, so that strangers cost little, and the one
//! that has waited longest makes room for a newcomer, so that strangers keep nobody out. Who belongs here has shown it
//! within milliseconds; who says nothing, or a byte a second, is the first to go.
//!
//! When all pods come at once, after a restart, they are not each other's strangers: nobody is shown out before
//! [`FAIR`], and newcomers wait meanwhile in the kernel's queue.
//!
//! How long one may stay is its server's to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long each may take, whoever waits behind: more than a handshake takes on a busy machine.
const FAIR: Duration = Duration::from_millis(500);

/// The connections that wait at one listener.
#[derive(Debug)]
pub struct Doorway {
    limit: usize,
    waiting: Mutex<Waiting>,
    /// Somebody has left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    arrivals: u64,
    /// By number of arrival.
    list: BTreeMap<u64, (Instant, CancellationToken)>,
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
        Arc::new(Self { limit: limit.max(1), waiting: Mutex::default(), left: Notify::new() })
    }

    /// A connection has arrived. When there are too many, the one that has waited longest is shown out, as soon as it has
    /// had its time. For one task, which accepts no other connection meanwhile.
    pub async fn enter(self: &Arc<Self>) -> Visitor {
        loop {
            let patience = match self.admit() {
                Ok(visitor) => return visitor,
                Err(patience) => patience,
            };
            let _ = tokio::time::timeout(patience, self.left.notified()).await;
        }
    }

    /// A place, or how long until there is one at the latest.
    fn admit(self: &Arc<Self>) -> Result<Visitor, Duration> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.list.len() >= self.limit
            && let Some(longest) = waiting.list.first_entry()
        {
            let had = longest.get().0.elapsed();
            if had < FAIR {
                return Err(FAIR - had);
            }
            longest.remove().1.cancel();
        }
        waiting.arrivals += 1;
        let (number, out) = (waiting.arrivals, CancellationToken::new());
        waiting.list.insert(number, (Instant::now(), out.clone()));
        Ok(Visitor { number, doorway: self.clone(), out })
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).list.len()
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
        self.doorway.waiting.lock().unwrap_or_else(PoisonError::into_inner).list.remove(&self.number);
        self.doorway.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_waited_longest_makes_room_when_it_has_had_its_time() {
        let doorway = Doorway::new(2);
        let began = Instant::now();
        let tenths = || began.elapsed().as_millis() / (FAIR.as_millis() / 10);
        let (a, b) = (doorway.enter().await, doorway.enter().await);
        let c = doorway.enter().await;
        assert_eq!(tenths(), 10);
        assert_eq!((a.out().is_cancelled(), b.out().is_cancelled(), c.out().is_cancelled()), (true, false, false));
        // Known now: it takes no place, and nobody shows it out.
        let b_out = b.out();
        drop(b);
        let d = doorway.enter().await;
        assert_eq!(tenths(), 10, "there was room at once");
        assert_eq!((b_out.is_cancelled(), c.out().is_cancelled(), doorway.len()), (false, false, 2));
        // One that leaves by itself lets the next one in before its time.
        let leaves = tokio::spawn(async move {
            tokio::time::sleep(FAIR / 10).await;
            drop(d);
        });
        let _e = doorway.enter().await;
        assert_eq!(tenths(), 11);
        leaves.await.unwrap();
        assert!(!c.out().is_cancelled());
        drop((a, c));
        assert_eq!(doorway.len(), 1);
    }
}
