//! When the job that runs the control plane does what. Pure: seconds since the epoch come in.

use std::time::Duration;

/// A successor is to start this part of the time limit before its end,
const LEAD: u64 = 5;
/// at least and at most this long before.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Without a successor, everything is stopped this long before the end: an orderly stop takes a few seconds.
const LAST: Duration = Duration::from_secs(40);

/// The times of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// When the successor is to start; None: the job has no end that could be waited for.
    pub handover: Option<u64>,
    /// When everything must be stopped.
    pub stop: Option<u64>,
}

/// `end`: when Slurm ends the job.
pub(crate) fn times(now: u64, end: Option<u64>) -> Times {
    // A job without a limit ends in a year.
    let end = end.filter(|end| *end > now && end - now < 300 * 24 * 3600);
    let Some(end) = end else { return Times { handover: None, stop: None } };
    let lead = ((end - now) / LEAD).clamp(SHORTEST.as_secs(), LONGEST.as_secs());
    Times { handover: Some(end.saturating_sub(lead).max(now)), stop: Some(end.saturating_sub(LAST.as_secs()).max(now)) }
}

/// Between two looks at HPK_HOME, which may be on a network file system: days can pass before a successor is there, and
/// then the API waits.
pub(crate) fn until_next_look(times: Times, now: u64) -> Duration {
    match times.handover {
        Some(handover) if now >= handover => Duration::from_millis(500),
        Some(handover) => Duration::from_secs((handover - now).min(10)),
        None => Duration::from_secs(10),
    }
}

/// What the job does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing yet.
    GoOn,
    /// Stops the control plane and ends: the successor goes on.
    HandOver,
    /// Stops the control plane and ends, and cancels the successor.
    End,
}

/// What the job sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub now: u64,
    /// The successor runs, and waits for its turn.
    pub successor_waits: bool,
    /// `hpk down`, or the control plane is down already.
    pub told_to_stop: bool,
    /// SIGTERM: cancelled, preempted, or the time is over.
    pub terminated: bool,
}

/// What the job does, by what it sees.
pub(crate) fn next(times: Times, seen: Seen) -> Next {
    let time_is_over = times.stop.is_some_and(|stop| seen.now >= stop);
    if seen.told_to_stop || (seen.terminated && !time_is_over) {
        Next::End
    } else if seen.successor_waits || seen.terminated || time_is_over {
        Next::HandOver
    } else {
        Next::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_successor_starts_before_the_end() {
        let lead = |limit: u64| times(NOW, Some(NOW + limit)).handover.map(|at| NOW + limit - at);
        assert_eq!(lead(180), Some(60));
        assert_eq!(lead(3600), Some(720));
        assert_eq!(lead(7 * 24 * 3600), Some(900));
        assert_eq!(times(NOW, Some(NOW + 30)), Times { handover: Some(NOW), stop: Some(NOW) });
        for endless in [None, Some(NOW + 365 * 24 * 3600), Some(0)] {
            assert_eq!(times(NOW, endless), Times { handover: None, stop: None });
        }
    }

    #[test]
    fn looks_are_quick_only_while_somebody_may_wait() {
        let times = times(NOW, Some(NOW + 3600));
        let look = |at| until_next_look(times, at).as_millis();
        assert_eq!((look(NOW), look(NOW + 2877), look(NOW + 2880), look(NOW + 3500)), (10_000, 3_000, 500, 500));
        assert_eq!(until_next_look(Times { handover: None, stop: None }, NOW).as_secs(), 10);
    }

    #[test]
    fn the_successor_goes_on_unless_the_user_wants_an_end() {
        let times = times(NOW, Some(NOW + 180));
        let seen = Seen { now: NOW + 10, successor_waits: false, told_to_stop: false, terminated: false };
        assert_eq!(next(times, seen), Next::GoOn);
        assert_eq!(next(times, Seen { successor_waits: true, ..seen }), Next::HandOver);
        assert_eq!(next(times, Seen { told_to_stop: true, successor_waits: true, ..seen }), Next::End);
        assert_eq!(next(times, Seen { terminated: true, ..seen }), Next::End, "scancel");
        assert_eq!(next(times, Seen { now: NOW + 141, ..seen }), Next::HandOver, "nobody has come");
        assert_eq!(next(times, Seen { now: NOW + 170, terminated: true, ..seen }), Next::HandOver, "the time is over");
    }
}
