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
mod tests {
    use super::*;

    const A: ContainerIndex = ContainerIndex(0);
    const B: ContainerIndex = ContainerIndex(1);
    const LIMIT: u64 = 64 << 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn process(container: ContainerIndex, pid: i32, pages: u64) -> ProcessUse {
        ProcessUse { container, pid, started: 1, pages, gone: false, child_faults: 0 }
    }

    fn kills(kills: u64) -> MemoryUse {
        MemoryUse { kills, ..MemoryUse::default() }
    }

    fn rule(notified: bool) -> MemoryRule {
        MemoryRule::new(ms(0), Some(LIMIT), notified, MemoryUse::default())
    }

    /// With both containers running.
    fn look(
        rule: &mut MemoryRule,
        now: Duration,
        word: bool,
        used: MemoryUse,
        processes: &[ProcessUse],
    ) -> Vec<MemoryFinding> {
        rule.look(now, word, used, processes, &[A, B], None)
    }

    fn killed(container: ContainerIndex) -> Vec<MemoryFinding> {
        vec![MemoryFinding::Killed(Some(container))]
    }

    #[test]
    fn the_largest_that_is_gone_is_the_victim() {
        let mut rule = rule(true);
        let (shell, small, large) = (process(A, 1, 10), process(A, 2, 20), process(B, 3, 9000));
        assert_eq!(look(&mut rule, ms(0), true, kills(0), &[shell, small, large]), []);
        assert_eq!(look(&mut rule, ms(10), true, kills(1), &[shell]), killed(B));
        assert_eq!(look(&mut rule, ms(20), true, kills(1), &[shell]), [], "each kill is told once");
    }

    #[test]
    fn a_number_that_is_given_again_is_another_process() {
        let mut rule = rule(true);
        let old = process(B, 3, 9000);
        look(&mut rule, ms(0), true, kills(0), &[process(A, 1, 10), old]);
        let new = ProcessUse { started: 2, ..process(A, 3, 9000) };
        assert_eq!(look(&mut rule, ms(10), true, kills(1), &[process(A, 1, 10), new]), killed(B));
    }

    #[test]
    fn a_dying_process_is_waited_for() {
        let mut rule = rule(true);
        let both = [process(A, 1, 10), process(B, 2, 9000)];
        look(&mut rule, ms(0), true, kills(0), &both);
        assert_eq!(look(&mut rule, ms(1), true, kills(1), &both), [], "it is still there");
        assert_eq!(rule.due(), Some(ms(101)));
        let dying = [both[0], ProcessUse { gone: true, ..both[1] }];
        assert_eq!(look(&mut rule, ms(101), false, kills(1), &dying), killed(B));
    }

    #[test]
    fn two_kills_can_have_hit_two_containers_and_small_ones_end_by_themselves() {
        let mut rule = rule(true);
        let all = [process(A, 1, 8000), process(B, 2, 9000), process(B, 3, 5)];
        look(&mut rule, ms(0), true, kills(0), &all);
        let both = [MemoryFinding::Killed(Some(A)), MemoryFinding::Killed(Some(B))];
        assert_eq!(look(&mut rule, ms(1), true, kills(2), &[]), both);
        let all = [process(A, 1, 5), process(B, 2, 9000)];
        look(&mut rule, ms(2), true, kills(2), &all);
        assert_eq!(look(&mut rule, ms(3), true, kills(4), &[]), killed(B));
    }

    #[test]
    fn one_that_nobody_saw_is_known_by_its_parent_or_by_being_alone() {
        let mut rule = rule(false);
        let (a, b) = (process(A, 1, 10), process(B, 2, 10));
        look(&mut rule, ms(0), false, kills(0), &[a, b]);
        let bereft = ProcessUse { child_faults: 50_000, ..b };
        let busy = ProcessUse { child_faults: 900, ..a };
        assert_eq!(look(&mut rule, ms(5000), false, kills(1), &[busy, bereft]), killed(B));
        rule.forget(B);
        let one = rule.look(ms(9000), false, kills(2), &[busy], &[A], None);
        assert_eq!(one, killed(A), "B has ended and can have lost nothing");
        let ended = rule.look(ms(9000), false, kills(3), &[busy], &[A, B], Some(B));
        assert_eq!(ended, killed(B), "A has lost nothing, and B is at its end");
    }

