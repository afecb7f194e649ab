//! What was done to end a pod, with times.

use crate::pods::reconcile::Stopping;
use std::time::Instant;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stop {
    /// The supervisor was asked, with this grace period.
    asked: Option<u32>,
    /// The grace period of the last question, whether or not it was heard.
    grace: Option<u32>,
    /// TERM was sent through Slurm.
    signalled: bool,
    /// When the pod was to end first, by the grace period that holds.
    since: Option<Instant>,
    /// The last scancel.
    cancelled: Option<Instant>,
}

impl Stop {
    /// The same question once more does not lengthen the time that the pod has: a supervisor that never answers would have it
    /// for ever.
    pub(crate) fn ask(&mut self, grace: u32, now: Instant) {
        self.asked = Some(grace);
        if self.grace.replace(grace) != Some(grace) {
            self.since = Some(now);
        }
    }

    /// The supervisor was not reached: it is asked again.
    pub(crate) fn not_asked(&mut self) {
        self.asked = None;
    }

    pub(crate) fn signal(&mut self, now: Instant) {
        self.signalled = true;
        self.since.get_or_insert(now);
    }

    pub(crate) fn cancel(&mut self, now: Instant) {
        self.cancelled = Some(now);
    }

    pub(crate) fn is_begun(&self) -> bool {
        self.since.is_some()
    }

    /// When something was done last.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.cancelled.max(self.since)
    }

    /// For [`crate::pods::reconcile`].
    pub(crate) fn view(&self, now: Instant) -> Stopping {
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        Stopping {
            asked: self.asked,
            signalled: self.signalled,
            since: age(self.since),
            cancelled: age(self.cancelled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_signal_does_not_lengthen_the_grace_period() {
        let began = Instant::now();
        let later = began + Duration::from_secs(5);
        let mut stop = Stop::default();
        assert!(!stop.is_begun() && stop.last().is_none());
        stop.ask(30, began);
        stop.signal(later);
        assert_eq!(stop.view(later).since, Some(Duration::from_secs(5)));
        stop.not_asked();
        assert!(stop.view(later).asked.is_none() && stop.is_begun());
        stop.ask(30, later);
        assert_eq!(stop.view(later).since, Some(Duration::from_secs(5)), "asked again in vain");
        stop.ask(2, later);
        assert_eq!(stop.view(later).since, Some(Duration::ZERO), "a shorter grace period begins anew");
        stop.ask(30, began);
        stop.cancel(later);
        assert_eq!(stop.last(), Some(later));
    }
}
