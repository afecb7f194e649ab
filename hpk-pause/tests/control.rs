//! The control socket with its real client. The driver behind it is a small stand-in that starts real processes on
//! the host instead of in containers; everything else is the supervisor's own code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_api::control::{
    Answer, AttachOptions, ControlError, ErrorCode, ExecOptions, LogOptions, Request, StreamEnd, TerminalSize, Update,
    Usage,
};
use hpk_api::frame::channel;
use hpk_api::probe::{ProbeCounts, ProbeKind};
use hpk_api::state::PodState;
use hpk_control::RequestError;
use hpk_control::blocking::{self, Connection};
use hpk_log::{LogHandle, LogId, LogService, LogSettings, LogTarget, Source};
use hpk_pause::control::request::{AttachSession, DriverRequest, ExecSession, LogSource, StatsSample};
use hpk_pause::control::{Context, Sessions, bind, serve};
use hpk_sys::spawn::Io;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// What the stand-in was told, in order.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    EndExec { id: u64, tty: bool },
    StdinEnded,
    Stop(u32),
    Update(Box<Update>),
}

struct World {
    dir: tempfile::TempDir,
    told: std_mpsc::Receiver<Told>,
    state: watch::Sender<Arc<PodState>>,
    log: LogHandle,
    /// The container "main": its output and the far end of its stdin.
    container: LogId,
    stdout: std::fs::File,
    stdin: std::fs::File,
    _stderr: OwnedFd,
}

fn nonexistent(container: &str) -> ControlError {
    ControlError { code: ErrorCode::NotFound, message: format!("container {container:?} not found") }
}

fn start(options: &ExecOptions, id: u64) -> (ExecSession, u32) {
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]).process_group(0);
    let (tell, exit) = oneshot::channel();
    let spawn = |command: &mut Command| -> Child { command.spawn().expect("the test's command exists") };
    let (mut child, stdio) = if options.tty {
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = spawn(&mut command);
        (child, Io::Pty { master: pty.master })
    } else {
        command
            .stdin(if options.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let stdio = Io::Pipes {
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().unwrap().into(),
            stderr: child.stderr.take().unwrap().into(),
        };
        (child, stdio)
    };
    let pid = child.id();
    std::thread::spawn(move || {
        let status = child.wait().unwrap();
        let _ = tell.send(status.code().unwrap_or_else(|| 128 + status.signal().unwrap()));
    });
    (ExecSession { id, stdio, exit }, pid)
}

impl World {
    fn new() -> Self {
        Self::with(true)
    }

