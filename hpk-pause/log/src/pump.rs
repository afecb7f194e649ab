//! The pump: the one thread that reads containers' output and writes their logs.
//!
//! ```text
//! stream:  reading ──tap full──▶ held ──tap writable or dropped──▶ reading
//!             │
//!             └─end of file, or quiet after the exit──▶ ended
//! log:     writing ──write fails──▶ stalled (streams unread) ──retry works──▶ writing
//!                                     └─stall_limit──▶ discarding (streams read, output counted) ──retry works──▶ writing
//! ```
//! A log is finished when its container's exit was told and both streams ended; then [`LogEvent::Drained`] is sent.
//! Nothing here wakes up while no output comes and nothing is due.

mod compress;
mod due;
mod trouble;

use crate::contract::{Counters, LogEvent, LogId, LogSettings, LogTarget};
use crate::cut::Cutter;
use crate::file::LogFile;
use crate::follower::FollowerShared;
use crate::reader;
use crate::records::Records;
use crate::stamp::{self, Stamper};
use crate::tap::{TapState, TapWriter};
use hpk_api::cri_log::Stream;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trouble::{Trouble, lose};

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Records are written once so many bytes of them are there.
const BATCH: usize = 128 << 10;
/// Capacity given to the pipe of a container that fills its pipe.
const PIPE: i32 = 256 << 10;
/// Buffers are kept so long after the last output: a quiet pod costs no memory for its logs.
const RELEASE_AFTER: Duration = Duration::from_secs(5);
const WAKE: u64 = u64::MAX;
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

pub(crate) enum Command {
    Open { id: LogId, target: LogTarget, streams: [Option<OwnedFd>; 2], pty: bool },
    Exited { id: LogId, want_tail: bool },
    Tap { id: LogId, writers: [Option<TapWriter>; 2] },
    Follow { id: LogId, shared: Arc<FollowerShared> },
    Close,
}

pub(crate) struct Pump {
    settings: LogSettings,
    commands: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    events: Box<dyn FnMut(LogEvent) + Send>,
    epoll: Epoll,
    stamper: Stamper,
    logs: BTreeMap<u64, Log>,
    /// Taps that wait until their pipe is writable, by epoll token: log and stream.
    full_taps: BTreeMap<u64, (u64, usize)>,
    next_tap: u64,
    /// Logs with rotated files that will be old enough to compress.
    compress_at: Option<(Instant, compress::Logs)>,
    compressing: Option<JoinHandle<()>>,
    input: Vec<u8>,
    records: Records,
    /// When the buffers above are given back, unless output comes before.
    release_at: Option<Instant>,
    closing: bool,
}

struct Log {
    id: LogId,
    file: LogFile,
    inputs: [Option<Input>; 2],
    trouble: Option<Trouble>,
    exit: Option<Exit>,
    followers: Vec<Arc<FollowerShared>>,
}

struct Input {
    fd: OwnedFd,
    cutter: Cutter,
    /// Registered with epoll.
    armed: bool,
    /// Its pipe has been given [`PIPE`] bytes, or that was refused.
    widened: bool,
    taps: Vec<(u64, TapWriter)>,
}

struct Exit {
    at: Instant,
    quiet_since: Instant,
    want_tail: bool,
}

