//! What is due by time: retries, ends of draining, taps whose clients do not read, compression.

use super::{Exit, Log, Pump, STREAMS, arm, compress, recover};
use crate::records::Records;
use nix::sys::epoll::EpollTimeout;
use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Pump {
    /// When something is due next.
    pub(super) fn timeout(&self, now: Instant) -> EpollTimeout {
        let mut next = self.release_at;
        let mut at = |instant: Instant| next = Some(next.map_or(instant, |n| n.min(instant)));
        if let Some((due, _)) = &self.compress_at {
            at(*due);
        }
        for log in self.logs.values() {
            if let Some(trouble) = log.trouble.as_ref().filter(|t| !t.discarding) {
                at(trouble.retry_at);
            }
            if let Some(exit) = &log.exit {
                at(self.drain_deadline(log, exit));
            }
        }
        for (key, stream) in self.full_taps.values() {
            let Some(input) = self.logs.get(key).and_then(|l| l.inputs[*stream].as_ref()) else { continue };
            for (_, tap) in &input.taps {
                if let Some(since) = tap.stalled_since() {
                    at(since + self.settings.tap_stall);
                }
            }
        }
        let Some(next) = next else { return EpollTimeout::NONE };
        // Rounded up, so that the deadline has passed when we wake.
        let millis = next.saturating_duration_since(now).as_micros().div_ceil(1000);
        EpollTimeout::try_from(u32::try_from(millis).unwrap_or(u32::MAX).min(i32::MAX as u32))
            .unwrap_or(EpollTimeout::ZERO)
    }

    /// When an exited container's log is taken for complete though its pipes are still open.
    fn drain_deadline(&self, log: &Log, exit: &Exit) -> Instant {
        let limit = exit.at + self.settings.drain_limit;
        let tapped = log.inputs.iter().flatten().any(|i| i.taps.iter().any(|(_, t)| t.is_full()));
        if tapped || log.trouble.is_some() {
            // A slow client has its own deadline; a failing disk is given the whole time.
            return if tapped { limit.max(exit.quiet_since + self.settings.tap_stall * 2) } else { limit };
        }
        limit.min(exit.quiet_since + self.settings.drain_quiet)
    }

    pub(super) fn timers(&mut self, now: Instant) {
        self.drop_stalled_taps(now);
        if self.release_at.is_some_and(|at| now >= at) {
            self.release_at = None;
            self.input = Vec::new();
            self.records = Records::default();
        }
        let keys: Vec<u64> =
            self.logs.values().filter(|l| l.trouble.is_some() || l.exit.is_some()).map(|l| l.id.0).collect();
        for key in keys {
            self.retry(key, now);
            let Some(log) = self.logs.get_mut(&key) else { continue };
            let Some(exit) = &log.exit else { continue };
            let (limit, quiet) = (exit.at + self.settings.drain_limit, exit.quiet_since + self.settings.drain_quiet);
            if now >= limit || (now >= quiet && log.trouble.is_none()) {
                let Some(log) = self.logs.get(&key) else { continue };
                if now < log.exit.as_ref().map_or(now, |exit| self.drain_deadline(log, exit)) {
                    continue;
                }
                let time = self.stamper.now();
                for stream in 0..STREAMS.len() {
                    self.end_stream(key, stream, &time, now);
                }
                if let Some(trouble) = self.logs.get_mut(&key).and_then(|log| log.trouble.as_mut()) {
                    trouble.discard(&self.counters);
                }
                self.finish_if_done(key);
            }
        }
        if let Some((at, logs)) = self.compress_at.take() {
            if now < at {
                self.compress_at = Some((at, logs));
            } else if self.compressing.as_ref().is_some_and(|thread| !thread.is_finished()) {
                // One at a time: two would write the same temporary file.
                self.compress_at = Some((now + self.settings.compress_after, logs));
            } else {
                self.compressing = compress::now(logs);
            }
        }
    }

    fn drop_stalled_taps(&mut self, now: Instant) {
        let stalled: Vec<(u64, u64, usize)> = self
            .full_taps
            .iter()
            .filter(|(token, (key, stream))| {
                let tap = self
                    .logs
                    .get(key)
                    .and_then(|l| l.inputs[*stream].as_ref())
                    .and_then(|i| i.taps.iter().find(|(t, _)| t == *token));
                tap.and_then(|(_, tap)| tap.stalled_since()).is_some_and(|since| now >= since + self.settings.tap_stall)
            })
            .map(|(token, (key, stream))| (*token, *key, *stream))
            .collect();
        for (token, key, stream) in stalled {
            self.full_taps.remove(&token);
            if let Some(input) = self.logs.get_mut(&key).and_then(|l| l.inputs[stream].as_mut())
                && let Some(position) = input.taps.iter().position(|(t, _)| *t == token)
            {
                let (_, tap) = input.taps.swap_remove(position);
                tap.give_up();
            }
            self.resume(key, stream, now);
        }
    }

    /// Tries a log in trouble again, or begins to discard its output.
    fn retry(&mut self, key: u64, now: Instant) {
        let time = self.stamper.now();
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(trouble) = log.trouble.as_mut().filter(|t| !t.discarding && now >= t.retry_at) else { return };
        match log.file.append(&mut [IoSlice::new(&trouble.records)], &time) {
            Ok(_) => {
                self.counters.written.fetch_add(trouble.records.len() as u64, Ordering::Relaxed);
                let rest = trouble.rest.take();
                recover(log, &mut self.events);
                if let Some((stream, rest)) = rest {
                    self.write(key, stream, &rest, &time, now);
                }
            }
            Err(error) => {
                trouble.retry_at = now + self.settings.retry_every;
                trouble.error = error.to_string();
                if now < trouble.since + self.settings.stall_limit {
                    return;
                }
                trouble.discard(&self.counters);
            }
        }
        for stream in 0..STREAMS.len() {
            if let Some(log) = self.logs.get_mut(&key) {
                arm(&self.epoll, log, stream);
            }
        }
        if let Some(log) = self.logs.get(&key) {
            for follower in &log.followers {
                follower.grown();
            }
        }
        self.finish_if_done(key);
    }
}
