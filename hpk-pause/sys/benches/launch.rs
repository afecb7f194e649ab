//! Times of launch, join and reaping with real processes; bench/launch/run.sh runs it in a user namespace, beside the
//! programs that it is held against.
//!
//! `launch ROOTFS SCRATCH` prints one `name microseconds` a line (medians); `launch restarted ROOTFS SCRATCH` only the time to
//! the command of a container that has what a pod's have, for bench/supervisor. `launch reaper` and `launch orphans N` are
//! the parts of the reaping measurement that are processes of their own.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_sys::join::Joiner;
use hpk_sys::launch::JoinSpec;
use hpk_sys::launch::{LaunchSpec, Launched, Launcher, Mount, Native, PidNamespace};
use hpk_sys::reap::{self, Poll, Reaper};
use hpk_sys::signals;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: u32 = 200;
const ORPHANS: u32 = 20_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["reaper"] => reaper(),
        ["restarted", rootfs, scratch] => restarted(Path::new(rootfs), Path::new(scratch)),
        ["orphans", count] => orphans(count.parse().expect("a number")),
        [rootfs, scratch] => measure(Path::new(rootfs), Path::new(scratch)),
        // `cargo test --benches` and `cargo bench` without an image: nothing to measure, nothing broken.
        _ => println!("usage: launch ROOTFS SCRATCH"),
    }
}

fn spec(rootfs: &Path, upper: PathBuf, argv: &[&str]) -> LaunchSpec {
    let env = vec![("PATH".to_owned(), "/bin".to_owned())];
    LaunchSpec { env, ..LaunchSpec::new("bench", rootfs, upper, argv.iter().copied()) }
}

fn wait(pid: Pid) {
    let mut reaper = Reaper::new();
    let set = {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set
    };
    loop {
        match reaper.poll() {
            Poll::Reaped(reaped) if reaped.pid == pid => return,
            Poll::Reaped(_) => {}
            Poll::NoneEnded => {
                set.wait().expect("SIGCHLD is blocked");
            }
            Poll::NoChildren => panic!("{pid} was not our child"),
        }
    }
}

/// CPU time of this process and its reaped children: says what a launch costs where a busy machine's clock does not.
fn cpu() -> Duration {
    let of = |who| {
        let usage = nix::sys::resource::getrusage(who).expect("usage");
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| {
                Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).expect("a time"))
            })
            .sum::<Duration>()
    };
    of(nix::sys::resource::UsageWho::RUSAGE_SELF) + of(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)
}

fn median(name: &str, runs: u32, mut once: impl FnMut(u32) -> Duration) {
    in_turn(&[name], runs, |_, run| once(run));
}

/// Several things by turns, so that all meet the same machine; `once` is given which of them it is, and the number of the run.
fn in_turn(names: &[&str], runs: u32, mut once: impl FnMut(usize, u32) -> Duration) {
    let mut kinds: Vec<_> = names.iter().map(|name| (name, Vec::new(), Duration::ZERO)).collect();
    for run in 0..runs {
        for (kind, (_, times, used)) in kinds.iter_mut().enumerate() {
            let before = cpu();
            times.push(once(kind, run));
            *used += cpu() - before;
        }
    }
    for (name, mut times, used) in kinds {
        times.sort();
        println!("{name} {:.0}", times[times.len() / 2].as_secs_f64() * 1e6);
        println!("{name}-best {:.0}", times[0].as_secs_f64() * 1e6);
        println!("{name}-cpu {:.0}", used.as_secs_f64() * 1e6 / f64::from(runs));
    }
}

