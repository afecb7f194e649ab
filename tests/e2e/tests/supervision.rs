//! What the supervisor decides on the compute node: probes, hooks, sidecars, back-off, logs.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually};
use serde_json::{Value, json};
use std::time::Duration;

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn container_that_becomes_unhealthy_is_restarted() {
    let ns = Namespace::new("liveness");
    let mut pod = ns.script_pod("sick", "Always", "touch /tmp/ok; sleep 3; rm /tmp/ok; exec sleep 600");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 2, "initialDelaySeconds": 1});
    ns.apply(&pod.to_string());
    ns.until_pod("sick", PATIENCE, |pod| status(pod)["restartCount"] == 1);
    ns.until_event("sick", "Unhealthy", "Liveness probe failed:");
    ns.until_event("sick", "Killing", "Container main failed liveness probe, will be restarted");
}

#[test]
fn readiness_follows_its_probe_and_so_do_the_endpoints() {
    let ns = Namespace::new("readiness");
    let mut pod = ns.script_pod("web", "Always", "mkdir /tmp/www; exec httpd -f -p 8080 -h /tmp/www");
    pod["metadata"]["labels"] = json!({"app": "web"});
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    ns.apply(&pod.to_string());
    ns.kubectl(&["expose", "pod", "web", "--port=80", "--target-port=8080"]).ok();
    ns.until_event("web", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404");
    assert_eq!(status(&ns.get("pod", "web"))["ready"], false);

    ns.kubectl(&["exec", "web", "--", "touch", "/tmp/www/ready"]).ok();
    ns.wait_ready("web");
    let slice = "--for=jsonpath={.endpoints[0].conditions.ready}=true";
    ns.wait(&["endpointslice", "-l", "kubernetes.io/service-name=web"], slice);

    ns.kubectl(&["exec", "web", "--", "rm", "/tmp/www/ready"]).ok();
    ns.wait(&["pod", "web"], "--for=condition=Ready=false");
    assert_eq!(status(&ns.get("pod", "web"))["restartCount"], 0);
}

#[test]
fn startup_probe_gates_the_others() {
    let ns = Namespace::new("startup");
    let mut pod = ns.script_pod("slow", "Always", "sleep 4; touch /tmp/started; exec sleep 600");
    let container = &mut pod["spec"]["containers"][0];
    container["startupProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 30});
    // It would fail at once, were it not for the startup probe.
    container["livenessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1});
    ns.apply(&pod.to_string());
    let running = ns.until_pod("slow", PATIENCE, |pod| pod["status"]["phase"] == "Running");
    assert_eq!((&status(&running)["started"], &status(&running)["ready"]), (&json!(false), &json!(false)));
    let ready = ns.until_pod("slow", PATIENCE, |pod| status(pod)["ready"] == true);
    assert_eq!((&status(&ready)["started"], &status(&ready)["restartCount"]), (&json!(true), &json!(0)));
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about two nodes")]
fn sidecar_starts_before_and_ends_after_the_containers() {
    let ns = Namespace::new("sidecar");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: with-sidecar}}
spec:
  restartPolicy: Never
  initContainers:
  - name: sidecar
    image: {BUSYBOX}
    restartPolicy: Always
    command: [sh, -c, 'echo sidecar up >> /w/log; trap "echo sidecar down >> /w/log; exit 0" TERM; while :; do sleep 0.1; done']
    startupProbe: {{exec: {{command: [grep, up, /w/log]}}, periodSeconds: 1}}
    volumeMounts: [{{name: w, mountPath: /w}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'echo main >> /w/log; sleep 1; echo main done >> /w/log']
    volumeMounts: [{{name: w, mountPath: /w}}]
  volumes: [{{name: w, hostPath: {{path: /tmp/{name}, type: DirectoryOrCreate}}}}]
"#,
        name = ns.name()
    ));
    ns.wait_phase("with-sidecar", "Succeeded");
    let show = ns.shell("cat /tmp/$NS/log 2>/dev/null; true").stdout;
    // The pod ran on a compute node; its /tmp is there.
    let nodes = ["c1", "c2"].map(|node| hpk_e2e::sx(node, None, &["cat", &format!("/tmp/{}/log", ns.name())]).stdout);
    let log = format!("{show}{}", nodes.concat());
    assert_eq!(log.lines().collect::<Vec<_>>(), ["sidecar up", "main", "main done", "sidecar down"]);
}

#[test]
fn pre_stop_hook_runs_within_the_grace_period() {
    let ns = Namespace::new("prestop");
    let mut pod =
        ns.script_pod("hook", "Always", "trap 'echo got TERM; exit 0' TERM; echo up; while :; do sleep 0.1; done");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 1"]}}});
    ns.apply(&pod.to_string());
    ns.wait_ready("hook");
    let log = ns.shell(
        "kubectl -n $NS logs -f hook & sleep 0.5; kubectl -n $NS delete pod hook --timeout=30s >/dev/null; wait %1",
    );
    assert_eq!(log.ok().lines().collect::<Vec<_>>(), ["up", "hook", "got TERM"]);
}

#[test]
fn post_start_hook_that_fails_kills_the_container() {
    let ns = Namespace::new("poststart");
    let mut pod = ns.script_pod("hook", "Never", "exec sleep 600");
    pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["false"]}}});
    ns.apply(&pod.to_string());
    ns.until_event("hook", "FailedPostStartHook", "");
    ns.wait_phase("hook", "Failed");
}

