//! What is fixed of a Node, or nearly: its labels, its taint, the pods' ranges, the size that it claims.

use crate::executor::slurm::capacity::Capacity;
use crate::executor::slurm::cluster::Part;
use crate::executor::slurm::gres;
use crate::nodes::VirtualNode;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use hpk_api::nodes::{PARTITION, Vendor, is_label};
use k8s_openapi::api::core::v1::Node;
use kube::Error;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Pods that one kubelet follows.
const MAX_PODS: u64 = 2000;
/// Node-local disks are not Slurm's to tell: a number, 1 TiB.
pub(crate) const EPHEMERAL_KIB: u64 = 1 << 30;
/// What the scheduler may give out of a Node, where Slurm is who decides: so much that it keeps no pod off.
const NO_BOUND: [(&str, &str); 6] = [
    ("cpu", "1G"),
    ("memory", "1Ei"),
    ("ephemeral-storage", "1Ei"),
    ("pods", "1M"),
    // The pod runs, and is told that it has none.
    ("hugepages-1Gi", "1Ei"),
    ("hugepages-2Mi", "1Ei"),
];
/// Labels below these are ours, and go when their reason goes.
const OURS: [&str; 2] = ["feature.slurm.hpk.io/", "gres.slurm.hpk.io/"];

/// On a Node that was cordoned because its partition takes no jobs.
const CORDONED: &str = "slurm.hpk.io/cordoned";

/// A Node as it is to be registered.
pub(super) struct Registration {
    name: String,
    pub(super) labels: BTreeMap<String, String>,
    taints: Value,
    /// Whether pods are to be put on it. None: that is not looked at.
    pub(super) open: Option<bool>,
    /// Of the first Node, which has all of the pods' ranges: nobody gives out parts of them.
    ranges: Option<Value>,
}

impl Registration {
    pub(super) fn new(node: &VirtualNode, cluster: &ClusterConfig, part: &Part) -> Self {
        let taint = node.partition.as_ref().filter(|_| node.tainted);
        let taint = taint.map(|p| json!({"key": PARTITION, "value": p, "effect": "NoSchedule"}));
        Self {
            name: node.name.clone(),
            labels: labels(node, part, cluster),
            taints: json!(taint.into_iter().collect::<Vec<_>>()),
            // Pods of the first Node wait in Slurm's queue: they have nowhere else to go.
            open: node.partition.is_some().then(|| part.takes_jobs()).flatten(),
            ranges: node.partition.is_none().then(|| ranges(cluster)),
        }
    }

    pub(super) fn object(&self) -> Result<Node, Error> {
        let mut spec = self.ranges.clone().unwrap_or_else(|| json!({}));
        spec["taints"] = self.taints.clone();
        serde_json::from_value(json!({
            "metadata": {
                "name": self.name, "labels": self.labels,
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
            "spec": spec,
        }))
        .map_err(Error::SerdeError)
    }

    /// A patch for a Node that was registered earlier. `told`: labels that this kubelet has given it. A product's label that
    /// somebody else has set stays. The pods' ranges cannot be changed once they are there: a Node that was registered with one
    /// family goes on showing that one.
    pub(super) fn missing(&self, node: &Node, told: Option<&BTreeMap<String, String>>) -> Option<Value> {
        let empty = BTreeMap::new();
        let has = node.metadata.labels.as_ref().unwrap_or(&empty);
        let ours = |key: &str| OURS.iter().any(|o| key.starts_with(o)) || told.is_some_and(|t| t.contains_key(key));
        let mut labels = serde_json::Map::new();
        for (key, value) in &self.labels {
            let others = gres::PRODUCTS.contains(&key.as_str())
                && has.contains_key(key)
                && !told.is_some_and(|t| t.contains_key(key));
            if has.get(key) != Some(value) && !others {
                labels.insert(key.clone(), json!(value));
            }
        }
        for key in has.keys().filter(|key| ours(key) && !self.labels.contains_key(*key)) {
            labels.insert(key.clone(), Value::Null);
        }
        let mut patch = json!({});
        let cordoned = node.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CORDONED));
        let closed = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
        match self.open {
            Some(false) if !closed => {
                patch["metadata"]["annotations"] = json!({CORDONED: "true"});
                patch["spec"]["unschedulable"] = json!(true);
            }
            // What somebody else has cordoned stays so.
            Some(true) if cordoned => {
                patch["metadata"]["annotations"] = json!({CORDONED: null});
                patch["spec"]["unschedulable"] = json!(null);
            }
            _ => {}
        }
        if !labels.is_empty() {
            patch["metadata"]["labels"] = Value::Object(labels);
        }
        let ranged = node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
        if let Some(ranges) = self.ranges.as_ref().filter(|_| !ranged) {
            patch["spec"]["podCIDR"] = ranges["podCIDR"].clone();
            patch["spec"]["podCIDRs"] = ranges["podCIDRs"].clone();
        }
        (patch != json!({})).then_some(patch)
    }
}

fn ranges(cluster: &ClusterConfig) -> Value {
    let ranges: Vec<&str> = cluster.pod_cidr.split(',').map(str::trim).collect();
    json!({"podCIDR": ranges.first(), "podCIDRs": ranges})
}

