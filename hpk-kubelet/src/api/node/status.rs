//! A Node's status: its size, its conditions, what runs it.

use super::object::{allocatable, arch, resources};
use super::{KUBELET_VERSION, NodeFacts};
use crate::executor::slurm::capacity::Capacity;
use crate::executor::slurm::cluster::{Part, State};
use crate::nodes::VirtualNode;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use hpk_images::StoredImage;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Facts of the login node for nodeInfo.
pub(super) struct SystemInfo {
    machine_id: String,
    boot_id: String,
    kernel: String,
    os_image: String,
}

pub(super) fn system_info() -> SystemInfo {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    SystemInfo {
        machine_id: read("/etc/machine-id"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image: pretty.trim_matches('"').to_owned(),
    }
}

/// Features that work and that the API server and scheduler must know of; sorted, or the update is refused.
const DECLARED_FEATURES: &[&str] = &["ExtendWebSocketsToKubelet", "RestartAllContainersOnContainerExits"];
/// Images told in the status (upstream's nodeStatusMaxImages).
const MAX_IMAGES: usize = 50;

/// What all Nodes tell.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) cluster: &'a ClusterConfig,
    pub(super) facts: &'a NodeFacts,
    pub(super) system: &'a SystemInfo,
    /// Compute nodes that pods ran on, and whether these reached addresses outside of the cluster.
    pub(super) way_out: &'a BTreeMap<String, bool>,
}

pub(super) fn status(
    node: &VirtualNode,
    told: Told<'_>,
    part: &Part,
    images: &[StoredImage],
    posted: Option<&NodeStatus>,
) -> Value {
    let Told { cluster, facts, system, way_out } = told;
    let now = Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
    let condition = |kind: &str, status: &str, reason: &str, message: &str| -> NodeCondition {
        let old = posted
            .and_then(|p| p.conditions.as_ref())
            .and_then(|l| l.iter().find(|c| c.type_ == kind && c.status == status));
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now.clone())),
        }
    };
    let mut images: Vec<&StoredImage> = images.iter().collect();
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    let images: Vec<Value> = images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|i| {
            let mut names = vec![i.image_ref.id.clone()];
            names.extend(i.names.iter().cloned());
            json!({"names": names, "sizeBytes": i.size})
        })
        .collect();
    let (outward, reason, message) = outward(way_out);
    let (slurm, slurm_reason, slurm_message) = slurm(part);
    let mut conditions = vec![
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ];
    if cluster.executor == ExecutorKind::Slurm {
        conditions.push(condition("SlurmNodes", slurm, slurm_reason, &slurm_message));
    }
    conditions.push(condition("OutwardNetwork", outward, reason, &message));
    conditions.push(condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"));
    json!({
        "capacity": resources(&part.all, cluster.gpu_vendor),
        "allocatable": allocatable(&part.usable, cluster.gpu_vendor),
        "addresses": addresses(&cluster.node_ips(), &node.name),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": cluster.kubelet_addr.port()}},
        "declaredFeatures": DECLARED_FEATURES,
        "features": {"supplementalGroupsPolicy": true},
        "images": images,
        "nodeInfo": {
            "architecture": arch(),
            "bootID": system.boot_id,
            "containerRuntimeVersion": format!("apptainer://{}", facts.apptainer),
            "kernelVersion": system.kernel,
            "kubeProxyVersion": "",
            "kubeletVersion": KUBELET_VERSION,
            "machineID": system.machine_id,
            "operatingSystem": "linux",
            "osImage": system.os_image,
            // The kubelet is an ordinary user's, and so are all ids of its pods.
            "runningInUserNamespace": !nix::unistd::Uid::effective().is_root(),
            "systemUUID": system.machine_id,
        },
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}],
    })
}

/// The first is of the family of Services that ask for none.
fn addresses(ips: &[IpAddr], name: &str) -> Vec<Value> {
    let internal = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    internal.chain([json!({"type": "Hostname", "address": name})]).collect()
}

/// Whether pods reach addresses outside of the cluster: status, reason and message of the condition. `nodes`: the
/// compute nodes that pods ran on.
fn outward(nodes: &BTreeMap<String, bool>) -> (&'static str, &'static str, String) {
    let without: Vec<&str> = nodes.iter().filter(|(_, has)| !**has).map(|(node, _)| node.as_str()).collect();
    if nodes.is_empty() {
        ("Unknown", "NoPodYet", "known when a pod has run".to_owned())
    } else if without.is_empty() {
        ("True", "UserModeStack", "pods reach addresses outside of the cluster".to_owned())
    } else {
        let message = format!(
            "pods on {} reach no address outside of the cluster: neither passt nor slirp4netns is in PATH there",
            without.join(", ")
        );
        ("False", "NoUserModeStack", message)
    }
}