#[test]
fn back_off_grows_by_the_rule() {
    let ns = Namespace::new("backoff");
    ns.run_script("crash", "Always", "date +%s; exit 1");
    // First restart at once, then 10 s and 20 s.
    ns.until_pod("crash", Duration::from_secs(90), |pod| {
        status(pod)["restartCount"] == 3 && status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let list = "ls ~/.hpk/pods/$(kubectl -n $NS get pod crash -o jsonpath={.metadata.uid})/pod/logs/main/*.log | sort -V | xargs cat";
    let log = ns.shell(list);
    let starts: Vec<f64> =
        log.ok().lines().filter_map(|line| line.rsplit(' ').next()).filter_map(|second| second.parse().ok()).collect();
    assert_eq!(starts.len(), 4, "{}", log.stdout);
    for (gap, expected) in starts.windows(2).map(|pair| pair[1] - pair[0]).zip([0.0, 10.0, 20.0]) {
        assert!((gap - expected).abs() <= 2.0, "a gap of {gap} s where the rule says {expected} s: {starts:?}");
    }
    ns.until_event("crash", "BackOff", "Back-off restarting failed container main in pod crash");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about limits that Slurm keeps")]
fn out_of_memory_is_told_from_a_plain_kill() {
    let ns = Namespace::new("oom");
    let mut pod = ns.script_pod("greedy", "Never", "");
    pod["spec"]["containers"][0]["image"] = json!(TOOLBOX);
    pod["spec"]["containers"][0]["command"] = json!(["python3", "-c", "x = bytearray(600 * 1024 * 1024)"]);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "100Mi", "cpu": "1"}});
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("greedy", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let terminated = &status(&pod)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(137), &json!("OOMKilled")));
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about limits that Slurm keeps")]
fn a_process_killed_for_memory_takes_its_container_along_and_no_other() {
    let ns = Namespace::new("oom-child");
    let child = "python3 -c 'x = bytearray(900 << 20)'; exec sleep 600";
    let mut pod = ns.script_pod("parent", "Never", "");
    let of = |name: &str, image: &str, script: &str| json!({"name": name, "image": image, "command": ["sh", "-c", script], "resources": {"limits": {"memory": "100Mi"}}});
    pod["spec"]["containers"] = json!([of("greedy", TOOLBOX, child), of("other", BUSYBOX, "exec sleep 600")]);
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("parent", PATIENCE, |pod| status(pod)["state"]["terminated"].is_object());
    let terminated = &status(&pod)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(137), &json!("OOMKilled")));
    assert!(pod["status"]["containerStatuses"][1]["state"]["running"].is_object(), "{pod}");
    let message = ns.until_event("parent", "OOMKilling", "a process of container greedy");
    assert!(message.contains("limit of 2") && message.contains("resources.limits.memory"), "{message}");
}

#[test]
fn active_deadline_ends_the_pod() {
    let ns = Namespace::new("deadline");
    let mut pod = ns.script_pod("late", "Never", "exec sleep 600");
    pod["spec"]["activeDeadlineSeconds"] = json!(3);
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("late", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

#[test]
fn termination_message_reaches_the_status() {
    let ns = Namespace::new("message");
    ns.run_script("says", "Never", "echo -n the reason > /dev/termination-log; exit 1");
    let pod = ns.until_pod("says", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(status(&pod)["state"]["terminated"]["message"], "the reason");
}

#[test]
fn logs_by_every_option() {
    let ns = Namespace::new("logs");
    ns.run_script("talk", "Always", "for i in 1 2 3 4 5; do echo line $i; done; sleep 3; echo line 6; exec sleep 600");
    eventually("all lines are there", PATIENCE, || {
        ns.kubectl(&["logs", "talk"]).stdout.contains("line 6").then_some(())
    });
    assert_eq!(ns.kubectl(&["logs", "talk", "--tail=2"]).ok(), "line 5\nline 6");
    assert_eq!(ns.kubectl(&["logs", "talk", "--limit-bytes=6"]).ok(), "line 1");
    let stamped = ns.kubectl(&["logs", "talk", "--timestamps", "--tail=1"]);
    let (stamp, rest) = stamped.ok().split_once(' ').expect("a time stamp");
    assert!(stamp.starts_with("20") && stamp.ends_with('Z'), "{stamp}");
    assert_eq!(rest, "line 6");
    let follow = ns.shell("timeout 10 kubectl -n $NS logs -f talk | head -n 6 | tail -n 1");
    assert!(follow.stdout.contains("line 6"), "{follow:?}");
}
