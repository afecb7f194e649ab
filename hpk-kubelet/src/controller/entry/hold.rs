//! What keeps a pod from its job: the kubelet's refusal, sbatch's, containers that wait, and the time of the next attempt.
//! With it what attempts remember of each other.

use crate::controller::prepared::Memory;
use crate::pods::admit::Refusal;
use crate::pods::status::Waiting;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Hold {
    /// None while an attempt or a refresh has it.
    memory: Option<Memory>,
    until: Option<Instant>,
    /// As [`Self::until`], whatever changes.
    backs_off: Option<Instant>,
    containers: BTreeMap<String, Waiting>,
    refused: Option<Refusal>,
    submit_error: Option<String>,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            memory: Some(Memory::default()),
            until: None,
            backs_off: None,
            containers: BTreeMap::new(),
            refused: None,
            submit_error: None,
        }
    }
}

impl Hold {
    // ---- memory

    pub(crate) fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// For an attempt, which gives it back.
    pub(crate) fn lend_memory(&mut self) -> Memory {
        self.memory.take().unwrap_or_default()
    }

    pub(crate) fn take_memory_back(&mut self, memory: Memory) {
        self.memory = Some(memory);
    }

    /// The attempt that had it was given up.
    pub(crate) fn forget(&mut self) {
        self.memory = Some(Memory::default());
    }

    // ---- time

    /// No attempt before this long is over.
    pub(crate) fn wait(&mut self, now: Instant, wait: Duration) {
        self.until = Some(now + wait);
    }

    /// No attempt before this long is over, whatever changes.
    pub(crate) fn back_off(&mut self, now: Instant, wait: Duration) {
        self.backs_off = Some(now + wait);
    }

    /// Something has changed: the next attempt may begin.
    pub(crate) fn release(&mut self) {
        self.until = None;
    }

    /// When the next attempt may begin; None: now.
    pub(crate) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.max(self.backs_off).filter(|at| *at > now)
    }

    // ---- reasons

    pub(crate) fn containers(&self) -> &BTreeMap<String, Waiting> {
        &self.containers
    }

    /// These containers wait, and no others.
    pub(crate) fn set_containers(&mut self, containers: BTreeMap<String, Waiting>) {
        self.containers = containers;
    }

    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.refused = Some(refusal);
    }

    pub(crate) fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    pub(crate) fn submit_error(&self) -> Option<&str> {
        self.submit_error.as_deref()
    }

    /// sbatch failed: all of the pod's containers wait for the next attempt.
    pub(crate) fn submission_failed(
        &mut self,
        now: Instant,
        waiting: &Waiting,
        containers: impl Iterator<Item = String>,
        is_transient: bool,
    ) {
        let failures = self.memory.as_mut().map_or(1, |memory| {
            memory.failures = memory.failures.saturating_add(1);
            memory.failures
        });
        let base = if is_transient { 2 } else { 30 };
        self.wait(now, Duration::from_secs((base << (failures - 1).min(5)).min(300)));
        self.containers = containers.map(|name| (name, waiting.clone())).collect();
        self.submit_error = Some(waiting.message.clone());
    }

    /// The pod has its job.
    pub(crate) fn made(&mut self) {
        self.submit_error = None;
        self.containers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbatch_is_tried_again_ever_more_seldom() {
        let now = Instant::now();
        for (is_transient, waits) in [(true, [2, 4, 8, 16, 32, 64, 64]), (false, [30, 60, 120, 240, 300, 300, 300])] {
            let mut hold = Hold::default();
            let no = Waiting { reason: "SubmitFailed".to_owned(), message: "no".to_owned() };
            let mut had = Vec::new();
            for _ in 0..waits.len() {
                hold.submission_failed(now, &no, ["c".to_owned()].into_iter(), is_transient);
                had.push(hold.until(now).map_or(0, |at| (at - now).as_secs()));
            }
            assert_eq!(had, waits);
            assert_eq!(hold.containers()["c"].message, "no");
            hold.release();
            assert_eq!(hold.until(now), None);
            hold.made();
            assert!(hold.containers().is_empty() && hold.submit_error().is_none());
        }
    }
}
