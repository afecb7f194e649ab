//! What the supervisor and the pump say to each other.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How the pump behaves. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Rotate before a log would pass this size (containerLogMaxSize, 10 MiB); 0: never.
    pub max_bytes: u64,
    /// Files kept per log, the live one included (containerLogMaxFiles, 5).
    pub max_files: u32,
    /// Age at which a rotated file that is not the newest is compressed. A container that writes so fast that its
    /// files are pruned before costs no compression at all.
    pub compress_after: Duration,
    /// Time between two attempts after a failed write.
    pub retry_every: Duration,
    /// How long a failing file system holds a container's output back before output is discarded and counted.
    pub stall_limit: Duration,
    /// How long an attach client that reads nothing holds a container back before the client is dropped.
    pub tap_stall: Duration,
    /// After the container's exit: its output is complete once nothing came for so long, even when a process that it
    /// left behind keeps the pipe open.
    pub drain_quiet: Duration,
    /// After the container's exit: the longest wait for the end of its output.
    pub drain_limit: Duration,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_files: 5,
            compress_after: Duration::from_secs(10),
            retry_every: Duration::from_secs(1),
            stall_limit: Duration::from_secs(30),
            tap_stall: Duration::from_secs(10),
            drain_quiet: Duration::from_millis(200),
            drain_limit: Duration::from_secs(10),
        }
    }
}

/// Names one open log of a [`crate::LogHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub(crate) u64);

/// Which file a container's output goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    /// Folder of the container's logs; created when missing.
    pub dir: PathBuf,
    /// Instance of the container: `<restart_count>.log`.
    pub restart_count: u32,
}

/// Where a container's output comes from.
#[derive(Debug)]
pub enum Source {
    /// Read ends of two pipes. They are set to non-blocking.
    Pipes {
        /// What it writes to descriptor 1.
        stdout: OwnedFd,
        /// What it writes to descriptor 2.
        stderr: OwnedFd,
    },
    /// The master of its terminal (a duplicate of its own, which is set to non-blocking, as all duplicates are).
    /// Everything is stdout.
    Pty(OwnedFd),
}

/// What the pump tells the supervisor. Sent from the pump's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// All output of a container whose exit was told by [`crate::LogHandle::exited`] is in its log.
    Drained {
        id: LogId,
        /// The log's last 80 lines, at most 2048 bytes, when asked for.
        tail: Option<Vec<u8>>,
    },
    /// A log cannot be written; its container is held back.
    Trouble {
        id: LogId,
        /// The system's text.
        error: String,
    },
    /// Writing works again.
    Recovered {
        id: LogId,
        /// Bytes of output that had to be discarded.
        lost: u64,
    },
}

/// Totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) read: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) rotations: AtomicU64,
}

impl Counters {
    /// Bytes read from containers.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes written to log files.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes of output that could not be written and were discarded.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }
}
