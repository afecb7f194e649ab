//! The kubelet is killed while pods run and finish. A test program of its own, whose cases take turns: cargo
//! runs it alone, so nothing else depends on the kubelet meanwhile.
#![allow(clippy::expect_used, reason = "a failed helper is a failed case")]

use hpk_e2e::{HPK_HOME, Namespace, PATIENCE, eventually, job_of, sacct, sx};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Held by the case that may hurt the kubelet.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals the kubelet; one that was killed a moment ago is waited for.
fn signal_kubelet(signal: &str) {
    let pkill = ["pkill", signal, "-x", "hpk-kubelet"];
    eventually("the kubelet runs", PATIENCE, || (sx("login", Some("alice"), &pkill).code == Some(0)).then_some(()));
}

#[test]
fn kubelet_killed_while_pods_run_and_finish() {
    let _turn = turn();
    let ns = Namespace::new("kill");
    ns.run_script("lives", "Always", "sleep 600");
    ns.run_script("good", "Never", "sleep 3; exit 0");
    ns.run_script("bad", "Never", "sleep 3; echo last words; exit 42");
    for pod in ["lives", "good", "bad"] {
        ns.wait_phase(pod, "Running");
    }
    let before = job_of(ns.name(), "lives").expect("the job");

    // Stopped, so that it sees nothing of the ends; then killed. `hpk up` keeps it running: it comes back.
    signal_kubelet("-STOP");
    for pod in ["good", "bad"] {
        eventually("the job ends without the kubelet", PATIENCE, || job_of(ns.name(), pod).is_none().then_some(()));
    }
    signal_kubelet("-KILL");

    ns.wait_phase("good", "Succeeded");
    let bad = ns.until_pod("bad", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(bad["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], json!(42));
    assert_eq!(ns.kubectl(&["logs", "bad"]).ok(), "last words");
    let lives = ns.get("pod", "lives");
    assert_eq!(lives["status"]["containerStatuses"][0]["restartCount"], json!(0));
    assert_eq!(job_of(ns.name(), "lives").map(|job| job.id), Some(before.id), "the same job goes on");
    for pod in ["lives", "good", "bad"] {
        assert_eq!(sacct(ns.name(), pod).len(), 1, "{pod} was submitted once");
    }
}

/// The ranks are the supervisor's and Slurm's: they go on, and how they ended is known afterwards.
#[test]
fn kubelet_killed_while_an_mpi_step_runs_and_ends() {
    let _turn = turn();
    let ns = Namespace::new("kill-step");
    let text = "echo rank $SLURM_PROCID; sleep 3; [ $SLURM_PROCID != 3 ] || exit 9; sleep 600";
    ns.apply(&hpk_e2e::four_ranks("step", text).to_string());
    ns.apply(&hpk_e2e::four_ranks("lives", "exec sleep 600").to_string());
    ns.wait_phase("lives", "Running");
    ns.wait_phase("step", "Running");
    signal_kubelet("-STOP");
    eventually("the job ends without the kubelet", PATIENCE, || job_of(ns.name(), "step").is_none().then_some(()));
    signal_kubelet("-KILL");
    let end = ns.until_pod("step", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let end = &end["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["message"]), (&json!(9), &json!("rank 3 on c2 exited with code 9")), "{end}");
    assert_eq!(ns.kubectl(&["logs", "step"]).ok().lines().filter(|line| line.starts_with("rank ")).count(), 4);
    // The kubelet has just begun, and its links come up one by one.
    eventually("a session beside a rank", PATIENCE, || {
        let run = ns.kubectl(&["exec", "lives", "--", "rank:2", "hostname"]);
        (run.stdout.trim() == "c2").then_some(())
    });
    assert_eq!(ns.get("pod", "lives")["status"]["containerStatuses"][0]["restartCount"], json!(0));
}

#[test]
fn pods_created_and_deleted_while_the_kubelet_is_away() {
    let _turn = turn();
    let ns = Namespace::new("away");
    ns.run_script("old", "Always", "sleep 600");
    ns.wait_phase("old", "Running");
    signal_kubelet("-STOP");
    ns.run_script("new", "Never", "exit 0");
    ns.kubectl(&["delete", "pod", "old", "--wait=false"]).ok();
    signal_kubelet("-KILL");
    ns.wait_phase("new", "Succeeded");
    ns.wait(&["pod", "old"], "--for=delete");
    assert_eq!(job_of(ns.name(), "old"), None);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_job_requeued_while_the_kubelet_is_away_is_the_same_pod() {
    let _turn = turn();
    let ns = Namespace::new("requeued-away");
    let mut pod = ns.script_pod("pod", "Never", "exec sleep 600");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--requeue"});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    ns.apply(&pod.to_string());
    ns.wait_ready("pod");
    let job = job_of(ns.name(), "pod").expect("the job");
    let uid = ns.get("pod", "pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    signal_kubelet("-STOP");
    sx("login", Some("alice"), &["scontrol", "requeue", &job.id]).ok();
    eventually("its first run is gone from its node", PATIENCE, || {
        hpk_e2e::processes(&job.node, &uid).is_empty().then_some(())
    });
    signal_kubelet("-KILL");
    ns.until_event("pod", "SlurmRequeued", &job.id);
    ns.wait_phase("pod", "Pending");
    let now = ["scontrol", "update", &format!("jobid={}", job.id), "starttime=now"];
    eventually("it runs again", PATIENCE, || {
        sx("login", Some("alice"), &now);
        job_of(ns.name(), "pod").filter(|j| j.state == "RUNNING").map(drop)
    });
    ns.until_pod("pod", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true && pod["status"]["phase"] == "Running"
    });
}

/// A shared file system that does not answer is no empty one, and a damaged file is no missing one: the jobs are there, and
/// are the pods'. A job of ours that no pod has ends.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_kubelet_that_cannot_read_its_records_begins_nothing_twice() {
    let _turn = turn();
    let ns = Namespace::new("records");
    for pod in ["hidden", "damaged"] {
        ns.run_script(pod, "Always", "exec sleep 600");
    }
    let jobs = ["hidden", "damaged"].map(|pod| {
        ns.wait_ready(pod);
        job_of(ns.name(), pod).expect("a job").id
    });
    let as_alice = |script: &str| sx("login", Some("alice"), &["sh", "-c", script]);
    let uid = ns.get("pod", "damaged")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    signal_kubelet("-STOP");
    as_alice(&format!("echo '{{' > ~/.hpk/pods/{uid}/kubelet.json")).ok();
    let folder = format!("{HPK_HOME}/pods");
    let stray = "00000000-0000-4000-8000-000000000000";
    let nobodys = format!(
        "sbatch --parsable --chdir={folder}/{stray} --comment={stray} --output=/dev/null --mem=16M --wrap='sleep 600'"
    );
    let nobodys = as_alice(&nobodys).ok().to_owned();
    as_alice(&format!("chmod 000 {folder}")).ok();
    signal_kubelet("-KILL");
    let said = eventually("the kubelet says why it does not begin", PATIENCE, || {
        let text = as_alice("cat ~/.hpk/log/*kubelet*.log | tail -n 50").stdout;
        text.contains("it cannot be told which pods have jobs").then_some(text)
    });
    as_alice(&format!("chmod 700 {folder}")).ok();
    assert!(said.contains(&folder), "{said}");
    ns.until_event("damaged", "DamagedRecord", "kubelet.json is damaged");
    eventually("the job that no pod has is gone", PATIENCE, || {
        hpk_e2e::jobs().iter().all(|job| job.id != nobodys || job.state == "COMPLETING").then_some(())
    });
    // What the kubelet does for a new pod it would have done for these.
    ns.run_script("next", "Never", "true");
    ns.wait_phase("next", "Succeeded");
    for (pod, job) in ["hidden", "damaged"].into_iter().zip(&jobs) {
        ns.wait_ready(pod);
        let all: Vec<_> = sacct(ns.name(), pod).into_iter().map(|job| job.id).collect();
        assert_eq!(&all, std::slice::from_ref(job), "{pod}");
        assert_eq!(ns.kubectl(&["exec", pod, "--", "echo", "hi"]).ok(), "hi");
    }
}

/// As a node that is cut off: its pods are not ready, for as long as that lasts, and go on.
#[test]
#[ignore = "a pod is silent for 40 s before it is not ready: make long"]
fn pods_of_a_node_that_is_cut_off_are_not_ready() {
    let _turn = turn();
    let ns = Namespace::new("silent");
    ns.run_script("pod", "Always", "exec sleep 600");
    ns.wait_ready("pod");
    let unreachable = Unreachable::make();
    let ready = |pod: &Value| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "Ready").expect("the condition")
    };
    // Links that stand are cut by their next packet.
    let silent = ns.until_pod("pod", Duration::from_secs(120), |pod| ready(pod)["status"] == "False");
    assert_eq!(ready(&silent)["reason"], "NodeNotReady", "{silent}");
    assert_eq!(silent["status"]["phase"], "Running");
    ns.until_event("pod", "NodeNotReady", "Node is not ready");
    drop(unreachable);
    let back = ns.until_pod("pod", Duration::from_secs(30), |pod| ready(pod)["status"] == "True");
    assert_eq!(back["status"]["containerStatuses"][0]["restartCount"], 0);
}

/// Everything about a pod is decided on its node: two minutes without a control plane are nothing to it.
#[test]
#[ignore = "takes the control plane away for two minutes: make long"]
fn pods_live_on_without_kubelet_and_api_server() {
    let _turn = turn();
    let ns = Namespace::new("alone");
    ns.run_script("crash", "Always", "echo boom; sleep 1; exit 1");
    let mut sick = ns.script_pod("sick", "Always", "touch /tmp/ok; sleep 30; rm /tmp/ok; exec sleep 600");
    sick["spec"]["terminationGracePeriodSeconds"] = json!(1);
    sick["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 2, "failureThreshold": 2});
    ns.apply(&sick.to_string());
    let mut tired = ns.script_pod("tired", "Always", "touch /tmp/ok; sleep 60; rm /tmp/ok; exec sleep 600");
    tired["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 2, "failureThreshold": 1});
    ns.apply(&tired.to_string());
    ns.wait_ready("sick");
    ns.wait_ready("tired");
    ns.until_pod("crash", PATIENCE, |pod| restarts(pod) >= 1);
    let folder = |pod: &str| format!("{HPK_HOME}/pods/{}", ns.get("pod", pod)["metadata"]["uid"].as_str().unwrap());
    let folders = ["crash", "sick", "tired"].map(|pod| (pod, folder(pod)));
    let before = restarts(&ns.get("pod", "crash"));

    // Their keeper stops first, so that nobody starts them again.
    let signal = |signal: &str, program: &str| sx("login", Some("alice"), &["pkill", signal, "-x", program]);
    signal("-STOP", "hpk").ok();
    signal("-KILL", "hpk-kubelet").ok();
    signal("-KILL", "kube-apiserver").ok();
    std::thread::sleep(Duration::from_secs(120));
    let gone = hpk_e2e::kubectl(&["get", "--raw", "/readyz"]);
    let truth = folders.map(|(pod, folder)| {
        let text = sx("login", Some("alice"), &["cat", &format!("{folder}/pod/status.json")]).stdout;
        (pod, serde_json::from_str::<Value>(&text).expect("status.json"))
    });
    signal("-CONT", "hpk").ok();
    gone.err();

    eventually("the API server is back", PATIENCE, || {
        (hpk_e2e::kubectl(&["get", "--raw", "/readyz"]).code == Some(0)).then_some(())
    });
    for (pod, state) in truth {
        let count = state["containers"][0]["restart_count"].as_u64().expect("a count");
        println!("{pod}: {count} restarts before the control plane came back");
        let now = ns.until_pod(pod, PATIENCE, |pod| restarts(pod) >= count);
        // A crash may have come in between, more have not: the next is 80 s away.
        assert!(restarts(&now) <= count + 1, "{pod}: {} restarts, not {count}", restarts(&now));
        match pod {
            "crash" => assert!(count >= before + 2, "it was restarted meanwhile: {before} then {count}"),
            "sick" => assert!(count >= 2, "probed and restarted meanwhile: {count}"),
            _ => {
                assert_eq!(count, 0);
                ns.wait(&["pod", "tired"], "--for=condition=Ready=false");
            }
        }
    }
    ns.until_event("sick", "Killing", "failed liveness probe, will be restarted");
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

/// `hpk status -o json` says that everything serves.
fn all_serve() -> Option<()> {
    (sx("login", Some("alice"), &["hpk", "status", "-o", "json"]).code == Some(0)).then_some(())
}

/// How often a component was started again.
fn component_restarts(component: &str) -> u64 {
    let status = sx("login", Some("alice"), &["hpk", "status", "-o", "json"]).stdout;
    let status: Value = serde_json::from_str(&status).unwrap_or_default();
    let all = status["components"].as_array().cloned().unwrap_or_default();
    all.iter().find(|c| c["name"] == component).and_then(|c| c["restarts"].as_u64()).unwrap_or_default()
}

/// Kills a program of alice's control plane; the path of its keys tells it from anyone else's.
fn kill_component(program: &str) {
    let pattern = format!("^/bin/{program} .*{HPK_HOME}/");
    sx("login", Some("alice"), &["pkill", "-KILL", "-u", "alice", "-f", &pattern]).ok();
}

#[test]
fn etcd_and_the_api_server_killed_while_pods_run() {
    let _turn = turn();
    let ns = Namespace::new("cpkill");
    ns.run_script("lives", "Always", "sleep 600");
    ns.run_script("ends", "Never", "sleep 4; exit 3");
    ns.wait_ready("lives");
    let before = job_of(ns.name(), "lives").expect("the job");
    for program in ["etcd", "kube-apiserver", "kube-controller-manager", "coredns"] {
        kill_component(program);
        eventually("the control plane serves again", PATIENCE, all_serve);
    }
    let ends = ns.until_pod("ends", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(ends["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], json!(3));
    let lives = ns.get("pod", "lives");
    assert_eq!(lives["status"]["containerStatuses"][0]["restartCount"], json!(0));
    assert_eq!(job_of(ns.name(), "lives").map(|job| job.id), Some(before.id));
    ns.run_script("after", "Never", "exit 0");
    ns.wait_phase("after", "Succeeded");
}

/// Tries a port of the login node for so many seconds, by TCP and UDP, in every way that the kernel offers.
const GRAB: &str = r"
import socket, sys, time
end = time.time() + float(sys.argv[1])
got = set()
while time.time() < end:
    for port in sys.argv[2:]:
        for address in ('10.77.0.1', '0.0.0.0'):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    s = socket.socket(socket.AF_INET, kind)
                    if option: s.setsockopt(socket.SOL_SOCKET, option, 1)
                    try:
                        s.bind((address, int(port)))
                        got.add(port)
                    except OSError:
                        pass
                    s.close()
print(*sorted(got), flush=True)
";

/// A node port is the Service's while the member, which serves it, is started again.
#[test]
fn a_node_port_is_nobody_elses_while_the_member_is_started_again() {
    let _turn = turn();
    let ns = Namespace::new("memberkill");
    let ports: Vec<Value> = ["TCP", "UDP"]
        .iter()
        .map(|p| json!({"name": p.to_lowercase(), "protocol": p, "port": 53, "nodePort": 31_753}))
        .collect();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "both"},
        "spec": {"type": "NodePort", "selector": {"app": "nobody"}, "ports": ports}});
    ns.apply(&service.to_string());
    let programs = |kind: &str| {
        let run = sx("login", None, &["ss", "-Hanp", kind, "sport", "=", ":31753"]);
        ["hpk-netns", "hpk-kubelet"].iter().all(|program| run.stdout.contains(program))
    };
    // Sockets that are bound and no more are not listed for TCP.
    eventually("both hold the port", PATIENCE, || programs("-u").then_some(()));
    let grabber = std::thread::spawn(|| {
        // The second one is free, so that the attacker is seen to work.
        sx("login", Some("bob"), &["python3", "-c", GRAB, "12", "31753", "31754"]).ok().to_owned()
    });
    for _ in 0..2 {
        let pattern = format!("^[^ ]*hpk-netns member {HPK_HOME}");
        sx("login", Some("alice"), &["pkill", "-KILL", "-u", "alice", "-f", &pattern]).ok();
        eventually("the control plane serves again", PATIENCE, all_serve);
    }
    assert_eq!(grabber.join().expect("it ends").trim(), "31754");
    eventually("both hold the port again", PATIENCE, || programs("-u").then_some(()));
}

/// Who asks while CoreDNS is started again waits for that, or for the resolver's second question, and is answered.
#[test]
fn lookups_while_coredns_is_started_again_are_answered() {
    let _turn = turn();
    let ns = Namespace::new("dnskill");
    // One lookup after the other, each told with its time in milliseconds.
    let script = r#"
        while [ ! -e /tmp/stop ]; do
            a=$(date +%s%N)
            getent ahostsv4 kubernetes.default.svc.cluster.local >/dev/null && r=ok || r=lost
            b=$(date +%s%N)
            echo "$r $(( (b - a) / 1000000 ))"
            sleep 0.05
        done"#;
    let mut pod = ns.script_pod("asks", "Never", script);
    pod["spec"]["containers"][0]["image"] = json!(hpk_e2e::TOOLBOX);
    pod["spec"]["containers"][0]["command"][0] = json!("bash");
    ns.apply(&pod.to_string());
    ns.wait_ready("asks");
    let answered = || ns.kubectl(&["logs", "asks"]).stdout.lines().count();
    eventually("a first lookup", PATIENCE, || (answered() > 0).then_some(()));
    let (killed, starts) = (Instant::now(), component_restarts("coredns"));
    kill_component("coredns");
    eventually("CoreDNS is started again", PATIENCE, || (component_restarts("coredns") > starts).then_some(()));
    eventually("the control plane serves again", PATIENCE, all_serve);
    let away = u64::try_from(killed.elapsed().as_millis()).unwrap_or(u64::MAX);
    let before = answered();
    eventually("lookups go on", PATIENCE, || (answered() > before + 1).then_some(()));
    ns.kubectl(&["exec", "asks", "--", "touch", "/tmp/stop"]).ok();
    ns.wait_phase("asks", "Succeeded");
    let logs = ns.kubectl(&["logs", "asks"]);
    let lines: Vec<(&str, u64)> =
        logs.ok().lines().filter_map(|l| l.split_once(' ')).map(|(r, ms)| (r, ms.parse().expect("a number"))).collect();
    assert!(lines.len() > 2 && lines.iter().all(|(result, _)| *result == "ok"), "{lines:?}");
    let slowest = lines.iter().map(|(_, ms)| *ms).max().unwrap_or_default();
    // A resolver that hears nothing asks again after five seconds.
    assert!(slowest < away + 6000, "the slowest took {slowest} ms, CoreDNS was away for {away} ms: {lines:?}");
}

#[test]
fn down_and_up_again_loses_nothing() {
    let _turn = turn();
    let ns = Namespace::new("downup");
    ns.kubectl(&["create", "configmap", "kept", "--from-literal=colour=blue"]).ok();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    ns.apply(&claim.to_string());
    let with_claim = |pod: &str, script: &str| {
        let mut pod = ns.script_pod(pod, "Never", script);
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "kept"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        ns.apply(&pod.to_string());
    };
    with_claim("writes", "echo lasting > /data/file");
    ns.wait_phase("writes", "Succeeded");
    ns.run_script("lives", "Always", "echo begun; sleep 600");
    ns.run_script("ends", "Never", "sleep 2; echo last words; exit 3");
    ns.wait_ready("lives");
    ns.wait_phase("ends", "Running");
    let before = job_of(ns.name(), "lives").expect("the job");

    sx("login", Some("alice"), &["hpk", "down"]).ok();
    assert_eq!(sx("login", Some("alice"), &["pgrep", "-u", "alice", "etcd|kube-|coredns|hpk-kubelet"]).stdout, "");
    assert_eq!(job_of(ns.name(), "lives").map(|job| job.id), Some(before.id.clone()), "jobs go on");
    eventually("a pod ends meanwhile", PATIENCE, || job_of(ns.name(), "ends").is_none().then_some(()));

    sx("login", Some("alice"), &["hpk", "up"]).ok();
    let ends = ns.until_pod("ends", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(ends["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], json!(3));
    assert_eq!(ns.kubectl(&["logs", "ends"]).ok(), "last words");
    ns.wait_ready("lives");
    let lives = ns.get("pod", "lives");
    assert_eq!(lives["status"]["containerStatuses"][0]["restartCount"], json!(0));
    assert_eq!(job_of(ns.name(), "lives").map(|job| job.id), Some(before.id));
    assert_eq!(ns.kubectl(&["logs", "lives"]).ok(), "begun");
    assert_eq!(ns.get("configmap", "kept")["data"]["colour"], "blue");
    with_claim("reads", "cat /data/file");
    ns.wait_phase("reads", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "reads"]).ok(), "lasting");
    for pod in ["lives", "ends"] {
        assert_eq!(sacct(ns.name(), pod).len(), 1, "{pod} was submitted once");
    }
}

#[test]
fn a_restarted_kubelet_says_nothing_of_images_that_run() {
    let _turn = turn();
    let ns = Namespace::new("quiet");
    ns.run_script("lives", "Always", "sleep 600");
    ns.wait_ready("lives");
    ns.until_event("lives", "Started", "");
    signal_kubelet("-KILL");
    // A label reaches the pod's status only through the kubelet's own look at the pod.
    ns.kubectl(&["label", "pod", "lives", "seen=yes"]).ok();
    ns.run_script("after", "Never", "exit 0");
    ns.wait_phase("after", "Succeeded");
    let pulled = ns.kubectl(&[
        "get",
        "events",
        "--field-selector=involvedObject.name=lives",
        "-o",
        "jsonpath={range .items[*]}{.reason}={.count}{\"\\n\"}{end}",
    ]);
    let counts: Vec<&str> = pulled.ok().lines().filter(|l| l.starts_with("Pull")).collect();
    assert_eq!(counts, ["Pulled=1"], "{}", pulled.stdout);
}

/// Where a pod's credentials say that the kubelet is.
fn link_address(uid: &str) -> String {
    let path = format!("{HPK_HOME}/pods/{uid}/link.json");
    sx("login", Some("alice"), &["jq", "-r", ".address", &path]).ok().to_owned()
}

/// A connection from this node to that address stands.
fn is_linked(node: &str, address: &str) -> Option<()> {
    let run = sx(node, None, &["ss", "-Htn", "state", "established", "dst", address]);
    (!run.ok().is_empty()).then_some(())
}

/// Another user's program, which has a port until this is dropped.
struct Stranger {
    pid: String,
}

impl Stranger {
    fn at(ip: &str, port: u16) -> Self {
        let program =
            format!("import socket\ns = socket.create_server(('{ip}', {port}))\nwhile True:\n s.accept()[0].close()\n");
        let script = "python3 -c \"$0\" > /dev/null 2>&1 & echo $!";
        let pid = sx("login", Some("bob"), &["bash", "-c", script, &program]).ok().to_owned();
        let stranger = Self { pid };
        eventually("the stranger has the port", PATIENCE, || {
            let run = sx("login", None, &["ss", "-Htlnp", "src", &format!("{ip}:{port}")]);
            run.ok().contains(&format!("pid={},", stranger.pid)).then_some(())
        });
        stranger
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        sx("login", Some("bob"), &["kill", "-KILL", &self.pid]);
    }
}

/// Another address of the login node, with links there, as when the node has moved; as before when this is dropped.
struct Moved {
    device: String,
    before: String,
}

impl Moved {
    const IP: &str = "10.77.0.98";
    const PORT: u16 = 31998;

    fn new(before: &str) -> Self {
        let (ip, _) = before.rsplit_once(':').expect("a port");
        let device = sx("login", None, &["ip", "-o", "-4", "addr", "show", "to", ip]);
        let device = device.ok().split_whitespace().nth(1).expect("a device").to_owned();
        sx("login", None, &["ip", "addr", "add", &format!("{}/24", Self::IP), "dev", &device]).ok();
        Self { device, before: before.to_owned() }
    }

    /// What `hpk up` writes when it finds itself elsewhere, and the kubelet's restart.
    fn advertise(address: &str) {
        let edit =
            format!("cd ~/.hpk && jq '.link_addr = \"{address}\"' cluster.json > moved && mv moved cluster.json");
        sx("login", Some("alice"), &["bash", "-c", &edit]).ok();
        signal_kubelet("-KILL");
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        Self::advertise(&self.before);
        sx("login", None, &["ip", "addr", "del", &format!("{}/24", Self::IP), "dev", &self.device]);
    }
}

#[test]
fn pods_find_a_kubelet_whose_address_and_port_have_changed() {
    let _turn = turn();
    let ns = Namespace::new("moved");
    ns.run_script("pod", "Never", "sleep 600");
    ns.wait_ready("pod");
    let uid = ns.get("pod", "pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let node = job_of(ns.name(), "pod").expect("the job").node;
    let first = link_address(&uid);
    let moved = Moved::new(&first);
    let wanted = format!("{}:{}", Moved::IP, Moved::PORT);

    // Where links are to come, another user is already: the kubelet takes another port.
    let stranger = Stranger::at(Moved::IP, Moved::PORT);
    Moved::advertise(&wanted);
    let other = eventually("running pods are told of another port", PATIENCE, || {
        Some(link_address(&uid)).filter(|address| address.starts_with(Moved::IP) && *address != wanted)
    });
    eventually("the pod has found it", PATIENCE, || is_linked(&node, &other));
    assert_eq!(ns.kubectl(&["exec", "pod", "--", "echo", "goes on"]).ok(), "goes on");
    drop(stranger);
    eventually("the port is had", PATIENCE, || (link_address(&uid) == wanted).then_some(()));
    is_linked(&node, &other).expect("a link that stands stays");

    drop(moved);
    eventually("and back", PATIENCE, || is_linked(&node, &first));
    assert_eq!(ns.get("pod", "pod")["status"]["containerStatuses"][0]["restartCount"], json!(0));
}

/// Nobody asks for the pod: its owner is told all the same, and Slurm carries the link.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_pod_that_stays_without_its_link_is_told_and_carried() {
    let _turn = turn();
    let ns = Namespace::new("nolink");
    ns.run_script("pod", "Never", "sleep 600");
    ns.wait_ready("pod");
    let unreachable = Unreachable::make();
    signal_kubelet("-KILL");
    let told = ns.until_event("pod", "NoLink", "srun --overlap");
    assert!(told.contains("Connection refused"), "in the node's own words: {told}");
    let steps = || ns.shell("squeue --steps --noheader --format=%j").stdout.contains("hpk-link").then_some(());
    eventually("a step carries it", PATIENCE, steps);
    ns.until_event("pod", "LinkBack", "");
    drop(unreachable);
}

/// Nodes whose packets to the link's port are refused, until this is dropped.
struct Unreachable;

impl Unreachable {
    const NODES: [&str; 2] = ["c1", "c2"];

    fn make() -> Self {
        let address = sx("login", Some("alice"), &["jq", "-r", ".link_addr", &format!("{HPK_HOME}/cluster.json")]);
        let port = address.ok().rsplit(':').next().unwrap_or_default().to_owned();
        for node in Self::NODES {
            let rules = [
                "add table inet cut".to_owned(),
                "add chain inet cut out { type filter hook output priority 0; }".to_owned(),
                format!("add rule inet cut out tcp dport {port} reject with tcp reset"),
            ];
            for rule in rules {
                sx(node, None, &["nft", &rule]).ok();
            }
        }
        Self
    }
}

impl Drop for Unreachable {
    fn drop(&mut self) {
        for node in Self::NODES {
            sx(node, None, &["nft", "delete table inet cut"]);
        }
    }
}

/// The link is cut while a session streams, and its port stays out of reach: the session's client is told, and the next
/// one is carried by Slurm, both ways and whole.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_cut_link_is_carried_by_srun() {
    let _turn = turn();
    let ns = Namespace::new("cut");
    ns.run_script("pod", "Never", "sleep 600");
    ns.wait_ready("pod");
    let session = std::thread::scope(|scope| {
        // It begins to stream, then the link is cut under it.
        let session = scope.spawn(|| {
            ns.shell("timeout 150 kubectl -n $NS exec pod -- sh -c 'touch /tmp/runs; while sleep 0.1; do echo x; done' > /dev/null")
        });
        eventually("it streams", PATIENCE, || {
            (ns.kubectl(&["exec", "pod", "--", "test", "-e", "/tmp/runs"]).code == Some(0)).then_some(())
        });
        let unreachable = Unreachable::make();
        let session = session.join().expect("the session");
        (session, unreachable)
    });
    let (session, unreachable) = session;
    assert_ne!(session.code, Some(0), "{session:?}");
    assert!(session.stderr.contains("connection to the pod"), "{session:?}");
    let run = ns.shell(
        "head -c 5M /dev/urandom > /tmp/$NS; sha256sum < /tmp/$NS
         timeout 200 kubectl -n $NS exec -i pod -- cat < /tmp/$NS | sha256sum; rm /tmp/$NS
         squeue --steps --noheader --format=%j",
    );
    let lines: Vec<&str> = run.ok().lines().collect();
    assert_eq!(lines[0], lines[1], "{run:?}");
    assert!(lines.contains(&"hpk-link"), "a step carries it: {run:?}");
    drop(unreachable);
    assert_eq!(ns.kubectl(&["exec", "pod", "--", "echo", "goes on"]).ok(), "goes on");
}
