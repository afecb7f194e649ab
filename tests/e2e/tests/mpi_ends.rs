//! How MPI steps end, and begin again: ranks that are killed or abort, deadlines, deletion, probes, sidecars.

use hpk_e2e::{Namespace, PATIENCE, TOOLBOX, eventually, four_ranks, processes, sorted, sx};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn ended(ns: &Namespace, pod: &str) -> Value {
    ns.get("pod", pod)["status"]["containerStatuses"][0]["state"]["terminated"].clone()
}

/// Processes of a node whose command line is this.
fn numbers(node: &str, command: &str) -> Vec<String> {
    let lines = processes(node, command).into_iter();
    let exact = lines.filter_map(|line| {
        let (pid, args) = line.trim_start().split_once(' ')?;
        (args.trim() == command).then(|| pid.to_owned())
    });
    exact.collect()
}

#[test]
fn a_rank_that_is_killed_is_told_by_number_and_node() {
    let ns = Namespace::new("mpi-kill");
    ns.apply(&four_ranks("victim", "exec sleep 61234").to_string());
    ns.wait_ready("victim");
    let there = numbers("c2", "sleep 61234");
    assert_eq!(there.len(), 2, "{there:?}");
    sx("c2", None, &["kill", "-KILL", &there[0]]).ok();
    ns.wait_phase("victim", "Failed");
    let end = ended(&ns, "victim");
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("Error")), "{end}");
    let message = end["message"].as_str().unwrap();
    assert!(
        ["rank 2 on c2 was killed by signal 9", "rank 3 on c2 was killed by signal 9"].contains(&message),
        "{message}"
    );
    for node in ["c1", "c2"] {
        assert_eq!(numbers(node, "sleep 61234"), Vec::<String>::new(), "{node}: the step is ended as a whole");
    }
}

/// The program: rank 2 aborts, the others wait for ever.
const ABORT: &str = "python3 - <<E
import ctypes, os, time
mpi = ctypes.CDLL('libmpi.so.40', ctypes.RTLD_GLOBAL)
mpi.MPI_Init(None, None)
world = ctypes.addressof(ctypes.c_char.in_dll(mpi, 'ompi_mpi_comm_world'))
mpi.MPI_Barrier(ctypes.c_void_p(world))
if os.environ['SLURM_PROCID'] == '2':
    mpi.MPI_Abort(ctypes.c_void_p(world), 42)
time.sleep(600)
E";

/// The code is always MPI_Abort's. Slurm kills all ranks at once, also the one that called for it: where that is faster than
/// the rank's own end, nobody knows which it was, and srun's words are told.
#[test]
fn an_abort_is_told_with_its_code() {
    let ns = Namespace::new("mpi-abort");
    ns.apply(&four_ranks("aborts", ABORT).to_string());
    ns.wait_phase("aborts", "Failed");
    let end = ended(&ns, "aborts");
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(42), &json!("Error")), "{end}");
    let message = end["message"].as_str().unwrap_or_default();
    let by_srun = ["c1: tasks 0-1: Killed", "c2: tasks 2-3: Killed"].iter().all(|words| message.contains(words));
    assert!(message == "rank 2 on c2 exited with code 42" || by_srun, "{message}");
}

/// activeDeadlineSeconds is for the step as for any container: each rank is asked to end.
#[test]
fn a_deadline_asks_every_rank_to_end() {
    let ns = Namespace::new("mpi-deadline");
    let text = "trap 'echo rank $SLURM_PROCID ends in order; exit 0' TERM; sleep 600 & wait";
    let mut pod = four_ranks("late", text);
    pod["spec"]["activeDeadlineSeconds"] = json!(15);
    ns.apply(&pod.to_string());
    let end = ns.until_pod("late", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "DeadlineExceeded");
    let logs = ns.kubectl(&["logs", "late"]);
    let orderly: Vec<&str> = sorted(logs.ok()).into_iter().filter(|line| line.ends_with("in order")).collect();
    let want: Vec<String> = (0..4).map(|rank| format!("rank {rank} ends in order")).collect();
    assert_eq!(orderly, want);
}

