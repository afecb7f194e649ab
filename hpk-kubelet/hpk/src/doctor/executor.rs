//! Which executors can work here, and what only the local one needs.

use super::{Finding, Verdict};
use crate::home;
use crate::json::read_json;
use crate::runs;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use std::process::{Command, Stdio};

/// That of the cluster in HPK_HOME. Where there is none yet and no Slurm either, the one that could be.
pub(super) fn chosen() -> ExecutorKind {
    let cluster = home::find().ok().and_then(|home| read_json::<ClusterConfig>(&home.cluster_json()).ok().flatten());
    match cluster {
        Some(cluster) => cluster.executor,
        None if which::which("sbatch").is_err() => ExecutorKind::Local,
        None => ExecutorKind::Slurm,
    }
}

/// From what was found of Slurm and of what pods on this machine need.
pub(super) fn which_work(slurm: &[Finding], local: &[Finding]) -> Finding {
    const CHECK: &str = "executors that can work";
    let why = |list: &[Finding]| {
        let failed = list.iter().find(|f| f.verdict == Verdict::Failed)?;
        Some(format!("{}: {}", failed.check, failed.found.lines().next().unwrap_or_default()))
    };
    match (why(slurm), why(local)) {
        (None, None) => Finding::ok(CHECK, "slurm, and local (hpk up --executor local)"),
        (None, Some(why)) => Finding::ok(CHECK, format!("slurm; local does not on this host: {why}")),
        (Some(why), None) => Finding::ok(CHECK, format!("local (hpk up --executor local); slurm does not: {why}")),
        (Some(slurm), Some(local)) => Finding::failed(
            CHECK,
            format!("none: slurm: {slurm}; local: {local}"),
            "see the checks below; one executor is enough",
        ),
    }
}

/// Whether limits of pods on this machine are kept.
pub(super) fn limits() -> Finding {
    const CHECK: &str = "limits of pods";
    let words = ["--user", "--scope", "--quiet", "--collect", "-p", "MemoryMax=1G", "true"];
    let mut command = Command::new("systemd-run");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Finding::ok(CHECK, "kept by systemd's user session"),
        _ => Finding::warning(
            CHECK,
            "systemd's user session does not keep them",
            "log in so that systemd makes a session (loginctl enable-linger keeps it), or have a cgroup delegated to you; \
             without, pods' limits of CPUs and memory have no effect, and their events say so",
        ),
    }
}

/// Pods that run now.
pub(super) fn pods() -> Finding {
    let count = home::find().map_or(0, |home| runs::living(&home).len());
    Finding::ok("pods on this machine", count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_executor_is_enough() {
        let (ok, bad) = ([Finding::ok("c", "f")], [Finding::failed("c", "gone", "r")]);
        for (slurm, local, verdict, words) in [
            (&ok, &ok, Verdict::Ok, "slurm, and local"),
            (&ok, &bad, Verdict::Ok, "slurm; local does not on this host: c: gone"),
            (&bad, &ok, Verdict::Ok, "local (hpk up --executor local); slurm does not: c: gone"),
            (&bad, &bad, Verdict::Failed, "none: "),
        ] {
            let found = which_work(slurm, local);
            assert!(found.verdict == verdict && found.found.starts_with(words), "{found:?}");
        }
    }
}
