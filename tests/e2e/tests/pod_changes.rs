//! What changes while a pod runs reaches it: configuration, its own image; and what HPK cannot do is said by name.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually, job_of, sx};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_container_that_is_started_again_has_the_environment_of_now() {
    let ns = Namespace::new("environment");
    ns.kubectl(&["create", "configmap", "settings", "--from-literal=MODE=old"]).ok();
    let script = "trap 'exit 1' TERM; echo mode $MODE; while :; do sleep 0.1; done";
    let mut pod = ns.script_pod("app", "Always", script);
    pod["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("app");
    ns.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data": {"MODE": "new"}}"#]).ok();
    let plan = "grep -c '\"new\"' ~/.hpk/pods/$(kubectl -n $NS get pod app -o jsonpath={.metadata.uid})/pod/plan.json";
    eventually("the plan has it", Duration::from_secs(30), || (ns.shell(plan).stdout.trim() == "1").then_some(()));
    assert!(ns.kubectl(&["logs", "app"]).ok().contains("mode old"), "what runs is left as it is");
    ns.kubectl(&["exec", "app", "--", "kill", "1"]).ok();
    ns.until_pod("app", PATIENCE, |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    eventually("the new mode", Duration::from_secs(30), || {
        ns.kubectl(&["logs", "app"]).stdout.contains("mode new").then_some(())
    });
}

#[test]
fn a_changed_config_map_and_secret_reach_the_volume_at_once() {
    let ns = Namespace::new("change");
    ns.kubectl(&["create", "configmap", "paint", "--from-literal=colour=blue"]).ok();
    ns.kubectl(&["create", "secret", "generic", "word", "--from-literal=word=old"]).ok();
    let mut pod =
        ns.script_pod("watcher", "Never", "while sleep 0.2; do cat /c/colour /s/word /late/x 2>/dev/null; echo; done");
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}, {"name": "late", "mountPath": "/late"}]);
    pod["spec"]["volumes"] = json!([
        {"name": "c", "configMap": {"name": "paint"}},
        {"name": "s", "projected": {"sources": [{"secret": {"name": "word"}}]}},
        {"name": "late", "configMap": {"name": "later", "optional": true}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("watcher");
    let shows = |what: &str| {
        let since = Instant::now();
        eventually(what, Duration::from_secs(30), || {
            ns.kubectl(&["logs", "watcher", "--tail=1"]).stdout.contains(what).then_some(())
        });
        since.elapsed()
    };
    shows("blueold");
    ns.kubectl(&["patch", "configmap", "paint", "-p", r#"{"data": {"colour": "green"}}"#]).ok();
    shows("greenold");
    ns.kubectl(&["patch", "secret", "word", "-p", r#"{"stringData": {"word": "new"}}"#]).ok();
    shows("greennew");
    // An optional one that comes later, too.
    ns.kubectl(&["create", "configmap", "later", "--from-literal=x=here"]).ok();
    let took = shows("greennewhere");
    // Nothing is fetched in turns any more: a turn of the former 45 s would not fit.
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[test]
fn a_new_image_restarts_the_container_in_its_running_pod() {
    let ns = Namespace::new("setimage");
    let mut pod = ns.script_pod("web", "Always", "command -v python3 || echo no python; sleep 600");
    pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!("File");
    ns.apply(&pod.to_string());
    ns.wait_ready("web");
    let job = job_of(ns.name(), "web").expect("the job");
    eventually("busybox runs", PATIENCE, || ns.kubectl(&["logs", "web"]).stdout.contains("no python").then_some(()));

    ns.kubectl(&["set", "image", "pod/web", &format!("main={TOOLBOX}")]).ok();
    let now = ns.until_pod("web", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true && status["image"] == TOOLBOX
    });
    assert_ne!(now["status"]["containerStatuses"][0]["imageID"], json!(BUSYBOX));
    eventually("the new image runs", PATIENCE, || {
        ns.kubectl(&["logs", "web"]).stdout.contains("python3").then_some(())
    });
    assert_eq!(job_of(ns.name(), "web").map(|j| j.id), Some(job.id), "in the same job");
    ns.until_event("web", "Killing", "definition changed");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_requeued_job_is_the_same_pod() {
    let ns = Namespace::new("requeue");
    let mut pod = ns.script_pod("again", "Always", "echo begun; sleep 600");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--requeue"});
    ns.apply(&pod.to_string());
    ns.wait_ready("again");
    let job = job_of(ns.name(), "again").expect("the job");
    sx("login", Some("alice"), &["scontrol", "requeue", &job.id]).ok();
    ns.until_event("again", "SlurmRequeued", &job.id);
    // Slurm holds a requeued job back for some minutes, counted from when the old run is gone from its node. Its owner need not
    // wait.
    let now = ["scontrol", "update", &format!("jobid={}", job.id), "starttime=now"];
    eventually("it runs again", PATIENCE, || {
        sx("login", Some("alice"), &now);
        job_of(ns.name(), "again").filter(|j| j.state == "RUNNING").map(drop)
    });
    let again = ns.until_pod("again", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    let last = &again["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(137), &json!("Error")), "ended in order");
    assert_eq!(job_of(ns.name(), "again").map(|j| j.id), Some(job.id));
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about a compute node")]
fn the_nodes_network_gives_the_compute_nodes_address() {
    let ns = Namespace::new("hostnet");
    let mut pod = ns.script_pod("host", "Never", "sleep 600");
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["hostname"] = json!("ignored");
    ns.apply(&pod.to_string());
    ns.wait_ready("host");
    let status = ns.get("pod", "host")["status"].clone();
    let node = job_of(ns.name(), "host").expect("the job").node;
    let address = if node == "c1" { "10.77.0.11" } else { "10.77.0.12" };
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!(address), &json!(address)));
    let names = ns.kubectl(&["exec", "host", "--", "sh", "-c", "hostname; echo $HOSTNAME; cat /etc/hostname"]);
    assert_eq!(names.ok().trim(), format!("{node}\n{node}\n{node}"));
    assert_eq!(status["hostIPs"], json!([{"ip": address}]), "the login node's address is replaced, not kept beside it");
}

#[test]
fn fields_without_effect_are_told_by_name() {
    let ns = Namespace::new("told");
    let mut pod = ns.script_pod("odd", "Never", "exit 0");
    pod["spec"]["hostPID"] = json!(true);
    pod["spec"]["containers"][0]["resources"]["limits"] = json!({"hugepages-2Mi": "2Mi"});
    ns.apply(&pod.to_string());
    ns.until_event("odd", "Unsupported", "spec.hostPID");
    ns.until_event("odd", "Unsupported", "spec.containers[main].resources[hugepages-2Mi]");
    // It runs all the same.
    ns.wait_phase("odd", "Succeeded");
}

#[test]
fn a_volume_that_cannot_be_had_keeps_the_pod_from_starting() {
    let ns = Namespace::new("refused");
    let mut pod = ns.script_pod("nfs", "Never", "exit 0");
    pod["spec"]["volumes"] = json!([{"name": "data", "nfs": {"server": "filer", "path": "/x"}}]);
    ns.apply(&pod.to_string());
    ns.until_event("nfs", "FailedMount", "nfs filer:/x is not mounted on this node");
    // The site may mount it any time: so the pod waits, as upstream's does.
    let pod = ns.until_pod("nfs", PATIENCE, |pod| pod["status"]["phase"] == "Pending");
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating", "{pod}");
    assert_eq!(job_of(ns.name(), "nfs"), None);
}
