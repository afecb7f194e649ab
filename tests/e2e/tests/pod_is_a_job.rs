//! A pod is one Slurm job: what kubectl says and what Slurm says agree.

use hpk_e2e::{NODE_FOLDER, Namespace, PATIENCE, TOOLBOX, eventually, job_of, kubectl, processes, sacct, sx};
use serde_json::{Value, json};

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn job_carries_the_pods_name_uid_and_requests() {
    let ns = Namespace::new("job");
    let mut pod = ns.script_pod("two-cpus", "Never", "sleep 600");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1500m", "memory": "100Mi"}});
    ns.apply(&pod.to_string());
    ns.wait_phase("two-cpus", "Running");

    let job = job_of(ns.name(), "two-cpus").expect("a job in squeue named <namespace>/<pod>");
    let uid = ns.get("pod", "two-cpus")["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(job.state, "RUNNING");
    assert!(job.comment.contains(&uid), "the comment {:?} holds the UID {uid}", job.comment);
    assert_eq!(job.cpus, "2", "1500m are rounded up to two CPUs");
    assert_eq!(job.memory, "164M", "with 64 MiB for the supervisor and the page cache");
    let told = &ns.get("pod", "two-cpus")["metadata"]["annotations"]["slurm-job.hpk.io/requested"];
    assert_eq!(told, "--nodes=1 --ntasks=1 --cpus-per-task=2 --mem=164M");
    ns.until_event("two-cpus", "SlurmSubmitted", "--mem=164M");

    ns.delete("pod", "two-cpus");
    assert_eq!(job_of(ns.name(), "two-cpus"), None, "the object goes only after the job");
}

/// Slurm does not resize a running job, so nothing may say that it did.
#[test]
fn a_resize_of_a_running_pod_is_told_infeasible() {
    let ns = Namespace::new("resize");
    ns.apply(&ns.script_pod("p", "Never", "sleep 600").to_string());
    ns.wait_ready("p");
    let resize = |cpu: &str| {
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]}});
        ns.kubectl(&["patch", "pod", "p", "--subresource", "resize", "-p", &patch.to_string()]).ok();
    };
    let pending = |pod: &Value| {
        pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible")
    };
    resize("2");
    let told = ns.until_pod("p", PATIENCE, pending);
    assert_eq!(told["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "1");
    ns.until_event("p", "ResizeInfeasible", "a pod keeps the size that it was submitted with");
    resize("1");
    ns.until_pod("p", PATIENCE, |pod| !pending(pod));
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn accounting_shows_the_pod_after_its_end() {
    let ns = Namespace::new("sacct");
    ns.run_script("short", "Never", "exit 0");
    ns.wait_phase("short", "Succeeded");
    let uid = ns.get("pod", "short")["metadata"]["uid"].as_str().unwrap().to_owned();
    // The accounting daemon learns of the end a moment after the queue.
    let job = eventually("sacct has the completed job", PATIENCE, || {
        sacct(ns.name(), "short").into_iter().find(|job| job.state == "COMPLETED")
    });
    assert!(job.comment.contains(&uid), "{job:?}");
}

#[test]
fn exit_code_and_logs_stay_after_the_end() {
    let ns = Namespace::new("exit");
    ns.run_script("seven", "Never", "echo out; echo err >&2; exit 7");
    ns.wait_phase("seven", "Failed");
    let terminated = &ns.get("pod", "seven")["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(7), &json!("Error")));
    let logs = ns.kubectl(&["logs", "seven"]);
    let mut lines: Vec<&str> = logs.ok().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out"]);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn hpk_pause_is_pid_1_of_the_jobs_parent_container() {
    let ns = Namespace::new("pid1");
    // Kubernetes takes "$$" in a command for one "$".
    ns.run_script("one", "Never", "echo I am $$$$; sleep 600");
    ns.wait_ready("one");
    let job = job_of(ns.name(), "one").expect("the job");

    // scontrol on the node knows every process of the job.
    let pids = sx(&job.node, None, &["scontrol", "listpids", &job.id]);
    let mut supervisors = Vec::new();
    for pid in pids.ok().lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        let status = sx(&job.node, None, &["cat", &format!("/proc/{pid}/status")]).stdout;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
        };
        if field("Name:") == "hpk-pause" {
            supervisors.push(field("NSpid:"));
        }
    }
    assert_eq!(supervisors.len(), 1, "one hpk-pause in the job: {supervisors:?}");
    assert_eq!(supervisors[0].split_whitespace().last(), Some("1"), "NSpid {supervisors:?}");
    assert_eq!(ns.kubectl(&["logs", "one"]).ok(), "I am 1", "each container has a PID namespace of its own");
}

#[test]
fn containers_of_a_pod_share_localhost_and_ipc() {
    let ns = Namespace::new("share");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: pair}}
