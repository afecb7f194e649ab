//! Rules of a pod's life that have no other case: readiness gates, stop signals, a probe's own grace period, the size of
//! termination messages, rights and limits, mounts.

use hpk_e2e::{BUSYBOX, HOME, Namespace, PATIENCE, sx};
use serde_json::{Value, json};
use std::time::Instant;

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let list = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

#[test]
fn a_readiness_gate_holds_the_pod_back_until_its_condition() {
    let ns = Namespace::new("gate");
    let mut pod = ns.script_pod("gated", "Always", "exec sleep 600");
    pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
    ns.apply(&pod.to_string());
    let held = ns.until_pod("gated", PATIENCE, |pod| condition(pod, "ContainersReady")["status"] == "True");
    let ready = condition(&held, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("ReadinessGatesNotReady")), "{ready}");
    let set = |value: &str| {
        let patch = json!({"status": {"conditions": [{"type": "example.com/gate", "status": value}]}}).to_string();
        ns.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", &patch]).ok();
        ns.until_pod("gated", PATIENCE, |pod| condition(pod, "Ready")["status"] == value);
    };
    set("True");
    set("False");
}

/// STOPSIGNAL of an image; the pod's own field, lifecycle.stopSignal, is an alpha feature that the API server leaves out.
#[test]
fn the_stop_signal_is_the_images() {
    let ns = Namespace::new("stopsignal");
    let folder = format!("{HOME}/{}", ns.name());
    let make = format!(
        "skopeo copy -q --insecure-policy --src-tls-verify=false docker://{BUSYBOX} oci:{folder}:it && \
         umoci config --image {folder}:it --config.stopsignal SIGUSR1"
    );
    sx("login", Some("alice"), &["bash", "-c", &make]).ok();
    let script =
        "trap 'echo got USR1 > /dev/termination-log; exit 4' USR1; trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let mut pod = ns.script_pod("polite", "Always", script);
    pod["metadata"]["finalizers"] = json!(["hpk.example/watch"]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
    pod["spec"]["containers"][0]["image"] = json!(format!("oci:{folder}:it"));
    ns.apply(&pod.to_string());
    ns.wait_ready("polite");
    ns.kubectl(&["delete", "pod", "polite", "--wait=false"]).ok();
    let end = ns.until_pod("polite", PATIENCE, |pod| status(pod)["state"]["terminated"].is_object());
    ns.kubectl(&["patch", "pod", "polite", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).ok();
    sx("login", Some("alice"), &["rm", "-r", &folder]).ok();
    let terminated = &status(&end)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["message"]), (&json!(4), &json!("got USR1\n")));
}

#[test]
fn an_exit_that_restarts_all_containers_is_told() {
    let ns = Namespace::new("restartall");
    let script = "[ -e /m/again ] && exec sleep 600; touch /m/again; exit 42";
    let mut pod = ns.script_pod("both", "Never", script);
    pod["spec"]["volumes"] = json!([{"name": "m", "emptyDir": {}}]);
    let containers = pod["spec"]["containers"].as_array_mut().expect("containers");
    containers[0]["volumeMounts"] = json!([{"name": "m", "mountPath": "/m"}]);
    containers[0]["restartPolicy"] = json!("Never");
    containers[0]["restartPolicyRules"] =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    // It hears no TERM: the restart lasts the two seconds that it is given, and can be seen.
    containers.push(json!({"name": "other", "image": BUSYBOX, "command": ["sh", "-c", "trap '' TERM; sleep 600"]}));
    ns.apply(&pod.to_string());
    let restarting = |pod: &Value| condition(pod, "AllContainersRestarting")["status"].clone();
    let during = ns.until_pod("both", PATIENCE, |pod| restarting(pod) == "True");
    assert_eq!(condition(&during, "AllContainersRestarting")["reason"], "RestartAllContainersStarted");
    assert_eq!(status(&during)["state"]["terminated"]["exitCode"], 42);
    let after = ns.until_pod("both", PATIENCE, |pod| {
        let all = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().all(|c| c["restartCount"] == 1 && c["state"]["running"].is_object())
    });
    assert_eq!(restarting(&after), "False");
    assert_eq!(status(&after)["lastState"]["terminated"]["reason"], "RestartingAllContainers");
    let told = "Container main exited with 42, all containers will be restarted";
    ns.until_event("both", "RestartAllContainersStarted", told);
}

#[test]
fn a_liveness_probes_own_grace_period_is_the_shorter_way() {
    let ns = Namespace::new("probegrace");
    // It hears no TERM: only the end of a grace period ends it.
    let mut pod = ns.script_pod("deaf", "Always", "exec sleep 600");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(500);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["false"]}, "initialDelaySeconds": 1,
        "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 2});
    let begin = Instant::now();
    ns.apply(&pod.to_string());
    let again = ns.until_pod("deaf", PATIENCE, |pod| status(pod)["restartCount"].as_u64() >= Some(1));
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(status(&again)["lastState"]["terminated"]["exitCode"], 137);
    ns.kubectl(&["delete", "pod", "deaf", "--grace-period=1"]).ok();
}

