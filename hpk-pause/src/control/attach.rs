//! attach: the streams of a container's first process.
//!
//! Output comes from a tap of the log pump, so that the log has it too. A client that does not read is dropped by
//! the pump (see `hpk_log`), with a text that says so.

use super::exec::Input;
use super::handshake::Handshake;
use super::request::{AttachSession, DriverRequest};
use super::wire::{Fd, FrameReader, FrameWriter, Gone, output};
use super::{Context, ask};
use hpk_api::control::{Answer, AttachOptions, Reply, StreamEnd};
use hpk_api::frame::channel;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// For what a container answers to the last input of a client that then has none.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

pub(super) async fn run(mut handshake: Handshake, context: Context, options: AttachOptions) {
    let (container, stdin) = (options.container.clone(), options.stdin);
    let session = match ask(&context, |answer| DriverRequest::Attach { container, stdin, answer }).await {
        Ok(session) => session,
        Err(error) => return handshake.refuse(error).await,
    };
    let once = session.stdin_once && session.stdin.is_some();
    // The tap begins before the client is told, so that it sees what its first input brings about.
    let tap = context.log.tap(session.log, options.stdout, options.stderr && !session.tty);
    if let Ok(tap) = tap
        && handshake.answer(&Reply::Ok(Answer::Streaming)).await
    {
        // A client that went away needs no answer.
        let _ = stream(handshake, &context, &options, session, tap).await;
    }
    if once {
        let _ = context.driver.send(DriverRequest::StdinEnded { container: options.container }).await;
    }
}

async fn stream(
    mut handshake: Handshake,
    context: &Context,
    options: &AttachOptions,
    session: AttachSession,
    tap: hpk_log::Tap,
) -> io::Result<()> {
    let gone = Gone::watch(&handshake.stream)?;
    let rest = std::mem::take(&mut handshake.rest);
    let (reader, writer) = handshake.stream.split();
    let writer = FrameWriter::new(writer);
    let mut input = Input {
        stdin: session.stdin.map(Fd::new).transpose()?.map(Arc::new),
        terminal: session.terminal.map(Fd::new).transpose()?.map(Arc::new),
    };
    let follower = context.log.follow(session.log)?;
    let follower = Fd::new(std::os::fd::AsFd::as_fd(&follower).try_clone_to_owned()?).map(|fd| (follower, fd))?;
    let (stdout, stderr) = (tap.stdout.map(Fd::new).transpose()?, tap.stderr.map(Fd::new).transpose()?);
    let pump = async |fd: &Option<Fd>, channel| match fd {
        Some(fd) => output(fd, channel, true, &writer).await,
        None => Ok(()),
    };
    let outputs = async {
        if stdout.is_none() && stderr.is_none() {
            // Only stdin is attached: the session lasts as long as the container.
            let (follower, fd) = &follower;
            let mut count = [0; 8];
            while !follower.ended() {
                fd.read(&mut count).await;
                follower.acknowledge();
            }
        }
        tokio::try_join!(pump(&stdout, channel::STDOUT), pump(&stderr, channel::STDERR))
    };
    // True: the client has come to the end of its input, and with it of the session, as with container runtimes; only
    // one whose container gets this end as its own (stdinOnce) goes on.
    let has_stdin = input.stdin.is_some();
    let inputs = async {
        let mut frames = FrameReader::new(reader, rest);
        while let Some((channel, payload)) = frames.next().await {
            if !input.frame(channel, payload).await {
                continue;
            }
            if session.stdin_once {
                let _ = context.driver.send(DriverRequest::StdinEnded { container: options.container.clone() }).await;
            } else if has_stdin {
                return true;
            }
        }
        false
    };
    tokio::pin!(outputs);
    tokio::select! {
        result = &mut outputs => { result?; }
        ended = inputs => {
            if !ended {
                return Ok(());
            }
            if let Ok(result) = tokio::time::timeout(LAST_OUTPUT, outputs).await {
                result?;
            }
        }
        () = gone.wait() => return Ok(()),
    }
    let end = if tap.end.stalled() {
        StreamEnd::Failed {
            message:
                "attach ended: the client read nothing for too long and held the container up; the container goes on"
                    .to_owned(),
        }
    } else {
        StreamEnd::Success
    };
    writer.end(&end).await;
    Ok(())
}