spec:
  restartPolicy: Never
  containers:
  - name: server
    image: {TOOLBOX}
    command: [bash, -c, "readlink /proc/self/ns/ipc; exec python3 -m http.server 8080 --bind 127.0.0.1"]
  - name: client
    image: {TOOLBOX}
    command: [bash, -c, "readlink /proc/self/ns/ipc; until curl -sf -o /dev/null http://localhost:8080/; do sleep 0.1; done; echo reached; sleep 600"]
"#
    ));
    ns.wait_ready("pair");
    let client = eventually("the client reaches the server over localhost", PATIENCE, || {
        let logs = ns.kubectl(&["logs", "pair", "-c", "client"]);
        logs.stdout.contains("reached").then_some(logs.stdout)
    });
    let server = ns.kubectl(&["logs", "pair", "-c", "server"]);
    assert_eq!(server.ok().lines().next(), client.lines().next(), "one IPC namespace");
}

#[test]
fn process_that_ignores_sigterm_goes_after_its_grace_period() {
    let ns = Namespace::new("stubborn");
    let mark = format!("7{}", std::process::id());
    ns.run_script("stubborn", "Never", &format!("trap '' TERM; echo up; while :; do sleep {mark}; done"));
    ns.wait_ready("stubborn");
    eventually("the trap is set", PATIENCE, || ns.kubectl(&["logs", "stubborn"]).stdout.contains("up").then_some(()));
    let node = job_of(ns.name(), "stubborn").expect("the job").node;
    assert!(!processes(&node, &mark).is_empty());

    let start = std::time::Instant::now();
    ns.kubectl(&["delete", "pod", "stubborn", "--grace-period=3", "--timeout=30s"]).ok();
    let took = start.elapsed().as_secs_f32();
    assert!((2.9..13.0).contains(&took), "gone after its 3 s of grace, not {took} s");
    assert_eq!(job_of(ns.name(), "stubborn"), None);
    assert_eq!(processes(&node, &mark), Vec::<String>::new(), "no process is left");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn every_pod_on_the_node_has_its_job() {
    let ns = Namespace::new("agree");
    for pod in ["a", "b", "c"] {
        ns.run_script(pod, "Never", "sleep 600");
    }
    for pod in ["a", "b", "c"] {
        ns.wait_phase(pod, "Running");
    }
    let running = kubectl(&["get", "pods", "-n", ns.name(), "--field-selector=status.phase=Running", "-o", "name"]);
    let jobs = hpk_e2e::jobs().into_iter().filter(|job| job.name.starts_with(&format!("{}/", ns.name()))).count();
    assert_eq!(running.ok().lines().count(), jobs);
}

/// Whether the node has the socket by which a pod's neighbours send to it.
fn has_socket(node: &str, pod: &serde_json::Value) -> bool {
    let name = format!("{}.dp", pod["status"]["podIP"].as_str().unwrap_or("no address"));
    sx(node, None, &["find", NODE_FOLDER, "-name", &name]).stdout.contains(&name)
}

#[test]
fn an_ended_pod_leaves_no_socket_on_its_node() {
    let ns = Namespace::new("no-socket");
    ns.run_script("pod", "Never", "mkfifo /end; read end < /end");
    ns.wait_ready("pod");
    let pod = ns.get("pod", "pod");
    let node = job_of(ns.name(), "pod").expect("the job").node;
    assert!(has_socket(&node, &pod));
    // With its first process the container ends, and who wrote with it: how that ended says nothing.
    ns.kubectl(&["exec", "pod", "--", "sh", "-c", "echo > /end"]);
    ns.wait_phase("pod", "Succeeded");
    eventually("its socket is gone", PATIENCE, || (!has_socket(&node, &pod)).then_some(()));
}

/// The job's end is a clean node, also when the process that runs the pod was killed.
#[test]
fn nothing_of_a_pod_stays_on_its_node_when_hpk_netns_is_killed() {
    let ns = Namespace::new("netns-killed");
    ns.run_script("pod", "Never", "touch /written; sleep 600 & exec sleep 600");
    ns.wait_ready("pod");
    let alive = ns.get("pod", "pod");
    let uid = alive["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let node = job_of(ns.name(), "pod").expect("the job").node;
    let folder = format!("{NODE_FOLDER}/{uid}");
    sx(&node, Some("alice"), &["test", "-d", &folder]).ok();
    assert!(has_socket(&node, &alive));
    let worker = hpk_e2e::processes(&node, "hpk-netns work").into_iter().find(|line| line.contains(&uid));
    let pid =
        worker.as_deref().and_then(|line| line.split_whitespace().next()).expect("the pod's hpk-netns").to_owned();
    sx(&node, Some("alice"), &["kill", "-KILL", &pid]).ok();
    let pod = ns.until_pod("pod", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let message = pod["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("hpk-netns was ended by SIGKILL"), "{message}");
    assert_eq!(job_of(ns.name(), "pod"), None, "the job is over");
    assert_ne!(sx(&node, None, &["test", "-e", &folder]).code, Some(0), "{folder} on {node}");
    assert!(!has_socket(&node, &alive), "its datapath's socket");
    assert_eq!(hpk_e2e::processes(&node, &uid), Vec::<String>::new());
}
