//! One probe of one container: when it runs and what its outcomes come to.
//!
//! Upstream: a prober worker (pkg/kubelet/prober/worker.go) with a ticker that begins with the pod and keeps
//! its phase over restarts; a tick that finds the container not eligible does nothing, a run that outlasts
//! ticks is followed by one run at once. Readiness also runs when the container has started
//! (`UpdatePodStatus`), and counts its period from there: soon after the start, once more a second later where
//! that was too early, then by its period. At the very moment of its exec no server answers, and upstream's workers
//! come to two or more runs in the first seconds as well. After liveness or startup came to a result that
//! ends their work, they are on hold until a new instance.
//!
//! ```text
//!   new instance ─▶ initial result ── runs ≥ threshold ─▶ Success / Failure
//!                   readiness Failure, liveness Success, startup Unknown
//! ```

use hpk_api::probe::{DURATION_BUCKETS, Probe, ProbeKind};
use std::time::Duration;

/// From the start of an instance to its first readiness run: what most servers need until they listen.
const FIRST_READINESS: Duration = Duration::from_millis(400);
/// From a first readiness run that failed to the second.
const SECOND_READINESS: Duration = Duration::from_secs(1);

/// What has come of the runs so far, over all instances.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) successful: u64,
    pub(crate) failed: u64,
    /// All successful runs together.
    pub(crate) took: Duration,
    /// Successful runs by the smallest of [`DURATION_BUCKETS`] that holds them.
    pub(crate) buckets: [u32; DURATION_BUCKETS.len()],
}

impl Counts {
    fn add(&mut self, success: bool, took: Duration) {
        if !success {
            self.failed += 1;
            return;
        }
        self.successful += 1;
        self.took += took;
        let holds = |limit: &u32| took <= Duration::from_millis(u64::from(*limit));
        if let Some(bucket) = DURATION_BUCKETS.iter().position(holds) {
            self.buckets[bucket] = self.buckets[bucket].saturating_add(1);
        }
    }
}

/// What a worker believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// Nothing yet (startup only).
    Unknown,
    Success,
    Failure,
}

/// One probe worker.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    kind: ProbeKind,
    period: Duration,
    initial_delay: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    /// Next tick.
    next: Duration,
    /// The next run is the first of an instance.
    first: bool,
    /// A run between two ticks.
    extra: Option<Duration>,
    in_flight: bool,
    /// When the latest run began.
    begun: Duration,
    on_hold: bool,
    last: Option<bool>,
    run: u32,
    belief: Belief,
    counts: Counts,
}

impl Worker {
    /// A worker whose ticker begins at `now`.
    #[must_use]
    pub(crate) fn new(kind: ProbeKind, probe: &Probe, now: Duration) -> Self {
        let mut worker = Self {
            kind,
            period: Duration::from_secs(u64::from(probe.period_seconds.max(1))),
            initial_delay: Duration::from_secs(u64::from(probe.initial_delay_seconds)),
            success_threshold: probe.success_threshold.max(1),
            failure_threshold: probe.failure_threshold.max(1),
            next: now,
            first: false,
            extra: None,
            in_flight: false,
            begun: now,
            on_hold: false,
            last: None,
            run: 0,
            belief: Belief::Unknown,
            counts: Counts::default(),
        };
        worker.new_instance();
        worker
    }

    /// The container has a new instance.
    pub(crate) fn new_instance(&mut self) {
        self.belief = match self.kind {
            ProbeKind::Readiness => Belief::Failure,
            ProbeKind::Liveness => Belief::Success,
            ProbeKind::Startup => Belief::Unknown,
        };
        self.first = false;
        self.extra = None;
        self.in_flight = false;
        self.on_hold = false;
        self.last = None;
        self.run = 0;
    }

    /// The ticker begins anew: the instance of `born`, if given, has only just been made, or has shown at `now` that it
    /// is up.
    pub(crate) fn restart_ticker(&mut self, now: Duration, born: Option<Duration>) {
        self.next = born.map_or(now, |born| now.max(born + FIRST_READINESS));
        self.first = true;
    }

    /// What it believes.
    #[must_use]
    pub(crate) fn belief(&self) -> Belief {
        self.belief
    }

