//! Restart rules, probes by name, hooks and ends of containers, as kubectl shows them.

use hpk_e2e::{Namespace, PATIENCE, TOOLBOX};
use serde_json::{Value, json};
use std::time::Duration;

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// A pod of [`Namespace::script_pod`] with an emptyDir at /w, which outlives the container's restarts.
fn with_memory(ns: &Namespace, pod: &str, restart: &str, script: &str) -> Value {
    let mut pod = ns.script_pod(pod, restart, script);
    pod["spec"]["volumes"] = json!([{"name": "w", "emptyDir": {}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "w", "mountPath": "/w"}]);
    pod
}

/// How often an event of this reason and text was told about a pod.
fn times(ns: &Namespace, pod: &str, reason: &str, text: &str) -> u64 {
    let field = format!("involvedObject.name={pod},reason={reason}");
    let run = ns.kubectl(&["get", "events", "--field-selector", &field, "-o", "json"]);
    let list: Value = serde_json::from_str(run.ok()).unwrap_or_default();
    let of = |event: &Value| event["message"].as_str().unwrap_or_default().contains(text);
    let counts = list["items"].as_array().into_iter().flatten().filter(|e| of(e));
    counts.map(|event| event["count"].as_u64().unwrap_or(1)).sum()
}

#[test]
fn liveness_is_told_and_counted() {
    let ns = Namespace::new("counted");
    let script =
        "touch /tmp/ok; [ -e /w/again ] && exec sleep 600; touch /w/again; sleep 3; rm /tmp/ok; exec sleep 600";
    let mut pod = with_memory(&ns, "sick", "Always", script);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["cat", "/tmp/ok"]},
        "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3, "initialDelaySeconds": 2});
    ns.apply(&pod.to_string());
    let again = ns.until_pod("sick", PATIENCE, |pod| {
        status(pod)["restartCount"] == 1 && status(pod)["state"]["running"].is_object()
    });
    assert_eq!(status(&again)["lastState"]["terminated"]["exitCode"], 137, "sleep as PID 1 does not hear TERM");
    ns.until_event("sick", "Killing", "Container main failed liveness probe, will be restarted");
    // As many as the threshold, and one kill: neither repeated nor dropped on the way to the API.
    assert_eq!(times(&ns, "sick", "Unhealthy", "Liveness probe failed: cat: can't open '/tmp/ok'"), 3);
    assert_eq!(times(&ns, "sick", "Killing", "failed liveness probe"), 1);
    assert_eq!((times(&ns, "sick", "Created", ""), times(&ns, "sick", "Started", "")), (2, 2));
}

#[test]
fn limits_are_seen_where_programs_look_and_files_of_proc_can_be_mounted_over() {
    let ns = Namespace::new("seen");
    ns.kubectl(&["create", "configmap", "told", "--from-literal=cpuinfo=told by a file"]).ok();
    let limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let quota = "cut -d' ' -f1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let write = "echo 1 2>/dev/null > /sys/fs/cgroup/memory/memory.limit_in_bytes || echo refused";
    let mut pod = ns.script_pod("looks", "Never", &format!("{limit}; {quota}; {write}; cat /proc/cpuinfo"));
    let one = &mut pod["spec"]["containers"][0];
    one["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    one["volumeMounts"] = json!([{"name": "told", "mountPath": "/proc/cpuinfo", "subPath": "cpuinfo"}]);
    pod["spec"]["volumes"] = json!([{"name": "told", "configMap": {"name": "told"}}]);
    // Another container must not widen what the first one sees.
    let other = json!({"name": "other", "image": hpk_e2e::BUSYBOX, "command": ["true"],
        "resources": {"limits": {"memory": "128Mi"}}});
    pod["spec"]["containers"].as_array_mut().expect("containers").push(other);
    ns.apply(&pod.to_string());
    ns.wait_phase("looks", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "looks", "-c", "main"]).ok().trim(), "67108864\n50000\nrefused\ntold by a file");
}

#[test]
fn probes_over_the_network_by_named_ports() {
    let ns = Namespace::new("named");
    let mut pod =
        ns.script_pod("web", "Always", "mkdir /w; echo fine > /w/index.html; sleep 1; exec httpd -f -p 8080 -h /w");
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    container["startupProbe"] = json!({"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 30});
    container["readinessProbe"] = json!({"httpGet": {"port": "web", "path": "/index.html",
        "httpHeaders": [{"name": "X-Asked-By", "value": "probe"}]}, "periodSeconds": 1});
    ns.apply(&pod.to_string());
    ns.wait_ready("web");
    assert_eq!(status(&ns.get("pod", "web"))["restartCount"], 0);
    ns.until_event("web", "Unhealthy", "connection refused");
}

#[test]
fn exec_probe_that_takes_too_long_is_a_failure() {
    let ns = Namespace::new("slowprobe");
    let mut pod = ns.script_pod("slow", "Always", "exec sleep 600");
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["sleep", "30"]}, "periodSeconds": 1, "timeoutSeconds": 1});
    ns.apply(&pod.to_string());
    ns.until_event("slow", "Unhealthy", "command timed out: \"sleep 30\" timed out after 1s");
    let left = ns.kubectl(&["exec", "slow", "--", "ps"]);
    assert!(left.ok().matches("sleep 30").count() <= 1, "only the run under way is left: {}", left.stdout);
}

