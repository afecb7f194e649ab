//! What nodes have.

use std::collections::BTreeMap;

/// What nodes have together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// Kind and model of a generic resource → count.
    pub gres: BTreeMap<(String, Option<String>), u64>,
    /// Nodes counted.
    pub nodes: u64,
}
