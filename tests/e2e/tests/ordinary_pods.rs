//! What nearly every stock pod carries: environment, volumes, init containers, restarts, controllers.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE};
use serde_json::json;

#[test]
fn environment_from_everywhere() {
    let ns = Namespace::new("env");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: blue, SHAPE: round}}
---
apiVersion: v1
kind: Secret
metadata: {{name: hidden}}
stringData: {{password: "s3cr3t=$HOME"}}
---
apiVersion: v1
kind: Pod
metadata: {{name: env, labels: {{app: shown}}}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'echo "$LITERAL $COLOUR $SHAPE $PASSWORD $NAME $APP $CPUS $DEPENDENT"; pwd']
    args: []
    workingDir: /var
    resources: {{limits: {{cpu: "2", memory: 64Mi}}}}
    envFrom: [{{configMapRef: {{name: settings}}}}]
    env:
    - {{name: LITERAL, value: "it's a \"value\" with $sign"}}
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: hidden, key: password}}}}}}
    - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: APP, valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['app']"}}}}}}
    - {{name: CPUS, valueFrom: {{resourceFieldRef: {{resource: limits.cpu}}}}}}
    - {{name: DEPENDENT, value: "<$(NAME)>$$(NAME)"}}
"#
    ));
    ns.wait_phase("env", "Succeeded");
    let logs = ns.kubectl(&["logs", "env"]);
    let expected = "it's a \"value\" with $sign blue round s3cr3t=$HOME env shown 2 <env>$(NAME)";
    assert_eq!(logs.ok().lines().collect::<Vec<_>>(), [expected, "/var"]);
}

#[test]
fn environment_out_of_files_that_init_containers_write() {
    let ns = Namespace::new("env-files");
    let mut pod = ns.script_pod("reads", "Never", "echo \"$FIRST|$GREETING|${ABSENT-unset}|$0\"");
    let file = |key: &str, optional: bool| json!({"fileKeyRef": {"volumeName": "config", "path": "made/app.env", "key": key, "optional": optional}});
    let main = &mut pod["spec"]["containers"][0];
    main["env"] = json!([
        {"name": "FIRST", "valueFrom": file("ONE", false)},
        {"name": "GREETING", "value": "hello $(FIRST)"},
        {"name": "ABSENT", "valueFrom": file("NONE", true)},
    ]);
    main["args"] = json!(["$(FIRST)!"]);
    let script = "mkdir /config/made && printf \"# note\\nONE='the one'\\n\" > /config/made/app.env";
    pod["spec"]["initContainers"] = json!([{
        "name": "writes", "image": BUSYBOX, "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "config", "mountPath": "/config"}],
    }]);
    pod["spec"]["volumes"] = json!([{"name": "config", "emptyDir": {}}]);
    ns.apply(&pod.to_string());
    ns.wait_phase("reads", "Succeeded");
    let logs = ns.kubectl(&["logs", "reads"]);
    assert_eq!(logs.ok(), "the one|hello the one|unset|the one!");

    pod["metadata"]["name"] = json!("misses");
    pod["spec"]["containers"][0]["env"][2]["valueFrom"] = file("NONE", false);
    ns.apply(&pod.to_string());
    let waits = ns.until_pod("misses", PATIENCE, |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = waits["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(message.contains("env[ABSENT].valueFrom.fileKeyRef") && message.contains("NONE"), "{message}");
}

#[test]
fn volumes_of_every_common_kind() {
    let ns = Namespace::new("volumes");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{a.conf: "x = 1"}}
---
apiVersion: v1
kind: Secret
metadata: {{name: hidden}}
stringData: {{key: s3cr3t}}
---
apiVersion: v1
kind: Pod
metadata: {{name: volumes}}
spec:
  restartPolicy: Never
  initContainers:
  - name: writer
    image: {BUSYBOX}
    command: [sh, -c, "echo from init > /shared/note"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  containers:
  - name: main
    image: {BUSYBOX}
    command:
    - sh
    - -ec
    - |
      cat /shared/note
      cat /etc/settings/a.conf; echo
      cat /etc/hidden/key; echo
      cat /host/hostname; 
      test -s /var/run/secrets/kubernetes.io/serviceaccount/token
      cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo
      touch /etc/settings/new 2>/dev/null && echo "config is writable"
      touch /shared/new && echo done
    volumeMounts:
    - {{name: shared, mountPath: /shared}}
    - {{name: settings, mountPath: /etc/settings}}
    - {{name: hidden, mountPath: /etc/hidden, readOnly: true}}
    - {{name: host, mountPath: /host, readOnly: true}}
  volumes:
  - {{name: shared, emptyDir: {{}}}}
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: hidden, secret: {{secretName: hidden}}}}
  - {{name: host, hostPath: {{path: /proc/sys/kernel, type: Directory}}}}
"#
    ));
    ns.wait_phase("volumes", "Succeeded");
    let logs = ns.kubectl(&["logs", "volumes", "-c", "main"]);
    let mut lines = logs.ok().lines();
    assert_eq!(lines.next(), Some("from init"));
    assert_eq!(lines.next(), Some("x = 1"));
    assert_eq!(lines.next(), Some("s3cr3t"));
    assert_eq!(lines.next(), Some("volumes"), "the pod's host name");
    assert_eq!(lines.next(), Some(ns.name()));
    assert_eq!(lines.next(), Some("done"));
}

