//! The pod's supervisor and folder: what a container with every right inside its pod reaches, and what the kubelet makes
//! of links in the folder, should one get there after all.

use hpk_e2e::{Namespace, PATIENCE, eventually};
use serde_json::{Value, json};

/// Shares the supervisor's PID namespace, and may do what a container can be allowed to.
fn mighty(ns: &Namespace, pod: &str, script: &str) -> Value {
    let mut pod = ns.script_pod(pod, "Never", script);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod
}

/// What the script of a pod says, which is to end well.
fn said(ns: &Namespace, name: &str, pod: &Value) -> String {
    ns.apply(&pod.to_string());
    ns.until_pod(name, PATIENCE, |pod| pod["status"]["phase"] == "Succeeded");
    ns.kubectl(&["logs", name]).ok().to_owned()
}

#[test]
fn the_supervisor_cannot_be_traced() {
    let ns = Namespace::new("trace-supervisor");
    let tries =
        ["ls /proc/1/root/", "cat /proc/1/environ", "cat /proc/1/maps", "ls /proc/1/cwd/", "readlink /proc/1/exe"];
    let script: String =
        tries.iter().map(|attempt| format!("{attempt} > /dev/null 2>&1 && echo '{attempt}';")).collect();
    // It is PID 1 that they name; the tracer's own processes, and its network, are its own.
    let script =
        format!("cat /proc/1/comm; {script} cat /proc/self/comm; ip link set lo mtu 60000 && echo network; true");
    assert_eq!(said(&ns, "tracer", &mighty(&ns, "tracer", &script)), "hpk-pause\ncat\nnetwork");
}

#[test]
fn containers_of_a_pod_may_trace_each_other() {
    let ns = Namespace::new("trace-each-other");
    let find = "$(grep -l traced /proc/[0-9]*/environ 2>/dev/null | grep -v self | head -1 | cut -d/ -f3)";
    let script = format!(
        "until [ -n \"{find}\" ]; do sleep 0.1; done; cat /proc/{find}/root/etc/hostname; echo 1 > /proc/{find}/root/done"
    );
    let mut pod = mighty(&ns, "tracer", &script);
    let mut traced = pod["spec"]["containers"][0].clone();
    traced["name"] = json!("traced");
    traced["env"] = json!([{"name": "WHO", "value": "traced"}]);
    traced["command"] = json!(["sh", "-c", "until [ -e /done ]; do sleep 0.1; done"]);
    traced.as_object_mut().expect("a container").remove("securityContext");
    pod["spec"]["containers"].as_array_mut().expect("containers").push(traced);
    ns.apply(&pod.to_string());
    ns.until_pod("tracer", PATIENCE, |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "tracer", "-c", "main"]).ok(), "tracer");
}

/// With a poisoned image, a later pod would run what this one wrote.
#[test]
fn the_image_store_cannot_be_made_writable() {
    let ns = Namespace::new("poison-image");
    let script = "mount -o remount,bind,rw /image 2>&1; umount /image; touch /image/poison 2>&1; \
        cat /proc/1/root/hpk/images 2>&1; true";
    let mut pod = mighty(&ns, "poisoner", script);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "image", "mountPath": "/image"}]);
    let image = pod["spec"]["containers"][0]["image"].clone();
    pod["spec"]["volumes"] = json!([{"name": "image", "image": {"reference": image, "pullPolicy": "IfNotPresent"}}]);
    let words = said(&ns, "poisoner", &pod);
    assert!(words.contains("ermission denied"), "{words}");
    let poisoned =
        ns.shell("ls ~/.hpk/images/*/*/poison ~/.hpk/images/*/poison ~/.hpk/images/*/*/*/poison 2>/dev/null; true");
    assert_eq!(poisoned.ok(), "", "{words}");
}

/// Waits for a pod's file, and puts a link in its place as its owner may, who could not be hindered.
fn plant(ns: &Namespace, file: &str, target: &str) {
    let planted =
        || ns.shell(&format!("test -s {file} -o -d {file} && rm -r {file} && ln -s {target} {file} && echo planted"));
    eventually("the link is planted", PATIENCE, || planted().stdout.contains("planted").then_some(()));
}

#[test]
fn a_log_that_is_a_link_shows_no_other_file() {
    let ns = Namespace::new("planted-log");
    ns.shell("echo '2026-01-01T00:00:00Z stdout F the secret' > ~/key-$NS").ok();
    let key = ns.shell("echo ~/key-$NS").ok().trim().to_owned();
    ns.apply(&ns.script_pod("talker", "Never", "echo begun; exec sleep 600").to_string());
    ns.wait_ready("talker");
    let uid = ns.get("pod", "talker")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    plant(&ns, &format!("~/.hpk/pods/{uid}/pod/logs/main/0.log"), &key);
    let shown = ns.kubectl(&["logs", "talker"]);
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
    let mut pod = ns.script_pod("reader", "Never", "exec sleep 600");
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "m", "mountPath": "/m"}]);
    pod["spec"]["volumes"] = json!([{"name": "m", "configMap": {"name": "m"}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("reader");
    let uid = ns.get("pod", "reader")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    plant(&ns, &format!("~/.hpk/pods/{uid}/pod/volumes/m"), &home);
    ns.kubectl(&["patch", "configmap", "m", "--type=merge", "-p", r#"{"data": {"profile": "2"}}"#]).ok();
    ns.until_event("reader", "FailedMount", "cannot update the pod's volumes");
    assert_eq!(ns.shell("ls -A ~/home-$NS; rmdir ~/home-$NS").ok(), "", "nothing was written there");
}
