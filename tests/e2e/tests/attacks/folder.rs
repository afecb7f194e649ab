//! The pod's folder on the shared file system: what a pod with rights over its supervisor plants there.

use hpk_e2e::{Namespace, PATIENCE, eventually};
use serde_json::json;

/// Shares the supervisor's PID namespace and may trace it, so `/proc/1/root` is open to it.
fn tracer(ns: &Namespace, pod: &str, script: &str) -> serde_json::Value {
    let mut pod = ns.script_pod(pod, "Never", script);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["spec"]["containers"][0]["securityContext"] = json!({"capabilities": {"add": ["SYS_PTRACE"]}});
    pod
}

#[test]
fn a_log_that_is_a_link_shows_no_other_file() {
    let ns = Namespace::new("planted-log");
    ns.shell("echo '2026-01-01T00:00:00Z stdout F the secret' > ~/key-$NS").ok();
    let key = ns.shell("echo ~/key-$NS").ok().trim().to_owned();
    // The log is there once something is in it.
    let logs = "/proc/1/root/hpk/pod/logs/main";
    let wait = format!("echo begun; until [ -s {logs}/0.log ]; do sleep 0.05; done");
    let script = format!("{wait}; cd {logs} && rm 0.log && ln -s {key} 0.log && ls -l 0.log >&2");
    ns.apply(&tracer(&ns, "planter", &script).to_string());
    let pod = ns.until_pod("planter", PATIENCE, |pod| pod["status"]["phase"] == "Succeeded");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let planted = ns.shell(&format!("readlink ~/.hpk/pods/{uid}/logs/main/0.log"));
    assert_eq!(planted.ok().trim(), key, "it could be planted");
    let shown = ns.kubectl(&["logs", "planter"]);
    assert!(!shown.stdout.contains("the secret") && !shown.stderr.contains("the secret"), "{shown:?}");
    ns.shell("rm ~/key-$NS").ok();
}

#[test]
fn a_volume_that_is_a_link_is_written_nowhere_else() {
    let ns = Namespace::new("planted-volume");
    ns.shell("mkdir ~/home-$NS").ok();
    let home = ns.shell("echo ~/home-$NS").ok().trim().to_owned();
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"profile": "1"}})
            .to_string(),
    );
    let script =
        format!("cd /proc/1/root/hpk/pod/volumes && mv m gone && ln -s {home} m && echo planted && exec sleep 600");
    let mut pod = tracer(&ns, "planter", &script);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "m", "mountPath": "/m"}]);
    pod["spec"]["volumes"] = json!([{"name": "m", "configMap": {"name": "m"}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("planter");
    let planted = || ns.kubectl(&["logs", "planter"]).stdout.contains("planted").then_some(());
    eventually("the link is planted", PATIENCE, planted);
    ns.kubectl(&["patch", "configmap", "m", "--type=merge", "-p", r#"{"data": {"profile": "2"}}"#]).ok();
    ns.until_event("planter", "FailedMount", "cannot update the pod's volumes");
    assert_eq!(ns.shell("ls -A ~/home-$NS; rmdir ~/home-$NS").ok(), "", "nothing was written there");
}
