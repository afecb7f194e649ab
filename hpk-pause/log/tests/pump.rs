//! The pump with real pipes, terminals and files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_log::{
    LogEvent, LogHandle, LogId, LogReader, LogService, LogSettings, LogTarget, ReadOptions, ReadStatus, Source,
};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

struct Bench {
    dir: tempfile::TempDir,
    log: LogHandle,
    events: mpsc::Receiver<LogEvent>,
}

struct Container {
    id: LogId,
    stdout: File,
    stderr: File,
}

impl Bench {
    fn new(settings: LogSettings) -> Self {
        let (sender, events) = mpsc::channel();
        let log = LogService::start(settings, move |event| drop(sender.send(event))).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), log, events }
    }

    fn container(&self, restart_count: u32) -> Container {
        let (out_read, out_write) = nix::unistd::pipe().unwrap();
        let (err_read, err_write) = nix::unistd::pipe().unwrap();
        let target = LogTarget { dir: self.dir.path().to_owned(), restart_count };
        let id = self.log.open(target, Source::Pipes { stdout: out_read, stderr: err_read }).unwrap();
        Container { id, stdout: out_write.into(), stderr: err_write.into() }
    }

    fn event(&self) -> LogEvent {
        self.events.recv_timeout(Duration::from_secs(20)).expect("an event within 20 s")
    }

    fn exit(&self, container: Container) -> Option<Vec<u8>> {
        let id = container.id;
        drop(container);
        self.log.exited(id, true);
        match self.event() {
            LogEvent::Drained { id: drained, tail } => {
                assert_eq!(drained, id);
                tail
            }
            other => panic!("{other:?}"),
        }
    }
}

fn read_all(dir: &Path, restart_count: u32, options: ReadOptions) -> String {
    let mut reader = LogReader::open(dir, restart_count, options).unwrap();
    let mut out = Vec::new();
    while reader.read(&mut out).unwrap() == ReadStatus::More {}
    String::from_utf8(out).unwrap()
}

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("line {n} {}\n", "x".repeat(usize::try_from(n % 90).unwrap()))).collect()
}

#[test]
fn output_is_complete_before_the_log_is_drained() {
    let bench = Bench::new(LogSettings::default());
    let mut c = bench.container(2);
    c.stdout.write_all(b"one\r\ntwo\nrest").unwrap();
    c.stderr.write_all(b"error\n").unwrap();
    let tail = String::from_utf8(bench.exit(c).unwrap()).unwrap();
    assert_eq!(tail.len(), "one\ntwo\nresterror\n".len());
    let out = ReadOptions { stream: Some(hpk_api::cri_log::Stream::Stdout), ..ReadOptions::default() };
    assert_eq!(read_all(bench.dir.path(), 2, out), "one\ntwo\nrest");
    let raw = fs::read_to_string(bench.dir.path().join("2.log")).unwrap();
    assert!(raw.lines().any(|l| l.ends_with("Z stdout P rest")), "{raw}");
    assert!(raw.lines().any(|l| l.ends_with("Z stderr F error")), "{raw}");
}

#[test]
fn rotation_loses_no_line_and_a_follower_sees_each_once() {
    let settings = LogSettings {
        max_bytes: 4096,
        max_files: 10_000,
        compress_after: Duration::from_millis(20),
        ..LogSettings::default()
    };
    let bench = Bench::new(settings);
    let mut c = bench.container(0);
    let follower = bench.log.follow(c.id).unwrap();
    let dir = bench.dir.path().to_owned();
    let following = std::thread::spawn(move || {
        let mut reader = LogReader::open(&dir, 0, ReadOptions::default()).unwrap();
        let mut out = Vec::new();
        loop {
            let ended = follower.ended();
            let status = reader.read(&mut out).unwrap();
            if status == ReadStatus::CaughtUp {
                if ended {
                    return String::from_utf8(out).unwrap();
                }
                let mut fds = [nix::poll::PollFd::new(follower.as_fd(), nix::poll::PollFlags::POLLIN)];
                nix::poll::poll(&mut fds, 20_000u16).unwrap();
                follower.acknowledge();
            }
        }
    });
    let expected = lines(0..20_000);
    for part in expected.as_bytes().chunks(1000) {
        c.stdout.write_all(part).unwrap();
    }
    bench.exit(c);
    assert!(following.join().unwrap() == expected);
    assert!(bench.log.counters().rotations() > 100);
    // Compression goes on in the background; whatever stage it is in, the log reads the same.
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_dir(bench.dir.path())
        .unwrap()
        .filter(|e| !e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".gz"))
        .count()
        > 2
    {
        assert!(read_all(bench.dir.path(), 0, ReadOptions::default()) == expected);
        assert!(Instant::now() < deadline, "rotated files were not compressed");
    }
    assert!(read_all(bench.dir.path(), 0, ReadOptions::default()) == expected);
    let tail = read_all(bench.dir.path(), 0, ReadOptions { tail_lines: Some(12_345), ..ReadOptions::default() });
    assert!(tail == lines(20_000 - 12_345..20_000));
}

#[test]
fn old_files_are_pruned() {
    let bench = Bench::new(LogSettings { max_bytes: 1000, max_files: 3, ..LogSettings::default() });
    let mut c = bench.container(0);
    c.stdout.write_all(lines(0..1000).as_bytes()).unwrap();
    bench.exit(c);
    let text = read_all(bench.dir.path(), 0, ReadOptions::default());
    assert!(lines(0..1000).ends_with(&text) && !text.is_empty());
    let files: Vec<_> = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|f| f.metadata().unwrap().len() <= 1000));
}

