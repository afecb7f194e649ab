//! When a running pod's references are read again.
//!
//! Changes of configMaps and secrets are told by [`crate::api::references`]; a time is kept only for tokens, certificates
//! and what failed. One reading runs at a time. What changes while it runs leads to another one.

use crate::api::fetch;
use crate::controller::prepared::Memory;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// Without tokens and without failures there is nothing to wait for but news.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// Of one pod that has its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// Nobody has read anything since this kubelet began: it is due as soon as it can be.
    Never,
    /// The next reading is due then.
    At(Instant),
    /// A reading runs; bool: there has been news since it began.
    Running(bool),
}

/// How long until the references must be read again: `retry`, or when a token must be renewed.
pub(crate) fn next(memory: &Memory, retry: Option<Duration>, clock: Timestamp) -> Duration {
    let renewal = fetch::renewal(&memory.kept, clock);
    retry.into_iter().chain(renewal).fold(IDLE, Duration::min)
}

impl Refresh {
    /// The pod or something that it refers to has changed.
    pub(crate) fn news(&mut self, now: Instant) {
        *self = match *self {
            Self::Never => Self::Never,
            Self::At(_) => Self::At(now),
            Self::Running(_) => Self::Running(true),
        };
    }

    /// Begins a reading, if one is due. Returns whether it does.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let due = match *self {
            Self::Never => true,
            Self::At(at) => at <= now,
            Self::Running(_) => false,
        };
        if due {
            *self = Self::Running(false);
        }
        due
    }

    /// A reading has ended; the next is due after `wait`, or at once if there was news meanwhile.
    pub(crate) fn ended(&mut self, now: Instant, wait: Duration) {
        *self = Self::At(if *self == Self::Running(true) { now } else { now + wait });
    }

    /// When the next reading is due; None: as soon as it can be, or when the one that runs has ended.
    pub(crate) fn due(&self) -> Option<Instant> {
        if let Self::At(at) = self { Some(*at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_at_a_time_and_no_news_is_lost() {
        let now = Instant::now();
        let mut refresh = Refresh::Never;
        refresh.news(now);
        assert!(refresh.begin(now) && !refresh.begin(now), "one at a time");
        refresh.ended(now, IDLE);
        assert_eq!(refresh.due(), Some(now + IDLE));
        assert!(!refresh.begin(now));
        refresh.news(now);
        assert!(refresh.begin(now));
        // An ephemeral container that comes while the pod is being read.
        refresh.news(now);
        assert!(!refresh.begin(now));
        refresh.ended(now, IDLE);
        assert!(refresh.begin(now), "what came meanwhile");
        refresh.ended(now, IDLE);
        assert!(!refresh.begin(now));
    }
}
