//! What the cluster has, for the Node objects: the answer of `sinfo`, added up over the nodes of a partition.

use super::capacity::Capacity;
use super::gres::{self, Gres};
use std::collections::{BTreeMap, BTreeSet};

/// Fields of a line of sinfo, as [`Cluster::parse`] reads them.
pub(crate) const FORMAT: &str = "%N|%c|%m|%G|%T|%R|%a|%f";

/// Nodes of Slurm, each as a part of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    members: Vec<Member>,
}

/// A node of Slurm in one of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    node: String,
    partition: String,
    partition_up: bool,
    state: State,
    cpus: u64,
    memory_mib: u64,
    gres: Vec<Gres>,
    features: BTreeSet<String>,
}

/// Whether jobs can run on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Now or when others have ended, powering up included.
    Usable,
    /// What runs there goes on, nothing more begins.
    Drained,
    /// A reservation for maintenance.
    Maintenance,
    /// Nothing runs there.
    Down,
}

/// What a partition has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Of all nodes.
    pub all: Capacity,
    /// Of those that jobs can run on.
    pub usable: Capacity,
    /// CPUs of the node that has most.
    pub most_cpus: u64,
    /// MiB of the node that has most.
    pub most_memory_mib: u64,
    /// Features that every node has.
    pub features: BTreeSet<String>,
    /// Nodes that jobs cannot run on.
    pub unusable: BTreeMap<State, Vec<String>>,
    /// The partition itself takes no jobs.
    pub closed: bool,
}

impl Cluster {
    /// One machine, and no Slurm.
    #[must_use]
    pub fn one(node: String, cpus: u64, memory_mib: u64, gpus: u64) -> Self {
        let gpus = Gres { kind: "gpu".to_owned(), model: None, count: gpus };
        let member = Member {
            node,
            partition: String::new(),
            partition_up: true,
            state: State::Usable,
            cpus,
            memory_mib,
            gres: if gpus.count > 0 { vec![gpus] } else { Vec::new() },
            features: BTreeSet::new(),
        };
        Self { members: vec![member] }
    }

    /// Reads `sinfo --Node --noheader --format=`[`FORMAT`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let member = |line: &str| {
            let fields: Vec<&str> = line.splitn(8, '|').map(str::trim).collect();
            let [node, cpus, memory, gres, state, partition, up, features] = fields[..] else { return None };
            Some(Member {
                node: node.to_owned(),
                partition: partition.to_owned(),
                partition_up: up == "up",
                state: State::parse(state),
                cpus: digits(cpus),
                memory_mib: digits(memory),
                gres: gres::list(gres),
                features: features.split(',').filter(|f| !f.is_empty() && *f != "(null)").map(str::to_owned).collect(),
            })
        };
        Self { members: text.lines().filter_map(member).collect() }
    }

    /// Whether anything is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a partition has, or all of them, each node counted once.
    #[must_use]
    pub fn part(&self, partition: Option<&str>) -> Part {
        // SBATCH_PARTITION may name several.
        let named = |p: &str, name: &str| p.split(',').any(|one| one == name);
        let members = || self.members.iter().filter(|m| partition.is_none_or(|p| named(p, &m.partition)));
        let closed = members().next().is_some() && members().all(|m| !m.partition_up);
        let mut part = Part { closed, ..Part::default() };
        let mut seen = BTreeSet::new();
        for member in members() {
            if !seen.insert(&member.node) {
                continue;
            }
            if part.all.nodes == 0 {
                part.features.clone_from(&member.features);
            }
            part.features.retain(|f| member.features.contains(f));
            part.most_cpus = part.most_cpus.max(member.cpus);
            part.most_memory_mib = part.most_memory_mib.max(member.memory_mib);
            part.all.add(member);
            match member.state {
                State::Usable => part.usable.add(member),
                other => part.unusable.entry(other).or_default().push(member.node.clone()),
            }
        }
        part
    }
}

impl From<Capacity> for Cluster {
    /// One node that jobs can run on, of no partition.
    fn from(capacity: Capacity) -> Self {
        let gres = capacity.gres.into_iter().map(|((kind, model), count)| Gres { kind, model, count }).collect();
        let member = Member {
            node: String::new(),
            partition: String::new(),
            partition_up: true,
            state: State::Usable,
            cpus: capacity.cpus,
            memory_mib: capacity.memory_mib,
            gres,
            features: BTreeSet::new(),
        };
        Self { members: vec![member] }
    }
}

