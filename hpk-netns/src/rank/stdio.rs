//! A rank beside its command: output becomes records, orders and Slurm's signals go to the command, its end is waited for.
//! One thread, one poll.

use crate::step::record::{self, Stream};
use hpk_api::step::StepOrder;
use hpk_sys::crossing::Desk;
use hpk_sys::launch::{Io, Launched};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Passed on to the command.
const FORWARDED: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGXCPU,
];

/// Output that waits for srun; beyond it the command has to wait.
const ROOM: usize = 256 << 10;

/// How long the output is still read after the command's end: what it left behind may hold the pipes.
const DRAIN: Duration = Duration::from_millis(500);

/// How long srun may take for the last of it.
const FLUSH: Duration = Duration::from_secs(30);

/// Signals as something to read.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// From now on they do not end the process.
    pub(super) fn take() -> io::Result<Self> {
        let mut set: SigSet = FORWARDED.into_iter().collect();
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next one, if there is one.
    pub(super) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How the command ended, and what srun has not yet taken.
pub(super) struct Ended {
    /// 0–255, or 128+n.
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
    output: Vec<u8>,
}

impl Ended {
    /// Hands over the rest and the last news.
    pub(super) fn finish(mut self, news: &[u8]) {
        self.output.extend_from_slice(news);
        write_all(&self.output);
    }
}

/// Stays with the command until it has ended and its output is read. `first` goes before all output; its connections ask the
/// desk; `usage` is the answer to
/// who asks for it.
pub(super) fn attend(
    rank: u32,
    launched: Launched,
    signals: Signals,
    (first, desk): (Vec<u8>, Option<Desk>),
    usage: Option<impl Fn() -> Vec<u8>>,
) -> Ended {
    let Launched { pid, io, .. } = launched;
    let (stdout, stderr) = match io {
        Io::Pipes { stdout, stderr, .. } => (Some(stdout), Some(stderr)),
        Io::Pty { .. } => (None, None),
    };
    non_blocking(io::stdout().as_fd());
    let mut attendance = Attendance {
        rank,
        pid,
        signals,
        streams: [(Stream::Stdout, stdout), (Stream::Stderr, stderr)],
        orders: Some(Vec::new()),
        usage,
        desk,
        output: first,
        ended: None,
        drained_by: None,
    };
    attendance.run();
    let (code, signal) = attendance.ended.unwrap_or((1, None));
    Ended { code, signal, output: attendance.output }
}

struct Attendance<U> {
    rank: u32,
    pid: Pid,
    signals: Signals,
    streams: [(Stream, Option<OwnedFd>); 2],
    /// What has come of the next order; None: no more will come.
    orders: Option<Vec<u8>>,
    usage: Option<U>,
    desk: Option<Desk>,
    output: Vec<u8>,
    ended: Option<(i32, Option<i32>)>,
    drained_by: Option<Instant>,
}

/// What is ready.
struct Ready {
    signal: bool,
    order: bool,
    room: bool,
    streams: [bool; 2],
    desk: bool,
}

impl<U: Fn() -> Vec<u8>> Attendance<U> {
    fn run(&mut self) {
        loop {
            let open = self.streams.iter().any(|(_, fd)| fd.is_some());
            let late = self.drained_by.is_some_and(|at| Instant::now() >= at);
            if self.ended.is_some() && (!open || late) {
                return;
            }
            let Some(ready) = self.wait() else { return };
            if let Some(desk) = self.desk.as_mut().filter(|_| ready.desk) {
                desk.work();
            }
            if ready.signal {
                self.signals();
            }
            if ready.order {
                self.order();
            }
            for (index, ready) in ready.streams.into_iter().enumerate() {
                if ready {
                    self.read(index);
                }
            }
            if ready.room {
                self.write();
            }
        }
    }

    fn wait(&self) -> Option<Ready> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let order = self.orders.is_some().then(|| push(&mut fds, stdin.as_fd(), PollFlags::POLLIN));
        let room = (!self.output.is_empty()).then(|| push(&mut fds, stdout.as_fd(), PollFlags::POLLOUT));
        let may_read = self.output.len() < ROOM;
        let streams = [0, 1].map(|index: usize| {
            let fd = self.streams.get(index).and_then(|(_, fd)| fd.as_ref()).filter(|_| may_read)?;
            Some(push(&mut fds, fd.as_fd(), PollFlags::POLLIN))
        });
        let asks: Vec<usize> =
            self.desk.iter().flat_map(Desk::watched).map(|fd| push(&mut fds, fd, PollFlags::POLLIN)).collect();
        let timeout = match self.drained_by {
            Some(at) => {
                PollTimeout::try_from(at.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO)
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        Some(Ready {
            signal: ready(0),
            order: order.is_some_and(ready),
            room: room.is_some_and(ready),
            streams: streams.map(|at| at.is_some_and(ready)),
            desk: asks.into_iter().any(ready),
        })
    }

    fn signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == Signal::SIGCHLD { self.reap() } else { self.send(signal) }
        }
    }

    fn reap(&mut self) {
        let ended = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => (code, None),
            Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
            _ => return,
        };
        self.ended.get_or_insert(ended);
        self.drained_by.get_or_insert(Instant::now() + DRAIN);
    }

    /// It is not reaped yet, so the number is still its own.
    fn send(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = nix::sys::signal::kill(self.pid, signal);
        }
    }

    fn order(&mut self) {
        let mut buffer = [0; 1024];
        let n = match read(io::stdin(), &mut buffer) {
            Ok(n @ 1..) => n,
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            _ => {
                self.orders = None;
                return;
            }
        };
        let Some(begun) = &mut self.orders else { return };
        begun.extend_from_slice(buffer.get(..n).unwrap_or_default());
        while let Some(end) = self.orders.as_ref().and_then(|text| text.iter().position(|&byte| byte == b'\n')) {
            let line: Vec<u8> = self.orders.iter_mut().flat_map(|text| text.drain(..=end)).collect();
            match serde_json::from_slice(&line) {
                Ok(StepOrder::Signal(number)) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        self.send(signal);
                    }
                }
                Ok(StepOrder::Usage) => {
                    if let Some(usage) = &self.usage {
                        self.output.extend(usage());
                    }
                }
                // Of a supervisor that knows more orders.
                Err(_) => {}
            }
        }
    }

    fn read(&mut self, index: usize) {
        let Some((stream, fd)) = self.streams.get_mut(index) else { return };
        let Some(open) = fd else { return };
        let mut buffer = [0; 32 << 10];
        match read(&*open, &mut buffer) {
            Ok(n @ 1..) => record::write(self.rank, *stream, buffer.get(..n).unwrap_or_default(), &mut self.output),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            _ => *fd = None,
        }
    }

    fn write(&mut self) {
        match nix::unistd::write(io::stdout(), &self.output) {
            Ok(n) => drop(self.output.drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // srun is gone: nobody reads it any more.
            Err(_) => self.output.clear(),
        }
    }
}

pub(super) fn push<'fd>(fds: &mut Vec<PollFd<'fd>>, fd: BorrowedFd<'fd>, flags: PollFlags) -> usize {
    fds.push(PollFd::new(fd, flags));
    fds.len() - 1
}

pub(super) fn non_blocking(fd: BorrowedFd<'_>) {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).unwrap_or(OFlag::empty());
    let _ = fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
}

/// Writes to srun all of it, for as long as srun takes some.
pub(super) fn write_all(mut bytes: &[u8]) {
    let until = Instant::now() + FLUSH;
    while !bytes.is_empty() && Instant::now() < until {
        match nix::unistd::write(io::stdout(), bytes) {
            Ok(0) => return,
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let stdout = io::stdout();
                let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::from(1000u16));
            }
            Err(_) => return,
        }
    }
}

/// Whether a number is an open descriptor.
pub(super) fn is_open(fd: i32) -> bool {
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}