impl Pump {
    pub(crate) fn new(
        settings: LogSettings,
        commands: mpsc::Receiver<Command>,
        wake: Arc<EventFd>,
        counters: Arc<Counters>,
        events: Box<dyn FnMut(LogEvent) + Send>,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self {
            settings,
            commands,
            wake,
            counters,
            events,
            epoll,
            stamper: Stamper::new(),
            logs: BTreeMap::new(),
            full_taps: BTreeMap::new(),
            next_tap: 0,
            compress_at: None,
            compressing: None,
            input: Vec::new(),
            records: Records::default(),
            release_at: None,
            closing: false,
        })
    }

    pub(crate) fn run(mut self) {
        let mut ready = [EpollEvent::empty(); 64];
        while !(self.closing && self.logs.is_empty()) {
            let timeout = self.timeout(Instant::now());
            let count = match self.epoll.wait(&mut ready, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                // Only a programming error can bring this about; without its log a pod must not go on unseen.
                Err(_) => std::process::abort(),
            };
            for event in &ready[..count] {
                match event.data() {
                    WAKE => self.take_commands(),
                    token if token & TAP_BIT != 0 => self.tap_writable(token),
                    token => self.readable(token >> 1, usize::from(token & 1 == 1)),
                }
            }
            self.timers(Instant::now());
        }
    }

    fn take_commands(&mut self) {
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Open { id, target, streams, pty } => self.open(id, target, streams, pty),
                Command::Exited { id, want_tail } => self.exited(id, want_tail),
                Command::Tap { id, writers } => self.tap(id, writers),
                Command::Follow { id, shared } => match self.logs.get_mut(&id.0) {
                    Some(log) => log.followers.push(shared),
                    None => shared.end(),
                },
                Command::Close => self.closing = true,
            }
        }
    }

    fn open(&mut self, id: LogId, target: LogTarget, streams: [Option<OwnedFd>; 2], pty: bool) {
        let file = LogFile::new(target.dir, target.restart_count, self.settings.max_bytes, self.settings.max_files);
        let mut index = 0;
        let inputs = streams.map(|fd| {
            let cutter = Cutter::new(STREAMS[index]);
            index += 1;
            fd.map(|fd| Input { fd, cutter, armed: false, widened: pty, taps: Vec::new() })
        });
        let mut log = Log { id, file, inputs, trouble: None, exit: None, followers: Vec::new() };
        // The file exists from the start, so that a silent container has an empty log. A failure shows again
        // with the first output, where it is dealt with.
        let _ = log.file.ensure();
        for stream in 0..STREAMS.len() {
            arm(&self.epoll, &mut log, stream);
        }
        self.logs.insert(id.0, log);
    }

    fn exited(&mut self, id: LogId, want_tail: bool) {
        let now = Instant::now();
        match self.logs.get_mut(&id.0) {
            Some(log) => {
                log.exit = Some(Exit { at: now, quiet_since: now, want_tail });
                self.finish_if_done(id.0);
            }
            None => (self.events)(LogEvent::Drained { id, tail: None }),
        }
    }

    fn tap(&mut self, id: LogId, writers: [Option<TapWriter>; 2]) {
        let Some(log) = self.logs.get_mut(&id.0) else { return };
        for (input, writer) in log.inputs.iter_mut().zip(writers) {
            if let (Some(input), Some(writer)) = (input, writer) {
                self.next_tap += 1;
                input.taps.push((TAP_BIT | self.next_tap, writer));
            }
        }
    }

    /// One read of one stream, so that no container can starve another.
    fn readable(&mut self, key: u64, stream: usize) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(input) = log.inputs[stream].as_mut() else { return };
        if !input.armed {
            return;
        }
        if self.input.is_empty() {
            self.input = vec![0; READ];
        }
        let count = match nix::unistd::read(&input.fd, &mut self.input) {
            Ok(0) => 0,
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            // EIO is how a terminal says that its last user is gone.
            Err(_) => 0,
        };
        let now = Instant::now();
        let time = self.stamper.now();
        self.release_at = Some(now + RELEASE_AFTER);
        if count == 0 {
            self.end_stream(key, stream, &time, now);
            self.finish_if_done(key);
            return;
        }
        self.counters.read.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(exit) = &mut log.exit {
            exit.quiet_since = now;
        }
        if count >= 64 << 10 && !input.widened {
            input.widened = true;
            // A wider pipe means fewer turns between the container and us; a refusal (user limits) changes nothing.
            let _ = nix::fcntl::fcntl(&input.fd, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
        }
        let mut held = false;
        for (token, tap) in &mut input.taps {
            match tap.send(&self.input[..count], now) {
                TapState::Full => {
                    held = true;
                    // Without epoll the stall timer would drop the client; memory is the only cause.
                    let _ = self.epoll.add(tap.fd(), EpollEvent::new(EpollFlags::EPOLLOUT, *token));
                    self.full_taps.insert(*token, (key, stream));
                }
                TapState::Clear => {}
                TapState::Gone => *token = GONE,
            }
        }
        input.taps.retain(|(token, _)| *token != GONE);
        if held {
            disarm(&self.epoll, input);
        }
        let chunk = std::mem::take(&mut self.input);
        self.write(key, stream, &chunk[..count], &time, now);
        self.input = chunk;
    }

    /// Cuts output into records and appends them to the log.
    fn write(&mut self, key: u64, stream: usize, mut chunk: &[u8], time: &[u8; stamp::LENGTH], now: Instant) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        let batch = match self.settings.max_bytes {
            0 => BATCH,
            max => BATCH.min(usize::try_from(max).unwrap_or(BATCH)),
        };
        while !chunk.is_empty() {
            let Some(input) = log.inputs[stream].as_mut() else { return };
            self.records.clear();
            let used = input.cutter.feed(chunk, time, &mut self.records, batch);
            let cut = chunk;
            chunk = &chunk[used..];
            if self.records.is_empty() {
                continue;
            }
            let mut note = Vec::new();
            if let Some(trouble) = &mut log.trouble {
                // Only a log that discards is read while in trouble.
                if now < trouble.retry_at {
                    lose(&self.counters, trouble, used as u64);
                    continue;
                }
                note = trouble.note(time);
            }
            let mut slices = self.records.slices(cut);
            if !note.is_empty() {
                slices.insert(0, IoSlice::new(&note));
            }
            match log.file.append(&mut slices, time) {
                Ok(rotated) => {
                    let written = note.len() + self.records.len();
                    self.counters.written.fetch_add(written as u64, Ordering::Relaxed);
                    recover(log, &mut self.events);
                    if rotated {
                        self.counters.rotations.fetch_add(1, Ordering::Relaxed);
                        compress::later(&mut self.compress_at, &log.file, now + self.settings.compress_after);
                    }
                }
                Err(error) => {
                    let retry_at = now + self.settings.retry_every;
                    if let Some(trouble) = &mut log.trouble {
                        trouble.retry_at = retry_at;
                        trouble.error = error.to_string();
                        lose(&self.counters, trouble, used as u64);
                        continue;
                    }
                    (self.events)(LogEvent::Trouble { id: log.id, error: error.to_string() });
                    log.trouble = Some(Trouble {
                        records: self.records.to_vec(cut),
                        rest: (!chunk.is_empty()).then(|| (stream, chunk.to_vec())),
                        ..Trouble::new(now, retry_at, &error)
                    });
                    for input in log.inputs.iter_mut().flatten() {
                        disarm(&self.epoll, input);
                    }
                    return;
                }
            }
        }
        log.followers.retain(|follower| Arc::strong_count(follower) > 1);
        for follower in &log.followers {
            follower.grown();
        }
    }

    fn tap_writable(&mut self, token: u64) {
        let Some(&(key, stream)) = self.full_taps.get(&token) else { return };
        let now = Instant::now();
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(input) = log.inputs[stream].as_mut() else { return };
        let Some(position) = input.taps.iter().position(|(t, _)| *t == token) else { return };
        let state = input.taps[position].1.flush(now);
        if state == TapState::Full {
            return;
        }
        self.full_taps.remove(&token);
        let _ = self.epoll.delete(input.taps[position].1.fd());
        if state == TapState::Gone {
            input.taps.swap_remove(position);
        }
        self.resume(key, stream, now);
    }

    /// Reads a stream again when nothing holds it any more.
    fn resume(&mut self, key: u64, stream: usize, now: Instant) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        if let Some(exit) = &mut log.exit {
            exit.quiet_since = now;
        }
        arm(&self.epoll, log, stream);
        if log.inputs[stream].as_ref().is_some_and(|i| !i.armed && i.taps.iter().all(|(_, t)| !t.is_full()))
            && log.trouble.is_none()
        {
            // It cannot be watched (no memory): the stream ends, loudly, rather than hang.
            let time = self.stamper.now();
            self.end_stream(key, stream, &time, now);
        }
        self.finish_if_done(key);
    }

    /// A stream is at its end: what is left of its last line goes to the log.
    fn end_stream(&mut self, key: u64, stream: usize, time: &[u8; stamp::LENGTH], now: Instant) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(mut input) = log.inputs[stream].take() else { return };
        disarm(&self.epoll, &mut input);
        for (token, _) in &input.taps {
            self.full_taps.remove(token);
        }
        let mut records = Records::default();
        let pending = input.cutter.pending() as u64;
        input.cutter.finish(time, &mut records);
        let records = records.to_vec(&[]);
        if records.is_empty() {
            return;
        }
        if let Some(trouble) = &mut log.trouble {
            if trouble.discarding {
                lose(&self.counters, trouble, pending);
            } else {
                trouble.records.extend_from_slice(&records);
            }
        } else if let Err(error) = log.file.append(&mut [IoSlice::new(&records)], time) {
            (self.events)(LogEvent::Trouble { id: log.id, error: error.to_string() });
            log.trouble = Some(Trouble { records, ..Trouble::new(now, now + self.settings.retry_every, &error) });
        } else {
            self.counters.written.fetch_add(records.len() as u64, Ordering::Relaxed);
        }
        for follower in &log.followers {
            follower.grown();
        }
    }

    /// Both streams ended and the exit is known: the log is complete.
    fn finish_if_done(&mut self, key: u64) {
        let Some(log) = self.logs.get(&key) else { return };
        let waiting = log.trouble.as_ref().is_some_and(|t| !t.discarding);
        if log.inputs.iter().any(Option::is_some) || waiting {
            return;
        }
        let Some(exit) = &log.exit else { return };
        let tail = exit.want_tail.then(|| {
            reader::tail_for_termination_message(log.file.dir(), log.file.restart_count()).unwrap_or_default()
        });
        for follower in &log.followers {
            follower.end();
        }
        let id = log.id;
        self.logs.remove(&key);
        (self.events)(LogEvent::Drained { id, tail });
    }
}

/// Marks tokens of taps.
const TAP_BIT: u64 = 1 << 63;
/// A tap whose client is gone.
const GONE: u64 = 0;

/// Watches a stream unless something holds it.
fn arm(epoll: &Epoll, log: &mut Log, stream: usize) {
    if log.trouble.as_ref().is_some_and(|t| !t.discarding) {
        return;
    }
    let token = log.id.0 << 1 | stream as u64;
    if let Some(input) = &mut log.inputs[stream]
        && !input.armed
        && input.taps.iter().all(|(_, tap)| !tap.is_full())
    {
        input.armed = epoll.add(&input.fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).is_ok();
    }
}

fn disarm(epoll: &Epoll, input: &mut Input) {
    if input.armed {
        // It was added, so it is there.
        let _ = epoll.delete(&input.fd);
        input.armed = false;
    }
}

/// A write has worked: if it had not before, tell the supervisor.
fn recover(log: &mut Log, events: &mut Box<dyn FnMut(LogEvent) + Send>) {
    if let Some(trouble) = log.trouble.take() {
        events(LogEvent::Recovered { id: log.id, lost: trouble.lost });
    }
}
