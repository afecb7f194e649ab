//! Runs of the local executor, as alice's HPK_HOME on the one machine tells of them.

use crate::slurm::Job;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The machine's name; the site's login node has it too.
const MACHINE: &str = "login";

fn home() -> PathBuf {
    let site = std::env::var_os("SITE_DIR").map_or_else(|| PathBuf::from("/var/tmp/hpk-site"), PathBuf::from);
    site.join("home/alice/.hpk")
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The living run of a pod.
pub(crate) fn run_of(namespace: &str, pod: &str) -> Option<Job> {
    let lives = |job: &Job| !home().join("runs").join(&job.id).join("end.json").exists();
    runs_of(namespace, pod).into_iter().find(lives)
}

/// All runs of a pod that the executor remembers.
pub(crate) fn runs_of(namespace: &str, pod: &str) -> Vec<Job> {
    let runs = std::fs::read_dir(home().join("runs")).into_iter().flatten().flatten();
    let of = runs.filter_map(|entry| {
        let record = read(&entry.path().join("run.json"))?;
        let uid = record["pod"].as_str()?.to_owned();
        let plan = read(&home().join("pods").join(&uid).join("pod/plan.json"))?;
        (plan["pod"]["namespace"] == namespace && plan["pod"]["name"] == pod).then(|| Job {
            id: entry.file_name().to_string_lossy().into_owned(),
            name: format!("{namespace}/{pod}"),
            state: if record["started_at"].is_null() { "PENDING" } else { "RUNNING" }.to_owned(),
            cpus: String::new(),
            memory: String::new(),
            node: MACHINE.to_owned(),
            comment: uid,
        })
    });
    of.collect()
}
