//! What HPK_HOME knows of a control plane in a job.

use crate::json::{need_json, read_json, write_json};
use crate::site;
use anyhow::Result;
use hpk_layout::Home;
use serde::{Deserialize, Serialize};

/// The name of its jobs.
pub(crate) const JOB_NAME: &str = "hpk-control-plane";

/// `in-job.json`: that it is to be in a job. Kept until `--in-job` is given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Choice {
    /// Flags of sbatch.
    pub flags: Vec<String>,
    /// What `hpk up` was told besides.
    pub up: Vec<String>,
}

impl Choice {
    /// None: it is not.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn read(home: &Home) -> Result<Option<Self>> {
        read_json(&home.in_job())
    }

    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, home: &Home) -> Result<()> {
        write_json(&home.in_job(), self)
    }
}

/// `run/job.json`: the job that runs the control plane, or is to; and `run/successor.json`: the one that waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub id: String,
    /// `hpk up` has ended well in it.
    #[serde(default)]
    pub ready: bool,
    /// Sent already, to be the next one.
    #[serde(default)]
    pub successor: Option<String>,
}

impl Job {
    /// A job that has begun nothing.
    pub(crate) fn new(id: String) -> Self {
        Self { id, ready: false, successor: None }
    }

    /// The job that HPK_HOME names.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn current(home: &Home) -> Result<Self> {
        need_json(&home.job())
    }
}

/// How squeue shows a job of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    pub id: String,
    /// `PENDING`, `RUNNING`, …
    pub state: String,
    /// Why it waits.
    pub reason: String,
    pub node: String,
}

/// Jobs of this HPK_HOME's control plane that have not ended.
///
/// # Errors
/// squeue's.
pub(crate) fn queued(home: &Home) -> Result<Vec<Queued>> {
    let text = site::slurm("squeue", &["--me", "--noheader", "--name", JOB_NAME, "--format=%i|%T|%r|%N|%Z"])?;
    Ok(parse(&text, &home.root().display().to_string()))
}

fn parse(text: &str, home: &str) -> Vec<Queued> {
    let job = |line: &str| {
        let fields: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
        let [id, state, reason, node, folder] = fields[..] else { return None };
        let text = |word: &str| word.to_owned();
        let lives = !matches!(state, "COMPLETING" | "COMPLETED" | "CANCELLED" | "FAILED" | "TIMEOUT");
        (folder == home && lives).then(|| Queued {
            id: text(id),
            state: text(state),
            reason: text(reason),
            node: text(node),
        })
    };
    text.lines().filter_map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_homes_jobs_that_live() {
        let text = "7|RUNNING|None|c1|/h/.hpk\n8|PENDING|Resources||/h/.hpk\n9|RUNNING|None|c1|/h/.hpk2\n\
                    10|COMPLETING|None|c1|/h/.hpk\nx\n";
        let found = parse(text, "/h/.hpk");
        assert_eq!(found.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["7", "8"]);
        assert_eq!((found[1].reason.as_str(), found[0].node.as_str()), ("Resources", "c1"));
    }
}
