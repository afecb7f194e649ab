//! The arithmetic of ending one container: preStop, its turn, the stop signal, SIGKILL.
//!
//! ```text
//!              grace > 0 and a hook                        hook done, or grace used up
//!   begin ───────────────────────▶ PreStop ──────────────────────────────┐
//!     │                                                                  ▼
//!     │  a sidecar of a pod that ends, grace > 0                       Turn ── the others have ended,
//!     ├──────────────────────────────────────────────────────────────▶   │      or grace used up
//!     │                                                                  ▼
//!     └───────────────────────────────────────────────────────────────▶ Term ──▶ Killed ──▶ (exit)
//!                                                              stop signal   SIGKILL
//! ```
//! Upstream: `killContainer` (kuberuntime_container.go) and `terminationOrdering`. Whole elapsed seconds are
//! subtracted at each stage, and the stop signal always has at least 2 s (`minimumGracePeriodInSeconds`).

use std::time::Duration;

/// Least time between stop signal and SIGKILL, seconds.
pub(crate) const MINIMUM_GRACE_SECONDS: u64 = 2;

/// Why a container is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// The pod ends.
    Pod,
    /// Its liveness or startup probe failed.
    Probe,
    /// Its image changed.
    Definition,
    /// Its postStart hook failed.
    PostStart,
    /// All containers restart in place.
    RestartAll,
}

/// Where the end of a container stands. `grace` is in seconds and counts from `since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The preStop hook runs.
    PreStop {
        since: Duration,
        /// Left at the begin.
        grace: u64,
    },
    /// A sidecar waits for those that must end before it.
    Turn {
        since: Duration,
        /// Left at the begin.
        grace: u64,
    },
    /// The stop signal was sent.
    Term {
        /// When SIGKILL is due.
        kill_at: Duration,
    },
    /// SIGKILL was sent.
    Killed,
}

impl Stage {
    /// First stage.
    #[must_use]
    pub(crate) fn begin(now: Duration, grace: u64, pre_stop: bool, ordered: bool) -> Self {
        if pre_stop && grace > 0 { Self::PreStop { since: now, grace } } else { Self::turn(now, grace, ordered) }
    }

    fn turn(now: Duration, grace: u64, ordered: bool) -> Self {
        if ordered && grace > 0 {
            Self::Turn { since: now, grace }
        } else {
            let seconds = grace.max(MINIMUM_GRACE_SECONDS);
            Self::Term { kill_at: now + Duration::from_secs(seconds) }
        }
    }

    /// The stage after this one at `now`: its work is done or its time is used up.
    #[must_use]
    pub(crate) fn next(self, now: Duration, ordered: bool) -> Self {
        match self {
            Self::PreStop { since, grace } => Self::turn(now, left(since, grace, now), ordered),
            Self::Turn { since, grace } => Self::turn(now, left(since, grace, now), false),
            Self::Term { .. } | Self::Killed => Self::Killed,
        }
    }

    /// When the stage ends by itself.
    #[must_use]
    pub(crate) fn deadline(self) -> Option<Duration> {
        match self {
            Self::PreStop { since, grace } | Self::Turn { since, grace } => Some(since + Duration::from_secs(grace)),
            Self::Term { kill_at } => Some(kill_at),
            Self::Killed => None,
        }
    }

    /// A grace period of `grace` seconds, counted from `now`, is in force as well: the shorter one wins.
    #[must_use]
    pub(crate) fn shortened(self, now: Duration, grace: u64) -> Self {
        let until = now + Duration::from_secs(grace);
        let shorter = self.deadline().is_some_and(|deadline| until < deadline);
        match self {
            Self::PreStop { .. } if shorter => Self::PreStop { since: now, grace },
            Self::Turn { .. } if shorter => Self::Turn { since: now, grace },
            Self::Term { kill_at } => {
                Self::Term { kill_at: kill_at.min(now + Duration::from_secs(grace.max(MINIMUM_GRACE_SECONDS))) }
            }
            other => other,
        }
    }
}

fn left(since: Duration, grace: u64, now: Duration) -> u64 {
    grace.saturating_sub(now.saturating_sub(since).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn without_hook_or_order_the_signal_comes_at_once() {
        for (grace, kill_at) in [(30, 30_000), (2, 2_000), (1, 2_000), (0, 2_000)] {
            assert_eq!(Stage::begin(ms(0), grace, false, false), Stage::Term { kill_at: ms(kill_at) });
        }
    }

    #[test]
    fn whole_seconds_of_the_hook_are_subtracted() {
        let hook = Stage::begin(ms(0), 30, true, false);
        assert_eq!(hook, Stage::PreStop { since: ms(0), grace: 30 });
        assert_eq!(hook.next(ms(999), false), Stage::Term { kill_at: ms(30_999) });
        assert_eq!(hook.next(ms(5_900), false), Stage::Term { kill_at: ms(5_900 + 25_000) });
        assert_eq!(hook.deadline(), Some(ms(30_000)));
        assert_eq!(hook.next(ms(30_000), false), Stage::Term { kill_at: ms(32_000) }, "the floor of 2 s");
    }

    #[test]
    fn grace_zero_runs_no_hook_and_keeps_no_order() {
        assert_eq!(Stage::begin(ms(0), 0, true, true), Stage::Term { kill_at: ms(2_000) });
    }

    #[test]
    fn a_sidecar_waits_for_its_turn() {
        let hook = Stage::begin(ms(0), 10, true, true);
        let turn = hook.next(ms(3_500), true);
        assert_eq!(turn, Stage::Turn { since: ms(3_500), grace: 7 });
        assert_eq!(turn.next(ms(5_000), true), Stage::Term { kill_at: ms(5_000 + 6_000) });
        assert_eq!(turn.next(ms(10_500), true), Stage::Term { kill_at: ms(12_500) });
    }

    #[test]
    fn a_later_shorter_grace_wins_and_a_longer_one_does_not() {
        let term = Stage::Term { kill_at: ms(30_000) };
        assert_eq!(term.shortened(ms(1_000), 5), Stage::Term { kill_at: ms(6_000) });
        assert_eq!(term.shortened(ms(1_000), 0), Stage::Term { kill_at: ms(3_000) });
        assert_eq!(term.shortened(ms(1_000), 60), term);
        let hook = Stage::PreStop { since: ms(0), grace: 30 };
        assert_eq!(hook.shortened(ms(1_000), 5), Stage::PreStop { since: ms(1_000), grace: 5 });
        assert_eq!(hook.shortened(ms(1_000), 40), hook);
        assert_eq!(Stage::Killed.shortened(ms(0), 0), Stage::Killed);
    }
}
