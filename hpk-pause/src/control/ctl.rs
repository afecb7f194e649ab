//! `hpk-pause ctl`: the control socket for people on the node.

use hpk_api::control::{Answer, AttachOptions, ExecOptions, LogOptions, Request, StreamEnd, TerminalSize};
use hpk_api::frame::{CHUNK, channel};
use hpk_api::state::PodState;
use hpk_control::RequestError;
use hpk_control::blocking::{self, Connection};
use nix::sys::termios::{self, SetArg, Termios};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// How to use it.
pub const USAGE: &str = "\
usage: hpk-pause ctl [--socket PATH] COMMAND
  status [--watch]              the pod's state as JSON
  stats                         CPU and memory as JSON
  probes                        how often probes have run, as JSON
  check                         ask the pod's CNI plug-ins whether its network is as they made it
  stop [--grace SECONDS]        stop the pod in order (default 30)
  logs [-f] [-p] [-t] [--tail N] CONTAINER
  exec [-i] [-t] CONTAINER [--] COMMAND...
  attach [-i] CONTAINER
The socket is <run folder>/supervisor.sock; its default is /hpk/run/supervisor.sock.";

/// Why `ctl` failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The command line makes no sense.
    #[error("{0}\n{USAGE}")]
    Usage(String),
    /// The request failed.
    #[error(transparent)]
    Client(#[from] RequestError),
    /// Our own standard streams failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs one command; the result is the exit code: that of the command for exec, else 0 or 1.
///
/// # Errors
/// When the command line is wrong, the supervisor is not there, or it refuses.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<i32, CtlError> {
    let mut arguments = arguments.into_iter();
    let mut socket = PathBuf::from(hpk_layout::parent::RUN).join(hpk_layout::node::SUPERVISOR_SOCK);
    let mut command = arguments.next();
    if command.as_deref() == Some("--socket") {
        socket = arguments.next().ok_or_else(|| usage("--socket needs a path"))?.into();
        command = arguments.next();
    }
    let rest: Vec<String> = arguments.collect();
    match command.as_deref() {
        Some("status") => status(&socket, &rest),
        Some("stats") => {
            let (answer, _) = blocking::request(&socket, &Request::Stats)?;
            let Answer::Stats(stats) = answer else { return Err(unexpected()) };
            print(&stats)
        }
        Some("probes") => {
            let (answer, _) = blocking::request(&socket, &Request::Probes)?;
            let Answer::Probes(probes) = answer else { return Err(unexpected()) };
            print(&probes)
        }
        Some("check") => {
            blocking::request(&socket, &Request::CheckNetwork)?;
            Ok(0)
        }
        Some("stop") => stop(&socket, &rest),
        Some("logs") => logs(&socket, &rest),
        Some("exec") => exec(&socket, &rest),
        Some("attach") => attach(&socket, &rest),
        Some(other) => Err(usage(&format!("unknown command {other:?}"))),
        None => Err(usage("a command is missing")),
    }
}

fn usage(text: &str) -> CtlError {
    CtlError::Usage(text.to_owned())
}

fn unexpected() -> CtlError {
    RequestError::Protocol("an answer to another request".to_owned()).into()
}

fn print(value: &impl serde::Serialize) -> Result<i32, CtlError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::from)?;
    text.push(b'\n');
    io::stdout().write_all(&text)?;
    Ok(0)
}

fn status(socket: &Path, arguments: &[String]) -> Result<i32, CtlError> {
    let watch = match arguments {
        [] => false,
        [flag] if flag == "--watch" => true,
        _ => return Err(usage("status takes --watch only")),
    };
    let (answer, mut connection) = blocking::request(socket, &Request::Status { watch })?;
    let Answer::Status(state) = answer else { return Err(unexpected()) };
    print(&state)?;
    // Without --watch the supervisor closes the connection after its answer.
    while let Some(state) = connection.line::<PodState>()? {
        print(&state)?;
    }
    Ok(0)
}

fn stop(socket: &Path, arguments: &[String]) -> Result<i32, CtlError> {
    let grace_period_seconds = match arguments {
        [] => 30,
        [flag, seconds] if flag == "--grace" => {
            seconds.parse().map_err(|_| usage("--grace needs a number of seconds"))?
        }
        _ => return Err(usage("stop takes --grace SECONDS only")),
    };
    blocking::request(socket, &Request::Stop { grace_period_seconds })?;
    Ok(0)
}