    fn with(stdin_once: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log =
            LogService::start(LogSettings { tap_stall: Duration::from_millis(300), ..LogSettings::default() }, |_| {})
                .unwrap();
        let pipe = || nix::unistd::pipe().unwrap();
        let ((out_read, out_write), (err_read, err_write), (in_read, in_write)) = (pipe(), pipe(), pipe());
        let logs = dir.path().join("logs");
        let target = LogTarget { dir: logs.clone(), restart_count: 0 };
        let container = log.open(target, Source::Pipes { stdout: out_read, stderr: err_read }).unwrap();
        let (tell, told) = std_mpsc::channel();
        let (state, state_receiver) = watch::channel(Arc::new(PodState::default()));
        let (driver, mut requests) = mpsc::channel(16);
        let listener_path = dir.path().join("supervisor.sock");
        let context = Context {
            driver,
            state: state_receiver,
            log: log.clone(),
            sessions: Sessions::default(),
            netns: "/nonexistent".into(),
        };
        let (ready, is_ready) = std_mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::spawn(serve(bind(&listener_path).unwrap(), context));
                ready.send(()).unwrap();
                let mut next = 0;
                let mut pids = std::collections::BTreeMap::new();
                while let Some(request) = requests.recv().await {
                    match request {
                        DriverRequest::Exec { options, answer } if options.container == "main" => {
                            next += 1;
                            let (session, pid) = start(&options, next);
                            pids.insert(next, pid);
                            answer.send(Ok(session)).unwrap();
                        }
                        DriverRequest::Exec { options, answer } => {
                            drop(answer.send(Err(nonexistent(&options.container))))
                        }
                        // No container here is an MPI step.
                        DriverRequest::Rank { answer, .. } => drop(answer.send(Ok(None))),
                        DriverRequest::MeasureSteps { done } => drop(done),
                        DriverRequest::EndExec { id, tty } => {
                            let pid = nix::unistd::Pid::from_raw(i32::try_from(pids[&id]).unwrap());
                            nix::sys::signal::killpg(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                            let _ = tell.send(Told::EndExec { id, tty });
                        }
                        DriverRequest::Attach { stdin, answer, .. } => {
                            let stdin = stdin.then(|| in_write.try_clone().unwrap());
                            let session =
                                AttachSession { log: container, tty: false, stdin, terminal: None, stdin_once };
                            answer.send(Ok(session)).unwrap();
                        }
                        DriverRequest::StdinEnded { .. } => drop(tell.send(Told::StdinEnded)),
                        DriverRequest::Log { previous: true, answer, .. } => {
                            let message = "previous terminated container \"main\" in pod \"p\" not found".to_owned();
                            answer.send(Err(ControlError { code: ErrorCode::NotFound, message })).unwrap();
                        }
                        DriverRequest::Log { answer, .. } => {
                            answer
                                .send(Ok(LogSource { dir: logs.clone(), restart_count: 0, live: Some(container) }))
                                .unwrap();
                        }
                        DriverRequest::Stats { answer } => {
                            let pod = Usage { cpu_nanos: 5, ..Usage::default() };
                            drop(answer.send(Ok(StatsSample { pod, ..StatsSample::default() })));
                        }
                        DriverRequest::Probes { answer } => {
                            let counts = ProbeCounts {
                                container: "main".to_owned(),
                                kind: ProbeKind::Readiness,
                                successful: 2,
                                failed: 1,
                                nanos: 5,
                                buckets: vec![2],
                            };
                            drop(answer.send(Ok(vec![counts])));
                        }
                        DriverRequest::Stop { grace_period_seconds, answer } => {
                            let _ = tell.send(Told::Stop(grace_period_seconds));
                            answer.send(Ok(())).unwrap();
                        }
                        DriverRequest::Update { update, answer } => {
                            let _ = tell.send(Told::Update(update));
                            answer.send(Ok(())).unwrap();
                        }
                    }
                }
            });
        });
        is_ready.recv().unwrap();
        Self { dir, told, state, log, container, stdout: out_write.into(), stdin: in_read.into(), _stderr: err_write }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("supervisor.sock")
    }

    fn request(&self, request: &Request) -> Result<(Answer, Connection), RequestError> {
        blocking::request(&self.socket(), request)
    }

    fn exec(&self, command: &[&str], change: impl FnOnce(&mut ExecOptions)) -> Connection {
        let command = command.iter().map(|&s| s.to_owned()).collect();
        let mut options =
            ExecOptions { container: "main".to_owned(), command, stdout: true, stderr: true, ..ExecOptions::default() };
        change(&mut options);
        let (answer, connection) = self.request(&Request::Exec(options)).unwrap();
        assert_eq!(answer, Answer::Streaming);
        connection
    }

    fn told(&self) -> Told {
        self.told.recv_timeout(Duration::from_secs(10)).expect("the driver is told within 10 s")
    }
}

fn collect(mut connection: Connection) -> (Vec<u8>, Vec<u8>, StreamEnd) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let end = connection
        .output(|channel, bytes| {
            match channel {
                channel::STDOUT => stdout.extend_from_slice(bytes),
                channel::STDERR => stderr.extend_from_slice(bytes),
                channel::CLOSE => {}
                other => panic!("channel {other}"),
            }
            Ok(())
        })
        .unwrap();
    (stdout, stderr, end)
}