    /// When it runs next, if the container stays eligible: not before `now`, and not before the initial delay
    /// after the start of the instance.
    #[must_use]
    pub(crate) fn due(&self, now: Duration, started: Duration) -> Option<Duration> {
        if self.in_flight || self.on_hold {
            return None;
        }
        let earliest = started + self.initial_delay;
        // A tick before the delay is lost; one that passed while a run was under way is taken at once.
        let tick = if self.next < earliest { self.tick_at_or_after(earliest) } else { self.next };
        Some(self.extra.map_or(tick, |extra| extra.min(tick)).max(now))
    }

    /// The run that was due at `now` begins.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.in_flight = true;
        self.begun = now;
        self.extra = None;
        self.next = self.tick_at_or_after(now + Duration::from_nanos(1));
    }

    /// Ticks that find the container not eligible are lost, the one of this very moment too: called when it
    /// becomes eligible at `now`.
    pub(crate) fn forget_ticks(&mut self, now: Duration) {
        self.next = self.tick_at_or_after(now + Duration::from_nanos(1));
    }

    fn tick_at_or_after(&self, at: Duration) -> Duration {
        if self.next >= at {
            return self.next;
        }
        let behind = (at - self.next).as_nanos();
        let ticks = behind.div_ceil(self.period.as_nanos());
        // A period is at least a second, so the count fits unless the clock is nonsense.
        self.next + self.period * u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// A run ended at `now`; None: it could not be made.
    pub(crate) fn count(&mut self, now: Duration, success: Option<bool>) {
        if let Some(success) = success {
            self.counts.add(success, now.saturating_sub(self.begun));
        }
    }

    /// What has come of its runs.
    #[must_use]
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A run ended. True when the belief came out anew (even if equal), false when it stays below a threshold
    /// or the run was an error (`None`).
    pub(crate) fn outcome(&mut self, success: Option<bool>) -> bool {
        self.in_flight = false;
        let first = std::mem::replace(&mut self.first, false);
        if first && success != Some(true) && self.initial_delay.is_zero() {
            self.extra = Some(self.begun + SECOND_READINESS);
        }
        let Some(success) = success else { return false };
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.run < threshold {
            return false;
        }
        self.belief = if success { Belief::Success } else { Belief::Failure };
        let ends = match self.kind {
            ProbeKind::Liveness => !success,
            ProbeKind::Startup => true,
            ProbeKind::Readiness => false,
        };
        if ends {
            self.on_hold = true;
            self.run = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::probe::Handler;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn probe(period: u32, delay: u32, success: u32, failure: u32) -> Probe {
        Probe {
            handler: Handler::Exec { command: vec!["true".into()] },
            initial_delay_seconds: delay,
            timeout_seconds: 1,
            period_seconds: period,
            success_threshold: success,
            failure_threshold: failure,
            termination_grace_period_seconds: None,
        }
    }

    #[test]
    fn initial_beliefs() {
        for (kind, belief) in [
            (ProbeKind::Readiness, Belief::Failure),
            (ProbeKind::Liveness, Belief::Success),
            (ProbeKind::Startup, Belief::Unknown),
        ] {
            assert_eq!(Worker::new(kind, &probe(10, 0, 1, 3), s(0)).belief(), belief);
        }
    }

    #[test]
    fn ticks_keep_their_phase_and_respect_the_initial_delay() {
        for (started, delay, now, due) in [
            (0, 0, 0, 10), // the tick of the start itself is lost
            (1, 0, 1, 10),
            (1, 5, 1, 10),
            (1, 10, 1, 20), // at 10 s only 9 s have passed
            (0, 10, 1, 10),
            (3, 30, 3, 40),
        ] {
            let mut worker = Worker::new(ProbeKind::Liveness, &probe(10, delay, 1, 3), s(0));
            worker.forget_ticks(s(now));
            assert_eq!(worker.due(s(now), s(started)), Some(s(due)), "{started} {delay} {now}");
        }
    }

    #[test]
    fn a_long_run_is_followed_by_one_at_once_then_by_the_phase() {
        let mut worker = Worker::new(ProbeKind::Liveness, &probe(1, 0, 1, 3), s(0));
        worker.begin(s(0));
        assert_eq!(worker.due(s(3), s(0)), None, "one at a time");
        let late = Duration::from_millis(3_500);
        worker.outcome(Some(true));
        assert_eq!(worker.due(late, s(0)), Some(late));
        worker.begin(late);
        worker.outcome(Some(true));
        assert_eq!(worker.due(late, s(0)), Some(s(4)));
    }

    #[test]
    fn readiness_has_two_chances_in_the_first_seconds_and_then_its_period() {
        let ms = Duration::from_millis;
        for (period, delay, results, runs) in [
            (10, 0, [false; 4], [400, 1_400, 10_400, 20_400]),
            (10, 0, [false, true, true, true], [400, 1_400, 10_400, 20_400]),
            (10, 0, [true; 4], [400, 10_400, 20_400, 30_400]),
            (10, 0, [true, false, false, false], [400, 10_400, 20_400, 30_400]),
            (1, 0, [false; 4], [400, 1_400, 2_400, 3_400]),
            (10, 5, [false; 4], [10_400, 20_400, 30_400, 40_400]),
        ] {
            let mut worker = Worker::new(ProbeKind::Readiness, &probe(period, delay, 1, 3), s(0));
            worker.restart_ticker(s(0), Some(s(0)));
            let mut seen = Vec::new();
            let mut now = s(0);
            for result in results {
                now = worker.due(now, s(0)).expect("a run");
                seen.push(now);
                worker.begin(now);
                worker.outcome(Some(result));
            }
            assert_eq!(seen, runs.map(ms), "{period} {delay} {results:?}");
        }
    }

    #[test]
    fn what_a_startup_probe_or_a_long_hook_has_shown_to_be_up_is_probed_at_once() {
        for (now, born, due) in [(5_000, None, 5_000), (5_000, Some(1_000), 5_000), (1_100, Some(1_000), 1_400)] {
            let mut worker = Worker::new(ProbeKind::Readiness, &probe(10, 0, 1, 3), s(0));
            let now = Duration::from_millis(now);
            worker.restart_ticker(now, born.map(Duration::from_millis));
            assert_eq!(worker.due(now, s(1)), Some(Duration::from_millis(due)));
        }
    }

    #[test]
    fn thresholds_count_consecutive_results() {
        let mut worker = Worker::new(ProbeKind::Readiness, &probe(1, 0, 2, 3), s(0));
        let mut seen = Vec::new();
        for success in [true, true, false, false, true, false, false, false, true, true] {
            worker.outcome(Some(success));
            seen.push(worker.belief() == Belief::Success);
        }
        assert_eq!(seen, [false, true, true, true, true, true, true, false, false, true]);
    }

    #[test]
    fn an_error_leaves_the_state_and_the_count() {
        let mut worker = Worker::new(ProbeKind::Liveness, &probe(1, 0, 1, 2), s(0));
        assert!(!worker.outcome(Some(false)));
        assert!(!worker.outcome(None));
        assert!(worker.outcome(Some(false)), "the second failure in a row");
        assert_eq!(worker.belief(), Belief::Failure);
    }

    #[test]
    fn runs_are_counted_over_instances_and_by_how_long_they_took() {
        let mut worker = Worker::new(ProbeKind::Readiness, &probe(1, 0, 1, 3), s(0));
        for (success, took) in [(Some(true), 5), (Some(true), 6), (Some(false), 7), (None, 8), (Some(true), 20_000)] {
            worker.begin(s(100));
            worker.count(s(100) + Duration::from_millis(took), success);
            worker.outcome(success);
            worker.new_instance();
        }
        let counts = worker.counts();
        assert_eq!((counts.successful, counts.failed, counts.took), (3, 1, Duration::from_millis(20_011)));
        assert_eq!(counts.buckets, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "over ten seconds is in none");
    }

    #[test]
    fn on_hold_until_a_new_instance() {
        for (kind, success) in [(ProbeKind::Liveness, false), (ProbeKind::Startup, false), (ProbeKind::Startup, true)] {
            let mut worker = Worker::new(kind, &probe(1, 0, 1, 1), s(0));
            worker.outcome(Some(success));
            assert_eq!(worker.due(s(100), s(0)), None, "{kind:?} {success}");
            worker.new_instance();
            assert!(worker.due(s(100), s(0)).is_some());
        }
    }
}
