//! The job's memory at its limit: which container has lost a process to the OOM killer, and whether the pod only thrashes. Pure.
//!
//! Upstream's containers have cgroups with `memory.oom.group`, so the kernel ends all of a container. Here the job's cgroup is
//! Slurm's and holds all containers; the kernel ends one process and counts it. What tells whose it was, best first:
//! 1. a large process that was there at the last look and is gone or dying now; the largest, for that is whom the kernel chooses;
//! 2. a process that has ended and is not waited for yet, or one whose waited-for children had many page faults since the last
//!    look: it had a large child that has ended;
//! 3. there is one container only, or one has ended just now and no other has lost anything.
//!
//! ```text
//!   told (notified) ──▶ look ──▶ again in 0.2 s, for the kernel tells before it kills ──▶ each second while the limit is reached
//!   not to be told  ──▶ look ──▶ half a second near the limit; else 5 s, and longer while nothing changes
//! ```

use crate::types::ContainerIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the kernel has counted for the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Processes that the OOM killer has ended.
    pub kills: u64,
    /// How often the limit was reached.
    pub hits: u64,
    /// Pages that came from a disk.
    pub major_faults: u64,
    /// Bytes in use that are not simply dropped.
    pub used: u64,
}

/// A process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessUse {
    pub container: ContainerIndex,
    pub pid: i32,
    /// When it was started: with the number it names one process.
    pub started: u64,
    /// Resident pages.
    pub pages: u64,
    /// It has ended, or is about to.
    pub gone: bool,
    /// Page faults of the children that it has waited for.
    pub child_faults: u64,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFinding {
    /// The OOM killer has ended a process of this container; None: whose it was cannot be told.
    Killed(Option<ContainerIndex>),
    /// The limit is reached all the time, and what was dropped for it comes back from the disk.
    Thrashing {
        /// Pages a second.
        faults: u64,
    },
}

impl MemoryFinding {
    /// Reason and message of the event. `limit`: the job's; `single`: the pod lets the rest of a container live on.
    #[must_use]
    pub fn words(self, container: Option<&str>, limit: &str, single: bool) -> (&'static str, String) {
        const REMEDY: &str = "raise resources.limits.memory";
        match (self, container) {
            (Self::Killed(_), Some(name)) => {
                let then = if single { "the rest of it goes on" } else { "all of it is ended (OOMKilled)" };
                let message = format!(
                    "the kernel has killed a process of container {name}, for the pod's memory was at its limit of {limit}; {then}; {REMEDY}"
                );
                ("OOMKilling", message)
            }
            (Self::Killed(_), None) => (
                "OOMKilling",
                format!(
                    "the kernel has killed a process, for the pod's memory was at its limit of {limit}; it cannot be told of which container; {REMEDY}"
                ),
            ),
            (Self::Thrashing { faults }, _) => (
                "MemoryThrashing",
                format!(
                    "the pod's memory has been at its limit of {limit} for 10 s and more, and its programs read what was dropped from the disk again ({faults} pages a second) instead of working; {REMEDY}"
                ),
            ),
        }
    }
}

/// The kernel tells before it kills: the count is looked at again so much later.
const AFTER_WORD: Duration = Duration::from_millis(200);
/// From one look to the next while a victim is not yet found, and for how long.
const DYING: Duration = Duration::from_millis(100);
const GIVE_UP: Duration = Duration::from_secs(2);
/// While the limit is being reached.
const AT_LIMIT: Duration = Duration::from_secs(1);
/// Without word from the kernel: near the limit, and away from it.
const NEAR: Duration = Duration::from_millis(500);
const AWAY: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);
/// A pod thrashes when it reaches its limit in each second of this time, with so many pages from the disk a second.
const THRASHING: Duration = Duration::from_secs(10);
const THRASHING_FAULTS: u64 = 50;
/// It is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(600);
/// So many faults of a child (1 MiB of pages) tell of a large one.
const LARGE_CHILD: u64 = 256;

/// What was seen so far.
#[derive(Clone, Debug)]
pub struct MemoryRule {
    limit: Option<u64>,
    notified: bool,
    seen: MemoryUse,
    processes: BTreeMap<(i32, u64), ProcessUse>,
    /// Kills whose victim is not found yet, and when that is given up.
    unresolved: Option<(u64, Duration)>,
    due: Option<Duration>,
    pause: Duration,
    /// Since when the limit is reached in each second, the faults then, and when this was last looked at, with the hits then.
    pressed: Option<(Duration, u64)>,
    judged: (Duration, u64),
    told: Option<Duration>,
}

impl MemoryRule {
    /// `notified`: the kernel gives word. Without a limit there is nothing to wait for.
    #[must_use]
    pub fn new(now: Duration, limit: Option<u64>, notified: bool, seen: MemoryUse) -> Self {
        Self {
            limit,
            notified,
            seen,
            processes: BTreeMap::new(),
            unresolved: None,
            due: (!notified && limit.is_some()).then_some(now + AWAY),
            pause: AWAY,
            pressed: None,
            judged: (now, seen.hits),
            told: None,
        }
    }

    /// When to look next by itself.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Has the OOM killer ended a process that no look has seen yet?
    #[must_use]
    pub fn fresh(&self, kills: u64) -> bool {
        kills > self.seen.kills || self.unresolved.is_some()
    }