#[test]
fn exec_gives_output_and_exit_code() {
    let world = World::new();
    let got = collect(world.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], |_| {}));
    assert_eq!(got, (b"out\n".to_vec(), b"err\n".to_vec(), StreamEnd::Exit { code: 7 }));
    assert_eq!(collect(world.exec(&["true"], |_| {})).2, StreamEnd::Success);
    assert_eq!(collect(world.exec(&["sh", "-c", "kill -TERM $$"], |_| {})).2, StreamEnd::Exit { code: 143 });
}

#[test]
fn exec_feeds_stdin_until_its_half_close() {
    let world = World::new();
    let connection = world.exec(&["sha256sum"], |o| o.stdin = true);
    let mut sender = connection.sender().unwrap();
    let block = vec![b'z'; 1 << 20];
    for _ in 0..100 {
        sender.send(channel::STDIN, &block).unwrap();
    }
    sender.close_stdin().unwrap();
    let (sum, _, end) = collect(connection);
    assert_eq!(end, StreamEnd::Success);
    let mut expected = Command::new("sh")
        .args(["-c", "head -c 104857600 /dev/zero | tr '\\0' z | sha256sum"])
        .output()
        .unwrap()
        .stdout;
    expected.truncate(64);
    assert_eq!(sum[..64], expected);
}