#[test]
fn rules_restart_a_container_by_its_exit_code() {
    let ns = Namespace::new("rules");
    let script = "echo run >> /w/runs; [ $(wc -l < /w/runs) -gt 1 ] && exit 7; exit 42";
    let mut pod = with_memory(&ns, "ruled", "Never", script);
    let container = &mut pod["spec"]["containers"][0];
    container["restartPolicy"] = json!("Never");
    container["restartPolicyRules"] = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    ns.apply(&pod.to_string());
    let end = ns.until_pod("ruled", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(status(&end)["restartCount"], 1, "42 is restarted, 7 is not");
    assert_eq!(status(&end)["state"]["terminated"]["exitCode"], 7);
    assert_eq!(status(&end)["lastState"]["terminated"]["exitCode"], 42);
}

#[test]
fn command_that_does_not_exist_is_a_start_error() {
    let ns = Namespace::new("nocommand");
    let mut pod = ns.script_pod("typo", "Never", "");
    pod["spec"]["containers"][0]["command"] = json!(["no-such-command"]);
    ns.apply(&pod.to_string());
    let end = ns.until_pod("typo", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let terminated = &status(&end)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(128), &json!("StartError")));
    ns.until_event("typo", "Failed", "exec: \"no-such-command\": executable file not found in $PATH");
}

/// Deleted the moment it runs: it is the supervisor that ends it, however little Slurm's queue knows of it yet.
#[test]
fn pod_deleted_as_it_starts_ends_in_order() {
    let ns = Namespace::new("early");
    let mut pod = ns.script_pod("early", "Always", "exec sleep 600");
    pod["metadata"]["finalizers"] = json!(["hpk.example/watch"]);
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 4}}});
    ns.apply(&pod.to_string());
    ns.wait_ready("early");
    ns.kubectl(&["delete", "pod", "early", "--grace-period=20", "--wait=false"]).ok();
    let end = ns.until_pod("early", PATIENCE, |pod| status(pod)["state"]["terminated"].is_object());
    ns.kubectl(&["patch", "pod", "early", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).ok();
    let terminated = &status(&end)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(137), &json!("Error")), "{terminated}");
    // The hook's 4 s, then TERM, which sleep does not hear, and KILL at the end of the 20 s.
    let seconds = |field: &str| {
        let run = ns.shell(&format!("date -d {} +%s", terminated[field].as_str().unwrap_or("?")));
        run.ok().parse::<i64>().expect("seconds")
    };
    let took = seconds("finishedAt") - seconds("startedAt");
    assert!((19..30).contains(&took), "{took} s");
    ns.wait(&["pod", "early"], "--for=delete");
}

#[test]
fn http_hooks_are_called() {
    let ns = Namespace::new("httphook");
    let mut pod =
        with_memory(&ns, "hooked", "Always", "trap 'cat /w/called; exit 0' TERM; while :; do sleep 0.1; done");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
    // Whatever the server answers: only the request counts.
    let server = "
import http.server
class Hook(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, self.headers['User-Agent'], file=open('/w/called', 'a'))
        self.send_error(500)
http.server.HTTPServer(('', 8080), Hook).serve_forever()";
    pod["spec"]["initContainers"] = json!([{"name": "listener", "image": TOOLBOX, "restartPolicy": "Always",
        "command": ["python3", "-c", server], "volumeMounts": [{"name": "w", "mountPath": "/w"}],
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60}}]);
    pod["spec"]["containers"][0]["lifecycle"] = json!({
        "postStart": {"httpGet": {"port": 8080, "path": "/started"}},
        "preStop": {"httpGet": {"port": 8080, "path": "/stopping"}}});
    ns.apply(&pod.to_string());
    ns.wait_ready("hooked");
    let log = ns.shell(
        "kubectl -n $NS logs -f hooked -c main & sleep 0.5; kubectl -n $NS delete pod hooked --timeout=60s >/dev/null; wait %1",
    );
    let lines: Vec<&str> = log.ok().lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("/started kube-lifecycle/1.") && lines[1].starts_with("/stopping "), "{lines:?}");
}

#[test]
#[ignore = "takes six minutes: make long"]
fn crash_loop_keeps_to_the_rule_within_a_second() {
    let ns = Namespace::new("crashloop");
    // Seconds since the node's start, in hundredths: when each instance began.
    let script = "cut -d' ' -f1 /proc/uptime >> /w/starts; cat /w/starts; exit 1";
    ns.apply(&with_memory(&ns, "crash", "Always", script).to_string());
    let last = ns.until_pod("crash", Duration::from_secs(500), |pod| {
        status(pod)["restartCount"] == 6 && status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let message = status(&last)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.starts_with("back-off 5m0s restarting failed container=main pod=crash_"), "{message}");
    let log = ns.kubectl(&["logs", "crash"]);
    let starts: Vec<f64> = log.ok().lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(starts.len(), 7, "{}", log.stdout);
    let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("gaps between starts: {gaps:.2?} s");
    for (gap, rule) in gaps.iter().zip([0.0, 10.0, 20.0, 40.0, 80.0, 160.0]) {
        assert!((gap - rule).abs() <= 1.0, "a gap of {gap} s where the rule says {rule} s: {gaps:?}");
    }
}
