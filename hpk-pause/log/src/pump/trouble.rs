//! A log that cannot be written, and what waits or is lost meanwhile.

use crate::contract::Counters;
use crate::cut::Cutter;
use crate::records::Records;
use crate::stamp;
use hpk_api::cri_log::Stream;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A log that cannot be written.
pub(super) struct Trouble {
    pub(super) since: Instant,
    pub(super) retry_at: Instant,
    /// Records that wait to be written, and how many bytes of output they stand for.
    pub(super) records: Vec<u8>,
    /// Output that was read with them but not cut yet, by stream.
    pub(super) rest: Option<(usize, Vec<u8>)>,
    pub(super) discarding: bool,
    pub(super) lost: u64,
    pub(super) error: String,
}

impl Trouble {
    pub(super) fn new(now: Instant, retry_at: Instant, error: &std::io::Error) -> Self {
        Self {
            since: now,
            retry_at,
            records: Vec::new(),
            rest: None,
            discarding: false,
            lost: 0,
            error: error.to_string(),
        }
    }

    /// Gives up what waits to be written.
    pub(super) fn discard(&mut self, counters: &Counters) {
        let bytes = self.records.len() + self.rest.take().map_or(0, |(_, rest)| rest.len());
        lose(counters, self, bytes as u64);
        self.records = Vec::new();
        self.discarding = true;
    }

    /// A record that tells readers of the log what is missing at this place.
    pub(super) fn note(&self, time: &[u8; stamp::LENGTH]) -> Vec<u8> {
        if self.lost == 0 {
            return Vec::new();
        }
        let text = format!("hpk: {} bytes of output are missing here: {}\n", self.lost, self.error);
        let mut record = Records::default();
        Cutter::new(Stream::Stderr).feed(text.as_bytes(), time, &mut record, usize::MAX);
        record.to_vec(text.as_bytes())
    }
}

pub(super) fn lose(counters: &Counters, trouble: &mut Trouble, bytes: u64) {
    trouble.lost += bytes;
    counters.lost.fetch_add(bytes, Ordering::Relaxed);
}
