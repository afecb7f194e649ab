//! Pods that really live: containers, restarts, hooks, probes, ends. Each case reads like a user's manual.

mod common;

use common::{Pod, container, events, of, plan, probe, shown, with};
use hpk_api::control::{Request, Update};
use hpk_api::state::StopCause;
use serde_json::json;
use std::time::{Duration, Instant};

/// A process that ends in order when it is asked to.
const SERVER: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";

#[test]
fn init_containers_run_before_the_others_and_each_is_pid_1() {
    let mut pod = Pod::start(&with(
        plan("Never", vec![container("c", "cat /data/word; echo $$; id -u; hostname"), container("d", "exit 3")]),
        json!({
            "init_containers": [with(container("i", "echo from-init > /data/word; echo $$"), json!({"mounts": [{"volume": "v", "path": "/data"}]}))],
            "volumes": {"v": {"kind": "empty_dir"}},
            "containers": [
                with(container("c", "cat /data/word; echo $$; id -u"), json!({"mounts": [{"volume": "v", "path": "/data", "read_only": true}]})),
                container("d", "cat /etc/hosts; exit 3"),
            ],
        }),
    ));
    let (status, state) = pod.end();
    assert_eq!(status.code(), Some(1), "one container failed");
    assert_eq!(pod.log("i", 0), ["1"]);
    assert_eq!(pod.log("c", 0), ["from-init", "1", "0"]);
    assert_eq!(pod.log("d", 0), ["127.0.0.1\tlocalhost", "10.244.0.7\tp"]);
    assert_eq!(
        (shown(&state, "c").as_str(), shown(&state, "d").as_str()),
        ("Terminated(0 Completed)", "Terminated(3 Error)")
    );
    assert!(state.finished && of(&state, "i").ready);
    let started =
        |name| state.events.iter().find(|e| e.reason == "Started" && e.container.as_deref() == Some(name)).unwrap().at;
    // The containers themselves start side by side.
    assert!(started("i") < started("c") && started("i") < started("d"));
}

#[test]
fn a_crash_is_restarted_at_once_and_then_after_the_back_off() {
    let crash = container("c", "echo boom; exit 7");
    let mut pod = Pod::start(&with(plan("Always", vec![crash]), json!({"settings": {"backoff_initial_ms": 300}})));
    let state = pod.until("four starts", |s| of(s, "c").restart_count == 3);
    let starts: Vec<_> = state.events.iter().filter(|e| e.reason == "Started").map(|e| e.at).collect();
    let gaps: Vec<i128> = starts.windows(2).map(|w| w[1].duration_since(w[0]).as_millis()).collect();
    assert!((0..250).contains(&gaps[0]) && (300..550).contains(&gaps[1]) && (600..850).contains(&gaps[2]), "{gaps:?}");
    assert_eq!(of(&state, "c").last_termination.as_ref().unwrap().exit_code, 7);
    assert_eq!(pod.log("c", 2), ["boom"]);
}

#[test]
fn a_command_that_does_not_exist_is_a_start_error() {
    let missing = with(container("c", ""), json!({"argv": ["no-such-command"]}));
    let mut pod = Pod::start(&plan("Never", vec![missing]));
    let (_, state) = pod.end();
    assert_eq!(shown(&state, "c"), "Terminated(128 StartError)");
    let text = "exec: \"no-such-command\": executable file not found in $PATH";
    assert!(events(&state).contains(&format!("Failed: Error: {text}")), "{:?}", events(&state));
}