#[test]
fn init_containers_run_in_order_then_the_containers() {
    let ns = Namespace::new("init");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: ordered}}
spec:
  restartPolicy: Never
  initContainers:
  - {{name: first, image: {BUSYBOX}, command: [sh, -c, "echo first >> /w/log"], volumeMounts: [{{name: w, mountPath: /w}}]}}
  - {{name: second, image: {BUSYBOX}, command: [sh, -c, "echo second >> /w/log"], volumeMounts: [{{name: w, mountPath: /w}}]}}
  containers:
  - {{name: main, image: {BUSYBOX}, command: [cat, /w/log], volumeMounts: [{{name: w, mountPath: /w}}]}}
  volumes: [{{name: w, emptyDir: {{}}}}]
"#
    ));
    ns.wait_phase("ordered", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "ordered"]).ok(), "first\nsecond");
}

#[test]
fn failed_init_container_fails_a_pod_that_never_restarts() {
    let ns = Namespace::new("initfail");
    let mut pod = ns.script_pod("bad", "Never", "echo must not run");
    pod["spec"]["initContainers"] = json!([{"name": "init", "image": BUSYBOX, "command": ["sh", "-c", "exit 3"]}]);
    ns.apply(&pod.to_string());
    let pod = ns.until_pod("bad", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

#[test]
fn crashing_container_backs_off() {
    let ns = Namespace::new("crash");
    ns.run_script("crash", "Always", "echo crash; exit 5");
    let pod = ns.until_pod("crash", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && status["restartCount"].as_u64() >= Some(2)
    });
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 5);
    assert_eq!(ns.kubectl(&["logs", "crash", "--previous"]).ok(), "crash");
}

#[test]
fn job_runs_to_completion() {
    let ns = Namespace::new("batch");
    ns.apply(&format!(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: sum}}
spec:
  completions: 3
  parallelism: 3
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{{name: main, image: {BUSYBOX}, command: [sh, -c, "echo done"]}}]
"#
    ));
    ns.wait(&["job", "sum"], "--for=condition=Complete");
}

#[test]
fn deployment_rolls_out_and_scales_down() {
    let ns = Namespace::new("deploy");
    ns.apply(&format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: {BUSYBOX}, command: [sleep, "600"]}}]
"#
    ));
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    ns.kubectl(&["scale", "deployment/web", "--replicas=1"]).ok();
    ns.wait(&["deployment", "web"], "--for=jsonpath={.status.replicas}=1");
}
