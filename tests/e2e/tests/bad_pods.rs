//! A bad pod gets an event and a status that say what is wrong; the kubelet goes on with the others.

use hpk_e2e::{NODE, Namespace, PATIENCE, kubectl};
use serde_json::json;

/// After each bad pod: an ordinary one still runs to its end.
fn kubelet_goes_on(ns: &Namespace) {
    ns.run_script("after", "Never", "exit 0");
    ns.wait_phase("after", "Succeeded");
}

#[test]
fn image_that_does_not_exist() {
    let ns = Namespace::new("noimage");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["spec"]["containers"][0]["image"] = json!("login:5000/no-such-image:1");
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("bad", PATIENCE, |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    });
    assert_eq!(pod["status"]["phase"], "Pending");
    ns.until_event("bad", "Failed", "no-such-image");
    kubelet_goes_on(&ns);
}

#[test]
fn image_name_that_cannot_be_one() {
    let ns = Namespace::new("imagename");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["spec"]["containers"][0]["image"] = json!("Not A Name");
    ns.apply(&pod.to_string());
    ns.until_pod("bad", PATIENCE, |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "InvalidImageName"
    });
    kubelet_goes_on(&ns);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn memory_beyond_every_node() {
    let ns = Namespace::new("toobig");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "4Ti"}});
    ns.apply(&pod.to_string());
    // sbatch's own words are handed on.
    let pod = ns.until_pod("bad", PATIENCE, |pod| {
        pod["status"].to_string().contains("Memory specification can not be satisfied")
    });
    assert_eq!(pod["status"]["phase"], "Pending");
    kubelet_goes_on(&ns);
}

/// By no scheduler: the pod names its Node itself.
#[test]
fn port_of_the_node_that_another_pod_has() {
    let ns = Namespace::new("portconflict");
    let pod = |name: &str, address: &str| {
        let mut pod = ns.script_pod(name, "Never", "sleep 600");
        pod["spec"]["nodeName"] = json!(NODE);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 18090, "hostIP": address}]);
        pod.to_string()
    };
    ns.apply(&pod("first", ""));
    ns.wait_ready("first");
    ns.apply(&pod("second", "127.0.0.1"));
    let refused = ns.until_pod("second", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "NodePorts");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("Pod was rejected: Predicate NodePorts failed"), "{message}");
    ns.until_event("second", "NodePorts", "didn't have free ports");
    assert!(ns.kubectl(&["get", "pods"]).stdout.contains(" NodePorts "), "the reason is what kubectl shows");
    // What has ended holds none.
    ns.kubectl(&["delete", "pod", "first", "--wait=true"]).ok();
    ns.apply(&pod("third", ""));
    ns.wait_ready("third");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn slurm_flags_that_sbatch_refuses() {
    let ns = Namespace::new("badflags");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--partition=no-such-partition"});
    ns.apply(&pod.to_string());
    ns.until_pod("bad", PATIENCE, |pod| pod["status"].to_string().contains("invalid partition"));
    kubelet_goes_on(&ns);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn slurm_flags_that_break_out_of_the_annotation() {
    let ns = Namespace::new("injection");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--comment='unclosed"});
    ns.apply(&pod.to_string());
    ns.until_pod("bad", PATIENCE, |pod| pod["status"].to_string().contains("slurm-job.hpk.io/flags"));
    kubelet_goes_on(&ns);
}

#[test]
fn command_that_does_not_exist() {
    let ns = Namespace::new("nocommand");
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("bad", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(128), &json!("StartError")));
    assert!(terminated["message"].to_string().contains("/no/such/program"), "{terminated}");
}

#[test]
fn runtime_that_is_another_than_apptainer() {
    let ns = Namespace::new("runtime");
    let class = format!("strong-{}", ns.name());
    let object = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": "gvisor",
    });
    ns.apply(&object.to_string());
    let mut pod = ns.script_pod("bad", "Never", "true");
    pod["spec"]["runtimeClassName"] = json!(class);
    ns.apply(&pod.to_string());
    ns.until_event("bad", "FailedCreatePodSandBox", "handler \"gvisor\"");
    assert_eq!(ns.get("pod", "bad")["status"]["phase"], "Pending");
    kubectl(&["delete", "runtimeclass", &class]).ok();
    kubelet_goes_on(&ns);
}

#[test]
fn config_map_that_is_not_there_yet() {
    let ns = Namespace::new("noconfig");
    let mut pod = ns.script_pod("waits", "Never", "test $COLOUR = blue");
    pod["spec"]["containers"][0]["env"] =
        json!([{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "paint", "key": "colour"}}}]);
    ns.apply(&pod.to_string());
    ns.until_pod("waits", PATIENCE, |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    ns.kubectl(&["create", "configmap", "paint", "--from-literal=colour=blue"]).ok();
    ns.wait_phase("waits", "Succeeded");
}