#[test]
fn termination_messages_come_from_the_file_or_the_log() {
    let fallback = json!({"termination_message_policy": "FallbackToLogsOnError"});
    let mut pod = Pod::start(&plan(
        "Never",
        vec![
            container("file", "echo logged; printf done > /dev/termination-log"),
            with(container("log", "echo from-the-log; exit 1"), fallback.clone()),
            with(container("good", "echo from-the-log; exit 0"), fallback),
            container("long", "seq 100000 > /dev/termination-log"),
        ],
    ));
    let (_, state) = pod.end();
    let message = |name| match &of(&state, name).state {
        hpk_api::state::RunState::Terminated(t) => t.message.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(message("file"), "done");
    assert_eq!(message("log"), "from-the-log\n");
    assert_eq!(message("good"), "");
    assert_eq!(message("long").len(), 4096);
    assert!(message("long").ends_with("100000\n"), "the end of it is kept");
}

#[test]
fn term_is_passed_on_and_the_rest_is_killed_after_the_grace_period() {
    let mut pod = Pod::start(&plan(
        "Always",
        vec![container("good", SERVER), container("deaf", "trap '' TERM; while :; do sleep 0.05; done")],
    ));
    pod.until("both run", |s| s.containers.iter().all(|c| c.ready));
    // A TERM that comes before the shell's trap is lost.
    pod.until_log("good", 0, "up");
    let begun = Instant::now();
    pod.terminate();
    let (_, state) = pod.end();
    assert!((3.0..4.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    assert_eq!(
        (shown(&state, "good").as_str(), shown(&state, "deaf").as_str()),
        ("Terminated(0 Completed)", "Terminated(137 Error)")
    );
    assert_eq!(state.stopping, Some(StopCause::Signal));
    assert_eq!(pod.log("good", 0), ["up", "bye"]);
}

#[test]
fn hooks_run_in_the_container_and_pre_stop_before_term() {
    let hooks = json!({"lifecycle": {
        "post_start": {"exec": {"command": ["/bin/sh", "-c", "echo started > /proc/1/fd/1"]}},
        "pre_stop": {"exec": {"command": ["/bin/sh", "-c", "echo stopping > /proc/1/fd/1"]}},
    }});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), hooks)]));
    pod.until("started", |s| of(s, "c").started);
    pod.ask(&Request::Stop { grace_period_seconds: 30 });
    let (_, state) = pod.end();
    let mut log = pod.log("c", 0);
    assert_eq!(log.pop().as_deref(), Some("bye"));
    assert_eq!(log.pop().as_deref(), Some("stopping"));
    log.sort();
    assert_eq!(log, ["started", "up"]);
    assert_eq!(state.stopping, Some(StopCause::Requested));
}

#[test]
fn a_failed_post_start_hook_kills_the_container() {
    // It runs beside the container's beginning: a TERM before the trap would be lost, as any to a PID 1. So it waits for it.
    let when_up = "read up < /dev/shm/up; echo why >&2; exit 9";
    let hook = json!({"lifecycle": {"post_start": {"exec": {"command": ["/bin/sh", "-c", when_up]}}}});
    let server = SERVER.replace("echo up", "echo up > /dev/shm/up");
    let pipe = container("pipe", "mkfifo /dev/shm/up");
    let plan = with(plan("Never", vec![with(container("c", &server), hook)]), json!({"init_containers": [pipe]}));
    let mut pod = Pod::start(&plan);
    let (_, state) = pod.end();
    assert_eq!(shown(&state, "c"), "Terminated(0 Completed)");
    assert!(events(&state).contains(&"FailedPostStartHook: PostStartHook failed".to_owned()));
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_restarted() {
    let sick = json!({"probes": {"liveness": probe("echo sick; exit 1", 1, 2)}});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), sick)]));
    let state = pod.until("a restart", |s| of(s, "c").restart_count == 1);
    let events = events(&state);
    assert_eq!(events.iter().filter(|e| *e == "Unhealthy: Liveness probe failed: sick\n").count(), 2, "{events:?}");
    assert!(events.contains(&"Killing: Container c failed liveness probe, will be restarted".to_owned()));
    assert_eq!(of(&state, "c").last_termination.as_ref().unwrap().exit_code, 0);
}

#[test]
fn an_exec_probe_that_hangs_is_killed_with_all_it_started() {
    let hang = json!({"probes": {"liveness": probe("sleep 987 & sleep 987", 1, 100)}});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), hang)]));
    let text =
        "Unhealthy: Liveness probe failed: command timed out: \"/bin/sh -c sleep 987 & sleep 987\" timed out after 1s";
    pod.until("two time-outs", |s| events(s).iter().filter(|e| *e == text).count() >= 2);
    let (processes, _) = pod.exec("c", "ps");
    assert!(processes.matches("sleep 987").count() <= 3, "only the run under way is left: {processes}");
}

