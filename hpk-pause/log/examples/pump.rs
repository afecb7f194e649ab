//! Runs a program with its output in a CRI log, as the supervisor does, and tells what that cost: for bench/logs.
//!
//! `pump FOLDER MAX_BYTES MAX_FILES PROGRAM [ARGUMENT…]`
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use hpk_log::{LogEvent, LogService, LogSettings, LogTarget, Source};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: pump FOLDER MAX_BYTES MAX_FILES PROGRAM [ARGUMENT…]");
    let (dir, max_bytes, max_files, program) = (next()?.into(), next()?.parse()?, next()?.parse()?, next()?);
    let (sender, events) = mpsc::channel();
    let settings = LogSettings { max_bytes, max_files, ..LogSettings::default() };
    let log = LogService::start(settings, move |event| drop(sender.send(event)))?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("no pipes".into());
    };
    let source = Source::Pipes { stdout: stdout.into(), stderr: stderr.into() };
    let id = log.open(LogTarget { dir, restart_count: 0 }, source)?;
    child.wait()?;
    log.exited(id, false);
    while !matches!(events.recv()?, LogEvent::Drained { .. }) {}
    let seconds = began.elapsed().as_secs_f64();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    println!("{seconds} {} {}", time(usage.user_time()) + time(usage.system_time()), log.counters().read());
    Ok(())
}
