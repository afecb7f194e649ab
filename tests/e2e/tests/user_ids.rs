//! Whose files: which number alice has in containers, and which groups.

use hpk_e2e::{HOME, Namespace, PATIENCE, sx};
use serde_json::{Value, json};

const ANNOTATION: &str = "runtime.hpk.io/user-ids";

fn login(script: &str) -> String {
    sx("login", Some("alice"), &["sh", "-c", script]).ok().to_owned()
}

/// A folder of alice's, and a pod that has it at /data.
fn with_folder(ns: &Namespace, pod: &mut Value) -> String {
    let folder = format!("{HOME}/{}", ns.name());
    login(&format!("install -d -m 700 {folder}"));
    mount(pod, json!({"name": "data", "hostPath": {"path": folder, "type": "Directory"}}));
    folder
}

fn mount(pod: &mut Value, volume: Value) {
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod["spec"]["volumes"] = json!([volume]);
}

fn log(ns: &Namespace, pod: &str) -> String {
    ns.wait_phase(pod, "Succeeded");
    ns.kubectl(&["logs", pod]).ok().to_owned()
}

#[test]
fn with_keep_a_pod_writes_the_users_files_as_the_user() {
    let ns = Namespace::new("ids-keep");
    let script = "wc -l < /var/run/secrets/kubernetes.io/serviceaccount/token > /dev/null || echo no token
        id -u; id -g; stat -c '%u:%g %a' /data; echo mine > /data/file; stat -c %u:%g /data/file";
    let mut pod = ns.script_pod("asked", "Never", script);
    pod["metadata"]["annotations"] = json!({ANNOTATION: "keep"});
    pod["spec"]["securityContext"] = json!({"runAsUser": 1000});
    let folder = with_folder(&ns, &mut pod);
    ns.apply(&pod.to_string());
    assert_eq!(log(&ns, "asked"), "1000\n1000\n1000:1000 700\n1000:1000");
    assert_eq!(login(&format!("stat -c %U:%G {folder}/file; rm {folder}/file")), "alice:alice");
    // Nobody is asked for: the user, not root. Another is one of the user's subordinate ids, and no more than that.
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true});
    pod["metadata"]["name"] = json!("unasked");
    ns.apply(&pod.to_string());
    assert_eq!(log(&ns, "unasked"), "1000\n1000\n1000:1000 700\n1000:1000");
    let mut root = ns.script_pod("root", "Never", "id -u; touch /data/x || echo no; stat -c %u:%g /etc/passwd");
    root["metadata"]["annotations"] = json!({ANNOTATION: "keep"});
    root["spec"]["securityContext"] = json!({"runAsUser": 0});
    root["spec"]["containers"][0]["securityContext"] = json!({"capabilities": {"drop": ["ALL"]}});
    with_folder(&ns, &mut root);
    ns.apply(&root.to_string());
    let text = log(&ns, "root");
    assert!(text.starts_with("0\n") && text.contains("\nno\n") && text.ends_with("\n1000:1000"), "{text}");
    login(&format!("rm -r {folder}"));
}