#[test]
fn an_exec_probe_that_cannot_start_is_an_error_and_no_failure() {
    let missing =
        json!({"probes": {"liveness": with(probe("", 1, 1), json!({"handler": {"exec": {"command": ["/no-such"]}}}))}});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), missing)]));
    let errored = |s: &hpk_api::state::PodState| {
        events(s).iter().filter(|e| e.starts_with("Unhealthy: Liveness probe errored and resulted in")).count()
    };
    let state = pod.until("three runs", |s| errored(s) >= 3);
    let at: Vec<_> = state.events.iter().filter(|e| e.reason == "Unhealthy").map(|e| e.at).collect();
    assert!(at.windows(2).all(|w| w[1].duration_since(w[0]).as_millis() > 500), "its tries are one run: {at:?}");
    assert_eq!((of(&state, "c").restart_count, shown(&state, "c").as_str()), (0, "Running"), "the state stays");
}

#[test]
fn a_probes_output_is_cut_at_ten_kibibytes() {
    let wordy = json!({"probes": {"readiness": probe("seq 100000; exit 1", 1, 1)}});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), wordy)]));
    let state = pod.until("a failure", |s| events(s).iter().any(|e| e.starts_with("Unhealthy: ")));
    let event = events(&state).into_iter().find(|e| e.starts_with("Unhealthy: ")).unwrap();
    let output = event.strip_prefix("Unhealthy: Readiness probe failed: ").unwrap();
    assert_eq!(output.len(), 10 << 10);
    assert!(output.starts_with("1\n2\n3\n"), "its beginning is kept");
}

#[test]
fn usr1_is_the_kubelets_stop_with_all_of_the_grace_period() {
    let slow = container("c", "trap 'sleep 1.5; echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    // Slurm's TERM would leave nothing of a KillWait of 1 s.
    let mut pod = Pod::start(&with(plan("Always", vec![slow]), json!({"settings": {"kill_wait_seconds": 1}})));
    pod.until("it runs", |s| shown(s, "c") == "Running");
    pod.until_log("c", 0, "up");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pod.supervisor()), nix::sys::signal::Signal::SIGUSR1).unwrap();
    let (_, state) = pod.end();
    assert_eq!(pod.log("c", 0), ["up", "bye"]);
    assert_eq!(state.stopping, Some(StopCause::Requested));
}

#[test]
fn readiness_follows_the_probe_and_startup_gates_it() {
    let probes = json!({"probes": {
        "startup": probe("test -e /tmp/started", 1, 60),
        "readiness": probe("test -e /tmp/ready", 1, 1),
    }});
    let mut pod = Pod::start(&plan("Always", vec![with(container("c", SERVER), probes)]));
    pod.until("it runs", |s| shown(s, "c") == "Running");
    assert_eq!(pod.exec("c", "touch /tmp/ready").1, 0);
    assert!(
        !of(
            &pod.until("a failed startup probe", |s| events(s).iter().any(|e| e.starts_with("Unhealthy: Startup"))),
            "c"
        )
        .started
    );
    pod.exec("c", "touch /tmp/started");
    pod.until("ready", |s| of(s, "c").started && of(s, "c").ready);
    pod.exec("c", "rm /tmp/ready");
    pod.until("not ready", |s| of(s, "c").started && !of(s, "c").ready);
}

#[test]
fn a_sidecar_serves_the_init_containers_and_ends_last() {
    let side = with(
        container(
            "side",
            "trap 'echo last > /data/order; cat /data/order; exit 0' TERM; touch /data/up; while :; do sleep 0.05; done",
        ),
        json!({"restart_policy": "Always", "mounts": [{"volume": "v", "path": "/data"}], "probes": {"startup": probe("test -e /data/up", 1, 10)}}),
    );
    let init = with(container("init", "ls /data"), json!({"mounts": [{"volume": "v", "path": "/data"}]}));
    let mut pod = Pod::start(&with(
        plan("Never", vec![container("main", "exit 0")]),
        json!({"init_containers": [side, init], "volumes": {"v": {"kind": "empty_dir", "memory": true}}}),
    ));
    let (status, state) = pod.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(pod.log("init", 0), ["up"]);
    assert_eq!(shown(&state, "side"), "Terminated(0 Completed)");
    assert!(events(&state).contains(&"Killing: Stopping container side".to_owned()));
}

