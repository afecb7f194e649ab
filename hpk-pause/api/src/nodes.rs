//! The Nodes of a cluster: one for jobs that name no partition, and one for each further partition that was asked for.

use serde::{Deserialize, Serialize};

/// Label of a partition's Node, and key of its taint.
pub const PARTITION: &str = "slurm.hpk.io/partition";

/// Label of a pod: the id of its Slurm job.
pub const JOB_ID: &str = "slurm.hpk.io/job-id";
/// Label of a pod: the compute node that its job's first process is on.
pub const NODE: &str = "slurm.hpk.io/node";
/// Who sets labels of pods that say where they run, and may do nothing else.
pub const LABELLER: &str = "hpk:pod-labels";

/// Which partitions have a Node of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Partitions {
    /// What was asked for.
    pub chosen: Chosen,
    /// Their Nodes have no taint: pods that say nothing of partitions may be put there, too.
    pub untainted: bool,
    /// The Nodes that this came to when `hpk up` looked.
    pub nodes: Vec<PartitionNode>,
    /// The partition of jobs that name none, when `hpk up` looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usual: Option<String>,
}

/// `hpk up --partitions` and `--node-per-partition`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chosen {
    /// There is one Node.
    #[default]
    None,
    /// Each partition that the user sees.
    All,
    /// These.
    Listed(Vec<String>),
}

/// Who makes GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// `nvidia.com/gpu`
    #[default]
    Nvidia,
    /// `amd.com/gpu`
    Amd,
    /// `gpu.intel.com/i915`
    Intel,
}

/// A partition's Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionNode {
    /// Of the Node.
    pub name: String,
    /// Slurm's name of the partition.
    pub partition: String,
}

/// A partition that cannot have a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionError {
    /// Slurm does not know it.
    Unknown {
        /// Its name.
        partition: String,
        /// Those that Slurm knows.
        known: Vec<String>,
    },
    /// The first Node stands for it.
    IsFirst {
        /// Its name.
        partition: String,
        /// The first Node's name.
        first: String,
    },
    /// Its Node would have the name of another one's.
    SameName {
        /// Both partitions.
        partitions: [String; 2],
        /// The Node's name.
        name: String,
    },
}

impl std::fmt::Display for PartitionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { partition, known } => {
                write!(f, "Slurm knows no partition {partition}; it has {}", known.join(", "))
            }
            Self::IsFirst { partition, first } => {
                write!(f, "{partition} is the default partition, whose Node is {first}; leave it out")
            }
            Self::SameName { partitions: [one, other], name } => {
                write!(f, "the Nodes of {one} and {other} would both be {name}; leave one out")
            }
        }
    }
}

impl std::error::Error for PartitionError {}

impl Partitions {
    /// Finds the Nodes of the partitions that were chosen. `all`: the site's partitions; `usual`: the one that the cluster's
    /// first Node, `first`, stands for, or several of them with commas between. A partition that had a Node keeps it for as long
    /// as the choice stands, also while the site hides it or makes it the default: a Node that goes takes its pods with it.
    ///
    /// # Errors
    /// One of them cannot have a Node.
    pub fn resolve(&mut self, first: &str, all: &[String], usual: Option<&str>) -> Result<(), PartitionError> {
        let is_usual = |name: &str| usual.is_some_and(|usual| usual.split(',').any(|one| one == name));
        let had = |name: &str| self.nodes.iter().any(|node| node.partition == name);
        let names: Vec<&String> = match &self.chosen {
            Chosen::None => Vec::new(),
            Chosen::All => {
                let gone = self.nodes.iter().map(|node| &node.partition).filter(|name| !all.contains(name));
                all.iter().filter(|name| !is_usual(name) || had(name)).chain(gone).collect()
            }
            Chosen::Listed(list) => list.iter().collect(),
        };
        let mut nodes: Vec<PartitionNode> = Vec::new();
        for partition in names {
            if !all.contains(partition) && !had(partition) {
                return Err(PartitionError::Unknown { partition: partition.clone(), known: all.to_vec() });
            }
            if is_usual(partition) && !had(partition) {
                return Err(PartitionError::IsFirst { partition: partition.clone(), first: first.to_owned() });
            }
            let name = format!("{first}-{}", label(partition));
            if let Some(other) = nodes.iter().find(|n| n.name == name) {
                let partitions = [other.partition.clone(), partition.clone()];
                return Err(PartitionError::SameName { partitions, name });
            }
            nodes.push(PartitionNode { name, partition: partition.clone() });
        }
        self.usual = usual.filter(|_| !nodes.is_empty()).map(str::to_owned);
        self.nodes = nodes;
        Ok(())
    }
}

/// A name of Slurm's, made a part of a DNS label.
#[must_use]
pub fn label(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let label: String = name.chars().map(plain).take(50).collect();
    label.trim_end_matches('-').to_owned()
}

/// Whether Kubernetes takes it as a label's value, or as its name after the slash.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let name = text.rsplit('/').next().unwrap_or_default();
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && end(name.chars().next())
        && end(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(chosen: Chosen, all: &[&str]) -> Result<Vec<String>, String> {
        let mut partitions = Partitions { chosen, ..Partitions::default() };
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        partitions.resolve("hpk-site", &all, Some("main")).map_err(|error| error.to_string())?;
        Ok(partitions.nodes.into_iter().map(|n| n.name).collect())
    }

    #[test]
    fn partitions_become_nodes() {
        let all = &["main", "debug", "GPU_long"];
        let listed = |names: &[&str]| Chosen::Listed(names.iter().map(ToString::to_string).collect());
        assert_eq!(resolved(Chosen::None, all), Ok(vec![]));
        let both = vec!["hpk-site-debug".to_owned(), "hpk-site-gpu-long".to_owned()];
        assert_eq!(resolved(Chosen::All, all), Ok(both.clone()));
        assert_eq!(resolved(listed(&["debug", "GPU_long"]), all), Ok(both));
        for (names, why) in
            [(&["none"][..], "no partition none"), (&["main"], "default"), (&["debug", "debug"], "both")]
        {
            let refused = resolved(listed(names), all).expect_err("must be refused");
            assert!(refused.contains(why), "{refused}");
        }
        let mut kept = Partitions { chosen: Chosen::All, ..Partitions::default() };
        let mut names = |all: &[&str], usual: &str| {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            kept.resolve("hpk-site", &all, Some(usual)).expect("Nodes");
            kept.nodes.iter().map(|n| n.partition.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&["main", "debug", "long"], "main,long"), ["debug"]);
        assert_eq!(names(&["main", "debug", "long"], "main"), ["debug", "long"]);
        assert_eq!(names(&["main", "long"], "main"), ["long", "debug"], "hidden for a while");
        assert_eq!(names(&["main", "debug", "long"], "debug"), ["main", "debug", "long"], "another default");
        assert!(resolved(Chosen::All, &["a_b", "a-b"]).expect_err("one name").contains("hpk-site-a-b"));
    }
}
