//! What is around an MPI step: hooks, who its ranks are, a kubelet that is killed, tasks that nobody starts. The cases take turns,
//! for one of them kills the kubelet.

use hpk_e2e::{Namespace, PATIENCE, eventually, four_ranks, kubectl, ranks, sacct, sorted, sx};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kubelet is killed in mid-step: the ranks go on, and nothing of their output or end is lost.
#[test]
fn a_kubelet_that_is_killed_in_mid_step() {
    let _turn = turn();
    let ns = Namespace::new("mpi-kill");
    let script = "for n in $(seq 40); do echo $SLURM_PROCID.$n; sleep 0.3; done; [ $SLURM_PROCID != 3 ] || exit 6";
    ns.apply(&four_ranks("p", script).to_string());
    ns.wait_ready("p");
    sx("login", Some("alice"), &["pkill", "-KILL", "-x", "hpk-kubelet"]).ok();
    eventually("exec into the second node works again", PATIENCE, || {
        (ns.kubectl(&["exec", "p", "--", "rank:2", "hostname"]).stdout.trim() == "c2").then_some(())
    });
    ns.wait_phase("p", "Failed");
    let pod = ns.get("pod", "p");
    let status = &pod["status"]["containerStatuses"][0];
    let end = &status["state"]["terminated"];
    assert_eq!((&end["exitCode"], &status["restartCount"]), (&json!(6), &json!(0)), "{end}");
    assert_eq!(end["message"], "rank 3 on c2 exited with code 6");
    let logs = ns.kubectl(&["logs", "p"]);
    let mut said: Vec<&str> = logs.ok().lines().filter(|line| line.contains('.') && !line.contains(' ')).collect();
    said.sort_unstable();
    let mut want: Vec<String> = (0..4).flat_map(|rank| (1..=40).map(move |n| format!("{rank}.{n}"))).collect();
    want.sort_unstable();
    // The others end a moment after rank 3, by which they may be cut off: its own lines are all there.
    let of_three = |list: &[String]| list.iter().filter(|line| line.starts_with("3.")).count();
    let said: Vec<String> = said.into_iter().map(str::to_owned).collect();
    assert_eq!(of_three(&said), 40, "{said:?}");
    assert!(said.iter().all(|line| want.contains(line)), "lines are whole: {said:?}");
    assert!(said.windows(2).all(|two| two[0] != two[1]), "a line came twice: {said:?}");
}

/// Hooks run once, in the container of the first node: its ranks see what they did, those of the second node do not.
#[test]
fn hooks_run_beside_rank_0() {
    let _turn = turn();
    let ns = Namespace::new("mpi-hooks");
    let script = "trap 'echo rank $SLURM_PROCID: $(cat /tmp/hooks 2>/dev/null | xargs); exit 0' TERM; sleep 600 & wait";
    let mut pod = four_ranks("p", script);
    let hook = |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} >>/tmp/hooks")]}});
    pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": hook("begun"), "preStop": hook("ends")});
    ns.apply(&pod.to_string());
    ns.wait_ready("p");
    assert_eq!(ns.kubectl(&["exec", "p", "--", "cat", "/tmp/hooks"]).ok(), "begun");
    let follow = "kubectl -n $NS logs -f p >/tmp/$NS.log & kubectl -n $NS delete pod p >/dev/null; wait; cat /tmp/$NS.log; rm /tmp/$NS.log";
    let last = ns.shell(follow);
    let lines: Vec<&str> = sorted(last.ok()).into_iter().filter(|line| line.starts_with("rank ")).collect();
    assert_eq!(lines, ["rank 0: begun ends", "rank 1: begun ends", "rank 2:", "rank 3:"], "{}", last.stdout);
}

/// Ranks have the user's own number, or are root where the pod says so.
#[test]
fn ranks_are_the_user_or_root() {
    let _turn = turn();
    let ns = Namespace::new("mpi-user");
    let mut root = ranks("root", 2, &["id", "-u"]);
    root["metadata"]["annotations"]["slurm-job.hpk.io/mpi-user"] = json!("root");
    ns.apply(&root.to_string());
    ns.apply(&ranks("own", 2, &["id", "-u"]).to_string());
    for (name, want) in [("root", "0\n0"), ("own", "1000\n1000")] {
        ns.wait_phase(name, "Succeeded");
        assert_eq!(ns.kubectl(&["logs", name]).ok(), want, "{name}");
    }
}

/// Tasks without mpi-flags: one process in a job of so many tasks, and an event that says so.
#[test]
fn tasks_that_nobody_starts_are_told() {
    let _turn = turn();
    let ns = Namespace::new("mpi-idle");
    let mut pod: Value = ns.script_pod("p", "Never", "echo one");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--ntasks=2 --nodes=2"});
    ns.apply(&pod.to_string());
    ns.until_event("p", "SlurmTasksIdle", "mpi-flags");
    ns.wait_phase("p", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "p"]).ok(), "one");
    let jobs = sacct(ns.name(), "p");
    assert_eq!((jobs.len(), jobs[0].node.as_str(), jobs[0].cpus.as_str()), (1, "c[1-2]", "2"), "{jobs:?}");
}

/// What the kubelet's statistics say of a step adds up over its nodes, as `kubectl top` does.
#[test]
fn statistics_add_up_over_nodes() {
    let _turn = turn();
    let ns = Namespace::new("mpi-stats");
    let text = "exec python3 -c 'import time; x = bytearray(b\"x\" * (100 << 20)); time.sleep(600)'";
    let mut pod = four_ranks("p", text);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1", "memory": "256Mi"}});
    ns.apply(&pod.to_string());
    ns.wait_ready("p");
    let node = ns.get("pod", "p")["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let used = eventually("what four ranks use", PATIENCE, || {
        let run = kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")]);
        let stats: Value = serde_json::from_str(&run.stdout).ok()?;
        let own = stats["pods"].as_array()?.iter().find(|pod| pod["podRef"]["namespace"] == ns.name())?;
        let used = own["containers"][0]["memory"]["workingSetBytes"].as_u64()? >> 20;
        (used >= 400).then_some(used)
    });
    assert!(used < 600, "{used} MiB: each node counts once");
}
