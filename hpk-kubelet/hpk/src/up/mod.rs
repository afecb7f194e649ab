//! `hpk up`: decides, makes keys and files, starts the detached supervisor, waits until everything serves.
//! Also `hpk supervise`, the other half.

mod asked;
mod elsewhere;
mod prepare;
pub(crate) mod ready;
mod supervisor;
mod version;
mod wait;

pub(crate) use supervisor::{layout, supervise};

use crate::cli;
use crate::home;
use crate::in_job::submit::HERE;
use crate::in_job::submit::{self, Asked};
use crate::json::need_json;
use crate::progress::Progress;
use crate::site;
use crate::supervise::control::{Client, ControlError, Request};
use crate::supervise::{lease, strays};
use anyhow::{Context, Result, bail};
use hpk_api::cluster::ExecutorKind;
use hpk_layout::Home;
use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::Duration;

/// How often a lock that another has is tried.
const LOCK_AGAIN: Duration = Duration::from_millis(100);

/// `hpk up`.
pub(crate) async fn run(args: cli::Up) -> Result<ExitCode> {
    let home = home::find()?;
    home::create(&home)?;
    let progress = Progress::new();
    let host = site::hostname()?;
    let timeout = Duration::from_secs(args.timeout);

    let _lock = lock_command(&home, &progress, timeout).await?;
    let choice = submit::choice(&home, args.in_job.as_ref())?;

    match running(&home, &host, &progress).await {
        Ok(client) => {
            let runs = need_json(&home.cluster_json())?;
            asked::executor(&args, &home, Some(&runs))?;
            asked::refuse_changes(&args, &runs)?;
            asked::refuse_move(&args, &home)?;
            if matches!(args.in_job, Some(Asked::Job(_))) {
                bail!("--in-job: the control plane is running on this machine: run hpk down first");
            }
            progress.done("the control plane is running already");
            return wait::finish(&home, client, &progress, timeout).await;
        }
        Err(ControlError::NotRunning) => {}
        // Its lease says whether it still does.
        Err(ControlError::OtherHost { .. }) if lease::read(&home)?.is_some() => {}
        Err(e) => return Err(e.into()),
    }
    if let Some(choice) = choice {
        return submit::start(&home, &choice, &progress, timeout).await;
    }
    let free_lease = elsewhere::wait(&home, &host, &progress).await?;
    // The supervisor's own lock says it surely: it may have closed its socket and not ended yet.
    drop(supervisor::lock_supervisor(&home, &host).await?);
    let strays = strays::end(home.root());
    if strays > 0 {
        progress.done(&format!("{strays} programs of a supervisor that was killed ended"));
    }

    // Held until the supervisor holds them.
    let (layout, _held) = prepare::prepare(&home, &args, &host, &progress)?;
    if layout.cluster.executor == ExecutorKind::Local {
        progress.done("pods run on this machine, without Slurm");
    }
    progress.done(&format!(
        "cluster {}, node {}, API server {}",
        layout.cluster.cluster_name, layout.cluster.node_name, layout.cluster.apiserver_url
    ));
    if let Some(name) = &layout.cluster.cni_network {
        progress.done(&format!("network {name} is the site's: NetworkPolicies are not enforced by HPK in it"));
    }
    supervisor::start_supervisor(&home, free_lease.as_ref())?;
    let client = Client::ask(&home, &host, Request::Watch).await?;
    wait::finish(&home, client, &progress, timeout).await
}

/// For the life of this command; waits while another hpk up or down is at work.
pub(crate) async fn lock_command(home: &Home, progress: &Progress, patience: Duration) -> Result<File> {
    let path = home.command_lock();
    let lock = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path)?;
    let give_up = tokio::time::Instant::now() + patience;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
            // Who has it waits for the job in which this runs.
            Err(TryLockError::WouldBlock) if std::env::var_os(HERE).is_some() => return Ok(lock),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() >= give_up => {
                bail!("another hpk up or down is still at work ({} is locked)", path.display())
            }
            Err(TryLockError::WouldBlock) if !std::mem::replace(&mut told, true) => {
                progress.done("waiting for another hpk up or down to end");
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_AGAIN).await,
        }
    }
}

/// A word that nobody has used.
fn token() -> Result<String> {
    Ok(prepare::random()?.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// A control plane that runs and is to stay. One that is being stopped is waited for.
async fn running(home: &Home, host: &str, progress: &Progress) -> Result<Client, ControlError> {
    let mut client = Client::ask(home, host, Request::Watch).await?;
    if client.peek().await?.is_some_and(|s| !s.stopping) {
        return Ok(client);
    }
    progress.done("the control plane is being stopped; waiting for its end");
    while client.next().await?.is_some() {}
    Err(ControlError::NotRunning)
}
