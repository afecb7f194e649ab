//! Limits of a pod's local storage.

use hpk_e2e::{Namespace, PATIENCE, eventually};
use serde_json::json;

#[test]
fn pods_that_exceed_a_storage_limit_are_evicted() {
    let ns = Namespace::new("storage");
    let fill = "head -c 3m /dev/zero > /data/file; head -c 3m /dev/zero > /file; exec sleep 600";
    let mut volume = ns.script_pod("volume", "Always", fill);
    volume["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "2Mi"}}]);
    volume["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let mut container = volume.clone();
    container["metadata"]["name"] = json!("container");
    container["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    container["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "4Mi"}});
    let mut within = container.clone();
    within["metadata"]["name"] = json!("within");
    within["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "40Mi"}});
    for pod in [&volume, &container, &within] {
        ns.apply(&pod.to_string());
    }
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"2Mi\". "),
        ("container", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
    ] {
        let pod = ns.until_pod(name, PATIENCE, |pod| pod["status"]["phase"] == "Failed");
        assert_eq!((&pod["status"]["reason"], &pod["status"]["message"]), (&json!("Evicted"), &json!(message)));
        ns.until_event(name, "Evicted", message.trim());
    }
    assert_eq!(ns.get("pod", "within")["status"]["phase"], "Running");
}

/// A file for its owner alone, and a user who is another: fsGroup lets it be read, after an update of the Secret too.
#[test]
fn fs_group_holds_after_an_update() {
    let ns = Namespace::new("fsgroup");
    ns.kubectl(&["create", "secret", "generic", "words", "--from-literal=word=first"]).ok();
    let script =
        "cat /s/word; until grep -q second /s/word; do sleep 0.2; done; stat -L -c '%g %a' /s/word; exec sleep 600";
    let mut pod = ns.script_pod("reader", "Always", script);
    pod["spec"]["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 2000,
        "fsGroupChangePolicy": "OnRootMismatch"});
    pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "words", "defaultMode": 0o400}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("reader");
    ns.kubectl(&["patch", "secret", "words", "-p", r#"{"stringData":{"word":"second"}}"#]).ok();
    eventually("the container reads the update", PATIENCE, || {
        let log = ns.kubectl(&["logs", "reader"]);
        log.ok().contains("2000 440").then_some(())
    });
    assert_eq!(ns.kubectl(&["logs", "reader"]).ok(), "first2000 440");
}
