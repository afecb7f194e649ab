//! A node without room for pods. In a file of its own: nothing else runs while its node is spoilt.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{BUSYBOX, NODE_FOLDER, Namespace, PATIENCE, eventually, jobs_of, sacct, sx};
use serde_json::json;

/// The folder of alice's pods on c1 takes no more files, until this is dropped.
struct Full;

impl Full {
    fn make() -> Self {
        sx("c1", Some("alice"), &["mkdir", "-p", "-m", "700", NODE_FOLDER]).ok();
        // One file, which is the folder itself.
        let options = "size=64k,nr_inodes=1,uid=1000,gid=1000,mode=700";
        sx("c1", None, &["mount", "-t", "tmpfs", "-o", options, "full", NODE_FOLDER]).ok();
        Self
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        sx("c1", None, &["umount", "-l", NODE_FOLDER]);
    }
}

/// A job that has all of c2, until this is dropped.
struct Busy(String);

impl Drop for Busy {
    fn drop(&mut self) {
        sx("login", Some("alice"), &["scancel", &self.0]);
    }
}

#[test]
fn a_pod_whose_node_is_full_is_begun_on_another() {
    let ns = Namespace::new("full");
    let all = ["sbatch", "--parsable", "-wc2", "-N1", "-c64", "--mem=100", "-o/dev/null", "--wrap=sleep 900"];
    let busy = Busy(sx("login", Some("alice"), &all).ok().trim().to_owned());
    eventually("c2 has no CPU left", PATIENCE, || {
        let state = sx("login", Some("alice"), &["squeue", "-h", "-o", "%T", "-j", &busy.0]).stdout;
        (state.trim() == "RUNNING").then_some(())
    });
    let full = Full::make();
    let container = json!({"name": "main", "image": BUSYBOX, "command": ["sh", "-c", "exec sleep 600"],
        "resources": {"requests": {"cpu": "1", "memory": "64Mi"}}});
    ns.apply(
        &json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "set"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "set"}}, "template": {
                "metadata": {"labels": {"app": "set"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}}})
        .to_string(),
    );
    let pod = eventually("the set has its pod", PATIENCE, || {
        let list = ns.kubectl(&["get", "pods", "-o", "name"]).stdout;
        list.lines().next().map(|name| name.trim_start_matches("pod/").to_owned())
    });
    let event = ns.until_event(&pod, "FailedCreatePodSandBox", "tried again in 1 s");
    assert!(event.contains("on node c1") && event.contains("No space left"), "{event}");
    // Its next job keeps away from c1, and c2 is busy.
    let waits = eventually("it waits", PATIENCE, || jobs_of(ns.name()).into_iter().find(|job| job.state == "PENDING"));
    assert_eq!(waits.node, "");
    assert_eq!(ns.get("pod", &pod)["status"]["phase"], "Pending");
    drop(busy);
    ns.wait_ready(&pod);
    let status = ns.get("pod", &pod)["status"].clone();
    assert_eq!(status["hostIP"], "10.77.0.12", "it is on c2: {status}");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    let nodes: Vec<String> = sacct(ns.name(), &pod).into_iter().map(|job| job.node).collect();
    assert_eq!(nodes, ["c1", "c2"], "two jobs, one after the other");
    let all = ns.kubectl(&["get", "pods", "-o", "name"]);
    assert_eq!(all.ok().lines().count(), 1, "the set has made no other pod: {}", all.stdout);
    drop(full);
    // c1 is as good as any for the next pod.
    let mut next = ns.script_pod("next", "Never", "exit 0");
    next["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
    ns.apply(&next.to_string());
    ns.wait_phase("next", "Succeeded");
}

/// Tried a few times, then the pod has failed: nobody waits for ever for a node that the pod itself has named.
#[test]
#[ignore = "half a minute of growing waits: make long"]
fn a_pod_that_wants_the_full_node_fails_in_the_end() {
    let ns = Namespace::new("fullonly");
    let _full = Full::make();
    let mut pod = ns.script_pod("only", "Never", "exit 0");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
    ns.apply(&pod.to_string());
    let end = ns.until_pod("only", PATIENCE * 3, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "SlurmJobFailed");
    assert_eq!(sacct(ns.name(), "only").len(), 6);
}