    #[test]
    fn whose_it_was_may_stay_unknown() {
        let mut rule = rule(true);
        let both = [process(A, 1, 10), process(B, 2, 10)];
        look(&mut rule, ms(0), true, kills(0), &both);
        assert_eq!(look(&mut rule, ms(1), true, kills(1), &both), []);
        assert_eq!(look(&mut rule, ms(1500), false, kills(1), &both), []);
        assert_eq!(look(&mut rule, ms(2001), false, kills(1), &both), [MemoryFinding::Killed(None)]);
        assert_eq!(rule.due(), None);
    }

    #[test]
    fn what_a_first_process_died_of_is_explained() {
        let mut rule = rule(true);
        look(&mut rule, ms(0), true, kills(0), &[process(A, 1, 9000), process(B, 2, 10)]);
        assert!(rule.fresh(1));
        rule.explained(A, 1);
        assert!(!rule.fresh(1));
        assert_eq!(look(&mut rule, ms(1), true, kills(1), &[process(B, 2, 10)]), []);
    }

    #[test]
    fn nobody_wakes_without_word_or_without_a_limit() {
        let mut rule = rule(true);
        assert_eq!(rule.due(), None);
        look(&mut rule, ms(1000), true, MemoryUse::default(), &[]);
        assert_eq!(rule.due(), Some(ms(1200)), "the kernel tells before it kills");
        look(&mut rule, ms(1200), false, MemoryUse::default(), &[]);
        assert_eq!(rule.due(), None);
        assert_eq!(MemoryRule::new(ms(0), None, false, MemoryUse::default()).due(), None);
    }

    #[test]
    fn where_the_kernel_gives_no_word_rest_grows_away_from_the_limit() {
        let mut rule = rule(false);
        let used = |used| MemoryUse { used, ..MemoryUse::default() };
        let mut now = ms(0);
        let mut pauses = Vec::new();
        for bytes in [0, 0, 0, 0, 0, LIMIT / 2, LIMIT / 2, LIMIT - 1, LIMIT - 1, LIMIT / 2] {
            now = rule.due().expect("it looks by itself");
            look(&mut rule, now, false, used(bytes), &[]);
            pauses.push((rule.due().expect("it looks by itself") - now).as_millis());
        }
        assert_eq!(pauses, [10_000, 20_000, 40_000, 60_000, 60_000, 5_000, 10_000, 500, 500, 5_000]);
        assert!(now > ms(100_000));
    }

    #[test]
    fn thrashing_is_ten_seconds_of_reaching_the_limit_and_reading_again() {
        for (faults, hits, expected) in [(60, 5, 1), (60, 0, 0), (40, 5, 0)] {
            let mut rule = rule(true);
            let mut findings = Vec::new();
            for second in 0..40 {
                let used = MemoryUse {
                    hits: second * hits,
                    major_faults: second * faults,
                    used: LIMIT,
                    ..MemoryUse::default()
                };
                findings.extend(look(&mut rule, ms(second * 1000), false, used, &[]));
            }
            assert_eq!(findings.len(), expected, "{faults} {hits}: {findings:?}");
            if expected > 0 {
                assert_eq!(findings, [MemoryFinding::Thrashing { faults: 60 }], "once in ten minutes");
            }
        }
    }

    #[test]
    fn the_words_name_the_limit_and_the_remedy() {
        let killed = MemoryFinding::Killed(Some(A));
        for (finding, name, single, word) in [
            (killed, Some("main"), false, "container main"),
            (killed, Some("main"), false, "OOMKilled"),
            (killed, Some("main"), true, "goes on"),
            (MemoryFinding::Killed(None), None, false, "cannot be told"),
            (MemoryFinding::Thrashing { faults: 7 }, None, false, "7 pages a second"),
        ] {
            let (_, message) = finding.words(name, "64Mi", single);
            for word in [word, "limit of 64Mi", "resources.limits.memory"] {
                assert!(message.contains(word), "{message}");
            }
        }
    }

    #[test]
    fn a_rest_between_two_hits_is_no_thrashing() {
        let mut rule = rule(true);
        for second in 0..60 {
            let hits = second / 5;
            let used = MemoryUse { hits, major_faults: second * 1000, used: LIMIT, ..MemoryUse::default() };
            assert_eq!(look(&mut rule, ms(second * 1000), false, used, &[]), [], "{second}");
        }
    }
}
