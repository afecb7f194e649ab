//! The pod's record and where its write is. One write at a time; the last state wins; a failed write is tried again.
//!
//! ```text
//!          save                    save
//!   Idle ───────▶ UnderWay ──────────────▶ Outdated
//!    ▲ ▲             │ │                      │
//!    │ └──written────┘ └──failed──▶ Failed    │ written: the next write begins
//!    └────────────save, retry────────┘◀───────┘ failed
//! ```

use crate::pods::folder::Record;
use std::time::{Duration, Instant};

/// The first wait after a failed write; it doubles up to the longest.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Idle,
    UnderWay,
    /// The record has changed since the write began.
    Outdated,
    /// The last write failed. It is tried again at this time.
    Failed(Instant),
}

/// What the end of a write leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    /// The record on disk is the one in memory.
    Done,
    /// The record has changed meanwhile: this is to be written.
    Next(Box<Record>),
    /// It is tried again after this long.
    Failed(Duration),
}

/// The record in memory, and its way to the disk.
#[derive(Debug)]
pub(crate) struct Ledger {
    record: Record,
    write: Write,
    /// Failed writes in a row.
    failures: u32,
}

impl Ledger {
    pub(crate) fn new(record: Record) -> Self {
        Self { record, write: Write::Idle, failures: 0 }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// To change the record. What must survive a restart needs a [`Ledger::save`] after it.
    pub(crate) fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// What is to be written now. None: a write is under way, and its end leads to the next.
    pub(crate) fn save(&mut self) -> Option<Box<Record>> {
        match self.write {
            Write::Idle | Write::Failed(_) => {
                self.write = Write::UnderWay;
                Some(Box::new(self.record.clone()))
            }
            Write::UnderWay | Write::Outdated => {
                self.write = Write::Outdated;
                None
            }
        }
    }

    /// What is to be written because a write failed and its wait is over.
    pub(crate) fn retry(&mut self, now: Instant) -> Option<Box<Record>> {
        self.due().filter(|at| *at <= now).and_then(|_| self.save())
    }

    /// A write has ended.
    pub(crate) fn written(&mut self, done: bool, now: Instant) -> Written {
        let outdated = self.write == Write::Outdated;
        self.write = Write::Idle;
        if done {
            self.failures = 0;
            return if outdated { self.save().map_or(Written::Done, Written::Next) } else { Written::Done };
        }
        let wait = (FIRST * (1 << self.failures.min(5))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.write = Write::Failed(now + wait);
        Written::Failed(wait)
    }

    /// The failed write is not tried again by itself: what it was for is given up.
    pub(crate) fn give_up(&mut self) {
        if matches!(self.write, Write::Failed(_)) {
            self.write = Write::Idle;
        }
    }

    /// Whether a write is under way. It would make the pod's folder anew.
    pub(crate) fn is_writing(&self) -> bool {
        matches!(self.write, Write::UnderWay | Write::Outdated)
    }

    /// When a failed write is tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        if let Write::Failed(at) = self.write { Some(at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::PodRef;
    use jiff::Timestamp;

    fn ledger() -> Ledger {
        Ledger::new(Record::new(PodRef::default(), Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn one_write_at_a_time_and_the_last_state_wins() {
        let now = Instant::now();
        let mut ledger = ledger();
        assert!(ledger.save().is_some_and(|record| record.last_event == 0));
        for number in 1..4 {
            ledger.record_mut().last_event = number;
            assert_eq!(ledger.save(), None);
        }
        let Written::Next(next) = ledger.written(true, now) else { panic!("it has changed") };
        assert_eq!(next.last_event, 3);
        assert!(ledger.is_writing());
        assert_eq!(ledger.written(true, now), Written::Done);
        assert!(!ledger.is_writing());
    }

    #[test]
    fn a_failed_write_is_tried_again_ever_more_seldom() {
        let mut now = Instant::now();
        let mut ledger = ledger();
        assert!(ledger.save().is_some());
        let mut waits = Vec::new();
        for _ in 0..7 {
            let Written::Failed(wait) = ledger.written(false, now) else { panic!("it has failed") };
            waits.push(wait.as_secs());
            assert!(!ledger.is_writing() && ledger.retry(now).is_none(), "not yet");
            now += wait;
            assert!(ledger.retry(now).is_some() && ledger.retry(now).is_none(), "once");
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(ledger.written(true, now), Written::Done);
        assert_eq!(ledger.due(), None);
        // The next change does not wait for the time.
        assert!(ledger.save().is_some());
        assert_eq!(ledger.written(false, now), Written::Failed(FIRST), "counted anew");
        assert!(ledger.save().is_some());
    }
}
