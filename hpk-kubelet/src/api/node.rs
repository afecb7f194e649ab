//! The Node object and its lease: the whole Slurm cluster as one node.

use crate::executor::Executor;
use crate::executor::slurm::cluster::Capacity;
use crate::executor::slurm::limits::Site;
use hpk_api::cluster::ClusterConfig;
use hpk_images::{ImageStore, StoredImage};
use hpk_link::lasting;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Version of Kubernetes whose kubelet this one stands for; tests and tools parse it.
pub const KUBELET_VERSION: &str = concat!("v1.37.2-hpk", env!("CARGO_PKG_VERSION"));
/// Pods that one kubelet follows.
const MAX_PODS: u64 = 2000;
/// Renewal of the lease, and of the status when something changed (upstream's numbers).
const RENEW: Duration = Duration::from_secs(10);
/// Status even when nothing changed (upstream's nodeStatusReportFrequency).
const REPORT: Duration = Duration::from_secs(300);
/// How often sinfo is asked.
const MEASURE: Duration = Duration::from_secs(300);

/// What a pod can ask the kubelet about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// What Slurm has.
    pub capacity: Capacity,
    /// Limits and defaults of its partitions.
    pub site: Site,
    /// `1.4.5`
    pub apptainer: String,
}

impl NodeFacts {
    /// Asks Slurm and Apptainer.
    pub async fn measure(executor: &dyn Executor) -> Self {
        let site = executor.site().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the partitions' limits are not known");
            None
        });
        let capacity = executor.capacity().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the cluster's size is not known");
            Capacity::default()
        });
        Self {
            capacity,
            site: site.unwrap_or_default(),
            apptainer: apptainer_version().await.unwrap_or_else(|| "unknown".to_owned()),
        }
    }

    /// The resource list of capacity and allocatable.
    fn resources(&self) -> BTreeMap<String, String> {
        let mut list: BTreeMap<String, String> = [
            ("cpu".to_owned(), self.capacity.cpus.to_string()),
            ("memory".to_owned(), format!("{}Ki", self.capacity.memory_mib * 1024)),
            ("ephemeral-storage".to_owned(), format!("{}Ki", EPHEMERAL_KIB)),
            ("pods".to_owned(), MAX_PODS.to_string()),
            ("hugepages-1Gi".to_owned(), "0".to_owned()),
            ("hugepages-2Mi".to_owned(), "0".to_owned()),
        ]
        .into();
        if let Some(gpus) = self.capacity.gres.get("gpu") {
            list.insert("nvidia.com/gpu".to_owned(), gpus.to_string());
        }
        list
    }
}

/// Node-local disks are not Slurm's to tell: a number that keeps no pod off, 1 TiB.
pub const EPHEMERAL_KIB: u64 = 1 << 30;

async fn apptainer_version() -> Option<String> {
    let program = which::which("apptainer").or_else(|_| which::which("singularity")).ok()?;
    let output = tokio::process::Command::new(program).arg("version").output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // Debian appends its own revision.
    Some(text.trim().split('-').next().unwrap_or_default().to_owned()).filter(|v| !v.is_empty())
}

/// Keeps the Node and its lease for ever. The facts go to `facts` as they change.
pub async fn keep(
    client: Client,
    cluster: ClusterConfig,
    executor: Arc<dyn Executor>,
    images: ImageStore,
    facts: watch::Sender<NodeFacts>,
    way_out: watch::Receiver<BTreeMap<String, bool>>,
) {
    lasting::spawn("lease of the node", keep_lease(client.clone(), cluster.node_name.clone()));
    let nodes: Api<Node> = Api::all(client);
    let system = system_info();
    let mut posted: Option<NodeStatus> = None;
    let mut measured_at = tokio::time::Instant::now();
    let mut posted_at = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if measured_at.elapsed() >= MEASURE {
            measured_at = tokio::time::Instant::now();
            let mut fresh = NodeFacts::measure(&*executor).await;
            if fresh.site == Site::default() {
                // Not known this time.
                fresh.site = facts.borrow().site.clone();
            }
            if fresh.capacity.nodes > 0 {
                facts.send_if_modified(|old| {
                    let changed = *old != fresh;
                    *old = fresh;
                    changed
                });
            }
        }
        let stored = images.list().unwrap_or_default();
        let body =
            status(&cluster, &facts.borrow().clone(), &system, &stored, &way_out.borrow().clone(), posted.as_ref());
        let same = posted.as_ref().is_some_and(|old| same_but_times(old, &body));
        if same && posted_at.elapsed() < REPORT {
            continue;
        }
        match post(&nodes, &cluster, &body).await {
            Ok(()) => {
                if posted.is_none()
                    && let Err(error) = complete(&nodes, &cluster).await
                {
                    tracing::warn!(%error, "the pods' ranges are not in the node");
                }
                posted = serde_json::from_value(body).ok();
                posted_at = tokio::time::Instant::now();
            }
            Err(error) => tracing::warn!(%error, "node status not posted"),
        }
    }
}

