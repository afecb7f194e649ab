//! The kubelet is killed while pods run and finish. A test program of its own, whose cases take turns: cargo
//! runs it alone, so nothing else depends on the kubelet meanwhile.

use hpk_e2e::{Namespace, PATIENCE, eventually, job_of, sacct, sx};
use serde_json::json;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
