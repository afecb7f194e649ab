//! Pods that are MPI steps.

use crate::TOOLBOX;
use serde_json::{Value, json};

/// A pod of so many ranks on two nodes, as many on each, each of which runs `command` in the toolbox image.
pub fn ranks(name: &str, count: u32, command: &[&str]) -> Value {
    let flags = format!("--ntasks={count} --nodes=2 --ntasks-per-node={}", count / 2);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {
            "slurm-job.hpk.io/flags": flags, "slurm-job.hpk.io/mpi-flags": ""
        }},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
            "containers": [{"name": "main", "image": TOOLBOX, "command": command,
                            "resources": {"requests": {"cpu": "1", "memory": "128Mi"}}}]
        }
    })
}

/// As [`ranks`], four of them and a shell script.
pub fn four_ranks(name: &str, script: &str) -> Value {
    ranks(name, 4, &["sh", "-c", script])
}

/// Lines in order, for those of ranks come in any.
pub fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}
