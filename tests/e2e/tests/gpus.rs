//! GPUs by name. The site's are fakes (tests/site/conf/gres.conf): device files of NVIDIA's names that read as zeros, of the
//! type a100 on c1 and h100 on c2. What Slurm and HPK do with them is real.

use hpk_e2e::{NODE, Namespace, PATIENCE, kubectl, sx};
use serde_json::{Value, json};

const SEEN: &str = "echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES $(ls /dev | grep nvidia | xargs)";

/// A pod with these containers; each has a number of GPUs and prints what it sees.
fn pod(ns: &Namespace, name: &str, gpus: &[(&str, u32)], model: &str) -> Value {
    let mut pod = ns.script_pod(name, "Never", SEEN);
    let containers = gpus.iter().map(|(container, count)| {
        let limits = if *count > 0 { json!({"nvidia.com/gpu": count.to_string()}) } else { json!({}) };
        json!({"name": container, "image": hpk_e2e::BUSYBOX, "command": ["sh", "-c", SEEN],
            "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
            "resources": {"limits": limits, "requests": {"memory": "64Mi"}}})
    });
    pod["spec"]["containers"] = containers.collect();
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/gpu-type": model});
    pod
}

#[test]
fn a_type_of_gpu_is_named_and_given() {
    let ns = Namespace::new("gputype");
    for (name, model, node) in [("ampere", "a100", "c1"), ("hopper", "NVIDIA-H100-80GB", "c2")] {
        ns.apply(&pod(&ns, name, &[("main", 1)], model).to_string());
        ns.wait_phase(name, "Succeeded");
        let done = ns.get("pod", name);
        let requested = done["metadata"]["annotations"]["slurm-job.hpk.io/requested"].as_str().unwrap_or_default();
        let model = if name == "ampere" { "a100" } else { "h100" };
        assert!(requested.contains(&format!("--gres=gpu:{model}:1")), "{requested}");
        assert_eq!(done["metadata"]["labels"]["slurm.hpk.io/node"], node);
    }
}

#[test]
fn containers_of_a_pod_see_their_own_gpus() {
    let ns = Namespace::new("gpushare");
    ns.apply(&pod(&ns, "two", &[("a", 1), ("none", 0), ("b", 1)], "a100").to_string());
    ns.wait_phase("two", "Succeeded");
    let seen = |container: &str| ns.kubectl(&["logs", "two", "-c", container]).ok().to_owned();
    assert_eq!(seen("a"), "0 0 nvidia0 nvidiactl");
    assert_eq!(seen("b"), "0 1 nvidia1 nvidiactl");
    assert_eq!(seen("none"), "void nvidiactl");
}

/// The word of an image, or of a pod, that it wants all of them is not one that counts.
#[test]
fn ranks_see_the_gpus_that_slurm_gives_each() {
    let ns = Namespace::new("gpuranks");
    let script = "echo $SLURM_PROCID: $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES";
    let mut ranks = hpk_e2e::ranks("ranks", 2, &["sh", "-c", script]);
    ranks["metadata"]["annotations"] = json!({
        "slurm-job.hpk.io/flags": "--ntasks=2 --nodes=1 --gres=gpu:a100:2",
        "slurm-job.hpk.io/mpi-flags": "--gpu-bind=single:1",
    });
    ranks["spec"]["containers"][0]["env"] = json!([{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]);
    ns.apply(&ranks.to_string());
    ns.wait_phase("ranks", "Succeeded");
    let logs = ns.kubectl(&["logs", "ranks"]);
    assert_eq!(hpk_e2e::sorted(logs.ok()), ["0: 0 0", "1: 1 1"]);
}

#[test]
fn gpus_by_flags_are_every_containers() {
    let ns = Namespace::new("gpuflags");
    let mut all = pod(&ns, "all", &[("a", 0), ("b", 0)], "");
    all["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--gres=gpu:a100:2"});
    ns.apply(&all.to_string());
    ns.wait_phase("all", "Succeeded");
    for container in ["a", "b"] {
        assert_eq!(ns.kubectl(&["logs", "all", "-c", container]).ok(), "0,1 0,1 nvidia0 nvidia1 nvidiactl");
    }
}

#[test]
fn runtime_classes_of_gpu_operators_are_there() {
    let ns = Namespace::new("gpuclass");
    let mut pod = pod(&ns, "classed", &[("main", 1)], "h100");
    pod["spec"]["runtimeClassName"] = json!("nvidia");
    ns.apply(&pod.to_string());
    ns.wait_phase("classed", "Succeeded");
    let events = ns.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(!events.ok().contains("Unsupported"), "{}", ns.describe());
    for class in ["nvidia-cdi", "nvidia-legacy"] {
        kubectl(&["get", "runtimeclass", class]).ok();
    }
}

#[test]
fn the_node_says_what_it_has() {
    let node: Value = serde_json::from_str(kubectl(&["get", "node", NODE, "-o", "json"]).ok()).expect("a Node");
    assert_eq!(node["status"]["capacity"]["nvidia.com/gpu"], "4");
    for label in ["gres.slurm.hpk.io/gpu.a100", "gres.slurm.hpk.io/gpu.h100"] {
        assert_eq!(node["metadata"]["labels"][label], "true", "{label}");
    }
}

#[test]
fn pods_show_their_job_and_where_it_runs() {
    let ns = Namespace::new("where");
    let mut pod = ns.script_pod("here", "Never", "echo $HOST; sleep 600");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c2"});
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("here");
    let labelled = ns.until_pod("here", PATIENCE, |p| p["metadata"]["labels"]["slurm.hpk.io/node"] == "c2");
    let job = hpk_e2e::job_of(ns.name(), "here").expect("the job");
    assert_eq!(labelled["metadata"]["labels"]["slurm.hpk.io/job-id"], json!(job.id));
    assert_eq!(labelled["metadata"]["labels"]["slurm.hpk.io/partition"], "main");
    assert_eq!(labelled["status"]["hostIP"], "10.77.0.12");
    assert_eq!(ns.kubectl(&["logs", "here"]).ok(), "10.77.0.12");
    let ps = sx("login", Some("alice"), &["hpk", "ps", "-n", ns.name(), "-o", "json"]);
    let shown: Value = serde_json::from_str(ps.ok()).expect("JSON");
    assert_eq!((&shown["pods"][0]["job"]["id"], &shown["pods"][0]["job"]["node"]), (&json!(job.id), &json!("c2")));
}
