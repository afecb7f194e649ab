//! A rank beside its command: output becomes records, orders and Slurm's signals go to the command, its end is waited for.
//! One thread, one poll.

use super::signals::Signals;
use super::streams::{non_blocking, write_all};
use super::watch::Watch;
use crate::step::record::{self, Stream};
use hpk_api::step::StepOrder;
use hpk_sys::crossing::Desk;
use hpk_sys::launch::{Io, Launched};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Output that waits for srun; beyond it the command has to wait.
const ROOM: usize = 256 << 10;

/// How long the output is still read after the command's end: what it left behind may hold the pipes.
const DRAIN: Duration = Duration::from_millis(500);

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
/// desk; `usage` answers the question what the node uses.
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
        let mut watch = Watch::default();
        let signal = watch.input(self.signals.as_fd());
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let order = self.orders.is_some().then(|| watch.input(stdin.as_fd()));
        let room = (!self.output.is_empty()).then(|| watch.room(stdout.as_fd()));
        let may_read = self.output.len() < ROOM;
        let streams = [0, 1].map(|index: usize| {
            let fd = self.streams.get(index).and_then(|(_, fd)| fd.as_ref()).filter(|_| may_read)?;
            Some(watch.input(fd.as_fd()))
        });
        let asks = watch.desk(self.desk.as_ref());
        let watched = watch.wait(self.drained_by)?;
        let ready = |number| watched.is_ready(number);
        Some(Ready {
            signal: ready(signal),
            order: order.is_some_and(ready),
            room: room.is_some_and(ready),
            streams: streams.map(|number| number.is_some_and(ready)),
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