fn measure(rootfs: &Path, scratch: &Path) {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block().expect("a mask");
    let busybox = rootfs.join("bin/busybox");
    median("spawn", RUNS, |_| {
        let start = Instant::now();
        Command::new(&busybox).arg("true").status().expect("true");
        start.elapsed()
    });
    let mut native = Native::new().expect("a node");
    let volume = scratch.join("volume");
    std::fs::create_dir_all(&volume).expect("a volume");
    let mounts: Vec<Mount> =
        (0..50).map(|n| Mount { read_only: n % 2 == 0, ..Mount::new(&volume, format!("/volumes/{n}")) }).collect();
    let kinds = ["launch", "launch-50-volumes", "launch-shared-pid", "launch-until-exec"];
    in_turn(&kinds, RUNS, |kind, run| {
        let mut spec = spec(rootfs, scratch.join(format!("{kind}-{run}")), &["true"]);
        match kinds[kind] {
            "launch-50-volumes" => spec.mounts.clone_from(&mounts),
            "launch-shared-pid" => spec.pid = PidNamespace::Pod,
            _ => {}
        }
        let start = Instant::now();
        let launched = native.launch(&spec).expect("a container");
        let executed = start.elapsed();
        wait(launched.pid);
        // Layers are removed with the scratch folder: ext4 does not give out the inodes of the last seconds again, and
        // searches long for others.
        if kinds[kind] == "launch-until-exec" { executed } else { start.elapsed() }
    });

    let Launched { pid, pidfd, io, .. } =
        native.launch(&spec(rootfs, scratch.join("joined"), &["sleep", "1000"])).expect("a container");
    let joiner = Joiner::new().expect("a joiner");
    let join = JoinSpec { env: vec![("PATH".to_owned(), "/bin".to_owned())], ..JoinSpec::new(["true"]) };
    median("join", RUNS, |_| {
        let start = Instant::now();
        let session = joiner.start(pidfd.as_fd(), &join).and_then(|s| s.wait()).expect("a session");
        wait(session.pid);
        start.elapsed()
    });
    signals::send(pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(pid);
    drop(io);

    let own = std::env::current_exe().expect("our path");
    for (name, program, args) in
        [("drain", own.clone(), vec!["reaper"]), ("drain-tini", PathBuf::from("tini"), vec!["-s", "--"])]
    {
        let mut command = Command::new(program);
        command.args(args);
        if name != "drain" {
            command.arg(&own).args(["orphans", &ORPHANS.to_string()]);
        }
        median(name, 5, |_| drain(&mut command));
    }
}

/// The same container again and again, with the files and the shared memory that every container of a pod has.
fn restarted(rootfs: &Path, scratch: &Path) {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block().expect("a mask");
    let shm = scratch.join("shm");
    std::fs::create_dir_all(&shm).expect("a folder");
    hpk_sys::mounts::tmpfs(&shm, None, 0o1777).expect("a tmpfs");
    let mut mounts = Vec::new();
    for file in ["hosts", "resolv.conf", "hostname"] {
        std::fs::write(scratch.join(file), "127.0.0.1 localhost\n").expect("a file");
        mounts.push(Mount::new(scratch.join(file), format!("/etc/{file}")));
    }
    let mut native = Native::new().expect("a node");
    median("restarted", RUNS, |run| {
        let message = Mount::new(scratch.join(format!("message{run}")), "/dev/termination-log");
        let mut spec = spec(rootfs, scratch.join(format!("r{run}")), &["true"]);
        spec.mounts.clone_from(&mounts);
        spec.mounts.push(Mount { create_file: Some(0o666), ..message });
        spec.shm = Some(shm.clone());
        let start = Instant::now();
        let launched = native.launch(&spec).expect("a container");
        let took = start.elapsed();
        wait(launched.pid);
        took
    });
}

/// Time from SIGCONT of a stopped reaper with all its zombies to the end of the last of them.
fn drain(command: &mut Command) -> Duration {
    let mut reaper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a reaper");
    let mut lines = BufReader::new(reaper.stdout.take().expect("a pipe")).lines();
    let last: i32 = lines.next().expect("a line").expect("text").parse().expect("the last orphan");
    let pid = Pid::from_raw(i32::try_from(reaper.id()).expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("a signal");
    writeln!(reaper.stdin.as_mut().expect("a pipe"), "go").expect("a word");
    let done = lines.next().expect("a line").expect("text");
    assert_eq!(done, "orphaned");
    let start = Instant::now();
    kill(pid, Signal::SIGCONT).expect("a signal");
    while kill(Pid::from_raw(last), None).is_ok() {
        std::thread::sleep(Duration::from_micros(100));
    }
    let took = start.elapsed();
    drop(reaper.stdin.take());
    reaper.wait().expect("its end");
    took
}

/// Makes zombies and, when told, ends their parent, so that they go to the nearest reaper. Ends when its input does.
fn orphans(count: u32) {
    // SAFETY: this process has one thread.
    let maker = unsafe { libc::fork() };
    let mut input = BufReader::new(std::io::stdin()).lines();
    if maker == 0 {
        let mut last = 0;
        for _ in 0..count {
            // SAFETY: one thread; the child ends at once.
            last = unsafe { libc::fork() };
            if last == 0 {
                // SAFETY: does not return.
                unsafe { libc::_exit(0) };
            }
            assert!(last > 0, "no more processes");
        }
        println!("{last}");
        input.next();
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: the status lives across the call.
    assert_eq!(unsafe { libc::waitpid(maker, &raw mut status, 0) }, maker);
    println!("orphaned");
    input.next();
}

/// What the supervisor does with orphans, and nothing else.
#[allow(clippy::zombie_processes, reason = "the reaper waits for all of them")]
fn reaper() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block().expect("a mask");
    reap::become_subreaper().expect("a subreaper");
    let own = std::env::current_exe().expect("our path");
    let holder = Command::new(own).args(["orphans", &ORPHANS.to_string()]).spawn().expect("a holder");
    let holder = Pid::from_raw(i32::try_from(holder.id()).expect("a pid"));
    let mut reaper = Reaper::new();
    loop {
        set.wait().expect("a signal");
        while let Poll::Reaped(reaped) = reaper.poll() {
            if reaped.pid == holder {
                return;
            }
        }
    }
}
