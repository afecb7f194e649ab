//! LeaderWorkerSet's own controller, over gangs. `make apps` builds it and runs this case.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that finds nothing fails its case"
)]

use hpk_e2e::{BUSYBOX, Filler, Namespace, PATIENCE, eventually, jobs_of, sx};
use serde_json::{Value, json};

fn pods(ns: &Namespace) -> Vec<Value> {
    let run = ns.kubectl(&["get", "pods", "-l", "leaderworkerset.sigs.k8s.io/name=set", "-o", "json"]);
    let list: Value = serde_json::from_str(run.ok()).unwrap();
    list["items"].as_array().cloned().unwrap()
}

fn template(script: &str) -> Value {
    json!({
        "metadata": {"annotations": {"slurm-job.hpk.io/gang": "true"}},
        "spec": {"terminationGracePeriodSeconds": 5, "containers": [{
            "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
            "resources": {"requests": {"cpu": "2", "memory": "64Mi"}},
        }]},
    })
}

/// A group of a leader and three workers on a cluster with room for two: none begins before all can, in one job; the workers know
/// their leader by the name in LWS_LEADER_ADDRESS.
#[test]
fn a_group_begins_together() {
    sx("login", Some("alice"), &["sh", "-c", "hpk install lws --from /site/apps/lws-*"]).ok();
    let ns = Namespace::new("lws");
    let filler = Filler::but_two_cpus_on_each_node();
    let leader = "mkdir /tmp/w; echo from the leader >/tmp/w/word; exec httpd -f -p 8080 -h /tmp/w";
    let worker = "until wget -q -T 5 -O- http://$LWS_LEADER_ADDRESS:8080/word; do sleep 0.3; done; exec sleep 3600";
    let set = json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": {"name": "set"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {
            "size": 4, "leaderTemplate": template(leader), "workerTemplate": template(worker),
        }},
    });
    ns.apply(&set.to_string());
    let queued = eventually("one job in the queue for four pods", PATIENCE, || {
        let (pods, jobs) = (pods(&ns), jobs_of(ns.name()));
        (pods.len() == 4 && jobs.len() == 1 && jobs[0].cpus == "8").then_some(jobs)
    });
    assert_eq!(queued[0].state, "PENDING");
    assert!(pods(&ns).iter().all(|pod| pod["status"]["phase"] == "Pending"));

    drop(filler);
    for pod in ["set-0", "set-0-1", "set-0-2", "set-0-3"] {
        ns.wait_ready(pod);
    }
    for pod in ["set-0-1", "set-0-2", "set-0-3"] {
        eventually("the leader's word", PATIENCE, || {
            (ns.kubectl(&["logs", pod]).stdout.trim() == "from the leader").then_some(())
        });
    }
    let running = jobs_of(ns.name());
    assert_eq!(
        (running.len(), &running[0].id, running[0].state.as_str()),
        (1, &queued[0].id, "RUNNING"),
        "{running:?}"
    );
}
