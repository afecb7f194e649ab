//! The node that stands for the cluster: what it says of itself, its lease, and that its owner's files are private.
#![allow(clippy::unwrap_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{NODE, Namespace, PATIENCE, eventually, kubectl, sx};
use serde_json::{Value, json};

fn get(args: &[&str]) -> Value {
    let all: Vec<&str> = ["get"].into_iter().chain(args.iter().copied()).chain(["-o", "json"]).collect();
    serde_json::from_str(kubectl(&all).ok()).unwrap()
}

#[test]
fn the_node_is_the_slurm_cluster() {
    let node = get(&["node", NODE]);
    let sinfo = sx("login", Some("alice"), &["sinfo", "-h", "-N", "-o", "%N %c"]);
    let sizes: std::collections::BTreeMap<&str, u64> =
        sinfo.ok().lines().filter_map(|l| l.split_once(' ')).map(|(n, c)| (n, c.trim().parse().unwrap())).collect();
    let status = &node["status"];
    assert_eq!(status["capacity"]["cpu"], json!(sizes.values().sum::<u64>().to_string()), "all of sinfo's CPUs");
    assert_eq!(status["allocatable"], status["capacity"]);
    let condition = |kind: &str| {
        let list = status["conditions"].as_array().unwrap();
        list.iter().find(|c| c["type"] == kind).map(|c| (c["status"].clone(), c["reason"].clone()))
    };
    assert_eq!(condition("Ready"), Some((json!("True"), json!("KubeletReady"))));
    assert_eq!(condition("MemoryPressure").unwrap().0, "False");
    assert_eq!(condition("DiskPressure").unwrap().0, "False");
    assert_eq!(condition("PIDPressure").unwrap().0, "False");
    assert_eq!(node["spec"].get("taints"), None);
    let labels = &node["metadata"]["labels"];
    for (label, value) in [
        ("kubernetes.io/hostname", NODE),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("hpk.io/scheduler", "slurm"),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    // The API server passes WebSockets on only to a kubelet that says so, and wants the list sorted.
    let features: Vec<&str> = status["declaredFeatures"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(features.contains(&"ExtendWebSocketsToKubelet"), "{features:?}");
    assert!(features.is_sorted(), "{features:?}");
    assert_eq!(
        status["addresses"].as_array().unwrap().iter().find(|a| a["type"] == "InternalIP").unwrap()["address"],
        "10.77.0.1"
    );
}

#[test]
fn the_lease_is_renewed() {
    let lease = || get(&["-n", "kube-node-lease", "lease", NODE])["spec"].clone();
    let first = lease();
    assert_eq!((&first["holderIdentity"], &first["leaseDurationSeconds"]), (&json!(NODE), &json!(40)));
    eventually("the lease is renewed", PATIENCE, || (lease()["renewTime"] != first["renewTime"]).then_some(()));
}

#[test]
fn nothing_of_a_pod_is_anyone_elses_to_read() {
    let ns = Namespace::new("private");
    ns.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=key=s3cr3t-on-disk"]).ok();
    let mut pod = ns.script_pod("holder", "Never", "sleep 600");
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "key"}}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "hidden", "mountPath": "/etc/hidden"}]);
    pod["spec"]["volumes"] = json!([{"name": "hidden", "secret": {"secretName": "hidden"}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("holder");
    let uid = ns.get("pod", "holder")["metadata"]["uid"].as_str().unwrap().to_owned();

    // Folders of alice's that others may enter, and files that others may read: none. What lies in a closed folder
    // keeps its own modes: images' content, and volumes' as the volume asks for.
    let top = ["/home/alice/.hpk", "-maxdepth", "1", "-type", "d"];
    let pod = format!("/home/alice/.hpk/pods/{uid}");
    let below = [pod.as_str(), "-maxdepth", "3", "-path", "*/volumes/*", "-prune", "-o"];
    for of in [&top[..], &[&below[..], &["-type", "f"]].concat(), &[pod.as_str(), "-maxdepth", "1", "-type", "d"]] {
        let found = |more: &[&str]| sx("login", None, &[&["find"], of, more].concat()).ok().to_owned();
        assert_ne!(found(&["-print"]), "", "there is something to look at: {of:?}");
        assert_eq!(found(&["-perm", "/077", "-print"]), "");
    }

    // On the compute node: folders of the pod, and command lines.
    let node = hpk_e2e::job_of(ns.name(), "holder").unwrap().node;
    let folders = sx(
        &node,
        None,
        &[
            "find",
            "/tmp",
            "/run",
            "/var/tmp",
            "-maxdepth",
            "4",
            "-path",
            &format!("*{uid}*"),
            "-type",
            "d",
            "-printf",
            "%m %p\\n",
        ],
    );
    let open: Vec<&str> = folders.stdout.lines().filter(|l| !l.starts_with("700 ")).collect();
    assert!(!folders.stdout.is_empty(), "the pod has folders on its node");
    let closed = folders.stdout.lines().next().unwrap();
    assert!(closed.starts_with("700 "), "{closed}");
    for path in &open {
        // Below the first, closed one.
        assert!(path.contains(closed.split_once(' ').unwrap().1), "{path}");
    }
    assert_eq!(hpk_e2e::processes(&node, "s3cr3t-on-disk"), Vec::<String>::new(), "no command line has it");
    let as_bob = "grep -rls s3cr3t-on-disk /tmp /run /var/tmp /home/alice /proc/[0-9]*/environ 2>/dev/null; true";
    assert_eq!(sx(&node, Some("bob"), &["bash", "-c", as_bob]).ok(), "");
}
