//! The gang of an MPI step: from what its ranks and srun tell to the life of one container.
//!
//! ```text
//!             a rank has started, not yet all        all ranks have started
//!   Forming ────────────────────────────▶ Forming ──────────────────────────▶ Running
//!      │                                     │                                   │
//!      │ srun ends: Failed                   └── srun ends: Started, Exited      │ srun ends: Exited
//!      ▼                                                                         ▼
//!    Over ◀──────────────────────────────────────────────────────────────────── Over
//! ```
//! The step has the exit code of the rank that ended badly first: those after it are ended for its sake, by the MPI library or
//! by srun. srun's own code is not that: it is the largest one, so that of a rank that was killed.

use crate::types::{Exit, ExitCause, LaunchFailure};
use hpk_api::step::{Rank, StepNews};
use std::collections::{BTreeMap, BTreeSet};

/// What a step's news mean for its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GangChange {
    /// All ranks execute the command.
    Started,
    /// The step could not be started: nothing of it ran.
    Failed(LaunchFailure),
    /// It has ended. What ran was told as started before.
    Exited(Exit),
}

/// The ranks of one step.
#[derive(Clone, Debug, Default)]
pub struct Gang {
    ranks: u32,
    /// Those that have started, and where.
    started: BTreeMap<u32, String>,
    told: bool,
    /// The first rank that could not be started.
    failed: Option<(Rank, String)>,
    /// The first rank that ended with another code than 0.
    bad: Option<Bad>,
    over: bool,
}

#[derive(Clone, Debug)]
struct Bad {
    of: Rank,
    code: i32,
    signal: Option<i32>,
    oom: bool,
}

impl Gang {
    /// Takes one piece of news; what follows from it, in order.
    pub fn heard(&mut self, news: StepNews) -> Vec<GangChange> {
        if self.over {
            return Vec::new();
        }
        match news {
            StepNews::Started { of, ranks } => {
                self.ranks = self.ranks.max(ranks);
                self.started.insert(of.rank, of.node);
                let all = u32::try_from(self.started.len()).is_ok_and(|n| n >= self.ranks);
                if all && !self.told { self.tell_started() } else { Vec::new() }
            }
            StepNews::Failed { of, message } => {
                self.failed.get_or_insert((of, message));
                Vec::new()
            }
            StepNews::Exited { of, code, signal, oom } => {
                if code != 0 {
                    let bad = self.bad.get_or_insert(Bad { of, code, signal, oom });
                    // The kernel may have killed another rank than the one whose end is seen first.
                    bad.oom |= oom && bad.code == 137;
                }
                Vec::new()
            }
            StepNews::Used { .. } => Vec::new(),
            StepNews::Ended { code, words } => self.ended(code, &words),
        }
    }

    /// Where a rank runs; None: it has not started.
    #[must_use]
    pub fn place(&self, rank: u32) -> Option<Rank> {
        self.started.get(&rank).map(|node| Rank { rank, node: node.clone() })
    }

    /// How many ranks there are; 0: none has started yet.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// The nodes on which ranks have started.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<&str> {
        self.started.values().map(String::as_str).collect()
    }

    fn tell_started(&mut self) -> Vec<GangChange> {
        self.told = true;
        vec![GangChange::Started]
    }

    fn ended(&mut self, code: i32, words: &str) -> Vec<GangChange> {
        self.over = true;
        let ran = !self.started.is_empty();
        let mut changes = if ran && !self.told { self.tell_started() } else { Vec::new() };
        changes.push(match (&self.bad, &self.failed) {
            (_, Some((of, message))) if !ran => {
                GangChange::Failed(LaunchFailure::Start(format!("rank {} on {}: {message}", of.rank, of.node)))
            }
            _ if !ran && code != 0 => GangChange::Failed(LaunchFailure::Start(format!(
                "srun could not start the step: {}",
                said(words, code)
            ))),
            (Some(bad), _) => GangChange::Exited(bad.exit()),
            (None, Some((of, message))) => {
                exited(ExitCause::Code(128), format!("rank {} on {}: {message}", of.rank, of.node))
            }
            (None, None) if code == 0 => exited(ExitCause::Code(0), String::new()),
            (None, None) => exited(ExitCause::Code(code), format!("the step ended: {}", said(words, code))),
        });
        changes
    }
}

fn exited(cause: ExitCause, message: String) -> GangChange {
    GangChange::Exited(Exit { cause, oom: false, message, at: None })
}

fn said(words: &str, code: i32) -> String {
    if words.is_empty() { format!("srun ended with code {code} and said nothing") } else { words.to_owned() }
}

