//! `hpk-netns session <pod folder> <instance> <rank>`: a command beside a rank, on the rank's node.
//!
//! ```text
//! standard input:  ExecOptions, one line; then frames of the client      ─▶ command, in the step's container on this node,
//! standard output: Reply, one line; then frames of the command           ◀─ with the rank's environment
//! ```
//! The frames are those of an exec session on the control socket: this process stands for the supervisor where the
//! supervisor is not. It ends the command when its standard input ends. One
//! thread, one poll: whoever has entered a PID namespace can make no threads.

use super::crossing;
use super::place::Place;
use super::signals::Signals;
use super::streams::{non_blocking, write_all};
use super::watch::Watch;
use super::{RankError, read, spec_of};
use hpk_api::control::{Answer, ControlError, ErrorCode, ExecOptions, MAX_LINE, Reply, StreamEnd, TerminalSize};
use hpk_api::frame::{self, CHUNK, channel};
use hpk_api::step::StepFile;
use hpk_sys::crossing::Desk;
use hpk_sys::launch::{Io, JoinSpec, LaunchError, Launched};
use hpk_sys::rank::Entered;
use hpk_sys::signals;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read as read_fd, write};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// From SIGHUP to SIGKILL when the client of a terminal is gone.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Bytes on their way in each direction; beyond it their source has to wait.
const ROOM: usize = 256 << 10;

/// Runs the session to its end. The client hears of it by the stream, Slurm by 0.
#[must_use]
pub fn run(pod: &Path, instance: u32, rank: u32) -> i32 {
    let Ok(signals) = Signals::take() else { return 1 };
    let mut rest = Vec::new();
    let begun = options(&mut rest).and_then(|options| Ok((begin(pod, instance, rank, &options)?, options)));
    let ((launched, desk), options) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            write_all(&line(&Reply::Error(error)));
            return 0;
        }
    };
    let Launched { pid, io, .. } = launched;
    let (stdin, terminal, out, err) = match io {
        Io::Pipes { stdin, stdout, stderr } => (stdin, None, stdout, Some(stderr)),
        Io::Pty { master } => {
            let copy = || master.try_clone().ok();
            (options.stdin.then(copy).flatten(), copy(), master, None)
        }
    };
    for fd in [&stdin, &terminal, &err].into_iter().flatten().chain([&out]) {
        non_blocking(fd.as_fd());
    }
    non_blocking(io::stdout().as_fd());
    let streams = [(channel::STDOUT, options.stdout, Some(out)), (channel::STDERR, options.stderr, err)];
    let mut session = Session {
        pid,
        signals,
        client: true,
        rest,
        stdin,
        close_stdin: false,
        to_command: Vec::new(),
        terminal,
        streams,
        to_client: line(&Reply::Ok(Answer::Streaming)),
        ended: None,
        kill_at: None,
        desk,
    };
    session.serve();
    0
}

fn line(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The first line; what came after it is left in `rest`.
fn options(rest: &mut Vec<u8>) -> Result<ExecOptions, ControlError> {
    let bad = |why: &dyn std::fmt::Display| ControlError {
        code: ErrorCode::Internal,
        message: format!("what to run did not come: {why}"),
    };
    loop {
        if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            return serde_json::from_slice(&line).map_err(|error| bad(&error));
        }
        let mut buffer = [0; 4096];
        match read_fd(io::stdin(), &mut buffer) {
            Ok(n @ 1..) if rest.len() <= MAX_LINE => rest.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Ok(_) => return Err(bad(&"its line has no end")),
            Err(error) => return Err(bad(&error)),
        }
    }
}

fn begin(
    pod: &Path,
    instance: u32,
    rank: u32,
    options: &ExecOptions,
) -> Result<(Launched, Option<Desk>), ControlError> {
    launch(pod, instance, rank, options).map_err(|error| {
        let code = match error {
            RankError::Launch(LaunchError::NotRunning) => ErrorCode::Conflict,
            RankError::Launch(_) => ErrorCode::BadRequest,
            _ => ErrorCode::Internal,
        };
        ControlError { code, message: error.to_string() }
    })
}

fn launch(pod: &Path, instance: u32, rank: u32, options: &ExecOptions) -> Result<(Launched, Option<Desk>), RankError> {
    let step: StepFile = read(&hpk_layout::pod::inside(pod).join(hpk_layout::pod::step(instance)))?;
    let place = Place::take(pod, instance)?;
    let (Some((_, keeper)), Some(env)) = (place.keeper(), place.noted(rank)) else {
        place.open().leave();
        return Err(LaunchError::NotRunning.into());
    };
    let mut spec =
        JoinSpec { argv: options.command.clone(), stdin: options.stdin, tty: options.tty, env, ..spec_of(&step.rank)? };
    let desk = crossing::desk(step.crossing.as_ref(), &place, &mut spec.security);
    // The container is the ranks'; it does not wait for this session.
    drop(place);
    Ok((Entered::enter(keeper)?.start(&spec)?.wait()?, desk))
}

/// A command and its client, which is at the other end of the standard streams.
struct Session {
    pid: Pid,
    signals: Signals,
    /// It is still there.
    client: bool,
    /// Of the client, not yet a whole frame.
    rest: Vec<u8>,
    stdin: Option<OwnedFd>,
    /// When all that is on its way has been read by the command.
    close_stdin: bool,
    to_command: Vec<u8>,
    terminal: Option<OwnedFd>,
    /// Channel, whether it is wanted, and the command's output, until its end.
    streams: [(u8, bool, Option<OwnedFd>); 2],
    to_client: Vec<u8>,
    ended: Option<i32>,
    kill_at: Option<Instant>,
    /// Whom its connections ask.
    desk: Option<Desk>,
}

