//! Pods on one machine, without Slurm: whose turn it is, what is told, and that nothing is left.
#![cfg(not(feature = "site"))]

use hpk_e2e::{HPK_HOME, NODE_FOLDER, Namespace, PATIENCE, eventually, job_of, processes, sx};
use serde_json::{Value, json};

/// A pod that asks for so many CPUs.
fn pod(ns: &Namespace, name: &str, cpu: &str) -> Value {
    let mut pod = ns.script_pod(name, "Never", "sleep 600");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu, "memory": "16Mi"}});
    pod
}

fn condition(pod: &Value) -> (String, String) {
    let list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ours = list.into_iter().find(|c| c["type"] == "slurm.hpk.io/JobStarted").unwrap_or_default();
    let text = |name: &str| ours[name].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[test]
fn a_pod_that_does_not_fit_waits_until_it_does() {
    let ns = Namespace::new("turns");
    ns.apply(&pod(&ns, "first", "40").to_string());
    ns.wait_phase("first", "Running");
    ns.apply(&pod(&ns, "second", "40").to_string());
    let waits = ns.until_pod("second", PATIENCE, |pod| condition(pod).0 == "Resources");
    assert_eq!(waits["status"]["phase"], "Pending");
    let said = condition(&waits).1;
    assert!(said.contains("is pending: it asks for more than is free now: 40 CPUs of "), "{said}");
    ns.delete("pod", "first");
    ns.wait_phase("second", "Running");
    ns.delete("pod", "second");
}

#[test]
fn a_pod_that_is_larger_than_the_machine_is_not_taken() {
    let ns = Namespace::new("large");
    ns.apply(&pod(&ns, "large", "65").to_string());
    ns.until_event("large", "FailedSubmit", "more than this machine has: 65 CPUs of 64; lower its requests");
    assert_eq!(ns.get("pod", "large")["status"]["phase"], "Pending");
    assert_eq!(job_of(ns.name(), "large"), None);
}

#[test]
fn what_is_slurms_is_told_or_refused() {
    let ns = Namespace::new("slurms");
    let mut flags = pod(&ns, "flags", "100m");
    flags["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--qos=high"});
    ns.apply(&flags.to_string());
    ns.until_event("flags", "Unsupported", "annotations[slurm-job.hpk.io/flags] has no effect");
    ns.wait_phase("flags", "Running");
    let mut step = pod(&ns, "step", "100m");
    step["metadata"]["annotations"] = json!({"slurm-job.hpk.io/mpi-flags": ""});
    ns.apply(&step.to_string());
    ns.until_event("step", "FailedSubmit", "an MPI step is started by Slurm");
    let mut limited = pod(&ns, "limited", "100m");
    limited["spec"]["containers"][0]["resources"]["limits"] = json!({"cpu": "1", "memory": "64Mi"});
    ns.apply(&limited.to_string());
    // The machine of the cases has no cgroups of version 2.
    ns.until_event("limited", "Unsupported", "resources.limits of CPUs and memory are not kept");
    ns.wait_phase("limited", "Running");
}

#[test]
fn a_deleted_pod_leaves_nothing() {
    let ns = Namespace::new("nothing");
    ns.apply(&pod(&ns, "pod", "100m").to_string());
    ns.wait_phase("pod", "Running");
    let run = job_of(ns.name(), "pod").expect("its run");
    assert!(processes("login", &run.comment).len() >= 2, "hpk-netns run and work");
    let there = |path: &str| sx("login", Some("alice"), &["test", "-e", path]).code == Some(0);
    let folders = [
        format!("{HPK_HOME}/runs/{}", run.id),
        format!("{HPK_HOME}/pods/{}", run.comment),
        format!("{NODE_FOLDER}/{}", run.comment),
    ];
    assert!(folders.iter().all(|folder| there(folder)), "{folders:?}");
    ns.delete("pod", "pod");
    assert_eq!(processes("login", &run.comment), Vec::<String>::new());
    assert!(!there(&folders[1]) && !there(&folders[2]), "{folders:?}");
    // The run is forgotten when the executor looks next: with the next pod at the latest.
    ns.apply(&pod(&ns, "next", "100m").to_string());
    eventually("the run is forgotten", PATIENCE, || (!there(&folders[0])).then_some(()));
}

#[test]
fn a_run_whose_first_process_is_killed_has_failed_and_leaves_no_process() {
    let ns = Namespace::new("killed");
    ns.apply(&pod(&ns, "pod", "100m").to_string());
    ns.wait_phase("pod", "Running");
    let uid = job_of(ns.name(), "pod").expect("its run").comment;
    let first = processes("login", &format!("hpk-netns run {HPK_HOME}/pods/{uid}"));
    let pid = first[0].split_whitespace().next().expect("its number").to_owned();
    sx("login", Some("alice"), &["kill", "-KILL", &pid]).ok();
    let end = ns.until_pod("pod", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "RunFailed", "{}", end["status"]);
    assert_eq!(processes("login", &uid), Vec::<String>::new());
}