impl Bad {
    fn exit(&self) -> Exit {
        let Self { of, code, signal, oom } = self;
        let how = match signal {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("exited with code {code}"),
        };
        let message = format!("rank {} on {} {how}", of.rank, of.node);
        let cause = signal.map_or(ExitCause::Code(*code), ExitCause::Signal);
        Exit { cause, oom: *oom, message, at: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(rank: u32) -> Rank {
        Rank { rank, node: format!("c{}", rank / 2 + 1) }
    }

    fn started(rank: u32, ranks: u32) -> StepNews {
        StepNews::Started { of: of(rank), ranks }
    }

    fn exit(rank: u32, code: i32) -> StepNews {
        StepNews::Exited { of: of(rank), code, signal: (code > 128).then(|| code - 128), oom: false }
    }

    fn end(code: i32, words: &str) -> StepNews {
        StepNews::Ended { code, words: words.to_owned() }
    }

    fn all(news: impl IntoIterator<Item = StepNews>) -> Vec<GangChange> {
        let mut gang = Gang::default();
        news.into_iter().flat_map(|news| gang.heard(news)).collect()
    }

    fn last(news: impl IntoIterator<Item = StepNews>) -> (i32, String) {
        match all(news).pop() {
            Some(GangChange::Exited(exit)) => (exit.cause.code(), exit.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_runs_when_the_last_rank_does() {
        let mut gang = Gang::default();
        assert!(gang.heard(started(1, 2)).is_empty());
        assert!(gang.heard(started(1, 2)).is_empty(), "the same rank counts once");
        assert_eq!((gang.place(1), gang.place(0)), (Some(of(1)), None));
        assert_eq!(gang.heard(started(0, 2)), [GangChange::Started]);
        assert_eq!((gang.ranks(), gang.nodes().into_iter().collect::<Vec<_>>()), (2, vec!["c1"]));
        assert!(gang.heard(exit(0, 0)).is_empty() && gang.heard(exit(1, 0)).is_empty());
        let exit = Exit { cause: ExitCause::Code(0), oom: false, message: String::new(), at: None };
        assert_eq!(gang.heard(end(0, "")), [GangChange::Exited(exit)]);
        assert!(gang.heard(end(1, "")).is_empty(), "it ends once");
    }

    #[test]
    fn the_first_rank_that_ends_badly_counts() {
        let news = [started(0, 3), started(1, 3), started(2, 3), exit(0, 0), exit(2, 7), exit(1, 143)];
        let (code, message) = last(news.into_iter().chain([end(143, "Terminated")]));
        assert_eq!((code, message.as_str()), (7, "rank 2 on c2 exited with code 7"));
        let (code, message) = last([started(0, 1), exit(0, 139), end(139, "")]);
        assert_eq!((code, message.as_str()), (139, "rank 0 on c1 was killed by signal 11"));
    }

    #[test]
    fn a_rank_that_ends_before_another_has_begun_was_a_running_step() {
        let changes = all([started(0, 2), exit(0, 3), end(3, "")]);
        assert_eq!(changes.first(), Some(&GangChange::Started));
        assert_eq!(changes.len(), 2);
    }

    #[test]
    fn what_never_ran_has_failed_to_start() {
        let failed = StepNews::Failed { of: of(1), message: "exec: no such file".to_owned() };
        for (news, words) in [
            (vec![failed.clone(), end(125, "")], "rank 1 on c1: exec: no such file"),
            (vec![end(1, "Invalid MPI type")], "srun could not start the step: Invalid MPI type"),
            (vec![end(1, "")], "srun ended with code 1 and said nothing"),
        ] {
            let [GangChange::Failed(LaunchFailure::Start(message))] = &all(news)[..] else { panic!() };
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(last([started(0, 2), failed, end(125, "")]).0, 128);
    }

    #[test]
    fn a_lost_node_is_told_in_sruns_words() {
        let (code, message) = last([started(0, 1), end(1, "srun: error: Node failure on c2")]);
        assert_eq!((code, message.as_str()), (1, "the step ended: srun: error: Node failure on c2"));
    }

    fn news() -> impl Strategy<Value = StepNews> {
        prop_oneof![
            (0..4u32).prop_map(|rank| started(rank, 4)),
            (0..4u32, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(rank, code)| exit(rank, code)),
            (0..4u32).prop_map(|rank| StepNews::Failed { of: of(rank), message: "x".to_owned() }),
            (0..2i32).prop_map(|code| end(code, "")),
        ]
    }

    proptest! {
        /// Whatever is heard: at most one start, before at most one end; a failure has no start; success means that no
        /// rank was bad.
        #[test]
        fn one_life(list in proptest::collection::vec(news(), 0..24)) {
            let ended = list.iter().any(|news| matches!(news, StepNews::Ended { .. }));
            let before = list.iter().take_while(|news| !matches!(news, StepNews::Ended { .. }));
            let bad = before.clone().any(|n| matches!(n, StepNews::Exited { code, .. } if *code != 0));
            let ran = before.clone().any(|n| matches!(n, StepNews::Started { .. }));
            let changes = all(list.clone());
            let starts = changes.iter().filter(|c| **c == GangChange::Started).count();
            prop_assert!(starts <= 1);
            match changes.last() {
                Some(GangChange::Exited(exit)) => {
                    prop_assert!(ended);
                    prop_assert_eq!(starts == 1, ran);
                    prop_assert!(exit.cause.code() != 0 || !bad);
                }
                Some(GangChange::Failed(_)) => prop_assert!(ended && !ran && starts == 0),
                Some(GangChange::Started) | None => prop_assert!(!ended),
            }
        }
    }
}
