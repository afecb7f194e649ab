//! CrashLoopBackOff: when may a container that ended start again?
//!
//! The rule is client-go's `flowcontrol.Backoff` as the kubelet uses it (`kuberuntime_manager.go`, doBackOff):
//! the first restart has no entry and happens at once, each restart then doubles the delay before the next one,
//! from 10 s to 300 s; an instance that ran for more than 600 s after the last decision resets it. The entry
//! belongs to a key (image and resources): a changed key starts afresh.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// First delay (10 s).
    pub(crate) initial: Duration,
    /// Longest delay (300 s).
    pub(crate) max: Duration,
    /// Time from the last decision to the end of an instance that resets the delay (600 s).
    pub(crate) reset: Duration,
}

impl Limits {
    /// `initial` never exceeds `max` (KEP-5593).
    #[must_use]
    pub(crate) fn new(initial: Duration, max: Duration, reset: Duration) -> Self {
        Self { initial: initial.min(max), max, reset }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: u64,
    delay: Duration,
    decided: Duration,
}

/// Back-off of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    entry: Option<Entry>,
}

impl Backoff {
    /// The delay now in force, when the instance that ended at `ended` must still wait at `now` (strict: at
    /// exactly the delay it may start).
    #[must_use]
    pub(crate) fn delay(&self, key: u64, ended: Duration, now: Duration, limits: Limits) -> Option<Duration> {
        let entry = self.entry.filter(|e| e.key == key)?;
        if ended.saturating_sub(entry.decided) > limits.reset {
            return None;
        }
        (now.saturating_sub(ended) < entry.delay).then_some(entry.delay)
    }

    /// A restart of the instance that ended at `ended` was decided at `now`.
    pub(crate) fn decided(&mut self, key: u64, ended: Duration, now: Duration, limits: Limits) {
        let delay = match self.entry {
            Some(e) if e.key == key && ended.saturating_sub(e.decided) <= limits.reset => (e.delay * 2).min(limits.max),
            _ => limits.initial,
        };
        self.entry = Some(Entry { key, delay, decided: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { initial: Duration::from_secs(10), max: Duration::from_secs(300), reset: Duration::from_secs(600) };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Delays before each restart of a container that runs `run` seconds each time.
    fn delays(run: u64, restarts: usize) -> Vec<u64> {
        let (mut backoff, mut now, mut seen) = (Backoff::default(), s(0), Vec::new());
        for _ in 0..restarts {
            now += s(run);
            let ended = now;
            if let Some(delay) = backoff.delay(1, ended, now, LIMITS) {
                now += delay;
                assert_eq!(backoff.delay(1, ended, now, LIMITS), None, "exactly the delay is enough");
            }
            seen.push((now - ended).as_secs());
            backoff.decided(1, ended, now, LIMITS);
        }
        seen
    }

    #[test]
    fn first_at_once_then_doubling_to_the_maximum() {
        assert_eq!(delays(0, 9), [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(delays(1, 4), [0, 10, 20, 40]);
    }

    #[test]
    fn only_a_run_longer_than_the_reset_resets() {
        assert_eq!(delays(600, 4), [0, 10, 20, 40], "600 s exactly is not longer");
        assert_eq!(delays(601, 4), [0, 0, 0, 0]);
    }

    #[test]
    fn waiting_does_not_count_as_running() {
        let mut backoff = Backoff::default();
        backoff.decided(1, s(0), s(0), LIMITS);
        assert_eq!(backoff.delay(1, s(1), s(10_000), LIMITS), None, "the delay itself has passed");
        backoff.decided(1, s(1), s(10_000), LIMITS);
        assert_eq!(backoff.delay(1, s(10_001), s(10_001), LIMITS), Some(s(20)), "but the count went on");
    }

    #[test]
    fn another_key_starts_afresh() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.decided(1, s(1), s(1), LIMITS);
        }
        assert_eq!(backoff.delay(1, s(1), s(1), LIMITS), Some(s(80)));
        assert_eq!(backoff.delay(2, s(1), s(1), LIMITS), None);
        backoff.decided(2, s(1), s(1), LIMITS);
        assert_eq!(backoff.delay(2, s(1), s(1), LIMITS), Some(s(10)));
    }

    #[test]
    fn initial_never_exceeds_the_maximum() {
        assert_eq!(Limits::new(s(10), s(1), s(600)).initial, s(1));
    }
}
