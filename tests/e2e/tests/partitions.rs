//! Partitions as Nodes: chosen by Kubernetes' own means, followed as Slurm has them. The site has a Node for `debug`
//! beside the default partition's (tests/site/hpk-up.sh).

use hpk_e2e::{NODE, Namespace, PATIENCE, eventually, kubectl, sx, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

const DEBUG: &str = "hpk-site-debug";
const PARTITION: &str = "slurm.hpk.io/partition";

/// One case closes the partition, and the others need it open.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn node(name: &str) -> Value {
    serde_json::from_str(kubectl(&["get", "node", name, "-o", "json"]).ok()).unwrap_or_default()
}

fn tolerations() -> Value {
    json!([{"key": PARTITION, "value": "debug", "effect": "NoSchedule"}])
}

/// The partition of a pod's job.
fn partition_of(ns: &Namespace, pod: &str) -> String {
    let name = format!("--name={}/{pod}", ns.name());
    let run = sx("login", None, &["squeue", "--noheader", "--format=%P", &name]);
    run.ok().trim().to_owned()
}

#[test]
fn a_partition_is_a_node_with_labels_and_a_taint() {
    let _turn = turn();
    let debug = node(DEBUG);
    assert_eq!(debug["metadata"]["labels"][PARTITION], "debug");
    assert_eq!(node(NODE)["metadata"]["labels"][PARTITION], "main");
    // Another case may just have taken its cordon away.
    let taint = json!([{"key": PARTITION, "value": "debug", "effect": "NoSchedule"}]);
    eventually("the taint alone", PATIENCE, || (node(DEBUG)["spec"]["taints"] == taint).then_some(()));
    assert_eq!(debug["status"]["capacity"]["cpu"], "128");
    let lease = kubectl(&["-n", "kube-node-lease", "get", "lease", DEBUG, "-o", "jsonpath={.spec.holderIdentity}"]);
    assert_eq!(lease.ok(), DEBUG);
}

#[test]
fn a_deployment_is_spread_over_two_partitions() {
    let _turn = turn();
    let ns = Namespace::new("spread");
    let in_both = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": PARTITION, "operator": "In", "values": ["main", "debug"]}]}]}});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "both"},
        "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "both"}}, "template": {
            "metadata": {"labels": {"app": "both"}},
            "spec": {
                "terminationGracePeriodSeconds": 1, "affinity": {"nodeAffinity": in_both}, "tolerations": tolerations(),
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": PARTITION,
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "both"}}}],
                "containers": [{"name": "main", "image": hpk_e2e::BUSYBOX, "command": ["sh", "-c", "echo $NODE; sleep 600"],
                    "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}],
            },
        }},
    });
    ns.apply(&deployment.to_string());
    ns.kubectl(&["rollout", "status", "deployment/both", "--timeout=90s"]).ok();
    let format = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}";
    let pods = ns.kubectl(&["get", "pods", "-l", "app=both", "-o", format]);
    let mut counts = std::collections::BTreeMap::new();
    for line in pods.ok().lines() {
        let (pod, on) = line.split_once(' ').expect("a pod and its Node");
        *counts.entry(on.to_owned()).or_insert(0) += 1;
        let partition = if on == DEBUG { "debug" } else { "main" };
        assert_eq!(partition_of(&ns, pod), partition, "{pod} on {on}");
        assert_eq!(ns.kubectl(&["logs", pod]).ok(), on, "logs by way of {on}");
        assert_eq!(ns.kubectl(&["exec", pod, "--", "sh", "-c", "echo $NODE"]).ok(), on);
    }
    assert_eq!(counts, [(NODE.to_owned(), 2), (DEBUG.to_owned(), 2)].into());
}

#[test]
fn a_pod_gets_there_by_its_toleration_only() {
    let _turn = turn();
    let ns = Namespace::new("tolerate");
    let selects = |name: &str| {
        let mut pod = ns.script_pod(name, "Never", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace");
        pod["spec"]["nodeSelector"] = json!({PARTITION: "debug"});
        pod
    };
    ns.apply(&selects("without").to_string());
    ns.until_event("without", "FailedScheduling", "untolerated taint");
    let mut with = selects("with");
    with["spec"]["tolerations"] = tolerations();
    // What the pod refers to is read in the name of its own Node.
    with["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "kube-root-ca.crt"}}]);
    ns.apply(&with.to_string());
    ns.wait_phase("with", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "with"]).ok(), ns.name());
    assert_eq!(ns.get("pod", "with")["spec"]["nodeName"], DEBUG);
    ns.delete("pod", "with");
}

#[test]
fn flags_that_name_another_partition_are_refused() {
    let _turn = turn();
    let ns = Namespace::new("contradict");
    let mut pod = ns.script_pod("two", "Never", "true");
    pod["spec"]["nodeSelector"] = json!({PARTITION: "debug"});
    pod["spec"]["tolerations"] = tolerations();
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--partition=main"});
    ns.apply(&pod.to_string());
    let why = ns.until_event("two", "FailedSubmit", "--partition=main");
    assert!(why.contains(DEBUG) && why.contains("nodeSelector"), "{why}");
}

#[test]
fn a_pod_that_names_its_node_itself_is_looked_at_once_more() {
    let _turn = turn();
    let ns = Namespace::new("itself");
    let mut pod = ns.script_pod("wrong", "Never", "true");
    pod["spec"]["nodeName"] = json!(DEBUG);
    pod["spec"]["nodeSelector"] = json!({PARTITION: "main"});
    ns.apply(&pod.to_string());
    let failed = ns.until_pod("wrong", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(failed["status"]["reason"], "NodeAffinity");
}

/// Opens the partition again, whatever the case comes to.
struct Closed;

impl Closed {
    fn close() -> Self {
        sx("login", None, &["scontrol", "update", "PartitionName=debug", "State=DRAIN"]).ok();
        Self
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        sx("login", None, &["scontrol", "update", "PartitionName=debug", "State=UP"]);
    }
}

#[test]
fn a_partition_that_takes_no_jobs_shows_it_and_is_cordoned() {
    let _turn = turn();
    // sinfo is asked twice a minute.
    let soon = Duration::from_secs(90);
    let says = |status: &'static str, closed: bool| {
        let args = ["get", "nodes", "--field-selector", "metadata.name=hpk-site-debug", "-w", "-o", "json"];
        let told = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let mut ours = conditions.filter(|c| c["type"] == "SlurmNodes");
            ours.any(|c| c["status"] == status) && (node["spec"]["unschedulable"] == true) == closed
        };
        until(&args, soon, told).unwrap_or_else(|| panic!("not {status}: {}", node(DEBUG)))
    };
    says("True", false);
    let closed = Closed::close();
    let drained = says("False", true);
    let conditions = drained["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let reasons: BTreeSet<&str> = conditions.iter().filter_map(|c| c["reason"].as_str()).collect();
    assert!(reasons.contains("PartitionClosed") && reasons.contains("KubeletReady"), "{reasons:?}");
    drop(closed);
    says("True", false);
}

#[test]
fn each_node_tells_what_its_pods_use() {
    let _turn = turn();
    let top = eventually("kubectl top knows both Nodes", PATIENCE, || {
        let run = kubectl(&["top", "nodes", "--no-headers"]);
        (run.code == Some(0)).then_some(run.stdout)
    });
    assert!(top.contains(DEBUG) && top.lines().count() == 2, "{top}");
}
