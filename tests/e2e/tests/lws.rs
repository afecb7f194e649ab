//! LeaderWorkerSet's own controller, over gangs. `make apps` builds it and runs these cases.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that finds nothing fails its case"
)]

use hpk_e2e::{BUSYBOX, Filler, Namespace, PATIENCE, eventually, jobs_of, sx};
use serde_json::{Value, json};
use std::sync::Once;

const PODS: [&str; 3] = ["set-0", "set-0-1", "set-0-2"];

fn lws(case: &str) -> Namespace {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        sx("login", Some("alice"), &["sh", "-c", "hpk install lws --from /site/apps/lws-*"]).ok();
    });
    Namespace::new(case)
}

fn pods(ns: &Namespace) -> Vec<Value> {
    let run = ns.kubectl(&["get", "pods", "-l", "leaderworkerset.sigs.k8s.io/name=set", "-o", "json"]);
    let list: Value = serde_json::from_str(run.ok()).unwrap();
    list["items"].as_array().cloned().unwrap()
}

fn template(script: &str, cpus: &str) -> Value {
    json!({
        "metadata": {"annotations": {"slurm-job.hpk.io/gang": "true"}},
        "spec": {"terminationGracePeriodSeconds": 5, "containers": [{
            "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
            "resources": {"requests": {"cpu": cpus, "memory": "64Mi"}},
        }]},
    })
}

/// A leader and two workers, who know their leader by the name in LWS_LEADER_ADDRESS. TERM ends any of them as failed.
fn group(cpus: &str) -> Value {
    let rest = "trap 'exit 3' TERM; sleep 3600 & wait";
    let leader = format!("mkdir /tmp/w; echo from the leader >/tmp/w/word; httpd -p 8080 -h /tmp/w; {rest}");
    let worker =
        format!("until wget -q -T 5 -O- http://$LWS_LEADER_ADDRESS:8080/word 2>/dev/null; do sleep 0.3; done; {rest}");
    json!({
        "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": {"name": "set"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {
            "size": PODS.len(), "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": template(&leader, cpus), "workerTemplate": template(&worker, cpus),
        }},
    })
}

/// The controller is available before its webhook listens.
fn apply(ns: &Namespace, set: &Value) {
    eventually("the webhook takes the set", PATIENCE, || {
        (ns.kubectl_with_input(&["apply", "-f", "-"], &set.to_string()).code == Some(0)).then_some(())
    });
}

/// Waits until the three run, and both workers have heard from their leader.
fn all_run(ns: &Namespace) {
    for pod in PODS {
        eventually("the pod is there", PATIENCE, || (ns.kubectl(&["get", "pod", pod]).code == Some(0)).then_some(()));
        ns.wait_ready(pod);
    }
    for pod in &PODS[1..] {
        eventually("the leader's word", PATIENCE, || {
            (ns.kubectl(&["logs", pod]).stdout.trim() == "from the leader").then_some(())
        });
    }
}

fn uids(ns: &Namespace) -> Vec<String> {
    PODS.iter().map(|pod| ns.get("pod", pod)["metadata"]["uid"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A group of three on a cluster with room for one or two: none begins before all can, in one job.
#[test]
fn a_group_begins_together() {
    let ns = lws("lws");
    let filler = Filler::but_cpus_on_each_node(6);
    apply(&ns, &group("5"));
    let queued = eventually("one job in the queue for three pods", PATIENCE, || {
        let (pods, jobs) = (pods(&ns), jobs_of(ns.name()));
        (pods.len() == 3 && jobs.len() == 1 && jobs[0].cpus == "15").then_some(jobs)
    });
    assert_eq!(queued[0].state, "PENDING");
    assert!(pods(&ns).iter().all(|pod| pod["status"]["phase"] == "Pending"));

    drop(filler);
    all_run(&ns);
    let running = jobs_of(ns.name());
    assert_eq!(
        (running.len(), &running[0].id, running[0].state.as_str()),
        (1, &queued[0].id, "RUNNING"),
        "{running:?}"
    );
}

/// RecreateGroupOnPodRestart: a worker whose container ends takes the group with it, and the new group is one job again.
#[test]
fn a_group_that_is_recreated_is_a_gang_again() {
    let ns = lws("lws-again");
    apply(&ns, &group("1"));
    all_run(&ns);
    let (first, job) = (uids(&ns), jobs_of(ns.name()));
    assert_eq!(job.len(), 1, "{job:?}");
    // The session may end with the container.
    ns.kubectl(&["exec", "set-0-2", "--", "kill", "-TERM", "1"]);
    eventually("three other pods", PATIENCE, || {
        let now = pods(&ns);
        let other = |pod: &Value| first.iter().all(|old| pod["metadata"]["uid"] != **old);
        (now.len() == 3 && now.iter().all(other)).then_some(())
    });
    all_run(&ns);
    assert!(uids(&ns).iter().all(|uid| !first.contains(uid)));
    let again = jobs_of(ns.name());
    assert_eq!((again.len(), again[0].state.as_str()), (1, "RUNNING"), "{again:?}");
    assert_ne!(again[0].id, job[0].id, "a new allocation");
}