impl Part {
    /// Whether Slurm starts jobs there, sooner or later. None: it is not known.
    #[must_use]
    pub fn takes_jobs(&self) -> Option<bool> {
        (self.all.nodes > 0).then_some(self.usable.nodes > 0 && !self.closed)
    }
}

impl Capacity {
    fn add(&mut self, member: &Member) {
        self.nodes += 1;
        self.cpus += member.cpus;
        self.memory_mib += member.memory_mib;
        for one in &member.gres {
            *self.gres.entry((one.kind.clone(), one.model.clone())).or_default() += one.count;
        }
    }
}

impl State {
    /// Of sinfo's long words: `mixed`, `idle~`, `drained*`, `mixed$` … The signs after a word say more of it; a dollar is a
    /// reservation for maintenance.
    fn parse(text: &str) -> Self {
        let word = text.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        match word {
            _ if text.ends_with('$') => Self::Maintenance,
            "maint" => Self::Maintenance,
            "drained" | "draining" | "drain" => Self::Drained,
            "down" | "error" | "fail" | "failing" | "future" | "unknown" | "inval" => Self::Down,
            _ => Self::Usable,
        }
    }
}

/// A time of `scontrol show config`, seconds: `KillWait`, `MessageTimeout`.
#[must_use]
pub(crate) fn seconds(text: &str, name: &str) -> Option<u32> {
    let value = text.lines().find_map(|line| line.split_once('=').filter(|(key, _)| key.trim() == name))?.1;
    value.trim().strip_suffix("sec").unwrap_or(value).trim().parse().ok()
}

/// `64`, or `64+` when nodes of a group differ.
fn digits(text: &str) -> u64 {
    text.trim_end_matches('+').parse().unwrap_or(0)
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

    const SINFO: &str = "\
c1|64|16000|gpu:a100:4(S:0-1),nic:2|idle|main|up|avx,big
c1|64|16000|gpu:a100:4(S:0-1),nic:2|idle|debug|down|avx,big
c2|64+|16000|(null)|drained*|main|up|avx
c3|8|100|(null)|mixed$|main|up|(null)
c4|8|100|gpu:mi250:2|down|amd|up|(null)
bad
";

    #[test]
    fn added_up_once_per_node() {
        let cluster = Cluster::parse(SINFO);
        let all = cluster.part(None);
        let gres = [
            (("gpu".to_owned(), Some("a100".to_owned())), 4),
            (("gpu".to_owned(), Some("mi250".to_owned())), 2),
            (("nic".to_owned(), None), 2),
        ];
        assert_eq!(all.all, Capacity { cpus: 144, memory_mib: 32_200, gres: gres.into(), nodes: 4 });
        assert_eq!((all.usable.nodes, all.usable.cpus, all.closed), (1, 64, false));
        assert!(all.features.is_empty(), "not of every node");
    }

    #[test]
    fn each_partition_has_its_own_nodes_and_states() {
        let cluster = Cluster::parse(SINFO);
        let main = cluster.part(Some("main"));
        assert_eq!((main.all.nodes, main.usable.nodes), (3, 1));
        let unusable = [(State::Drained, vec!["c2".to_owned()]), (State::Maintenance, vec!["c3".to_owned()])];
        assert_eq!(main.unusable, unusable.into());
        let debug = cluster.part(Some("debug"));
        assert!(debug.closed && debug.features.contains("big") && debug.features.len() == 2);
        assert_eq!(cluster.part(Some("amd")).unusable, [(State::Down, vec!["c4".to_owned()])].into());
        assert_eq!(cluster.part(Some("none")).all, Capacity::default());
    }

    #[test]
    fn states_of_nodes() {
        for (word, state) in [
            ("idle", State::Usable),
            ("mixed*", State::Usable),
            ("powered_down~", State::Usable),
            ("draining", State::Drained),
            ("maint", State::Maintenance),
            ("idle$", State::Maintenance),
            ("down*", State::Down),
            ("fail", State::Down),
        ] {
            assert_eq!(State::parse(word), state, "{word}");
        }
    }
}
