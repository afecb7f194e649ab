//! Whose turn it is on this machine: first come, first served. Pure.
//!
//! A run that does not fit holds back those that came after it, or a large one would never begin beside many small ones.
//! One that could not fit if the machine were empty holds back nobody.

use std::collections::BTreeMap;

/// What a run takes of the machine, and what the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub milli_cpu: u64,
    pub memory_mib: u64,
    pub gpus: u64,
}

impl Size {
    /// Whether `other` is within this.
    #[must_use]
    pub(crate) fn holds(&self, other: &Self) -> bool {
        other.milli_cpu <= self.milli_cpu && other.memory_mib <= self.memory_mib && other.gpus <= self.gpus
    }

    /// What of this is left without `other`.
    #[must_use]
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.saturating_sub(other.milli_cpu),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            gpus: self.gpus.saturating_sub(other.gpus),
        }
    }

    /// What `asked` has more of than this, for people: `4 CPUs of which 2 are free`.
    #[must_use]
    pub(crate) fn lacks(&self, asked: &Self) -> String {
        let cpus = |milli: u64| {
            if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
        };
        let mut list = Vec::new();
        if asked.milli_cpu > self.milli_cpu {
            list.push(format!("{} CPUs of {}", cpus(asked.milli_cpu), cpus(self.milli_cpu)));
        }
        if asked.memory_mib > self.memory_mib {
            list.push(format!("{} MiB of memory of {}", asked.memory_mib, self.memory_mib));
        }
        if asked.gpus > self.gpus {
            list.push(format!("{} GPUs of {}", asked.gpus, self.gpus));
        }
        list.join(", ")
    }
}

/// Why a run does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is more than the whole machine.
    TooLarge { lacks: String },
    /// It is the first in the row and does not fit beside those that run.
    Resources { lacks: String },
    /// So many came before it.
    Turn { before: usize },
}

impl Wait {
    /// One word, as a condition's reason.
    #[must_use]
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "TooLarge",
            Self::Resources { .. } => "Resources",
            Self::Turn { .. } => "Turn",
        }
    }

    /// For people.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        match self {
            Self::TooLarge { lacks } => format!("it asks for more than this machine has: {lacks}"),
            Self::Resources { lacks } => format!("it asks for more than is free now: {lacks}"),
            Self::Turn { before } => format!("{before} pods that came before it wait too"),
        }
    }
}

/// What is done about the runs that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    /// These begin now, in this order.
    pub begin: Vec<u64>,
    /// The others, with the reason.
    pub wait: BTreeMap<u64, Wait>,
}

/// `running`: what the runs of now take. `waiting`: ids in the order in which they came.
#[must_use]
pub(crate) fn turns(machine: &Size, running: &[Size], waiting: &[(u64, Size)]) -> Turns {
    let mut free = running.iter().fold(*machine, |free, run| free.without(run));
    let mut turns = Turns::default();
    let mut before = 0;
    for (id, asked) in waiting {
        let wait = if !machine.holds(asked) {
            Wait::TooLarge { lacks: machine.lacks(asked) }
        } else if before > 0 {
            before += 1;
            Wait::Turn { before: before - 1 }
        } else if free.holds(asked) {
            free = free.without(asked);
            turns.begin.push(*id);
            continue;
        } else {
            before = 1;
            Wait::Resources { lacks: free.lacks(asked) }
        };
        turns.wait.insert(*id, wait);
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(milli_cpu: u64, memory_mib: u64, gpus: u64) -> Size {
        Size { milli_cpu, memory_mib, gpus }
    }

    #[test]
    fn the_first_that_does_not_fit_holds_back_those_behind_it() {
        let machine = size(2000, 1000, 1);
        let waiting = [
            (1, size(500, 100, 0)),
            (2, size(2000, 100, 0)),
            (3, size(100, 10, 0)),
            (4, size(1, 9000, 2)),
            (5, size(0, 0, 0)),
        ];
        let turns = turns(&machine, &[size(500, 500, 1)], &waiting);
        assert_eq!(turns.begin, [1]);
        let text = |id: u64| turns.wait[&id].text();
        assert_eq!(text(2), "it asks for more than is free now: 2 CPUs of 1");
        assert_eq!(text(3), "1 pods that came before it wait too");
        assert_eq!(text(4), "it asks for more than this machine has: 9000 MiB of memory of 1000, 2 GPUs of 1");
        assert_eq!(text(5), "2 pods that came before it wait too");
    }

    fn any_size() -> impl Strategy<Value = Size> {
        (0_u64..5000, 0_u64..5000, 0_u64..4).prop_map(|(c, m, g)| size(c, m, g))
    }

    fn sum(list: impl Iterator<Item = Size>) -> Size {
        list.fold(Size::default(), |a, b| size(a.milli_cpu + b.milli_cpu, a.memory_mib + b.memory_mib, a.gpus + b.gpus))
    }

    proptest! {
        /// What begins fits beside what runs; each run that waits is told why; nobody overtakes one that could run.
        #[test]
        fn fair_and_within_the_machine(machine in any_size(), sizes in proptest::collection::vec(any_size(), 0..20)) {
            let waiting: Vec<(u64, Size)> = (0..).zip(sizes).collect();
            let turns = turns(&machine, &[], &waiting);
            let of = |id: u64| waiting.iter().find(|(i, _)| *i == id).expect("one of them").1;
            prop_assert!(machine.holds(&sum(turns.begin.iter().map(|id| of(*id)))));
            prop_assert_eq!(turns.begin.len() + turns.wait.len(), waiting.len());
            let first = turns.wait.iter().find(|(_, wait)| !matches!(wait, Wait::TooLarge { .. })).map(|(id, _)| *id);
            if let Some(first) = first {
                let free = matches!(turns.wait[&first], Wait::Resources { .. });
                prop_assert!(free);
                prop_assert!(turns.begin.iter().all(|id| *id < first));
            }
        }

        /// When runs end one after the other, every one that fits the machine gets its turn, in the order of arrival.
        #[test]
        fn everybody_comes_to_run(machine in any_size(), sizes in proptest::collection::vec(any_size(), 0..20)) {
            let mut waiting: Vec<(u64, Size)> = (0..).zip(sizes).collect();
            let fitting: Vec<u64> = waiting.iter().filter(|(_, s)| machine.holds(s)).map(|(id, _)| *id).collect();
            let (mut running, mut begun): (Vec<(u64, Size)>, Vec<u64>) = (Vec::new(), Vec::new());
            loop {
                let now: Vec<Size> = running.iter().map(|(_, s)| *s).collect();
                let turns = turns(&machine, &now, &waiting);
                for id in &turns.begin {
                    let at = waiting.iter().position(|(i, _)| i == id).expect("it waited");
                    running.push(waiting.remove(at));
                }
                begun.extend(&turns.begin);
                if running.is_empty() {
                    break;
                }
                running.remove(0);
            }
            prop_assert_eq!(begun, fitting);
        }
    }
}
