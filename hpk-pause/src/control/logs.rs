//! logs: a log's bytes as frames.
//!
//! Each session has a thread of its own, because it reads files of the shared file system, which the supervisor's
//! event loop never touches. The thread takes the connection over, so its back-pressure is the socket's.

use super::handshake::Handshake;
use super::request::{DriverRequest, LogSource};
use super::{Context, MAX_LOG_READERS, ask};
use hpk_api::control::{Answer, ControlError, ErrorCode, LogOptions, Reply, StreamEnd};
use hpk_api::frame::{self, CHUNK, channel};
use hpk_log::{Follower, LogReader, ReadOptions, ReadStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

pub(super) async fn run(
    mut handshake: Handshake,
    context: Context,
    options: LogOptions,
    counted: Option<OwnedSemaphorePermit>,
) {
    let Some(slot) = context.sessions.read_logs() else {
        let message = format!("{MAX_LOG_READERS} clients read logs of this pod already: end one of them");
        return handshake.refuse(ControlError { code: ErrorCode::Conflict, message }).await;
    };
    let (container, previous) = (options.container.clone(), options.previous);
    let source = match ask(&context, |answer| DriverRequest::Log { container, previous, answer }).await {
        Ok(source) => source,
        Err(error) => return handshake.refuse(error).await,
    };
    let internal = |error: io::Error| ControlError { code: ErrorCode::Internal, message: error.to_string() };
    let follower = match source.live.filter(|_| options.follow).map(|id| context.log.follow(id)).transpose() {
        Ok(follower) => follower,
        Err(error) => return handshake.refuse(internal(error)).await,
    };
    if !handshake.answer(&Reply::Ok(Answer::Streaming)).await {
        return;
    }
    let Ok(stream) = handshake.stream.into_std() else { return };
    let work = move || {
        let (_slot, _counted) = (slot, counted);
        // The client is gone when this fails, or is told in the last frame.
        let _ = session(stream, &source, &options, follower.as_ref());
    };
    // Without a thread the connection is dropped here, which the client sees as an end without StreamEnd.
    let _ = std::thread::Builder::new().name("hpk-logs".to_owned()).stack_size(256 << 10).spawn(work);
}

fn session(
    mut stream: UnixStream,
    source: &LogSource,
    options: &LogOptions,
    follower: Option<&Follower>,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let end = match follow(&mut stream, source, options, follower) {
        Ok(()) => StreamEnd::Success,
        Err(Failure::Client(error)) => return Err(error),
        Err(Failure::Log(message)) => StreamEnd::Failed { message },
    };
    let mut last = Vec::new();
    frame::encode(channel::ERROR, &serde_json::to_vec(&end)?, &mut last);
    stream.write_all(&last)
}

enum Failure {
    /// It is gone.
    Client(io::Error),
    /// The log cannot be read.
    Log(String),
}

fn follow(
    stream: &mut UnixStream,
    source: &LogSource,
    options: &LogOptions,
    follower: Option<&Follower>,
) -> Result<(), Failure> {
    let log = |error: hpk_log::ReadError| Failure::Log(error.to_string());
    let mut reader = LogReader::open(&source.dir, source.restart_count, ReadOptions::from(options)).map_err(log)?;
    let (mut text, mut frames) = (Vec::new(), Vec::new());
    if options.positions {
        tell_position(&reader, &mut frames).map_err(log)?;
    }
    loop {
        // Asked before reading: what is read after it is then complete.
        let ended = follower.is_none_or(Follower::ended);
        let status = reader.read(&mut text).map_err(log)?;
        for part in text.chunks(CHUNK) {
            frame::encode(channel::STDOUT, part, &mut frames);
        }
        if options.positions && !text.is_empty() {
            tell_position(&reader, &mut frames).map_err(log)?;
        }
        stream.write_all(&frames).map_err(Failure::Client)?;
        text.clear();
        frames.clear();
        match (status, follower) {
            (ReadStatus::More, _) => {}
            (ReadStatus::CaughtUp, Some(follower)) if !ended => wait(stream, follower)?,
            (ReadStatus::CaughtUp | ReadStatus::LimitReached, _) => return Ok(()),
        }
    }
}

fn tell_position(reader: &LogReader, frames: &mut Vec<u8>) -> Result<(), hpk_log::ReadError> {
    let position = serde_json::to_vec(&reader.position()?).unwrap_or_default();
    frame::encode(channel::POSITION, &position, frames);
    Ok(())
}

/// Sleeps until the log has grown or the client is gone.
fn wait(mut stream: &UnixStream, follower: &Follower) -> Result<(), Failure> {
    let mut fds = [PollFd::new(follower.as_fd(), PollFlags::POLLIN), PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(Failure::Client(error.into())),
    }
    // A client of logs has nothing to say: what can be read is its end, or is ignored.
    if fds[1].any().unwrap_or(true) && stream.read(&mut [0; 256]).map_err(Failure::Client)? == 0 {
        return Err(Failure::Client(io::ErrorKind::BrokenPipe.into()));
    }
    follower.acknowledge();
    Ok(())
}