#[test]
#[ignore = "Slurm's shortest time limit is a minute: make long"]
fn slurms_time_limit_asks_every_rank_to_end() {
    let ns = Namespace::new("mpi-limit");
    let text = "trap 'echo rank $SLURM_PROCID ends in order; exit 0' TERM; sleep 600 & wait";
    let mut pod = four_ranks("limited", text);
    let flags = pod["metadata"]["annotations"]["slurm-job.hpk.io/flags"].as_str().unwrap().to_owned();
    pod["metadata"]["annotations"]["slurm-job.hpk.io/flags"] = json!(format!("{flags} --time=2"));
    ns.apply(&pod.to_string());
    let end = ns.until_pod("limited", Duration::from_secs(240), |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "DeadlineExceeded");
    let logs = ns.kubectl(&["logs", "limited"]);
    assert_eq!(logs.ok().lines().filter(|line| line.ends_with("in order")).count(), 4, "{}", logs.stdout);
}

/// Ranks that do not heed TERM are killed on all nodes when their time is over.
#[test]
fn deletion_kills_what_does_not_end() {
    let ns = Namespace::new("mpi-deaf");
    let mut pod = four_ranks("deaf", "trap '' TERM; while :; do sleep 62345; done");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(4);
    ns.apply(&pod.to_string());
    ns.wait_ready("deaf");
    let begun = Instant::now();
    ns.delete("pod", "deaf");
    assert!(begun.elapsed() >= Duration::from_secs(4), "they had their time: {:?}", begun.elapsed());
    for node in ["c1", "c2"] {
        let left =
            eventually("no rank is left", PATIENCE, || Some(processes(node, "sleep 62345")).filter(Vec::is_empty));
        assert!(left.is_empty());
    }
}

/// A probe looks at rank 0's container, and what follows from it holds for all ranks: the step begins again as a whole.
#[test]
fn a_probe_restarts_all_ranks() {
    let ns = Namespace::new("mpi-probe");
    let mut pod = four_ranks("sick", "echo rank $SLURM_PROCID of step $SLURM_STEP_ID; exec sleep 600");
    pod["spec"]["restartPolicy"] = json!("Always");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1, "failureThreshold": 1});
    ns.apply(&pod.to_string());
    ns.wait_ready("sick");
    ns.kubectl(&["exec", "sick", "--", "touch", "/tmp/sick"]).ok();
    ns.until_pod("sick", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    let logs = eventually("a line of each rank", PATIENCE, || {
        let logs = ns.kubectl(&["logs", "sick"]).ok().to_owned();
        (logs.lines().count() == 4).then_some(logs)
    });
    let want: Vec<String> = (0..4).map(|rank| format!("rank {rank} of step 1")).collect();
    assert_eq!(sorted(&logs), want);
}

/// A sidecar begins before the ranks and ends after them; it does not hold up the pod's end.
#[test]
fn a_sidecar_is_there_for_as_long_as_the_ranks() {
    let ns = Namespace::new("mpi-sidecar");
    let mut pod = four_ranks("p", "sleep 2");
    let script = "trap 'echo sidecar ends; exit 0' TERM; echo sidecar begins; sleep 600 & wait";
    pod["spec"]["initContainers"] = json!([{
        "name": "side", "image": TOOLBOX, "restartPolicy": "Always", "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}
    }]);
    ns.apply(&pod.to_string());
    ns.wait_phase("p", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "p", "-c", "side"]).ok(), "sidecar begins\nsidecar ends");
    let status = ns.get("pod", "p")["status"].clone();
    let side = &status["initContainerStatuses"][0]["state"];
    let main = &status["containerStatuses"][0]["state"]["terminated"];
    let began = side["terminated"]["startedAt"].as_str().unwrap();
    assert!(began <= main["startedAt"].as_str().unwrap(), "{status}");
}
