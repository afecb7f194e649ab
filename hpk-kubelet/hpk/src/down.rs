//! `hpk down`: the supervisor stops everything in reverse order; pods go on unless told otherwise.
//!
//! A pod's job needs no control plane to go on; the next `hpk up` finds it by its comment. So stopping the
//! control plane never costs work.

use crate::cli;
use crate::home;
use crate::in_job::ask;
use crate::json::read_json;
use crate::progress::Progress;
use crate::runs;
use crate::site;
use crate::supervise::control::{Client, ControlError, Holder, Phase, Request};
use crate::up::lock_command;
use anyhow::Result;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use hpk_layout::Home;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

/// For another command to end, and for a supervisor that can only be told by a signal.
const PATIENCE: Duration = Duration::from_secs(120);

/// `hpk down`.
pub(crate) async fn run(args: &cli::Down) -> Result<ExitCode> {
    let home = home::find()?;
    home::create(&home)?;
    let progress = Progress::new();
    let _lock = lock_command(&home, &progress, PATIENCE).await?;

    match Client::ask(&home, &site::hostname()?, Request::Stop).await {
        Ok(mut client) => {
            let mut said = HashSet::new();
            while let Some(snapshot) = client.next().await? {
                for c in snapshot.components.iter().filter(|c| c.phase == Phase::Stopped) {
                    if said.insert(c.name.clone()) {
                        progress.done(&format!("{} stopped", c.name));
                    }
                }
                let left: Vec<_> = snapshot
                    .components
                    .iter()
                    .filter(|c| c.phase == Phase::Stopping)
                    .map(|c| c.name.as_str())
                    .collect();
                progress.waiting(format!("waiting for {}", left.join(", ")));
            }
            progress.done("the control plane is down; its state is kept");
        }
        Err(ControlError::NotRunning | ControlError::OtherHost { .. }) if ask::stop(&home, &progress).await? => {}
        Err(ControlError::NotRunning) => progress.done("the control plane is not running"),
        Err(ControlError::Silent { .. }) => end_silent(&home, &progress).await?,
        Err(e) => return Err(e.into()),
    }

    let cluster: Option<ClusterConfig> = read_json(&home.cluster_json()).ok().flatten();
    if cluster.is_some_and(|cluster| cluster.executor == ExecutorKind::Local) {
        return local_pods(&home, args.pods, &progress);
    }
    let jobs = pod_jobs(&home);
    match (jobs, args.pods) {
        (Err(e), _) => progress.done(&format!("cannot tell which jobs run: {e}")),
        (Ok(jobs), _) if jobs.is_empty() => {}
        (Ok(jobs), true) => {
            let ids: Vec<&str> = jobs.iter().map(String::as_str).collect();
            site::slurm("scancel", &ids)?;
            progress.done(&format!("{} jobs of pods cancelled", jobs.len()));
        }
        (Ok(jobs), false) => {
            progress.done(&format!(
                "{} jobs of pods go on, the next hpk up finds them again (hpk down --pods cancels them)",
                jobs.len()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Pods that are processes of this machine.
fn local_pods(home: &Home, end: bool, progress: &Progress) -> Result<ExitCode> {
    match (runs::living(home).len(), end) {
        (0, _) => {}
        (_, true) => {
            progress.waiting("waiting for the pods to end".to_owned());
            progress.done(&format!("{} pods ended", runs::end(home)?));
        }
        (count, false) => {
            progress.done(&format!("{count} pods go on, the next hpk up finds them again (hpk down --pods ends them)"))
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A supervisor that has no socket any more stops in the same order when it is told by a signal.
async fn end_silent(home: &Home, progress: &Progress) -> Result<()> {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    let mut told = false;
    while let Some(holder) = Holder::of(&home.supervisor_lock()) {
        if !std::mem::replace(&mut told, true) {
            progress.done(&format!("the control plane does not answer: its process {} is told to stop", holder.pid));
            holder.signal(Signal::SIGTERM);
        }
        if tokio::time::Instant::now() >= give_up {
            anyhow::bail!("process {} does not end: kill -KILL {0}, then run hpk up", holder.pid);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    progress.done("the control plane is down; its state is kept");
    Ok(())
}

/// Ids of this user's jobs whose comment carries the UID of a pod, or the id of a gang, in HPK_HOME.
pub(crate) fn pod_jobs(home: &Home) -> Result<Vec<String>, site::SiteError> {
    // A gang's job bears the gang's id.
    let pods: HashSet<String> = [home.pods(), home.gangs()]
        .into_iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    let text = site::slurm("squeue", &["--me", "-h", "-o", "%i %k"])?;
    Ok(jobs_of(&text, &pods))
}

/// Lines are `<job id> <comment>`.
fn jobs_of(squeue: &str, pods: &HashSet<String>) -> Vec<String> {
    squeue
        .lines()
        .filter_map(|l| l.trim().split_once(' '))
        .filter(|(_, comment)| {
            comment.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| pods.contains(word))
        })
        .map(|(id, _)| id.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_jobs_of_our_pods_are_ours() {
        let pods: HashSet<String> = ["aa-11".to_owned(), "bb-22".to_owned()].into();
        let squeue = "7 hpk:aa-11\n8 (null)\n9 bb-22\n10 hpk/cc-33\n11 xaa-11\n12\n";
        assert_eq!(jobs_of(squeue, &pods), ["7", "9"]);
    }
}
