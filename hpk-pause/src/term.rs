//! Slurm's TERM: which end it announces, and how many seconds the pod has for it. Pure.
//!
//! Slurm says neither with the signal. What a job can know: `SLURM_JOB_END_TIME`, the end of its time limit
//! (sbatch(1)), and the site's KillWait, the time between Slurm's own TERM and its KILL (slurm.conf(5)), which the
//! kubelet puts into the plan.
//!
//! ```text
//!            --signal=B:TERM@N                 time limit         KILL
//!   ───────────────┬─────────────────────────────┬────────────────┬──▶  the whole rest of the limit is the pod's
//!                  └─ N, or up to a minute more ─┘    KillWait
//!                                    scancel, preemption         KILL
//!   ────────────────────────────────────┬─────────────────────────┬──▶  KillWait, less what our own end takes
//!                                       └──────── KillWait ───────┘
//! ```

use hpk_api::state::StopCause;
use std::time::Duration;

/// How much earlier than the pod's grace period before the time limit a TERM may be the warning of that limit: the
/// kubelet's margin (10 s), the minute that sbatch(1) allows itself, and a little for a busy controller.
const LEAD: Duration = Duration::from_secs(75);
/// How long after the limit a TERM still means it; a later one shows that the limit was raised.
const TRAIL: Duration = Duration::from_secs(60);
/// What is kept back of KillWait: the 2 s that a container has after its preStop hook whatever the grace period, and
/// the writing of the last status.
const OWN_END: Duration = Duration::from_secs(3);

/// What the job knows of its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TermRule {
    /// End of the time limit, since the epoch.
    pub end: Option<Duration>,
    /// Slurm's KillWait.
    pub kill_wait: Duration,
}

impl TermRule {
    /// From the value of `SLURM_JOB_END_TIME` and the plan's KillWait in seconds.
    #[must_use]
    pub(crate) fn new(end_time: Option<&str>, kill_wait_seconds: u32) -> Self {
        Self {
            end: end_time.and_then(|t| t.trim().parse().ok()).map(Duration::from_secs),
            kill_wait: Duration::from_secs(u64::from(kill_wait_seconds)),
        }
    }

    /// What a TERM at `now` (since the epoch) means, and the seconds that the pod has, at most its own grace period.
    #[must_use]
    pub(crate) fn at(&self, now: Duration, own_grace: u32) -> (StopCause, u32) {
        let own = Duration::from_secs(u64::from(own_grace));
        let limit = self.end.filter(|&end| now + own + LEAD >= end && now <= end + TRAIL);
        let to_kill = self.kill_wait.saturating_sub(OWN_END);
        let (cause, left) = match limit {
            Some(end) => (StopCause::DeadlineExceeded, end.saturating_sub(now).max(to_kill)),
            None => (StopCause::Signal, to_kill),
        };
        (cause, u32::try_from(left.as_secs()).unwrap_or(u32::MAX).min(own_grace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use StopCause::{DeadlineExceeded as Limit, Signal};
        for (end, kill_wait, now, own, cause, grace) in [
            // The warning before the limit, on time and a minute early: all of the grace period.
            (Some("1000"), 30, 960, 30, Limit, 30),
            (Some("1000"), 30, 900, 30, Limit, 30),
            // The warning came late, or the grace period is longer than what is left.
            (Some("1000"), 30, 990, 300, Limit, 27),
            (Some("1000"), 10, 950, 300, Limit, 50),
            // Slurm's own TERM at the limit.
            (Some("1000"), 30, 1001, 60, Limit, 27),
            // Far from the limit it is scancel or preemption.
            (Some("1000"), 30, 100, 30, Signal, 27),
            (Some("1000"), 10, 100, 5, Signal, 5),
            (Some("1000"), 2, 100, 5, Signal, 0),
            // The limit was raised after the job's start.
            (Some("1000"), 30, 1100, 30, Signal, 27),
            // Not told, or nothing that can be read.
            (None, 30, 960, 60, Signal, 27),
            (Some("soon"), 30, 960, 60, Signal, 27),
        ] {
            let rule = TermRule::new(end, kill_wait);
            assert_eq!(rule.at(Duration::from_secs(now), own), (cause, grace), "{end:?} {kill_wait} {now} {own}");
        }
    }
}
