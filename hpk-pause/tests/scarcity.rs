//! PID 1 where something runs out (processes, descriptors) or where it is not PID 1 at all.

mod common;

use common::{Pod, container, events, of, plan, probe, shown, with};
use hpk_api::control::Request;
use hpk_api::state::{ContainerState, RunState};
use serde_json::json;
use std::time::{Duration, Instant};

/// A process that ends in order when it is asked to.
const SERVER: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";

/// A namespace of 400 processes is full. (kernel.pid_max belongs to the PID namespace since Linux 6.14.)
#[test]
fn a_fork_bomb_costs_probes_but_neither_the_supervisor_nor_the_other_containers() {
    let bomb = container("bomb", "(while :; do sleep 1000 & done) 2>/dev/null; exec sleep 1000");
    // It needs no process of its own to live, and tells when it hears TERM.
    let calm = with(
        container("calm", "trap 'echo bye; exit 0' TERM; echo up; while :; do read -t 1 x < /dev/zero; done"),
        json!({"probes": {"liveness": probe("true", 1, 1)}}),
    );
    let mut pod = Pod::start(&with(plan("Never", vec![calm, bomb]), json!({"sysctls": {"kernel.pid_max": "400"}})));
    let errored = "Unhealthy: Liveness probe errored and resulted in unknown state";
    let state = pod.until("a probe that cannot be made", |s| {
        assert_eq!(s.sandbox_error, None, "this test needs Linux 6.14");
        events(s).iter().any(|e| e.starts_with(errored))
    });
    assert_eq!((shown(&state, "calm").as_str(), shown(&state, "bomb").as_str()), ("Running", "Running"));
    pod.ask(&Request::Stop { grace_period_seconds: 2 });
    let (_, state) = pod.end();
    assert_eq!((shown(&state, "calm").as_str(), of(&state, "calm").restart_count), ("Terminated(0 Completed)", 0));
    assert_eq!(shown(&state, "bomb"), "Terminated(137 Error)");
    assert_eq!(pod.log("calm", 0), ["up", "bye"]);
}

#[test]
fn without_descriptors_containers_wait_and_the_pod_still_ends_in_order() {
    let many = (0..12).map(|i| container(&format!("c{i}"), SERVER)).collect();
    let mut pod = Pod::start_under(&["prlimit", "--nofile=60:60"], &plan("Always", many), &[]);
    let begun = Instant::now();
    // The file, not the socket: that takes descriptors as well.
    let state = loop {
        let path = pod.dir.path().join("pod/status.json");
        let state: Option<hpk_api::state::PodState> =
            std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // They start side by side: which of them finds descriptors is nobody's to say.
        let running = |c: &ContainerState| matches!(c.state, RunState::Running { .. });
        let refused = |c: &ContainerState| matches!(&c.state, RunState::Waiting { reason, .. } if reason == "CreateContainerError");
        if let Some(state) = state.filter(|s| s.containers.iter().any(running) && s.containers.iter().any(refused)) {
            break state;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "some run and some wait: {:#?}", pod.status());
        std::thread::sleep(Duration::from_millis(10));
    };
    let running = state.containers.iter().filter(|c| matches!(c.state, RunState::Running { .. })).count();
    let told = events(&state).into_iter().find(|e| e.starts_with("Failed: Error:")).unwrap();
    assert!(told.contains("EMFILE") || told.contains("open files"), "{told}");
    pod.terminate();
    let (_, state) = pod.end();
    assert!(state.finished);
    let ended = state.containers.iter().filter(|c| shown(&state, &c.name) == "Terminated(0 Completed)").count();
    assert!(ended >= running, "{ended} of {running} ended in order");
}

/// Some sites' Apptainer gives PID 1 to an init of its own.
#[test]
fn as_a_subreaper_it_takes_the_orphans_all_the_same() {
    // The shell stays PID 1: orphans that are not taken would come to it.
    let shell = ["/bin/sh", "-c", "\"$@\" & wait $!", "sh"];
    let litter = container("c", "(sleep 1 &); sleep 0.3; ps -o ppid,comm; sleep 1.5; echo later; ps -o ppid,comm");
    let shared = with(plan("Never", vec![litter]), json!({"share_process_namespace": true}));
    let mut pod = Pod::start_under(&shell, &shared, &["--allow-not-init"]);
    let (_, state) = pod.end();
    let log: Vec<String> = pod.log("c", 0).iter().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let (before, after) = log.split_at(log.iter().position(|l| l == "later").unwrap());
    assert!(before.contains(&"2 sleep".to_owned()), "the orphan's parent is hpk-pause, process 2: {before:?}");
    assert!(!after.iter().any(|l| l.ends_with("sleep")), "it has been reaped: {after:?}");
    assert!(state.finished);
}

#[test]
fn without_leave_it_refuses_not_to_be_pid_1() {
    let shell = ["/bin/sh", "-c", "\"$@\" & wait $!", "sh"];
    let mut pod = Pod::start_under(&shell, &plan("Never", vec![container("c", "true")]), &[]);
    let (status, state) = pod.end();
    assert_eq!(status.code(), Some(3));
    let error = state.sandbox_error.unwrap();
    assert!(error.contains("not PID 1") && error.contains("--allow-not-init"), "{error}");
}
