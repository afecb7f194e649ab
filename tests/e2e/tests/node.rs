//! The node that stands for the cluster: what it says of itself, its lease, and that its owner's files are private.
#![allow(clippy::unwrap_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{HOME, HPK_HOME, NODE, Namespace, PATIENCE, eventually, kubectl, sx};
use serde_json::{Value, json};

fn get(args: &[&str]) -> Value {
    let all: Vec<&str> = ["get"].into_iter().chain(args.iter().copied()).chain(["-o", "json"]).collect();
    serde_json::from_str(kubectl(&all).ok()).unwrap()
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn the_node_is_the_slurm_cluster() {
    let node = get(&["node", NODE]);
    let sinfo = sx("login", Some("alice"), &["sinfo", "-h", "-N", "-o", "%N %c"]);
    let sizes: std::collections::BTreeMap<&str, u64> =
        sinfo.ok().lines().filter_map(|l| l.split_once(' ')).map(|(n, c)| (n, c.trim().parse().unwrap())).collect();
    let status = &node["status"];
    assert_eq!(status["capacity"]["cpu"], json!(sizes.values().sum::<u64>().to_string()), "all of sinfo's CPUs");
    // What is free is Slurm's to say: a pod that the scheduler held back would never reach the queue.
    for (resource, bound) in [("cpu", "1G"), ("memory", "1Ei"), ("ephemeral-storage", "1Ei"), ("pods", "1M")] {
        assert_eq!(status["allocatable"][resource], bound, "{resource}");
    }
    assert_eq!(status["allocatable"]["nvidia.com/gpu"], status["capacity"]["nvidia.com/gpu"]);
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

/// What Prometheus, metrics-server and dashboards ask a kubelet for.
#[test]
fn metrics_of_containers_and_probes() {
    let ns = Namespace::new("metrics");
    let mut pod = ns.script_pod("probed", "Always", "touch /tmp/ready; while true; do i=$((i+1)); done");
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1000});
    ns.apply(&pod.to_string());
    ns.wait_ready("probed");
    let uid = ns.get("pod", "probed")["metadata"]["uid"].as_str().unwrap().to_owned();
    let scrape = |path: &str| kubectl(&["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/{path}")]).ok().to_owned();
    let value = |text: &str, series: &str| -> Option<f64> {
        let line = text.lines().find_map(|l| l.strip_prefix(series))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let of = format!("namespace=\"{}\",pod=\"probed\"", ns.name());
    let probe = |kind: &str, result: &str| {
        format!(
            "prober_probe_total{{container=\"main\",{of},pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"}}"
        )
    };
    let probes = eventually("both probes have run", PATIENCE, || {
        let text = scrape("metrics/probes");
        let ran = |kind, result, times| value(&text, &probe(kind, result)).is_some_and(|n| n >= times);
        (ran("Readiness", "successful", 2.0) && ran("Liveness", "failed", 2.0)).then_some(text)
    });
    assert_eq!(value(&probes, &probe("Liveness", "successful")), None, "{probes}");
    let took = format!("prober_probe_duration_seconds_sum{{container=\"main\",{of},probe_type=\"Readiness\"}}");
    assert!(value(&probes, &took).is_some_and(|s| s > 0.0), "{probes}");

    let container = format!("{{container=\"main\",{of}}}");
    let cpu = |text: &str| value(text, &format!("container_cpu_usage_seconds_total{container}")).unwrap_or(0.0);
    let first = scrape("metrics/resource");
    assert!(value(&first, &format!("container_memory_working_set_bytes{container}")).is_some_and(|b| b > 0.0));
    assert!(value(&first, &format!("container_start_time_seconds{container}")).is_some_and(|s| s > 1.7e9));
    assert_eq!(value(&first, "scrape_error"), Some(0.0));
    eventually("its CPU time grows", PATIENCE, || (cpu(&scrape("metrics/resource")) > cpu(&first)).then_some(()));
    let cadvisor = scrape("metrics/cadvisor");
    assert!(cadvisor.contains(&format!("{of}}}")) && cadvisor.contains("container_memory_rss{"), "{cadvisor}");
    assert!(value(&scrape("metrics"), "kubelet_running_pods").is_some_and(|n| n >= 1.0));
    // The node's counter goes on when the pod has ended.
    let node = |text: &str| value(text, "node_cpu_usage_seconds_total").unwrap_or(0.0);
    let before = node(&scrape("metrics/resource"));
    ns.kubectl(&["delete", "pod", "probed", "--wait=true"]).ok();
    let after = scrape("metrics/resource");
    assert!(!after.contains(&container) && node(&after) >= before && before > 0.0, "{before} {after}");
}

/// What becomes of pods and containers is counted, under the names of upstream's kubelet.
#[test]
fn starts_and_ends_are_counted() {
    let ns = Namespace::new("counted");
    let scrape = || kubectl(&["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/metrics")]).ok().to_owned();
    let value = |text: &str, series: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{series} ")));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let ended = r#"kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"}"#;
    let series = ["kubelet_started_pods_total", "kubelet_started_user_namespaced_pods_total", ended];
    let before = scrape();
    for name in ["kubelet_started_user_namespaced_pods_errors_total ", "kubelet_image_volume_mounted_errors_total "] {
        assert!(before.lines().any(|l| l.starts_with(name)), "{name}\nin\n{before}");
    }
    let mut pod = ns.script_pod("counted", "Never", "exit 139");
    pod["spec"]["hostUsers"] = json!(false);
    ns.apply(&pod.to_string());
    ns.wait_phase("counted", "Failed");
    let after = scrape();
    for name in series {
        assert!(value(&after, name) > value(&before, name), "{name}\nin\n{after}");
    }
}

/// `kubectl get --raw …/proxy/logs/` lists what the Node's own programs log to, and shows each.
#[test]
fn logs_of_the_node() {
    let logs = format!("/api/v1/nodes/{NODE}/proxy/logs/");
    let list = kubectl(&["get", "--raw", &logs]);
    assert!(list.ok().contains("<a href=\"hpk-kubelet.log\">hpk-kubelet.log</a>"), "{}", list.stdout);
    let log = kubectl(&["get", "--raw", &format!("{logs}hpk-kubelet.log")]);
    assert!(!log.ok().is_empty());
    assert_ne!(kubectl(&["get", "--raw", &format!("{logs}..%2fkubeconfig")]).code, Some(0));
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
    let top = [HPK_HOME, "-maxdepth", "1", "-type", "d"];
    let pod = format!("{HPK_HOME}/pods/{uid}");
    let below = [pod.as_str(), "-maxdepth", "4", "-path", "*/volumes/*", "-prune", "-o"];
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
    let as_bob = format!("grep -rls s3cr3t-on-disk /tmp /run /var/tmp {HOME} /proc/[0-9]*/environ 2>/dev/null; true");
    assert_eq!(sx(&node, Some("bob"), &["bash", "-c", &as_bob]).ok(), "");
}