fn same_but_times(old: &NodeStatus, new: &Value) -> bool {
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

async fn post(nodes: &Api<Node>, cluster: &ClusterConfig, status: &Value) -> Result<(), Error> {
    let name = &cluster.node_name;
    let patch = json!({"status": status});
    match nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => return Ok(()),
        Err(Error::Api(answer)) if answer.code == 404 => {}
        Err(error) => return Err(error),
    }
    nodes.create(&PostParams::default(), &object(cluster)?).await?;
    tracing::info!(node = %name, "node registered");
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await.map(|_| ())
}

/// The Node as it is registered. The one Node has all of the pods' ranges; nobody else gives out parts of them.
fn object(cluster: &ClusterConfig) -> Result<Node, Error> {
    serde_json::from_value(json!({
        "metadata": {
            "name": cluster.node_name, "labels": labels(&cluster.node_name),
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": ranges(cluster),
    }))
    .map_err(Error::SerdeError)
}

fn ranges(cluster: &ClusterConfig) -> Value {
    let ranges: Vec<&str> = cluster.pod_cidr.split(',').map(str::trim).collect();
    json!({"podCIDR": ranges.first(), "podCIDRs": ranges})
}

/// Gives the pods' ranges to a Node that was registered without them. They cannot be changed once they are there: a
/// Node that was registered with one family goes on showing that one.
async fn complete(nodes: &Api<Node>, cluster: &ClusterConfig) -> Result<(), Error> {
    let node = nodes.get(&cluster.node_name).await?;
    if node.spec.is_some_and(|spec| spec.pod_cidr.is_some()) {
        return Ok(());
    }
    let patch = json!({"spec": ranges(cluster)});
    nodes.patch(&cluster.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
}

fn labels(name: &str) -> BTreeMap<&'static str, String> {
    [
        ("kubernetes.io/hostname", name.to_owned()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("kubernetes.io/arch", arch().to_owned()),
        ("beta.kubernetes.io/os", "linux".to_owned()),
        ("beta.kubernetes.io/arch", arch().to_owned()),
        ("node.kubernetes.io/instance-type", "slurm".to_owned()),
        ("hpk.io/scheduler", "slurm".to_owned()),
    ]
    .into()
}

/// GOARCH of this machine.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Facts of the login node for nodeInfo.
struct SystemInfo {
    machine_id: String,
    boot_id: String,
    kernel: String,
    os_image: String,
}

fn system_info() -> SystemInfo {
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

fn status(
    cluster: &ClusterConfig,
    facts: &NodeFacts,
    system: &SystemInfo,
    images: &[StoredImage],
    way_out: &BTreeMap<String, bool>,
    posted: Option<&NodeStatus>,
) -> Value {
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
    json!({
        "capacity": facts.resources(),
        "allocatable": facts.resources(),
        "addresses": [
            {"type": "InternalIP", "address": cluster.node_ip},
            {"type": "Hostname", "address": cluster.node_name},
        ],
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("OutwardNetwork", outward, reason, &message),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
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
            "systemUUID": system.machine_id,
        },
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}],
    })
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

/// Lease of 40 s, renewed every 10 s.
async fn keep_lease(client: Client, node: String) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(client);
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = renew(&leases, &nodes, &node).await {
            tracing::warn!(%error, "lease not renewed");
        }
    }
}

async fn renew(leases: &Api<Lease>, nodes: &Api<Node>, node: &str) -> Result<(), Error> {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
    let patch = json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now}});
    match leases.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => return Ok(()),
        Err(Error::Api(answer)) if answer.code == 404 => {}
        Err(error) => return Err(error),
    }
    // Owned by the Node, so that it goes with it; before the Node exists there is nothing to renew.
    let Some(uid) = nodes.get_opt(node).await?.and_then(|n| n.metadata.uid) else { return Ok(()) };
    let lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": node, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now},
    }))
    .map_err(Error::SerdeError)?;
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}

/// Deletes a pod's object: with no grace left, and only this very one.
///
/// # Errors
/// The API server's answer, but an object that is gone already is no error.
pub async fn delete_pod(pods: &Api<k8s_openapi::api::core::v1::Pod>, name: &str, uid: &str) -> Result<(), Error> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        // Gone, or another pod of the same name.
        Err(Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::outward;

    #[test]
    fn the_way_out_is_said_with_the_nodes_that_have_none() {
        let of = |nodes: &[(&str, bool)]| outward(&nodes.iter().map(|(n, has)| ((*n).to_owned(), *has)).collect());
        assert_eq!(of(&[]).0, "Unknown");
        assert_eq!(of(&[("c1", true)]).0, "True");
        let (status, _, message) = of(&[("c1", true), ("c2", false)]);
        assert!(status == "False" && message.contains("on c2 "), "{message}");
    }
}
