//! When to ask Slurm again: one query for all jobs, often while something is about to change, seldom when quiet.

use std::time::Duration;

/// What is known of one job when the next query is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
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
pub const QUIET: Duration = Duration::from_secs(15);

/// Wait before the next query. None: nothing to ask about.
#[must_use]
pub fn wait(jobs: impl IntoIterator<Item = Interest>) -> Option<Duration> {
    jobs.into_iter().map(of).min()
}

fn of(interest: Interest) -> Duration {
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
        assert_eq!(wait([]), None);
        assert_eq!(wait([Interest::Linked]), Some(QUIET));
        assert_eq!(wait([Interest::Linked, Interest::Pending(s(0))]), Some(s(1)));
        assert_eq!(wait([Interest::Pending(s(60))]), Some(s(6)));
        assert_eq!(wait([Interest::Pending(s(6000))]), Some(QUIET));
        assert_eq!(wait([Interest::Pending(s(60)), Interest::Ending(s(0))]), Some(Duration::from_millis(250)));
    }
}
