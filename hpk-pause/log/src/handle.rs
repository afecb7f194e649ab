//! The public face of the pump: settings, the handle, followers, events.

use crate::pump::{Command, Pump};
use crate::tap::{Tap, TapEnd, TapWriter};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
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

/// Names one open log of a [`LogHandle`].
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
    /// All output of a container whose exit was told by [`LogHandle::exited`] is in its log.
    Drained {
        /// Which log.
        id: LogId,
        /// The log's last 80 lines, at most 2048 bytes, when asked for.
        tail: Option<Vec<u8>>,
    },
    /// A log cannot be written; its container is held back.
    Trouble {
        /// Which log.
        id: LogId,
        /// The system's text.
        error: String,
    },
    /// Writing works again.
    Recovered {
        /// Which log.
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

    /// Rotations.
    #[must_use]
    pub fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }
}

/// Starts pumps.
#[derive(Debug)]
pub struct LogService;

impl LogService {
    /// Starts the pump's thread, `hpk-log`. It ends when the last handle is dropped and all logs are closed.
    ///
    /// # Errors
    /// When the system gives no thread, epoll or eventfd.
    pub fn start(settings: LogSettings, events: impl FnMut(LogEvent) + Send + 'static) -> io::Result<LogHandle> {
        let (sender, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let counters = Arc::new(Counters::default());
        let pump = Pump::new(settings, receiver, Arc::clone(&wake), Arc::clone(&counters), Box::new(events))?;
        std::thread::Builder::new().name("hpk-log".to_owned()).stack_size(256 << 10).spawn(move || pump.run())?;
        Ok(LogHandle { line: Arc::new(Line { sender, wake }), counters, next: Arc::new(AtomicU64::new(1)) })
    }
}

/// The way to the pump; closing it (the last clone dropped) wakes the pump, so that it can end.
#[derive(Debug)]
struct Line {
    sender: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // The sender is dropped after this, so the pump is told explicitly.
        let _ = self.sender.send(Command::Close);
        let _ = self.wake.write(1);
    }
}

/// Asks things of the pump. Cheap to clone; no call blocks or touches a file.
#[derive(Clone, Debug)]
pub struct LogHandle {
    line: Arc<Line>,
    counters: Arc<Counters>,
    next: Arc<AtomicU64>,
}

impl LogHandle {
    /// Begins to write a container's output.
    ///
    /// # Errors
    /// When a descriptor cannot be made non-blocking.
    pub fn open(&self, target: LogTarget, source: Source) -> io::Result<LogId> {
        let (streams, pty) = match source {
            Source::Pipes { stdout, stderr } => ([Some(stdout), Some(stderr)], false),
            Source::Pty(master) => ([Some(master), None], true),
        };
        for fd in streams.iter().flatten() {
            set_nonblocking(fd)?;
        }
        let id = LogId(self.next.fetch_add(1, Ordering::Relaxed));
        self.send(Command::Open { id, target, streams, pty });
        Ok(id)
    }

    /// The container's process has ended: answer with [`LogEvent::Drained`] as soon as its output is complete,
    /// with the log's tail for a termination message when asked for. Also answered for an unknown id.
    pub fn exited(&self, id: LogId, want_tail: bool) {
        self.send(Command::Exited { id, want_tail });
    }

    /// Copies what the container writes from now on.
    ///
    /// # Errors
    /// When no pipe can be made.
    pub fn tap(&self, id: LogId, stdout: bool, stderr: bool) -> io::Result<Tap> {
        let end = TapEnd::default();
        let mut tap = Tap { stdout: None, stderr: None, end: end.clone() };
        let mut writers = [None, None];
        for (index, wanted) in [stdout, stderr].into_iter().enumerate() {
            if wanted {
                let (read, writer) = TapWriter::pair(&end)?;
                writers[index] = Some(writer);
                *(if index == 0 { &mut tap.stdout } else { &mut tap.stderr }) = Some(read);
            }
        }
        self.send(Command::Tap { id, writers });
        Ok(tap)
    }

    /// To be told when there is more to read in a log.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn follow(&self, id: LogId) -> io::Result<Follower> {
        let shared = Arc::new(FollowerShared {
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            signalled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        self.send(Command::Follow { id, shared: Arc::clone(&shared) });
        Ok(Follower(shared))
    }

    /// Totals.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn send(&self, command: Command) {
        // The pump outlives all handles; a pump that died by a panic has taken the process with it.
        let _ = self.line.sender.send(command);
        let _ = self.line.wake.write(1);
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Tells a reader that a log has grown or is complete. Poll the descriptor for reading, then
/// [`Follower::acknowledge`], then read the log.
#[derive(Debug)]
pub struct Follower(Arc<FollowerShared>);

#[derive(Debug)]
pub(crate) struct FollowerShared {
    event: EventFd,
    signalled: AtomicBool,
    ended: AtomicBool,
}

impl FollowerShared {
    pub(crate) fn grown(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            // A full counter is a signal too.
            let _ = self.event.write(1);
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.grown();
    }
}

impl Follower {
    /// Resets the signal, before reading.
    pub fn acknowledge(&self) {
        let _ = self.0.event.read();
        self.0.signalled.store(false, Ordering::Release);
    }

    /// Nothing more will be written to the log. Ask before reading: what is read after is then complete.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
