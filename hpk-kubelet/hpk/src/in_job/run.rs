//! `hpk job`, in the batch script of the control plane's job.

use super::record::{Choice, Job};
use super::submit::{HERE, is_of_a_job, sbatch};
use super::turn::{self, Next, Seen};
use crate::json::{read_json, write_json};
use crate::site;
use crate::supervise::lease::{self, Me, Verdict, Watch};
use anyhow::{Context, Result, ensure};
use hpk_layout::Home;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Between two looks at HPK_HOME while this job waits for its turn.
const LOOK: Duration = Duration::from_millis(500);
/// How long the control plane may take to serve.
const UP: &str = "--timeout=300";

/// Runs the control plane until it is another job's turn.
///
/// # Errors
/// It does not start, or a file cannot be written.
pub(crate) async fn run(home: Home) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut down = signal(SignalKind::user_defined1())?;
    let id = std::env::var("SLURM_JOB_ID").context("hpk job runs in a job of Slurm's: see hpk up --in-job")?;
    let choice = Choice::read(&home)?.context("there is no in-job.json: see hpk up --in-job")?;
    // Now: another version may be installed while this one runs.
    let program = std::env::current_exe()?;
    if !take_turn(&home, &id, &mut terminate, &mut down).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut job = Job::new(id);
    write_json(&home.job(), &job)?;
    let up = hpk(&program, &home, "up").args(&choice.up).arg(UP).status().await.context("hpk up")?;
    ensure!(up.success(), "hpk up: {up}");
    job.ready = true;
    write_json(&home.job(), &job)?;

    let times = turn::times(now(), end());
    if let Some(at) = times.handover {
        match sbatch(&program, &home, &choice.flags, Some(at.saturating_sub(now()))) {
            Ok(successor) => {
                say(&format!("job {successor} is to go on"));
                job.successor = Some(successor);
                write_json(&home.job(), &job)?;
            }
            Err(error) => say(&format!("no job is to go on: {error:#}")),
        }
    }
    let (mut terminated, mut told_to_stop, host) = (false, false, site::hostname()?);
    let next = loop {
        let waits: Option<Job> = read_json(&home.successor()).unwrap_or_default();
        let successor_waits = waits.is_some_and(|waits| Some(waits.id) == job.successor);
        // A file system that does not answer is the supervisor's to judge.
        let is_down = lease::read(&home).is_ok_and(|claim| claim.is_none_or(|claim| claim.host != host));
        let seen = Seen { now: now(), successor_waits, told_to_stop: told_to_stop || is_down, terminated };
        match turn::next(times, seen) {
            Next::GoOn => {}
            next => break next,
        }
        tokio::select! {
            _ = terminate.recv() => terminated = true,
            _ = down.recv() => told_to_stop = true,
            () = tokio::time::sleep(turn::until_next_look(times, now())) => {}
        }
    };
    say(&format!("the control plane stops: {next:?}"));
    let status = hpk(&program, &home, "down").status().await.context("hpk down")?;
    if next == Next::End {
        if let Some(successor) = &job.successor {
            site::slurm("scancel", &[successor])?;
        }
        let _absent = std::fs::remove_file(home.job());
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until nobody else runs the control plane. False: it was told to end before.
async fn take_turn(home: &Home, id: &str, terminate: &mut Signal, down: &mut Signal) -> Result<bool> {
    let (me, begin, mut watch, mut told) = (Me::new(&site::hostname()?), Instant::now(), Watch::default(), false);
    loop {
        let verdict = match lease::read(home)? {
            None => break,
            Some(claim) => {
                match lease::judge(&claim, &me, |pid| crate::supervise::control::is_supervisor(pid, home.root())) {
                    Verdict::Unknown => watch.look(&claim, begin.elapsed()),
                    known => known,
                }
            }
        };
        match verdict {
            Verdict::Free => break,
            // It may come to an end, and is looked at anew then.
            Verdict::Held => watch = Watch::default(),
            Verdict::Unknown => {}
        }
        if !std::mem::replace(&mut told, true) {
            say("waiting for this job's turn");
            write_json(&home.successor(), &Job::new(id.to_owned()))?;
        }
        tokio::select! {
            _ = terminate.recv() => return Ok(false),
            _ = down.recv() => return Ok(false),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    let _absent = std::fs::remove_file(home.successor());
    Ok(true)
}

/// This program, as a user of this machine would run it: Slurm's words about this job are not for pods' jobs.
fn hpk(program: &Path, home: &Home, command: &str) -> Command {
    let mut child = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if is_of_a_job(&name.to_string_lossy()) {
            child.env_remove(name);
        }
    }
    child.arg(command).env(HERE, "1").env("HPK_HOME", home.root());
    child
}

/// When Slurm ends this job, seconds since the epoch.
fn end() -> Option<u64> {
    std::env::var("SLURM_JOB_END_TIME").ok()?.parse().ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn say(message: &str) {
    hpk_api::say!("{} {message}", jiff::Timestamp::now());
}