#[test]
fn termination_messages_are_cut_and_fall_back_to_logs() {
    let ns = Namespace::new("messages");
    // 4096 bytes each, and 12 KiB of all containers together: a fourth of that for each of four.
    let mut pod = ns.script_pod("many", "Never", "head -c 5000 /dev/zero | tr '\\0' m > /dev/termination-log");
    let first = pod["spec"]["containers"][0].clone();
    let more = (1..4).map(|n| {
        let mut container = first.clone();
        container["name"] = json!(format!("more{n}"));
        container["resources"] = json!({});
        container
    });
    let containers: Vec<Value> = std::iter::once(first.clone()).chain(more).collect();
    pod["spec"]["containers"] = json!(containers);
    ns.apply(&pod.to_string());
    let mut logs = ns.script_pod("logs", "Never", "seq 1 200; exit 1");
    logs["spec"]["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    ns.apply(&logs.to_string());
    let end = ns.until_pod("many", PATIENCE, |pod| pod["status"]["phase"] == "Succeeded");
    for container in end["status"]["containerStatuses"].as_array().into_iter().flatten() {
        let message = container["state"]["terminated"]["message"].as_str().unwrap_or_default();
        assert_eq!(message.len(), 3072, "{}", container["name"]);
    }
    let end = ns.until_pod("logs", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let message = status(&end)["state"]["terminated"]["message"].as_str().unwrap_or_default();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!((lines.len(), lines.first(), lines.last()), (80, Some(&"121"), Some(&"200")), "{message}");
}

#[test]
fn rights_are_what_the_security_context_says() {
    let ns = Namespace::new("rights");
    let script = "grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status; id -u; id -g; id -G; touch /x 2>&1; \
                  cat /proc/keys | head -c 3 | wc -c";
    let mut pod = ns.script_pod("tight", "Never", script);
    pod["spec"]["securityContext"] =
        json!({"supplementalGroups": [3000], "seccompProfile": {"type": "RuntimeDefault"}});
    pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 2000,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
    ns.apply(&pod.to_string());
    ns.wait_phase("tight", "Succeeded");
    let expected = "CapEff:\t0000000000000000\nCapBnd:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n1000\n2000\n2000 3000\n\
                    touch: /x: Read-only file system\n0";
    assert_eq!(ns.kubectl(&["logs", "tight"]).ok(), expected);
    // What nobody but root could give is refused by name.
    let mut beyond = ns.script_pod("beyond", "Never", "true");
    beyond["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1_000_000});
    ns.apply(&beyond.to_string());
    ns.until_event("beyond", "Failed", "securityContext.runAsUser: id 1000000 does not exist in this pod");
}

#[test]
fn sub_paths_stay_in_their_volume_and_image_volumes_are_read_only() {
    let ns = Namespace::new("mounts");
    let mut pod = ns.script_pod("mounts", "Never", "cat /sub/file; ls /image/bin/sh; touch /image/x 2>&1");
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}},
        {"name": "i", "image": {"reference": BUSYBOX, "pullPolicy": "IfNotPresent"}}]);
    pod["spec"]["initContainers"] = json!([{"name": "fill", "image": BUSYBOX,
        "command": ["sh", "-c", "mkdir -p /v/deep; echo inside > /v/deep/file; ln -s /etc /v/out"],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/sub", "subPath": "deep"},
        {"name": "i", "mountPath": "/image"}]);
    let mut out = pod.clone();
    out["metadata"]["name"] = json!("out");
    out["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!("out");
    ns.apply(&pod.to_string());
    ns.apply(&out.to_string());
    ns.until_pod("mounts", PATIENCE, |pod| status(pod)["state"]["terminated"].is_object());
    assert_eq!(ns.kubectl(&["logs", "mounts"]).ok(), "inside\n/image/bin/sh\ntouch: /image/x: Read-only file system");
    let held =
        ns.until_pod("out", PATIENCE, |pod| status(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError");
    let message = status(&held)["state"]["waiting"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("subPath") || message.contains("out"), "{message}");
}

#[test]
fn containers_see_each_other_where_the_pod_says_so() {
    let ns = Namespace::new("sharepid");
    let mut pod = ns.script_pod("shared", "Always", "exec sleep 86321");
    pod["spec"]["shareProcessNamespace"] = json!(true);
    let mut second = pod["spec"]["containers"][0].clone();
    second["name"] = json!("other");
    second["command"] = json!(["sh", "-c", "exec sleep 86322"]);
    second["resources"] = json!({});
    let first = pod["spec"]["containers"][0].clone();
    pod["spec"]["containers"] = json!([first, second]);
    ns.apply(&pod.to_string());
    ns.wait_ready("shared");
    let seen = ns.kubectl(&["exec", "shared", "-c", "other", "--", "ps", "-o", "args"]);
    assert!(seen.ok().contains("sleep 86321") && seen.stdout.contains("sleep 86322"), "{seen:?}");
    // Killed by its neighbour, a container is restarted alone.
    let kill = "kill -9 $(ps -o pid,args | grep 'sleep 8632[1]' | awk '{print $1}')";
    ns.kubectl(&["exec", "shared", "-c", "other", "--", "sh", "-c", kill]).ok();
    let count = |pod: &Value, name: &str| {
        let list = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().find(|container| container["name"] == name).and_then(|c| c["restartCount"].as_u64())
    };
    let again = ns.until_pod("shared", PATIENCE, |pod| count(pod, "main") == Some(1));
    assert_eq!(count(&again, "other"), Some(0));
}
