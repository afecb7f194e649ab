//! The cluster's size, for the Node object: the answer of `sinfo`, added up over its nodes.

use std::collections::BTreeMap;

/// What all nodes have together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// gres name (`gpu`) → count.
    pub gres: BTreeMap<String, u64>,
    /// Nodes counted.
    pub nodes: u64,
}

/// Adds up `sinfo --Node --noheader --format="%N|%c|%m|%G|%t"`, each node once.
#[must_use]
pub fn from_sinfo(text: &str) -> Capacity {
    let mut seen = std::collections::HashSet::new();
    let mut total = Capacity::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, cpus, memory, gres, ..] = fields[..] else { continue };
        if !seen.insert(name.to_owned()) {
            // A node is listed once for each of its partitions.
            continue;
        }
        total.nodes += 1;
        total.cpus += digits(cpus);
        total.memory_mib += digits(memory);
        for (kind, count) in gres_list(gres) {
            *total.gres.entry(kind).or_default() += count;
        }
    }
    total
}

/// A time of `scontrol show config`, seconds: `KillWait`, `MessageTimeout`.
#[must_use]
pub fn seconds(text: &str, name: &str) -> Option<u32> {
    let value = text.lines().find_map(|line| line.split_once('=').filter(|(key, _)| key.trim() == name))?.1;
    value.trim().strip_suffix("sec").unwrap_or(value).trim().parse().ok()
}

/// `64`, or `64+` when nodes of a group differ.
fn digits(text: &str) -> u64 {
    text.trim_end_matches('+').parse().unwrap_or(0)
}

/// `gpu:a100:4(S:0-1),nic:2` → gpu 4, nic 2.
fn gres_list(text: &str) -> Vec<(String, u64)> {
    if text == "(null)" || text.is_empty() {
        return Vec::new();
    }
    let mut list = Vec::new();
    let mut depth = 0_u32;
    let plain: String = text
        .chars()
        .filter(|c| {
            match c {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect();
    for item in plain.split(',') {
        let parts: Vec<&str> = item.split(':').collect();
        let count = parts.last().and_then(|n| n.parse().ok());
        if let Some(name) = parts.first().filter(|n| !n.is_empty()) {
            list.push(((*name).to_owned(), if parts.len() > 1 { count.unwrap_or(1) } else { 1 }));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let text = "Configuration data as of 2026\nKeepAliveTime           = CONFIG\nKillOnBadExit           = 0\nKillWait                = 45 sec\n";
        let kill_wait = |text| seconds(text, "KillWait");
        assert_eq!((kill_wait(text), kill_wait("KillWait = ?"), kill_wait("")), (Some(45), None, None));
    }

    #[test]
    fn added_up_once_per_node() {
        let text = "c1|64|16000|gpu:a100:4(S:0-1),nic:2|idle\nc2|64+|16000|(null)|mix\nc1|64|16000|gpu:a100:4(S:0-1)|idle\nbad\n";
        assert_eq!(
            from_sinfo(text),
            Capacity {
                cpus: 128,
                memory_mib: 32_000,
                gres: [("gpu".to_owned(), 4), ("nic".to_owned(), 2)].into(),
                nodes: 2,
            }
        );
        assert_eq!(gres_list("gpu"), [("gpu".to_owned(), 1)]);
    }
}