    /// The first process of this container was ended by the kernel: that is what was counted.
    pub fn explained(&mut self, container: ContainerIndex, kills: u64) {
        self.seen.kills = self.seen.kills.max(kills);
        self.unresolved = None;
        self.forget(container);
    }

    /// The container has ended.
    pub fn forget(&mut self, container: ContainerIndex) {
        self.processes.retain(|_, process| process.container != container);
    }

    /// Looks at the counts, and at the running containers and all of their processes. `word`: the kernel has said something;
    /// `ended`: of the containers the one that has ended just now.
    pub fn look(
        &mut self,
        now: Duration,
        word: bool,
        used: MemoryUse,
        processes: &[ProcessUse],
        containers: &[ContainerIndex],
        ended: Option<ContainerIndex>,
    ) -> Vec<MemoryFinding> {
        let mut findings = Vec::new();
        let waiting = self.unresolved.map_or(0, |(kills, _)| kills);
        let kills = used.kills.saturating_sub(self.seen.kills) + waiting;
        if kills > 0 {
            let victims = self.victims(kills, processes, containers, ended);
            let until = self.unresolved.map_or(now + GIVE_UP, |(_, until)| until);
            if !victims.is_empty() {
                self.unresolved = None;
                findings.extend(victims.into_iter().map(|container| MemoryFinding::Killed(Some(container))));
            } else if now >= until {
                self.unresolved = None;
                findings.push(MemoryFinding::Killed(None));
            } else {
                self.unresolved = Some((kills, until));
            }
        }
        if let Some(faults) = self.thrashes(now, used) {
            findings.push(MemoryFinding::Thrashing { faults });
        }
        self.due = self.next(now, word, used);
        self.seen = used;
        // One that is missing because of a kill that is not resolved yet must be missed again.
        if self.unresolved.is_none() {
            self.processes.clear();
        }
        for process in processes.iter().filter(|process| !process.gone) {
            self.processes.insert((process.pid, process.started), *process);
        }
        findings
    }

    fn victims(
        &self,
        kills: u64,
        processes: &[ProcessUse],
        containers: &[ContainerIndex],
        ended: Option<ContainerIndex>,
    ) -> BTreeSet<ContainerIndex> {
        let now: BTreeMap<_, _> = processes.iter().map(|process| ((process.pid, process.started), process)).collect();
        let gone = |key: &(i32, u64)| now.get(key).is_none_or(|process| process.gone);
        let missed = self.processes.iter().filter(|(key, _)| gone(key)).map(|(_, process)| (process.pages, process));
        let mut lost: Vec<_> = missed.collect();
        if !lost.iter().any(|(pages, _)| *pages >= self.large()) {
            // It was born after the last look, and is to be seen as a dead one or by its parent.
            lost.extend(processes.iter().filter(|process| process.gone).map(|process| (process.pages, process)));
            let grown = |process: &ProcessUse| {
                let before = self.processes.get(&(process.pid, process.started)).map_or(0, |p| p.child_faults);
                process.child_faults.saturating_sub(before)
            };
            let parents = processes.iter().map(|process| (grown(process), process));
            lost.extend(parents.filter(|(faults, _)| *faults >= LARGE_CHILD));
        }
        if lost.is_empty() {
            let alone = if let [alone] = containers { Some(*alone) } else { None };
            return alone.or(ended).into_iter().collect();
        }
        lost.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        // Small ones beside a large one have ended by themselves.
        let least = lost.first().map_or(0, |(size, _)| size / 4);
        let many = usize::try_from(kills).unwrap_or(usize::MAX);
        lost.into_iter().take(many).filter(|(size, _)| *size >= least).map(|(_, process)| process.container).collect()
    }

    /// Pages of a process that can have filled the job's memory.
    fn large(&self) -> u64 {
        self.limit.map_or(4096, |limit| limit / 4096 / 16)
    }

    fn thrashes(&mut self, now: Duration, used: MemoryUse) -> Option<u64> {
        let (at, hits) = self.judged;
        if now < at + AT_LIMIT.mul_f32(0.9) {
            return None;
        }
        self.judged = (now, used.hits);
        if used.hits <= hits || now > at + AT_LIMIT * 3 {
            self.pressed = None;
            return None;
        }
        let (since, before) = *self.pressed.get_or_insert((now, used.major_faults));
        let lasted = now.saturating_sub(since);
        if lasted < THRASHING || self.told.is_some_and(|told| now < told + TELL_AGAIN) {
            return None;
        }
        let faults = used.major_faults.saturating_sub(before) / lasted.as_secs().max(1);
        // What comes next is judged by itself.
        self.pressed = Some((now, used.major_faults));
        if faults < THRASHING_FAULTS {
            return None;
        }
        self.told = Some(now);
        Some(faults)
    }

    fn next(&mut self, now: Duration, word: bool, used: MemoryUse) -> Option<Duration> {
        let limit = self.limit?;
        let pause = if self.unresolved.is_some() {
            DYING
        } else if word {
            AFTER_WORD
        } else if used.hits > self.seen.hits {
            AT_LIMIT
        } else if self.notified {
            return None;
        } else if used.used >= limit / 8 * 7 {
            NEAR
        } else if used.used.abs_diff(self.seen.used) > limit / 16 {
            self.pause = AWAY;
            AWAY
        } else {
            self.pause = (self.pause * 2).min(LONGEST);
            self.pause
        };
        if pause <= AT_LIMIT {
            self.pause = AWAY;
        }
        Some(now + pause)
    }
}

#[cfg(test)]
mod tests;
