//! `hpk ps`: pods and their Slurm jobs in one table, by one query of each side.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use crate::bootstrap;
use crate::cli::{self, Format};
use crate::home;
use crate::json::need_json;
use crate::site;
use anyhow::Result;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// Fields of squeue's lines, as [`Job::parse`] reads them. The folder may contain anything, so it is the last.
const FORMAT: &str = "%A|%T|%r|%N|%P|%M|%l|%Z";

/// A job as squeue has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Job {
    id: String,
    state: String,
    /// Why it waits; None: it does not.
    reason: Option<String>,
    /// None: it has none yet.
    node: Option<String>,
    partition: String,
    elapsed: String,
    limit: String,
}

/// A pod and its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    namespace: String,
    name: String,
    uid: String,
    phase: String,
    /// None: squeue knows of none.
    job: Option<Job>,
}

/// `hpk ps`.
pub(crate) async fn run(args: &cli::Ps) -> Result<ExitCode> {
    let home = home::find()?;
    let client = bootstrap::client(&home).await?;
    let pods: Api<Pod> = match (&args.namespace, args.all_namespaces) {
        (_, true) => Api::all(client),
        (Some(namespace), false) => Api::namespaced(client, namespace),
        (None, false) => Api::default_namespaced(client),
    };
    let pods = pods.list(&ListParams::default()).await?.items;
    let cluster: ClusterConfig = need_json(&home.cluster_json())?;
    let squeue = match cluster.executor {
        ExecutorKind::Slurm => site::slurm("squeue", &["--me", "--noheader", "--format", FORMAT])?,
        // Pods of this machine have no job.
        ExecutorKind::Local => String::new(),
    };
    let rows = join(&pods, &squeue);
    match args.output.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&serde_json::json!({"pods": rows}))?),
        Format::Text if rows.is_empty() => println!("no pods"),
        Format::Text => print!("{}", table(&rows, args.all_namespaces)),
    }
    Ok(ExitCode::SUCCESS)
}

impl Job {
    /// The pod's UID, by which the folder is named, and the job.
    fn parse(line: &str) -> Option<(String, Self)> {
        let fields: Vec<&str> = line.splitn(8, '|').map(str::trim).collect();
        let [id, state, reason, node, partition, elapsed, limit, folder] = fields[..] else { return None };
        let uid = Path::new(folder).file_name()?.to_str()?.to_owned();
        let some = |text: &str| (!matches!(text, "" | "None" | "(null)")).then(|| text.to_owned());
        let job = Self {
            id: id.to_owned(),
            state: state.to_owned(),
            reason: some(reason),
            node: some(node),
            partition: partition.to_owned(),
            elapsed: elapsed.to_owned(),
            limit: limit.to_owned(),
        };
        Some((uid, job))
    }
}

/// The pods with their jobs, in the order of the pods.
fn join(pods: &[Pod], squeue: &str) -> Vec<Row> {
    let mut jobs: BTreeMap<String, Job> = squeue.lines().filter_map(Job::parse).collect();
    let row = |pod: &Pod| {
        let uid = pod.uid().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let ends = pod.metadata.deletion_timestamp.is_some();
        Row {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            phase: if ends { "Terminating".to_owned() } else { phase },
            job: jobs.remove(&uid),
            uid,
        }
    };
    pods.iter().map(row).collect()
}

fn table(rows: &[Row], namespaces: bool) -> String {
    let dash = || "-".to_owned();
    let mut lines: Vec<Vec<String>> = vec![
        ["NAMESPACE", "POD", "PHASE", "JOB", "STATE", "REASON", "NODE", "PARTITION", "ELAPSED", "LIMIT"]
            .map(str::to_owned)
            .into(),
    ];
    for row in rows {
        let mut line = vec![row.namespace.clone(), row.name.clone(), row.phase.clone()];
        match &row.job {
            Some(job) => line.extend([
                job.id.clone(),
                job.state.clone(),
                job.reason.clone().unwrap_or_else(dash),
                job.node.clone().unwrap_or_else(dash),
                job.partition.clone(),
                job.elapsed.clone(),
                job.limit.clone(),
            ]),
            None => line.extend(std::iter::repeat_with(dash).take(7)),
        }
        lines.push(line);
    }
    let skip = usize::from(!namespaces);
    let widths: Vec<usize> =
        (skip..10).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or_default()).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line[skip..].iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SQUEUE: &str = "\
71|RUNNING|None|c1|debug|1:02|5:00|/home/alice/.hpk/pods/u-1
72|PENDING|Resources||main|0:00|UNLIMITED|/home/alice/odd|name/pods/u-2
73|RUNNING|None|c2|main|9:00|UNLIMITED|/home/alice/somewhere
bad
";

    fn pods() -> Vec<Pod> {
        let pod = |name: &str, phase: &str| {
            let metadata = json!({"name": name, "namespace": "d", "uid": format!("u-{name}")});
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        };
        vec![pod("1", "Running"), pod("2", "Pending"), pod("3", "Succeeded")]
    }

    #[test]
    fn both_worlds_in_one_table() {
        let rows = join(&pods(), SQUEUE);
        let job = |row: usize| rows[row].job.clone();
        assert_eq!(job(0).map(|j| (j.id, j.node)), Some(("71".to_owned(), Some("c1".to_owned()))));
        assert_eq!(job(1).map(|j| (j.reason, j.node)), Some((Some("Resources".to_owned()), None)));
        assert_eq!(job(2), None);
        let text = table(&rows, false);
        assert_eq!(
            text,
            "\
POD   PHASE       JOB   STATE     REASON      NODE   PARTITION   ELAPSED   LIMIT
1     Running     71    RUNNING   -           c1     debug       1:02      5:00
2     Pending     72    PENDING   Resources   -      main        0:00      UNLIMITED
3     Succeeded   -     -         -           -      -           -         -
"
        );
        assert!(table(&rows, true).starts_with("NAMESPACE   POD"));
    }
}