/// Whether Slurm starts jobs of this Node: status, reason and message of the condition.
fn slurm(part: &Part) -> (&'static str, &'static str, String) {
    let unusable: Vec<String> =
        part.unusable.iter().map(|(state, nodes)| format!("{}: {}", word(*state), few(nodes))).collect();
    let Capacity { nodes, cpus, memory_mib, .. } = &part.usable;
    let counts = format!("{nodes} of {} nodes take jobs, with {cpus} CPUs and {memory_mib} MiB", part.all.nodes);
    let message = std::iter::once(counts).chain(unusable).collect::<Vec<_>>().join("; ");
    if part.all.nodes == 0 {
        return ("Unknown", "NotMeasured", "sinfo has told no node".to_owned());
    }
    if part.closed {
        return ("False", "PartitionClosed", format!("the partition takes no jobs (sinfo tells its state); {message}"));
    }
    if part.usable.nodes > 0 {
        return ("True", "NodesUp", message);
    }
    let reason = match part.unusable.keys().next() {
        Some(State::Drained) => "NodesDrained",
        Some(State::Maintenance) => "NodesInMaintenance",
        _ => "NodesDown",
    };
    ("False", reason, format!("jobs wait: {message}"))
}

fn word(state: State) -> &'static str {
    match state {
        State::Usable => "usable",
        State::Drained => "drained",
        State::Maintenance => "in maintenance",
        State::Down => "down",
    }
}

/// The first ones of a list.
fn few(nodes: &[String]) -> String {
    const SHOWN: usize = 8;
    match nodes.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", nodes[..SHOWN].join(", ")),
        _ => nodes.join(", "),
    }
}

pub(super) fn same_but_times(old: &NodeStatus, new: &Value) -> bool {
    let strip = |mut v: Value| {
        for condition in v["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastHeartbeatTime"] = Value::Null;
        }
        v
    };
    let new = serde_json::from_value::<NodeStatus>(new.clone()).ok().and_then(|n| serde_json::to_value(n).ok());
    match (serde_json::to_value(old).ok(), new) {
        (Some(old), Some(new)) => strip(old) == strip(new),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::cluster::Cluster;

    #[test]
    fn the_way_out_is_said_with_the_nodes_that_have_none() {
        let of = |nodes: &[(&str, bool)]| outward(&nodes.iter().map(|(n, has)| ((*n).to_owned(), *has)).collect());
        assert_eq!(of(&[]).0, "Unknown");
        assert_eq!(of(&[("c1", true)]).0, "True");
        let (status, _, message) = of(&[("c1", true), ("c2", false)]);
        assert!(status == "False" && message.contains("on c2 "), "{message}");
    }

    #[test]
    fn what_sinfo_says_is_a_condition() {
        let of = |rows: &[(&str, &str)]| {
            let line = |(i, (state, up)): (usize, &(&str, &str))| format!("c{i}|1|1|(null)|{state}|p|{up}|(null)\n");
            slurm(&Cluster::parse(&rows.iter().enumerate().map(line).collect::<String>()).part(Some("p")))
        };
        for (rows, status, reason, text) in [
            (&[][..], "Unknown", "NotMeasured", "sinfo"),
            (&[("idle", "up"), ("mixed", "up")], "True", "NodesUp", "2 of 2 nodes take jobs, with 2 CPUs and 2 MiB"),
            (
                &[("idle", "up"), ("drained*", "up")],
                "True",
                "NodesUp",
                "1 of 2 nodes take jobs, with 1 CPUs and 1 MiB; drained: c1",
            ),
            (&[("drained", "up"), ("draining", "up")], "False", "NodesDrained", "drained: c0, c1"),
            (&[("down*", "up"), ("drained", "up")], "False", "NodesDrained", "down: c0"),
            (&[("down*", "up")], "False", "NodesDown", "0 of 1"),
            (&[("maint", "up")], "False", "NodesInMaintenance", "in maintenance: c0"),
            (&[("idle", "down")], "False", "PartitionClosed", "1 of 1"),
        ] {
            let (is, why, message) = of(rows);
            assert!((is, why) == (status, reason) && message.contains(text), "{rows:?}: {is} {why} {message}");
        }
        let many: Vec<(&str, &str)> = vec![("drained", "up"); 20];
        assert!(of(&many).2.ends_with("c7 and 12 more"));
    }
}