#[test]
fn exec_delivers_everything_to_a_slow_reader() {
    let world = World::new();
    let mut connection = world.exec(&["sh", "-c", "head -c 20000000 /dev/zero; exit 3"], |_| {});
    let (mut total, mut frames) = (0, 0);
    let end = connection
        .output(|_, bytes| {
            total += bytes.len();
            frames += 1;
            if frames % 50 == 0 {
                // The reader is slow on purpose.
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((total, end), (20_000_000, StreamEnd::Exit { code: 3 }));
}

#[test]
fn exec_with_a_terminal_can_be_resized() {
    let world = World::new();
    let connection = world.exec(&["sh", "-c", "read x; stty size; tty -s && echo terminal"], |o| {
        (o.stdin, o.tty, o.stderr) = (true, true, false)
    });
    let mut sender = connection.sender().unwrap();
    sender.send(channel::RESIZE, &serde_json::to_vec(&TerminalSize { width: 132, height: 43 }).unwrap()).unwrap();
    sender.send(channel::STDIN, b"go\n").unwrap();
    let (out, _, end) = collect(connection);
    assert_eq!(String::from_utf8(out).unwrap(), "go\r\n43 132\r\nterminal\r\n");
    assert_eq!(end, StreamEnd::Success);
}

#[test]
fn a_client_that_vanishes_takes_its_process_along() {
    let world = World::new();
    // Idle, and with a stdin that nobody reads and is full.
    let idle = world.exec(&["sleep", "1000"], |_| {});
    drop(idle);
    assert_eq!(world.told(), Told::EndExec { id: 1, tty: false });
    let full = world.exec(&["sleep", "1000"], |o| o.stdin = true);
    let mut sender = full.sender().unwrap();
    let writer = std::thread::spawn(move || while sender.send(channel::STDIN, &[0; 65536]).is_ok() {});
    // Long enough for pipe and socket to be full; the test holds without it, too.
    std::thread::sleep(Duration::from_millis(100));
    full.shutdown().unwrap();
    writer.join().unwrap();
    assert_eq!(world.told(), Told::EndExec { id: 2, tty: false });
}

#[test]
fn what_a_process_leaves_behind_is_heard_to_its_end() {
    let world = World::new();
    let late = "(sleep 0.7; echo late; sleep 0.5; echo later >&2) & echo early; exit 3";
    let (stdout, stderr, end) = collect(world.exec(&["sh", "-c", late], |_| {}));
    assert_eq!((stdout, stderr), (b"early\nlate\n".to_vec(), b"later\n".to_vec()));
    assert_eq!(end, StreamEnd::Exit { code: 3 });
}

#[test]
fn requests_that_make_no_sense_are_refused_with_the_reason() {
    let world = World::new();
    let refused = |request: &Request| match world.request(request) {
        Err(RequestError::Refused(error)) => (error.code, error.message),
        other => panic!("{other:?}"),
    };
    let options = ExecOptions { container: "main".to_owned(), stdout: true, ..ExecOptions::default() };
    assert_eq!(refused(&Request::Exec(options.clone())).1, "you must specify at least one command for the container");
    let options = ExecOptions { command: vec!["true".to_owned()], container: "other".to_owned(), ..options };
    assert_eq!(refused(&Request::Exec(options)), (ErrorCode::NotFound, "container \"other\" not found".to_owned()));
    let raw = |lines: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(world.socket()).unwrap();
        stream.write_all(lines.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(raw("{\"hello\":{\"version\":99}}\n{}\n").contains("\"version\""));
    assert!(raw("{\"hello\":{\"version\":1}}\n{\"dance\":{}}\n").contains("unknown variant `dance`"));
    assert!(raw("GET / HTTP/1.1\r\n\r\n").contains("bad_request"));
    assert!(raw(&"x".repeat((1 << 20) + 10)).contains("line longer than"));
}

#[test]
fn one_line_requests() {
    let world = World::new();
    let (answer, _) = world.request(&Request::Stats).unwrap();
    assert!(matches!(answer, Answer::Stats(stats) if stats.pod.cpu_nanos == 5 && stats.at.is_some()));
    let (answer, _) = world.request(&Request::Probes).unwrap();
    assert!(matches!(&answer, Answer::Probes(all) if all[0].successful == 2), "{answer:?}");
    assert_eq!(world.request(&Request::Stop { grace_period_seconds: 4 }).unwrap().0, Answer::Done);
    assert_eq!(world.told(), Told::Stop(4));
    let update = Update { active_deadline_seconds: Some(9), ..Update::default() };
    assert_eq!(world.request(&Request::Update(update.clone())).unwrap().0, Answer::Done);
    assert_eq!(world.told(), Told::Update(Box::new(update)));
}

#[test]
fn a_watcher_sees_the_last_state() {
    let world = World::new();
    let (answer, mut connection) = world.request(&Request::Status { watch: true }).unwrap();
    assert!(matches!(answer, Answer::Status(state) if state.sequence == 0));
    for sequence in 1..=100 {
        world.state.send_replace(Arc::new(PodState { sequence, ..PodState::default() }));
    }
    let mut last = 0;
    while last < 100 {
        let state: PodState = connection.line().unwrap().unwrap();
        assert!(state.sequence > last);
        last = state.sequence;
    }
}

#[test]
fn logs_are_followed_to_the_end() {
    let mut world = World::new();
    world.stdout.write_all(b"first\n").unwrap();
    let options = LogOptions { container: "main".to_owned(), follow: true, ..LogOptions::default() };
    let (_, connection) = world.request(&Request::Logs(options.clone())).unwrap();
    let following = std::thread::spawn(move || collect(connection));
    for n in 0..1000 {
        world.stdout.write_all(format!("line {n}\n").as_bytes()).unwrap();
    }
    assert!(!following.is_finished());
    let World { log, container, stdout, _stderr, dir, .. } = world;
    drop((stdout, _stderr));
    log.exited(container, false);
    let (out, _, end) = following.join().unwrap();
    let expected: String =
        std::iter::once("first\n".to_owned()).chain((0..1000).map(|n| format!("line {n}\n"))).collect();
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    assert_eq!(end, StreamEnd::Success);
    // Complete now: following it ends at once.
    let options = LogOptions { tail_lines: Some(2), timestamps: true, ..options };
    let (_, connection) = blocking::request(&dir.path().join("supervisor.sock"), &Request::Logs(options)).unwrap();
    let tail = String::from_utf8(collect(connection).0).unwrap();
    assert!(tail.ends_with("Z line 999\n") && tail.lines().count() == 2, "{tail}");
}

#[test]
fn logs_of_a_previous_instance_that_never_was() {
    let world = World::new();
    let options = LogOptions { container: "main".to_owned(), previous: true, ..LogOptions::default() };
    match world.request(&Request::Logs(options)) {
        Err(RequestError::Refused(error)) => {
            assert_eq!(error.message, "previous terminated container \"main\" in pod \"p\" not found")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn attach_joins_the_running_streams() {
    let mut world = World::new();
    world.stdout.write_all(b"before\n").unwrap();
    // Once it is in the log it is past the tap.
    while world.log.counters().written() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let options = AttachOptions { container: "main".to_owned(), stdin: true, stdout: true, stderr: true, tty: false };
    let (_, connection) = world.request(&Request::Attach(options)).unwrap();
    let mut sender = connection.sender().unwrap();
    sender.send(channel::STDIN, b"hello\n").unwrap();
    let mut line = [0; 6];
    world.stdin.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    world.stdout.write_all(b"after\n").unwrap();
    sender.close_stdin().unwrap();
    assert_eq!(world.told(), Told::StdinEnded);
    let World { stdout, _stderr, .. } = world;
    drop((stdout, _stderr));
    assert_eq!(collect(connection), (b"after\n".to_vec(), Vec::new(), StreamEnd::Success));
}

#[test]
fn attach_ends_with_the_clients_input_unless_the_container_gets_that_end() {
    let mut world = World::with(false);
    let options = AttachOptions { container: "main".to_owned(), stdin: true, stdout: true, stderr: true, tty: false };
    let (_, connection) = world.request(&Request::Attach(options)).unwrap();
    let mut sender = connection.sender().unwrap();
    sender.send(channel::STDIN, b"hello\n").unwrap();
    sender.close_stdin().unwrap();
    let mut line = [0; 6];
    world.stdin.read_exact(&mut line).unwrap();
    world.stdout.write_all(b"answer\n").unwrap();
    assert_eq!(collect(connection), (b"answer\n".to_vec(), Vec::new(), StreamEnd::Success));
}

#[test]
fn an_attach_client_that_reads_nothing_is_dropped_with_a_reason() {
    let mut world = World::new();
    let options = AttachOptions { container: "main".to_owned(), stdout: true, ..AttachOptions::default() };
    let (_, connection) = world.request(&Request::Attach(options)).unwrap();
    // More than tap, socket and buffers hold, so it ends only because the client is dropped.
    world.stdout.write_all(&vec![b'\n'; 8 << 20]).unwrap();
    let (out, _, end) = collect(connection);
    assert!(out.len() < 8 << 20);
    assert!(matches!(end, StreamEnd::Failed { message } if message.contains("the container goes on")));
}

#[test]
fn ports_are_forwarded_with_half_close() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).unwrap();
        tcp.write_all(&all).unwrap();
    });
    let (_, connection) = world.request(&Request::PortForward { port }).unwrap();
    let mut sender = connection.sender().unwrap();
    let sent: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    for part in sent.chunks(100_000) {
        sender.send(channel::STDIN, part).unwrap();
    }
    sender.close_stdin().unwrap();
    let (got, _, end) = collect(connection);
    assert!(got == sent);
    assert_eq!(end, StreamEnd::Success);
    server.join().unwrap();
    match world.request(&Request::PortForward { port }) {
        Err(RequestError::Refused(error)) => assert!(
            error.message.starts_with(&format!("failed to connect to localhost:{port} inside namespace"))
                && error.message.contains(&format!("IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused")),
            "{}",
            error.message
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn fifty_sessions_at_once() {
    let world = World::new();
    let sessions: Vec<_> = (0..50)
        .map(|n| {
            let connection = world.exec(&["sh", "-c", &format!("head -c 1000000 /dev/zero; exit {n}")], |_| {});
            std::thread::spawn(move || collect(connection))
        })
        .collect();
    for (n, session) in sessions.into_iter().enumerate() {
        let (out, _, end) = session.join().unwrap();
        assert_eq!(out.len(), 1_000_000);
        let code = i32::try_from(n).unwrap();
        assert_eq!(end, if code == 0 { StreamEnd::Success } else { StreamEnd::Exit { code } });
    }
}