fn labels(node: &VirtualNode, part: &Part, cluster: &ClusterConfig) -> BTreeMap<String, String> {
    let executor = cluster.executor.name();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", node.name.clone()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/arch", arch().to_owned()),
        ("beta.kubernetes.io/os", "linux".to_owned()),
        ("beta.kubernetes.io/arch", arch().to_owned()),
        ("node.kubernetes.io/instance-type", executor.to_owned()),
        ("hpk.io/scheduler", executor.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    labels.extend(node.measured.iter().filter(|p| is_label(p)).map(|p| (PARTITION.to_owned(), p.clone())));
    if part.all.nodes > 0 && cluster.executor == ExecutorKind::Slurm {
        labels.insert("slurm.hpk.io/node-cpus".to_owned(), part.most_cpus.to_string());
        labels.insert("slurm.hpk.io/node-memory-mib".to_owned(), part.most_memory_mib.to_string());
    }
    let features = part.features.iter().map(|f| (format!("feature.slurm.hpk.io/{f}"), "true".to_owned()));
    labels.extend(features.filter(|(key, _)| is_label(key)));
    labels.extend(gres::labels(&part.all, cluster.gpu_vendor));
    labels
}

/// GOARCH of this machine.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the scheduler reckons with. Of CPUs and memory there is no bound: a pod that finds none free waits in Slurm's queue.
pub(super) fn allocatable(usable: &Capacity, vendor: Vendor) -> BTreeMap<String, String> {
    let mut list = resources(usable, vendor);
    list.extend(NO_BOUND.map(|(name, count)| (name.to_owned(), count.to_owned())));
    list
}

/// The resource list of a capacity.
pub(super) fn resources(capacity: &Capacity, vendor: Vendor) -> BTreeMap<String, String> {
    let mut list: BTreeMap<String, String> = [
        ("cpu".to_owned(), capacity.cpus.to_string()),
        ("memory".to_owned(), format!("{}Ki", capacity.memory_mib * 1024)),
        ("ephemeral-storage".to_owned(), format!("{EPHEMERAL_KIB}Ki")),
        ("pods".to_owned(), MAX_PODS.to_string()),
        ("hugepages-1Gi".to_owned(), "0".to_owned()),
        ("hugepages-2Mi".to_owned(), "0".to_owned()),
    ]
    .into();
    list.extend(gres::resources(capacity, vendor).into_iter().map(|(name, count)| (name, count.to_string())));
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::cluster::Cluster;
    use crate::nodes::tests::nodes;

    fn registration(sinfo: &str, untainted: bool) -> Registration {
        let debug = json!([{"name": "hpk-site-debug", "partition": "debug"}]);
        let nodes = nodes(json!({"usual": "main", "untainted": untainted, "nodes": debug}));
        let node = nodes.iter().nth(1).expect("a node");
        Registration::new(node, &crate::pods::plan::tests::cluster(), &Cluster::parse(sinfo).part(Some("debug")))
    }

    const A100: &str = "c1|64|16000|gpu:a100:4|idle|debug|up|avx\n";

    #[test]
    fn a_partitions_node_says_what_it_is() {
        let registration = registration(A100, false);
        let node = registration.object().expect("a Node");
        let labels = node.metadata.labels.clone().expect("labels");
        for (key, value) in [
            ("slurm.hpk.io/partition", "debug"),
            ("feature.slurm.hpk.io/avx", "true"),
            ("gres.slurm.hpk.io/gpu.a100", "true"),
            ("nvidia.com/gpu.product", "a100"),
            ("slurm.hpk.io/node-cpus", "64"),
            ("kubernetes.io/hostname", "hpk-site-debug"),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
        }
        let spec = node.spec.clone().expect("spec");
        assert_eq!(spec.pod_cidr, None);
        let taints: Vec<_> = spec.taints.into_iter().flatten().map(|t| (t.key, t.value, t.effect)).collect();
        assert_eq!(taints, [(PARTITION.to_owned(), Some("debug".to_owned()), "NoSchedule".to_owned())]);
        assert_eq!(registration.missing(&node, None), None, "nothing to do");
        let free = self::registration(A100, true).object().expect("a Node");
        assert_eq!(free.spec.and_then(|s| s.taints).unwrap_or_default(), []);
    }

    #[test]
    fn labels_follow_slurm_and_leave_others_alone() {
        let mut node = registration(A100, false).object().expect("a Node");
        let labels = node.metadata.labels.as_mut().expect("labels");
        labels.insert("nvidia.com/gpu.product".to_owned(), "NVIDIA-A100-SXM4-40GB".to_owned());
        labels.insert("team".to_owned(), "x".to_owned());
        let now = registration("c1|32|16000|gpu:a100:4|idle|debug|up|new\n", false);
        let patch = now.missing(&node, None).expect("a patch");
        let wanted = json!({
            "feature.slurm.hpk.io/avx": null, "feature.slurm.hpk.io/new": "true", "slurm.hpk.io/node-cpus": "32",
        });
        assert_eq!(patch["metadata"]["labels"], wanted);
        assert_eq!(patch.get("spec"), None);
    }

    #[test]
    fn a_partition_that_takes_no_jobs_is_cordoned_until_it_does() {
        let drained = registration("c1|64|16000|gpu:a100:4|drained|debug|up|avx\n", false);
        let mut node = registration(A100, false).object().expect("a Node");
        let patch = drained.missing(&node, None).expect("a patch");
        assert_eq!(patch["spec"]["unschedulable"], true);
        node.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(drained.missing(&node, None), None);
        assert_eq!(registration(A100, false).missing(&node, None), None, "somebody else's");
        node.metadata.annotations.get_or_insert_default().insert(CORDONED.to_owned(), "true".to_owned());
        let patch = registration(A100, false).missing(&node, None).expect("a patch");
        assert_eq!(patch["spec"], json!({"unschedulable": null}));
        assert_eq!(registration("", false).missing(&node, None).expect("labels")["spec"], Value::Null, "not known");
    }
}
