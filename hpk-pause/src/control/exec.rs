//! exec: a process in a container, its stdio as frames.

use super::handshake::Handshake;
use super::request::{DriverRequest, ExecSession};
use super::wire::{Fd, FrameReader, FrameWriter, Gone, output};
use super::{Context, ask, rank};
use hpk_api::control::{Answer, ControlError, ErrorCode, ExecOptions, Reply, StreamEnd, TerminalSize};
use hpk_api::frame::channel;
use hpk_sys::spawn::Io;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

pub(super) async fn run(mut handshake: Handshake, context: Context, mut options: ExecOptions) {
    if let Some(number) = rank::named(&options.command) {
        match rank::find(&context, &options.container, number).await {
            Ok(None) => {}
            Ok(Some(mut session)) => {
                options.command.remove(0);
                if let Err(error) = check(&options) {
                    return handshake.refuse(error).await;
                }
                session.options = options;
                return rank::run(handshake, &context, session).await;
            }
            Err(error) => return handshake.refuse(error).await,
        }
    }
    if let Err(error) = check(&options) {
        return handshake.refuse(error).await;
    }
    let session = match ask(&context, |answer| DriverRequest::Exec { options: options.clone(), answer }).await {
        Ok(session) => session,
        Err(error) => return handshake.refuse(error).await,
    };
    let id = session.id;
    let served = handshake.answer(&Reply::Ok(Answer::Streaming)).await
        && stream(handshake, session, &options).await.unwrap_or(false);
    if !served {
        // The driver's queue is bounded; when it is gone, so is every process.
        let _ = context.driver.send(DriverRequest::EndExec { id, tty: options.tty }).await;
    }
}

fn check(options: &ExecOptions) -> Result<(), ControlError> {
    let message = if options.command.is_empty() {
        "you must specify at least one command for the container"
    } else if !(options.stdin || options.stdout || options.stderr) {
        "one of stdin, stdout, or stderr must be set"
    } else if options.tty && options.stderr {
        "tty and stderr cannot both be set: a terminal has one output"
    } else {
        return Ok(());
    };
    Err(ControlError { code: ErrorCode::BadRequest, message: message.to_owned() })
}

/// Runs the session; false when the client went away before the process ended.
async fn stream(mut handshake: Handshake, session: ExecSession, options: &ExecOptions) -> io::Result<bool> {
    let gone = Gone::watch(&handshake.stream)?;
    let rest = std::mem::take(&mut handshake.rest);
    let (reader, writer) = handshake.stream.split();
    let writer = FrameWriter::new(writer);
    let mut input = Input { stdin: None, terminal: None };
    let (stdout, stderr) = match session.stdio {
        Io::Pipes { stdin, stdout, stderr } => {
            input.stdin = stdin.map(Fd::new).transpose()?.map(Arc::new);
            (Arc::new(Fd::new(stdout)?), Some(Fd::new(stderr)?))
        }
        Io::Pty { master } => {
            let master = Arc::new(Fd::new(master)?);
            input.stdin = options.stdin.then(|| Arc::clone(&master));
            input.terminal = Some(Arc::clone(&master));
            (master, None)
        }
    };
    let exit = session.exit;
    let wait = async { io::Result::Ok(exit.await) };
    let errors = async {
        match &stderr {
            Some(fd) => output(fd, channel::STDERR, options.stderr, &writer).await,
            None => Ok(()),
        }
    };
    let process = async { tokio::try_join!(wait, output(&stdout, channel::STDOUT, options.stdout, &writer), errors) };
    let code = tokio::select! {
        result = process => match result {
            Ok((code, (), ())) => code,
            Err(_) => return Ok(false),
        },
        () = input.run(FrameReader::new(reader, rest)) => return Ok(false),
        () = gone.wait() => return Ok(false),
    };
    let end = match code {
        Ok(0) => StreamEnd::Success,
        Ok(code) => StreamEnd::Exit { code },
        Err(_) => StreamEnd::Failed { message: "the pod's supervisor is ending".to_owned() },
    };
    writer.end(&end).await;
    Ok(true)
}

/// The client's side of a session.
pub(super) struct Input {
    pub(super) stdin: Option<Arc<Fd>>,
    pub(super) terminal: Option<Arc<Fd>>,
}

impl Input {
    /// Serves the client's frames; returns when it is gone or breaks the rules.
    async fn run(mut self, mut frames: FrameReader<'_>) {
        while let Some((channel, payload)) = frames.next().await {
            self.frame(channel, payload).await;
        }
    }

    /// Serves one frame; true when it was the end of stdin.
    pub(super) async fn frame(&mut self, channel: u8, payload: &[u8]) -> bool {
        match channel {
            channel::STDIN => {
                if let Some(stdin) = &self.stdin
                    && stdin.write_all(payload).await.is_err()
                {
                    // The process reads no more; what the client still sends goes nowhere, as with a broken pipe.
                    self.stdin = None;
                }
            }
            channel::CLOSE if payload == [channel::STDIN] => {
                self.stdin = None;
                return true;
            }
            channel::RESIZE => {
                if let (Some(terminal), Ok(size)) = (&self.terminal, serde_json::from_slice::<TerminalSize>(payload)) {
                    // Fails only when the terminal is gone.
                    let _ = hpk_sys::pty::resize(terminal.as_fd(), size.height, size.width);
                }
            }
            // Other channels are none of a client's.
            _ => {}
        }
        false
    }
}
