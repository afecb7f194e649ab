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
pub struct Unlinked {
    since: Option<Instant>,
    carry: Option<(Instant, Duration)>,
    /// The time for which there is a timer.
    timer: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The owner hears that there is no link.
    Tell,
    /// And that there is one again.
    TellBack,
    /// A carrier is started.
    Carry,
    /// To be asked again after this long.
    Later(Duration),
}

impl Unlinked {
    /// To be asked whenever anything changes. `lacks`: the pod runs and has no link.
    pub fn next(&mut self, now: Instant, lacks: bool) -> Vec<Act> {
        if !lacks {
            let told = self.carry.is_some();
            *self = Self::default();
            return if told { vec![Act::TellBack] } else { Vec::new() };
        }
        let since = *self.since.get_or_insert(now);
        let (due, pause) = self.carry.unwrap_or((since + PATIENCE, FIRST));
        let mut acts = Vec::new();
        let mut at = due;
        if now >= due {
            if self.carry.is_none() {
                acts.push(Act::Tell);
            }
            acts.push(Act::Carry);
            at = now + pause;
            self.carry = Some((at, (pause * 2).min(LONGEST)));
        }
        if self.timer != Some(at) {
            self.timer = Some(at);
            acts.push(Act::Later(at - now));
        }
        acts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_stays_away_is_told_once_and_carried_ever_more_seldom() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let later = |seconds| Act::Later(Duration::from_secs(seconds));
        let mut pod = Unlinked::default();
        assert_eq!(pod.next(at(0), false), []);
        assert_eq!(pod.next(at(0), true), [later(40)]);
        assert_eq!(pod.next(at(39), true), [], "one timer is enough");
        assert_eq!(pod.next(at(40), true), [Act::Tell, Act::Carry, later(60)]);
        assert_eq!(pod.next(at(99), true), []);
        assert_eq!(pod.next(at(100), true), [Act::Carry, later(120)]);
        assert_eq!(pod.next(at(220), true), [Act::Carry, later(240)]);
        assert_eq!(pod.next(at(221), false), [Act::TellBack]);
        assert_eq!(pod.next(at(222), false), []);
        // Back within the time: nobody hears of it.
        assert_eq!(pod.next(at(300), true), [later(40)]);
        assert_eq!(pod.next(at(310), false), []);
        assert_eq!(pod.next(at(311), true), [later(40)], "counted anew");
    }
}
