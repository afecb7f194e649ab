//! JobSet's own controller, over gangs. `make apps` builds it and runs this case.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that finds nothing fails its case"
)]

use hpk_e2e::{BUSYBOX, Filler, Namespace, PATIENCE, eventually, jobs_of, sx};
use serde_json::{Value, json};

fn replicated(name: &str, pods: u32, script: &str) -> Value {
    json!({"name": name, "replicas": 1, "template": {"spec": {
        "parallelism": pods, "completions": pods, "backoffLimit": 0,
        "template": {
            "metadata": {"annotations": {"slurm-job.hpk.io/gang": "4"}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                "resources": {"requests": {"cpu": "2", "memory": "64Mi"}},
            }]},
        },
    }}})
}

fn pods(ns: &Namespace) -> Vec<Value> {
    let run = ns.kubectl(&["get", "pods", "-l", "jobset.sigs.k8s.io/jobset-name=set", "-o", "json"]);
    let list: Value = serde_json::from_str(run.ok()).unwrap();
    list["items"].as_array().cloned().unwrap()
}

/// Whether Slurm has told the pod why it waits.
fn waits_for_resources(pod: &Value) -> bool {
    pod["status"]["phase"] == "Pending"
        && pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "slurm.hpk.io/JobStarted" && condition["reason"] == "Resources")
}

/// Two replicated jobs of two pods each on a cluster that has room for two: none begins before all four can, they are one row in
/// squeue, and they find each other by the names that JobSet gives them.
#[test]
fn two_replicated_jobs_begin_together() {
    sx("login", Some("alice"), &["sh", "-c", "hpk install jobset --from /site/apps/jobset-*"]).ok();
    let ns = Namespace::new("jobset");
    let filler = Filler::but_two_cpus_on_each_node();
    // A driver that hears from both workers, by name, through the headless Service of JobSet.
    let workers = "set-worker-0-0.set set-worker-0-1.set";
    let driver = format!(
        "[ $JOB_COMPLETION_INDEX = 0 ] || exit 0; for w in {workers}; do \
         until wget -q -T 5 -O- http://$w:8080/word; do sleep 0.3; done; done"
    );
    let worker = "mkdir /tmp/w; echo from $HOSTNAME >/tmp/w/word; httpd -p 8080 -h /tmp/w; sleep 25";
    let set = json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "set"},
        "spec": {
            "network": {"enableDNSHostnames": true, "publishNotReadyAddresses": true},
            "replicatedJobs": [replicated("driver", 2, &driver), replicated("worker", 2, worker)],
        },
    });
    ns.apply(&set.to_string());
    let waiting = eventually("four pods that wait for resources", PATIENCE, || {
        let pods = pods(&ns);
        (pods.len() == 4 && pods.iter().all(waits_for_resources)).then_some(pods)
    });
    assert!(waiting.iter().all(|pod| pod["status"]["phase"] == "Pending"));
    let queued = jobs_of(ns.name());
    assert_eq!(queued.len(), 1, "one row in squeue: {queued:?}");
    assert_eq!((queued[0].state.as_str(), queued[0].cpus.as_str()), ("PENDING", "8"));

    drop(filler);
    let row = eventually("the gang's job runs", PATIENCE, || {
        jobs_of(ns.name()).into_iter().find(|job| job.state == "RUNNING")
    });
    assert_eq!(row.id, queued[0].id);
    ns.wait(&["jobset", "set"], "--for=condition=Completed");
    let driver = pods(&ns).into_iter().find(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        name.starts_with("set-driver-0-0")
    });
    let name = driver.expect("the driver")["metadata"]["name"].as_str().unwrap().to_owned();
    let said = ns.kubectl(&["logs", &name]);
    let mut said: Vec<&str> = said.ok().lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["from set-worker-0-0", "from set-worker-0-1"]);
    let ids: Vec<Value> =
        pods(&ns).iter().map(|pod| pod["metadata"]["labels"]["slurm.hpk.io/job-id"].clone()).collect();
    assert!(ids.iter().all(|id| id.as_str().is_some_and(|id| id.starts_with(&row.id))), "{ids:?}");
}