/// Sessions, processes that are shared, a group for volumes, a claim, and files of the kubelet's.
#[test]
fn with_keep_the_rest_of_a_pod_is_as_ever() {
    let ns = Namespace::new("ids-more");
    ns.kubectl(&["create", "secret", "generic", "word", "--from-literal=word=secret"]).ok();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    ns.apply(&claim.to_string());
    let script =
        "stat -c '%u:%g %a' /empty; cat /s/word; echo x > /c/x; stat -c %u:%g /c/x; mkdir -p /empty/d; exec sleep 600";
    let mut pod = ns.script_pod("pod", "Always", script);
    pod["metadata"]["annotations"] = json!({ANNOTATION: "keep"});
    pod["spec"]["securityContext"] = json!({"fsGroup": 3000});
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["spec"]["volumes"] = json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "word", "defaultMode": 0o400}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "e", "mountPath": "/empty"}, {"name": "s", "mountPath": "/s"},
        {"name": "c", "mountPath": "/c"}]);
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["securityContext"] = json!({"runAsUser": 33});
    other["command"] =
        json!(["sh", "-c", "until [ -d /empty/d ]; do sleep 0.1; done; echo hers > /empty/hers; exec sleep 600"]);
    pod["spec"]["containers"].as_array_mut().expect("containers").push(other);
    ns.apply(&pod.to_string());
    ns.wait_ready("pod");
    let main = pod["spec"]["containers"][0]["name"].as_str().expect("name").to_owned();
    let session = [
        "exec",
        "pod",
        "-c",
        &main,
        "--",
        "sh",
        "-c",
        "until [ -e /empty/hers ]; do sleep 0.1; done; id -u; stat -c %u:%g /empty/hers; ps",
    ];
    let seen = ns.kubectl(&session);
    assert!(seen.ok().starts_with("1000\n33:3000\n") && seen.stdout.contains("hpk-pause"), "{}", seen.stdout);
    assert_eq!(ns.kubectl(&["logs", "pod", "-c", &main]).ok(), "1000:3000 2777\nsecret1000:3000");
    ns.kubectl(&["debug", "pod", "--image", hpk_e2e::BUSYBOX, "--target", &main, "-c", "d", "--", "sh", "-c", "id -u"])
        .ok();
    hpk_e2e::eventually("the debugger's word", PATIENCE, || {
        (ns.kubectl(&["logs", "pod", "-c", "d"]).stdout.trim() == "1000").then_some(())
    });
}

/// The default of the cluster is root: the user is 0, whose files are the user's.
#[test]
fn without_it_another_user_is_a_subordinate_id_and_an_event_says_so() {
    let ns = Namespace::new("ids-root");
    let mut pod = ns.script_pod("pod", "Never", "touch /data/x || echo refused");
    pod["spec"]["securityContext"] = json!({"runAsUser": 1000});
    let folder = with_folder(&ns, &mut pod);
    ns.apply(&pod.to_string());
    assert!(log(&ns, "pod").ends_with("refused"));
    ns.until_event("pod", "UserIds", "runtime.hpk.io/user-ids: keep");
    let mut bad = ns.script_pod("bad", "Never", "true");
    bad["metadata"]["annotations"] = json!({ANNOTATION: "mine"});
    ns.apply(&bad.to_string());
    ns.until_event("bad", "Unsupported", "write root or keep");
    login(&format!("rm -r {folder}"));
}

/// /home/project is for the group `project`, which alice is in, and for nobody else.
#[test]
fn the_users_groups_hold_in_containers_that_name_none() {
    let ns = Namespace::new("ids-groups");
    let name = ns.name().to_owned();
    let script = format!("echo x > /data/{name}.$(id -u) && echo wrote; cat /data/{name}.* | wc -l");
    let host = json!({"name": "data", "hostPath": {"path": "/home/project", "type": "Directory"}});
    for (pod_name, ids, user, owner) in
        [("root", "root", 0, "alice"), ("keep", "keep", 1000, "alice"), ("other", "root", 1234, "101233")]
    {
        let mut pod = ns.script_pod(pod_name, "Never", &script);
        pod["metadata"]["annotations"] = json!({ANNOTATION: ids});
        pod["spec"]["securityContext"] = json!({"runAsUser": user});
        mount(&mut pod, host.clone());
        ns.apply(&pod.to_string());
        assert!(log(&ns, pod_name).starts_with("wrote"), "{pod_name}");
        let file = format!("/home/project/{name}.{user}");
        let shown = login(&format!("stat -c '%U %u:%G' {file}; rm -f {file}"));
        assert!(shown.contains(owner) && shown.ends_with(":project"), "{shown}");
    }
    let mut pod = ns.script_pod("named", "Never", "echo x > /data/x || echo refused");
    pod["spec"]["securityContext"] = json!({"fsGroup": 3000});
    mount(&mut pod, host);
    ns.apply(&pod.to_string());
    assert!(log(&ns, "named").contains("refused"));
    ns.until_event("named", "UserIds", "take the place of your own groups");
}
