//! Taps: copies of a container's raw output for attach clients.
//!
//! A tap is a pipe. The pump writes what it has read, the client's task reads it at its own pace. A client that
//! reads slowly slows the container (as with every container engine: it loses nothing), but one that reads nothing
//! for [`crate::LogSettings::tap_stall`] is dropped, so that a forgotten terminal cannot stop a container.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

/// A client's side of a tap.
#[derive(Debug)]
pub struct Tap {
    /// Read end, non-blocking, of what the container writes to stdout (all of it when it has a terminal);
    /// end of file when the stream ends.
    pub stdout: Option<OwnedFd>,
    /// The same for stderr.
    pub stderr: Option<OwnedFd>,
    /// Ask this after the end of file.
    pub end: TapEnd,
}

/// Why a tap ended.
#[derive(Clone, Debug, Default)]
pub struct TapEnd(Arc<AtomicU8>);

const STALLED: u8 = 1;

impl TapEnd {
    /// The client was dropped because it read nothing for too long.
    #[must_use]
    pub fn stalled(&self) -> bool {
        self.0.load(Ordering::Acquire) == STALLED
    }

    fn set_stalled(&self) {
        self.0.store(STALLED, Ordering::Release);
    }
}

/// The pump's side of one stream of a tap.
#[derive(Debug)]
pub(crate) struct TapWriter {
    fd: OwnedFd,
    end: TapEnd,
    /// What the pipe did not take; at most one read of the pump.
    pending: Vec<u8>,
    /// Since when nothing was taken.
    stalled_since: Option<Instant>,
}

/// What became of a write to a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapState {
    /// Everything is in the pipe.
    Clear,
    /// Wait until the pipe is writable.
    Full,
    /// The client is gone.
    Gone,
}

impl TapWriter {
    /// Both ends of one stream.
    pub(crate) fn pair(end: &TapEnd) -> io::Result<(OwnedFd, Self)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok((read, Self { fd: write, end: end.clone(), pending: Vec::new(), stalled_since: None }))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn is_full(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Sends `bytes`; only to be called when not full.
    pub(crate) fn send(&mut self, bytes: &[u8], now: Instant) -> TapState {
        self.pending.extend_from_slice(bytes);
        self.flush(now)
    }

    /// The pipe may take more.
    pub(crate) fn flush(&mut self, now: Instant) -> TapState {
        let mut sent = 0;
        while sent < self.pending.len() {
            match nix::unistd::write(&self.fd, &self.pending[sent..]) {
                Ok(n) => {
                    sent += n;
                    self.stalled_since = None;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return TapState::Gone,
            }
        }
        self.pending.drain(..sent);
        if self.pending.is_empty() {
            self.pending = Vec::new();
            return TapState::Clear;
        }
        self.stalled_since.get_or_insert(now);
        TapState::Full
    }

    /// Drops the client because it did not read.
    pub(crate) fn give_up(&self) {
        self.end.set_stalled();
    }
}
