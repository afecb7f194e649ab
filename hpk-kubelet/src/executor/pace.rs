//! When to ask Slurm again: one query for all jobs, often while something is about to change, seldom when quiet.

use std::time::Duration;

/// What is known of one job when the next query is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Its job is looked for since this long; bool: nobody has answered yet.
    Sought(Duration, bool),
    /// Waits in the queue since this long.
    Pending(Duration),
    /// Runs, and its supervisor reports over the link: Slurm's word is needed only for its sudden end.
    Linked,
    /// Runs without a link, since this long.
    Unlinked(Duration),
    /// Its supervisor has finished or was told to stop, this long ago: its end is near.
    Ending(Duration),
}

/// Longest wait while any job is followed.
pub(crate) const QUIET: Duration = Duration::from_secs(15);

/// How long after the last query the next one is wanted for this job's sake.
#[must_use]
pub(crate) fn of(interest: Interest) -> Duration {
    match interest {
        Interest::Linked => QUIET,
        Interest::Sought(_, true) => Duration::from_millis(100),
        Interest::Sought(age, false) => (age / 10).clamp(Duration::from_secs(1), Duration::from_secs(5)),
        // A tenth of the age: a job that has waited long will not mind a little more.
        Interest::Pending(age) => (age / 10).clamp(Duration::from_secs(1), QUIET),
        Interest::Unlinked(age) => (age / 10).clamp(Duration::from_secs(1), QUIET),
        Interest::Ending(age) => (age / 4).clamp(Duration::from_millis(250), Duration::from_secs(5)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces() {
        let s = Duration::from_secs;
        assert_eq!(of(Interest::Linked), QUIET);
        assert_eq!(of(Interest::Pending(s(0))), s(1));
        assert_eq!(of(Interest::Pending(s(60))), s(6));
        assert_eq!(of(Interest::Pending(s(6000))), QUIET);
        assert_eq!(of(Interest::Ending(s(0))), Duration::from_millis(250));
    }
}
