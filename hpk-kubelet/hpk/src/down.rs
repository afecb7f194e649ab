//! `hpk down`: the supervisor stops everything in reverse order; Slurm jobs go on unless told otherwise.
//!
//! A pod's job needs no control plane to go on; the next `hpk up` finds it by its comment. So stopping the
//! control plane never costs work.

use crate::cli;
use crate::home::Home;
use crate::progress::Progress;
use crate::site;
use crate::supervise::control::{Client, ControlError, Phase, Request};
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

/// `hpk down`.
pub(crate) async fn run(args: &cli::Down) -> Result<ExitCode> {
    let home = Home::from_env()?;
    home.create()?;
    let progress = Progress::new();
    let lock_path = home.run().join("up.lock");
    let lock = File::options().create(true).write(true).truncate(false).mode(0o600).open(&lock_path)?;
    lock.try_lock()
        .with_context(|| format!("another hpk up or down is at work ({} is locked)", lock_path.display()))?;

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
        Err(ControlError::NotRunning) => progress.done("the control plane is not running"),
        Err(e) => return Err(e.into()),
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

/// Ids of this user's jobs whose comment carries the UID of a pod in HPK_HOME.
pub(crate) fn pod_jobs(home: &Home) -> Result<Vec<String>, site::SiteError> {
    let pods: HashSet<String> = std::fs::read_dir(home.root().join("pods"))
        .into_iter()
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