#[test]
fn a_full_disk_holds_the_container_back_and_loses_nothing_when_it_passes() {
    let bench = Bench::new(LogSettings { retry_every: Duration::from_millis(10), ..LogSettings::default() });
    let live = bench.dir.path().join("0.log");
    std::os::unix::fs::symlink("/dev/full", &live).unwrap();
    let mut c = bench.container(0);
    let expected = lines(0..50_000);
    let bytes = expected.clone();
    let mut stdout = c.stdout.try_clone().unwrap();
    let writer = std::thread::spawn(move || stdout.write_all(bytes.as_bytes()));
    assert!(matches!(bench.event(), LogEvent::Trouble { error, .. } if error.contains("No space left")));
    assert!(!writer.is_finished());
    fs::remove_file(&live).unwrap();
    assert!(matches!(bench.event(), LogEvent::Recovered { lost: 0, .. }));
    writer.join().unwrap().unwrap();
    c.stderr.write_all(b"end\n").unwrap();
    bench.exit(c);
    assert!(
        read_all(
            bench.dir.path(),
            0,
            ReadOptions { stream: Some(hpk_api::cri_log::Stream::Stdout), ..ReadOptions::default() }
        ) == expected
    );
}

#[test]
fn a_disk_that_stays_full_costs_output_but_not_the_container() {
    let bench = Bench::new(LogSettings {
        retry_every: Duration::from_millis(5),
        stall_limit: Duration::from_millis(20),
        ..LogSettings::default()
    });
    let live = bench.dir.path().join("0.log");
    std::os::unix::fs::symlink("/dev/full", &live).unwrap();
    let mut c = bench.container(0);
    // More than any pipe holds: this ends only when the pump discards.
    c.stdout.write_all(lines(0..100_000).as_bytes()).unwrap();
    fs::remove_file(&live).unwrap();
    assert!(matches!(bench.event(), LogEvent::Trouble { .. }));
    let deadline = Instant::now() + Duration::from_secs(20);
    let lost = loop {
        c.stdout.write_all(b"still here\n").unwrap();
        match bench.events.recv_timeout(Duration::from_millis(10)) {
            Ok(LogEvent::Recovered { lost, .. }) => break lost,
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(Instant::now() < deadline),
        }
    };
    assert!(lost > 1_000_000);
    assert_eq!(bench.log.counters().lost(), lost);
    bench.exit(c);
    let text = read_all(bench.dir.path(), 0, ReadOptions::default());
    assert!(text.contains(&format!("hpk: {lost} bytes of output are missing here: No space left on device")), "{text}");
    assert!(text.ends_with("still here\n"));
}

#[test]
fn a_process_left_behind_does_not_hold_up_the_end() {
    let bench = Bench::new(LogSettings { drain_quiet: Duration::from_millis(50), ..LogSettings::default() });
    let mut c = bench.container(0);
    let kept = c.stdout.try_clone().unwrap();
    c.stdout.write_all(b"last words\n").unwrap();
    bench.exit(c);
    assert_eq!(read_all(bench.dir.path(), 0, ReadOptions::default()), "last words\n");
    drop(kept);
}

#[test]
fn a_terminal_is_one_stream() {
    let bench = Bench::new(LogSettings::default());
    let pty = nix::pty::openpty(None, None).unwrap();
    let target = LogTarget { dir: bench.dir.path().to_owned(), restart_count: 0 };
    let id = bench.log.open(target, Source::Pty(pty.master)).unwrap();
    File::from(pty.slave).write_all(b"hello\nworld\n").unwrap();
    bench.log.exited(id, false);
    assert_eq!(bench.event(), LogEvent::Drained { id, tail: None });
    assert_eq!(read_all(bench.dir.path(), 0, ReadOptions::default()), "hello\nworld\n");
}

fn read_tap(fd: OwnedFd) -> Vec<u8> {
    let mut file = File::from(fd);
    let mut all = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let mut fds = [nix::poll::PollFd::new(file.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 20_000u16).unwrap();
        match file.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn a_tap_gets_every_byte_and_only_its_stream() {
    let bench = Bench::new(LogSettings::default());
    let mut c = bench.container(0);
    let tap = bench.log.tap(c.id, true, true).unwrap();
    let expected = lines(0..50_000);
    let bytes = expected.clone();
    let mut stdout = c.stdout.try_clone().unwrap();
    let writer = std::thread::spawn(move || stdout.write_all(bytes.as_bytes()).unwrap());
    c.stderr.write_all(b"raw\r\n").unwrap();
    let id = c.id;
    drop(c);
    let got = read_tap(tap.stdout.unwrap());
    writer.join().unwrap();
    assert!(got == expected.as_bytes());
    assert_eq!(read_tap(tap.stderr.unwrap()), b"raw\r\n");
    assert!(!tap.end.stalled());
    bench.log.exited(id, false);
    assert_eq!(bench.event(), LogEvent::Drained { id, tail: None });
    // A tap or follower of a log that is complete ends at once.
    let late = bench.log.tap(id, true, false).unwrap();
    assert_eq!(read_tap(late.stdout.unwrap()), b"");
    let follower = bench.log.follow(id).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !follower.ended() {
        let mut fds = [nix::poll::PollFd::new(follower.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, 20_000u16).unwrap();
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_the_container_goes_on() {
    let bench = Bench::new(LogSettings { tap_stall: Duration::from_millis(50), ..LogSettings::default() });
    let mut c = bench.container(0);
    let sleeper = bench.log.tap(c.id, true, false).unwrap();
    let expected = lines(0..50_000);
    c.stdout.write_all(expected.as_bytes()).unwrap();
    bench.exit(c);
    assert!(sleeper.end.stalled());
    assert!(read_all(bench.dir.path(), 0, ReadOptions::default()) == expected);
}
