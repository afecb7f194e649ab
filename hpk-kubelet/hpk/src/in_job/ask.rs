//! What commands on the login node do with a control plane that is in a job.

use super::record::{self, Job, Queued};
use crate::progress::Progress;
use crate::site;
use crate::supervise::lease;
use anyhow::{Context, Result, bail};
use hpk_layout::Home;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// For an orderly end of everything.
const PATIENCE: Duration = Duration::from_secs(90);

/// The job in which the control plane runs now.
fn running(home: &Home) -> Option<Queued> {
    let job = Job::current(home).ok()?;
    record::queued(home).ok()?.into_iter().find(|queued| queued.id == job.id && queued.state == "RUNNING")
}

/// Runs this same command beside the control plane, in its job. None: it is in no job that runs.
///
/// # Errors
/// srun cannot be started.
pub(crate) fn go_there(home: &Home) -> Result<Option<ExitCode>> {
    let Some(job) = running(home) else { return Ok(None) };
    let mut command = Command::new("srun");
    command.args([&format!("--jobid={}", job.id), "--overlap", "--ntasks=1"]);
    command.env("HPK_HOME", home.root()).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    let mut child = command.stderr(Stdio::piped()).spawn().context("srun")?;
    for line in child.stderr.take().into_iter().flat_map(|err| BufReader::new(err).lines()).map_while(Result::ok) {
        // It has a word of its own about each exit code but 0.
        if !line.starts_with("srun: error: ") || !line.contains("Exited with exit code") {
            hpk_api::say!("{line}");
        }
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

/// Stops a control plane that is in a job, or is to be. False: there is no such job.
///
/// # Errors
/// Slurm's, or it does not end.
pub(crate) async fn stop(home: &Home, progress: &Progress) -> Result<bool> {
    if !home.job().exists() {
        return Ok(false);
    }
    let jobs = record::queued(home)?;
    let runs = running(home);
    for job in jobs.iter().filter(|job| runs.as_ref().is_none_or(|runs| runs.id != job.id)) {
        site::slurm("scancel", &[&job.id])?;
        progress.done(&format!("job {}, which waited for its turn, is cancelled", job.id));
    }
    if let Some(job) = &runs {
        // To the batch script alone: it stops everything in order.
        site::slurm("scancel", &["--batch", "--signal=USR1", &job.id])?;
        progress.waiting(format!("waiting for the end of job {}", job.id));
        let give_up = Instant::now() + PATIENCE;
        while record::queued(home)?.iter().any(|queued| queued.id == job.id) || lease::read(home)?.is_some() {
            if Instant::now() >= give_up {
                bail!("job {} does not end: see {}, or scancel it", job.id, home.log().join("job.log").display());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        progress.done(&format!("the control plane is down; its job {} has ended; its state is kept", job.id));
    }
    let _absent = std::fs::remove_file(home.job());
    Ok(!jobs.is_empty())
}
