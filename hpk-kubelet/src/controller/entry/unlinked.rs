//! A running pod without its link: when its owner is told, and when Slurm carries the link instead. Pure.
//!
//! ```text
//! no link ── PATIENCE ─▶ told, carried ── still none: a minute, two, … ─▶ carried anew      link ─▶ told that it is back
//! ```
//! A pod is as it was told to be last while it has no link: it learns of no change of Services, NetworkPolicies and
//! references, and exec and logs of it wait for Slurm.

use std::time::{Duration, Instant};

/// How long links may be away before anybody hears of it: upstream's node-monitor-grace-period. A kubelet that restarts is
/// found again within 15 s.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two carriers, doubled each time.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(600);

/// Of one pod.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unlinked {
    since: Option<Instant>,
    carry: Option<(Instant, Duration)>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The owner hears that there is no link.
    Tell,
    /// And that there is one again.
    TellBack,
    /// A carrier is started.
    Carry,
}

impl Unlinked {
    /// To be asked whenever anything changes. `lacks`: the pod runs and has no link.
    pub(crate) fn next(&mut self, now: Instant, lacks: bool) -> Vec<Act> {
        if !lacks {
            let told = self.carry.is_some();
            *self = Self::default();
            return if told { vec![Act::TellBack] } else { Vec::new() };
        }
        let since = *self.since.get_or_insert(now);
        let (due, pause) = self.carry.unwrap_or((since + PATIENCE, FIRST));
        let mut acts = Vec::new();
        if now >= due {
            if self.carry.is_none() {
                acts.push(Act::Tell);
            }
            acts.push(Act::Carry);
            self.carry = Some((now + pause, (pause * 2).min(LONGEST)));
        }
        acts
    }

    /// When there is something to do without any news.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.map(|since| self.carry.map_or(since + PATIENCE, |(at, _)| at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_stays_away_is_told_once_and_carried_ever_more_seldom() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pod = Unlinked::default();
        let mut next = |now, lacks, acts: &[Act], due: Option<u64>| {
            assert_eq!(pod.next(at(now), lacks), acts, "{now} s");
            assert_eq!(pod.due(), due.map(at), "{now} s");
        };
        next(0, false, &[], None);
        next(0, true, &[], Some(40));
        next(39, true, &[], Some(40));
        next(40, true, &[Act::Tell, Act::Carry], Some(100));
        next(99, true, &[], Some(100));
        next(100, true, &[Act::Carry], Some(220));
        next(220, true, &[Act::Carry], Some(460));
        next(221, false, &[Act::TellBack], None);
        next(222, false, &[], None);
        // Back within the time: nobody hears of it.
        next(300, true, &[], Some(340));
        next(310, false, &[], None);
        // Counted anew.
        next(311, true, &[], Some(351));
    }
}