#[test]
fn an_ephemeral_container_joins_a_running_pod() {
    let mut pod =
        Pod::start(&with(plan("Always", vec![container("c", SERVER)]), json!({"share_process_namespace": true})));
    pod.until("it runs", |s| shown(s, "c") == "Running");
    let debug = serde_json::from_value(container("debug", "ps")).unwrap();
    pod.ask(&Request::Update(Update { ephemeral_containers: vec![debug], ..Update::default() }));
    pod.until("it has run", |s| s.ephemeral_containers.len() == 1 && shown(s, "debug") == "Terminated(0 Completed)");
    let log = pod.log("debug", 0).join("\n");
    assert!(log.contains("hpk-pause") && log.contains("trap"), "it sees the others: {log}");
}

#[test]
fn orphans_are_reaped() {
    // Each leaves a child behind that outlives it; with a shared PID namespace they come to hpk-pause.
    let litter =
        "i=0; while [ $i -lt 2000 ]; do (sleep 0.01 &) ; i=$((i+1)); done; echo done; while :; do sleep 1; done";
    let mut pod =
        Pod::start(&with(plan("Always", vec![container("c", litter)]), json!({"share_process_namespace": true})));
    pod.until("it runs", |s| shown(s, "c") == "Running");
    let begun = Instant::now();
    loop {
        let (out, _) = pod.exec("c", "ps");
        let over = pod.log("c", 0).contains(&"done".to_owned());
        if over && out.lines().count() < 10 {
            assert!(!out.contains("Z "), "{out}");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(50), "zombies stay: {} lines", out.lines().count());
    }
}

#[test]
fn what_a_container_leaves_behind_ends_with_it() {
    let leave = container("c", "setsid sleep 4321 & exit 0");
    for share in [false, true] {
        let mut pod = Pod::start(&with(
            plan("Never", vec![leave.clone(), container("keep", SERVER)]),
            json!({"share_process_namespace": share}),
        ));
        pod.until("it has ended", |s| shown(s, "c") == "Terminated(0 Completed)" && shown(s, "keep") == "Running");
        // Killed it is; a busy machine takes its time until it is gone.
        let begun = Instant::now();
        while let (out, _) = pod.exec("keep", "ps")
            && out.contains("4321")
        {
            assert!(begun.elapsed() < Duration::from_secs(10), "share {share}: {out}");
        }
    }
}

#[test]
fn the_deadline_ends_the_pod() {
    let mut pod =
        Pod::start(&with(plan("Always", vec![container("c", SERVER)]), json!({"active_deadline_seconds": 1})));
    let (_, state) = pod.end();
    assert_eq!(state.stopping, Some(StopCause::DeadlineExceeded));
    assert_eq!(shown(&state, "c"), "Terminated(0 Completed)");
}

#[test]
fn a_signal_from_inside_of_a_shared_namespace_does_not_end_the_pod() {
    let two = vec![container("c", SERVER), container("side", SERVER)];
    let mut pod = Pod::start(&with(plan("Always", two), json!({"share_process_namespace": true})));
    pod.until("both run", |s| s.containers.iter().all(|c| c.ready));
    for signal in ["TERM", "INT", "USR1"] {
        assert_eq!(pod.exec("side", &format!("kill -{signal} 1")).1, 0);
    }
    let state = pod.until("it is told of", |s| s.events.iter().any(|e| e.reason == "SignalIgnored"));
    assert_eq!((state.stopping.clone(), of(&state, "c").restart_count), (None, 0));
    assert_eq!(state.events.iter().filter(|e| e.reason == "SignalIgnored").count(), 1, "once");
    // Slurm's comes from outside.
    pod.terminate();
    let (_, state) = pod.end();
    assert_eq!(state.stopping, Some(StopCause::Signal));
}

#[test]
fn an_idle_pod_does_not_wake() {
    let idle = (0..10).map(|i| container(&format!("c{i}"), "exec sleep 1000")).collect();
    let mut pod = Pod::start(&plan("Always", idle));
    pod.until("all run", |s| s.containers.iter().all(|c| c.ready));
    // The helper threads of the start live on for a second.
    std::thread::sleep(Duration::from_millis(2500));
    let switches = |pid: i32| {
        let mut sum = 0u64;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap_or("0");
            sum += line.trim().parse::<u64>().unwrap_or(0);
        }
        sum
    };
    let pid = pod.supervisor();
    let before = switches(pid);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(pid), before, "woken without a reason");
}
