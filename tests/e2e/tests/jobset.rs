//! JobSet's own controller, over gangs. `make apps` builds it and runs these cases.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that finds nothing fails its case"
)]

use hpk_e2e::{BUSYBOX, Filler, Namespace, PATIENCE, eventually, jobs_of, sacct, sx};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Once;

fn jobset(case: &str) -> Namespace {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        sx("login", Some("alice"), &["sh", "-c", "hpk install jobset --from /site/apps/jobset-*"]).ok();
    });
    Namespace::new(case)
}

/// One Job of `pods` pods, of a JobSet whose gang has `gang` pods. `$ATTEMPT` is the number of restarts.
fn replicated(name: &str, pods: u32, gang: u32, cpus: &str, script: &str) -> Value {
    let attempt = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']";
    json!({"name": name, "replicas": 1, "template": {"spec": {
        "parallelism": pods, "completions": pods, "backoffLimit": 0,
        "template": {
            "metadata": {"annotations": {"slurm-job.hpk.io/gang": gang.to_string()}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                "env": [{"name": "ATTEMPT", "valueFrom": {"fieldRef": {"fieldPath": attempt}}}],
                "resources": {"requests": {"cpu": cpus, "memory": "64Mi"}},
            }]},
        },
    }}})
}

fn set(name: &str, jobs: &[Value], restarts: u32) -> Value {
    json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": true, "publishNotReadyAddresses": true},
            "failurePolicy": {"maxRestarts": restarts},
            "replicatedJobs": jobs,
        },
    })
}

/// JobSet's webhook must have said yes.
fn apply(ns: &Namespace, set: &Value) {
    eventually("JobSet's webhook takes the set", PATIENCE, || {
        (ns.kubectl_with_input(&["apply", "-f", "-"], &set.to_string()).code == Some(0)).then_some(())
    });
}

fn pods(ns: &Namespace, set: &str) -> Vec<Value> {
    let label = format!("jobset.sigs.k8s.io/jobset-name={set}");
    let list: Value = serde_json::from_str(ns.kubectl(&["get", "pods", "-l", &label, "-o", "json"]).ok()).unwrap();
    list["items"].as_array().cloned().unwrap()
}

/// Slurm's jobs that these pods ran in.
fn ran_in(pods: &[Value]) -> BTreeSet<String> {
    let label = |pod: &Value| pod["metadata"]["labels"]["slurm.hpk.io/job-id"].as_str().unwrap_or_default().to_owned();
    pods.iter().map(label).collect()
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

/// Two replicated jobs of two pods each on a cluster that has room for two or three: none begins before all four can, they are
/// one row in squeue, and they find each other by the names that JobSet gives them.
#[test]
fn two_replicated_jobs_begin_together() {
    let ns = jobset("jobset");
    let filler = Filler::but_cpus_on_each_node(6);
    // A driver that hears from both workers, by name, through the headless Service of JobSet.
    let workers = "set-worker-0-0.set set-worker-0-1.set";
    let driver = format!(
        "[ $JOB_COMPLETION_INDEX = 0 ] || exit 0; for w in {workers}; do \
         until wget -q -T 5 -O- http://$w:8080/word 2>/dev/null; do sleep 0.3; done; done"
    );
    let worker = "mkdir /tmp/w; echo from $HOSTNAME >/tmp/w/word; httpd -p 8080 -h /tmp/w; sleep 25";
    let jobs = [replicated("driver", 2, 4, "4", &driver), replicated("worker", 2, 4, "4", worker)];
    apply(&ns, &set("set", &jobs, 0));
    eventually("four pods that wait for resources", PATIENCE, || {
        let pods = pods(&ns, "set");
        (pods.len() == 4 && pods.iter().all(waits_for_resources)).then_some(())
    });
    let queued = jobs_of(ns.name());
    assert_eq!(queued.len(), 1, "one row in squeue: {queued:?}");
    assert_eq!((queued[0].state.as_str(), queued[0].cpus.as_str()), ("PENDING", "16"));

    drop(filler);
    let row = eventually("the gang's job runs", PATIENCE, || {
        jobs_of(ns.name()).into_iter().find(|job| job.state == "RUNNING")
    });
    assert_eq!(row.id, queued[0].id);
    ns.wait(&["jobset", "set"], "--for=condition=Completed");
    let pods = pods(&ns, "set");
    let driver = pods.iter().find_map(|pod| {
        let name = pod["metadata"]["name"].as_str()?;
        name.starts_with("set-driver-0-0").then_some(name)
    });
    let said = ns.kubectl(&["logs", driver.expect("the driver")]);
    let mut said: Vec<&str> = said.ok().lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["from set-worker-0-0", "from set-worker-0-1"]);
    assert_eq!(ran_in(&pods), [row.id].into());
}

/// A pod that fails: JobSet makes all jobs anew, and their pods are a gang of their own, in another job of Slurm's.
#[test]
fn a_restart_is_a_gang_of_its_own() {
    let ns = jobset("jobset-again");
    let script = |fails: &str| {
        format!(
            "echo attempt $ATTEMPT; if [ $ATTEMPT = 0 ]; then [ {fails} = $JOB_COMPLETION_INDEX ] && exit 3; \
             trap 'exit 0' TERM; sleep 600 & wait; fi; sleep 5"
        )
    };
    let jobs = [replicated("driver", 1, 3, "1", &script("none")), replicated("worker", 2, 3, "1", &script("1"))];
    apply(&ns, &set("again", &jobs, 2));
    ns.wait(&["jobset", "again"], "--for=condition=Completed");
    assert_eq!(ns.get("jobset", "again")["status"]["restarts"], 1);
    let pods = pods(&ns, "again");
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert_eq!(ns.kubectl(&["logs", name]).ok(), "attempt 1", "{name}");
    }
    // One job for each attempt, and all pods of the second one in the last.
    let mut jobs = sacct(ns.name(), "again");
    jobs.sort_by_key(|job| job.id.parse::<u64>().unwrap());
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    assert_eq!(ran_in(&pods), [jobs[1].id.clone()].into());
    assert_eq!(jobs[1].cpus, "3");
}