fn logs(socket: &Path, arguments: &[String]) -> Result<i32, CtlError> {
    let mut options = LogOptions::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-f" => options.follow = true,
            "-p" => options.previous = true,
            "-t" => options.timestamps = true,
            "--tail" => {
                let number = arguments.next().and_then(|n| n.parse().ok());
                options.tail_lines = Some(number.ok_or_else(|| usage("--tail needs a number of lines"))?);
            }
            name if options.container.is_empty() && !name.starts_with('-') => name.clone_into(&mut options.container),
            other => return Err(usage(&format!("logs does not know {other:?}"))),
        }
    }
    let (_, mut connection) = blocking::request(socket, &Request::Logs(options))?;
    end(connection.output(to_our_streams)?)
}

fn exec(socket: &Path, arguments: &[String]) -> Result<i32, CtlError> {
    let mut options = ExecOptions { stdout: true, ..ExecOptions::default() };
    let flags = arguments.iter().take_while(|a| a.starts_with('-')).count();
    for flag in &arguments[..flags] {
        match flag.as_str() {
            "-i" => options.stdin = true,
            "-t" => options.tty = true,
            "-it" | "-ti" => (options.stdin, options.tty) = (true, true),
            other => return Err(usage(&format!("exec does not know {other:?}"))),
        }
    }
    options.stderr = !options.tty;
    let Some((container, command)) = arguments[flags..].split_first() else {
        return Err(usage("exec needs a container"));
    };
    container.clone_into(&mut options.container);
    let command = command.strip_prefix(&["--".to_owned()]).unwrap_or(command);
    options.command = command.to_vec();
    let (stdin, tty) = (options.stdin, options.tty);
    let (_, connection) = blocking::request(socket, &Request::Exec(options))?;
    session(connection, stdin, tty)
}

fn attach(socket: &Path, arguments: &[String]) -> Result<i32, CtlError> {
    let (stdin, container) = match arguments {
        [container] => (false, container),
        [flag, container] if flag == "-i" => (true, container),
        _ => return Err(usage("attach takes -i and a container")),
    };
    let options = AttachOptions { container: container.clone(), stdin, stdout: true, stderr: true, tty: false };
    let (_, connection) = blocking::request(socket, &Request::Attach(options))?;
    session(connection, stdin, false)
}

/// Connects our own streams to a session until it ends.
fn session(mut connection: Connection, stdin: bool, tty: bool) -> Result<i32, CtlError> {
    let _raw = if tty { RawTerminal::enter() } else { None };
    if tty && let Some(size) = terminal_size() {
        let size = serde_json::to_vec(&size).map_err(io::Error::from)?;
        connection.sender()?.send(channel::RESIZE, &size)?;
    }
    if stdin {
        let mut sender = connection.sender()?;
        // Ends with the process: a read of our stdin cannot be broken off otherwise.
        std::thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            loop {
                match io::stdin().read(&mut buffer) {
                    Ok(0) | Err(_) => return sender.close_stdin(),
                    Ok(length) => sender.send(channel::STDIN, &buffer[..length])?,
                }
            }
        });
    }
    end(connection.output(to_our_streams)?)
}

fn to_our_streams(channel: u8, bytes: &[u8]) -> io::Result<()> {
    match channel {
        channel::STDOUT => {
            let mut out = io::stdout();
            out.write_all(bytes)?;
            out.flush()
        }
        channel::STDERR => io::stderr().write_all(bytes),
        _ => Ok(()),
    }
}

fn end(end: StreamEnd) -> Result<i32, CtlError> {
    match end {
        StreamEnd::Success => Ok(0),
        StreamEnd::Exit { code } => Ok(code),
        StreamEnd::Failed { message } => {
            writeln!(io::stderr(), "{message}")?;
            Ok(1)
        }
    }
}

fn terminal_size() -> Option<TerminalSize> {
    let (rows, columns) = hpk_sys::pty::size(io::stdout().as_fd()).ok()?;
    Some(TerminalSize { width: columns, height: rows })
}

/// Our terminal passes every key on while this lives.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may have been closed; then there is nothing to restore.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