/// What is ready.
struct Ready {
    signal: bool,
    client: bool,
    room: bool,
    stdin: bool,
    streams: [bool; 2],
    desk: bool,
}

impl Session {
    fn serve(&mut self) {
        loop {
            let open = self.streams.iter().any(|(_, _, fd)| fd.is_some());
            // As with container runtimes, what the command left behind keeps its streams open.
            if let Some(code) = self.ended.filter(|_| !open || !self.client) {
                let end = if code == 0 { StreamEnd::Success } else { StreamEnd::Exit { code } };
                frame::encode(channel::ERROR, &serde_json::to_vec(&end).unwrap_or_default(), &mut self.to_client);
                return write_all(&self.to_client);
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                self.kill_at = None;
                let _ = signals::kill_group(self.pid, Signal::SIGKILL);
            }
            let Some(ready) = self.wait() else { return };
            if let Some(desk) = self.desk.as_mut().filter(|_| ready.desk) {
                desk.work();
            }
            if ready.signal {
                self.signal();
            }
            if ready.client {
                self.hear();
            }
            if ready.stdin {
                self.feed();
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
        let may_hear = self.client && self.to_command.len() < ROOM;
        let client = may_hear.then(|| watch.input(stdin.as_fd()));
        let room = (!self.to_client.is_empty()).then(|| watch.room(stdout.as_fd()));
        let feed = self.stdin.as_ref().filter(|_| !self.to_command.is_empty());
        let feed = feed.map(|fd| watch.room(fd.as_fd()));
        let may_read = self.to_client.len() < ROOM;
        let streams = [0, 1].map(|index: usize| {
            let fd = self.streams.get(index).and_then(|(_, _, fd)| fd.as_ref()).filter(|_| may_read)?;
            Some(watch.input(fd.as_fd()))
        });
        let asks = watch.desk(self.desk.as_ref());
        let watched = watch.wait(self.kill_at)?;
        let ready = |number| watched.is_ready(number);
        Some(Ready {
            signal: ready(signal),
            client: client.is_some_and(ready),
            room: room.is_some_and(ready),
            stdin: feed.is_some_and(ready),
            streams: streams.map(|number| number.is_some_and(ready)),
            desk: asks.into_iter().any(ready),
        })
    }

    fn signal(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == Signal::SIGCHLD {
                self.reap();
            } else if self.ended.is_none() {
                let _ = signals::kill_group(self.pid, signal);
            }
        }
    }

    fn reap(&mut self) {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => self.ended = Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => self.ended = Some(128 + signal as i32),
            _ => {}
        }
    }

    fn hear(&mut self) {
        let mut buffer = [0; 32 << 10];
        match read_fd(io::stdin(), &mut buffer) {
            Ok(n @ 1..) => self.rest.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            _ => return self.gone(),
        }
        loop {
            let (channel, payload, consumed) = match frame::decode(&self.rest) {
                Ok(Some(frame)) => (frame.channel, frame.payload.to_vec(), frame.consumed),
                Ok(None) => return,
                Err(_) => return self.gone(),
            };
            self.rest.drain(..consumed);
            self.take(channel, &payload);
        }
    }

    fn gone(&mut self) {
        self.client = false;
        if self.terminal.is_some() {
            let _ = signals::kill_group(self.pid, Signal::SIGHUP);
            self.kill_at = Some(Instant::now() + HANGUP_GRACE);
        } else {
            let _ = signals::kill_group(self.pid, Signal::SIGKILL);
        }
    }

    fn take(&mut self, channel: u8, payload: &[u8]) {
        match channel {
            channel::STDIN if self.stdin.is_some() => self.to_command.extend_from_slice(payload),
            channel::CLOSE if payload == [channel::STDIN] => {
                self.close_stdin = true;
                self.close_if_fed();
            }
            channel::RESIZE => {
                if let (Some(terminal), Ok(size)) = (&self.terminal, serde_json::from_slice::<TerminalSize>(payload)) {
                    // Fails only when the terminal is gone.
                    let _ = hpk_sys::pty::resize(terminal.as_fd(), size.height, size.width);
                }
            }
            _ => {}
        }
    }

    fn close_if_fed(&mut self) {
        if self.close_stdin && self.to_command.is_empty() {
            self.stdin = None;
        }
    }

    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match write(stdin, &self.to_command) {
            Ok(n) => drop(self.to_command.drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => {
                // The command reads no more.
                self.stdin = None;
                self.to_command.clear();
            }
        }
        self.close_if_fed();
    }

    fn read(&mut self, index: usize) {
        let Some((channel, wanted, fd)) = self.streams.get_mut(index) else { return };
        let Some(open) = fd else { return };
        let mut buffer = vec![0; CHUNK];
        match read_fd(&*open, &mut buffer) {
            Ok(n @ 1..) if *wanted => {
                frame::encode(*channel, buffer.get(..n).unwrap_or_default(), &mut self.to_client);
            }
            Ok(1..) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            // A terminal whose last user is gone gives EIO.
            _ => *fd = None,
        }
    }

    fn write(&mut self) {
        match write(io::stdout(), &self.to_client) {
            Ok(n) => drop(self.to_client.drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // Seen at the input, too.
            Err(_) => self.to_client.clear(),
        }
    }
}
