//! The public face of the pump: the service that starts it, and the handle.

use crate::contract::{Counters, LogEvent, LogId, LogSettings, LogTarget, Source};
use crate::follower::{Follower, FollowerShared};
use crate::pump::{Command, Pump};
use crate::tap::{Tap, TapEnd, TapWriter};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

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
        let shared = Arc::new(FollowerShared::new()?);
        self.send(Command::Follow { id, shared: Arc::clone(&shared) });
        Ok(Follower::of(shared))
    }

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
