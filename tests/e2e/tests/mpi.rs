//! Pods that are MPI steps: as many ranks as the job has tasks, on all of its nodes, started by srun.

use hpk_e2e::{Namespace, PATIENCE, TOOLBOX, eventually, four_ranks, processes, ranks, sorted, sx};
use serde_json::json;

/// As many ranks as tasks, on both nodes, each one known to all and to Slurm.
#[test]
fn ranks_on_two_nodes_are_one_world() {
    let ns = Namespace::new("mpi-hello");
    let counts = [2, 4, 8, 16];
    for count in counts {
        ns.apply(&ranks(&format!("ring-{count}"), count, &["mpi-ring"]).to_string());
    }
    for count in counts {
        let pod = format!("ring-{count}");
        ns.wait_phase(&pod, "Succeeded");
        let logs = ns.kubectl(&["logs", &pod]);
        let node = |rank| if rank < count / 2 { "c1" } else { "c2" };
        let mut want: Vec<String> =
            (0..count).map(|rank| format!("rank {rank} of {count} on {}", node(rank))).collect();
        want.push(format!("the token passed {count} ranks"));
        want.sort_unstable();
        assert_eq!(sorted(logs.ok()), want);
        let name = format!("--name={}/{pod}", ns.name());
        let ask = ["sacct", "-n", "-P", "--format=ntasks,nnodes", &name];
        let line = format!("{count}|2");
        eventually("the step's tasks in sacct", PATIENCE, || {
            sx("login", Some("alice"), &ask).ok().lines().any(|told| told == line).then_some(())
        });
    }
}

/// The rank that ends badly first gives the code, not those that are ended for its sake. Lines longer than Slurm carries in
/// one piece come out whole, and nothing is left on either node.
#[test]
fn a_failing_rank_is_told_and_lines_are_whole() {
    let ns = Namespace::new("mpi-fail");
    let text = "for i in 1 2 3 4 5; do head -c 5000 /dev/zero | tr '\\0' $SLURM_PROCID; echo; done; \
                [ $SLURM_PROCID != 2 ] || { sleep 2; exit 7; }; sleep 600";
    ns.apply(&four_ranks("seven", text).to_string());
    ns.wait_phase("seven", "Failed");
    let pod = ns.get("pod", "seven");
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(7), &json!("Error")), "{end}");
    assert_eq!(end["message"], "rank 2 on c2 exited with code 7");
    let logs = ns.kubectl(&["logs", "seven"]);
    for rank in ["0", "1", "2", "3"] {
        let whole = rank.repeat(5000);
        assert_eq!(logs.ok().lines().filter(|line| *line == whole).count(), 5, "lines of rank {rank}");
    }
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    for node in ["c1", "c2"] {
        eventually("no folder of the step on the node", PATIENCE, || {
            let found = sx(node, None, &["find", "/tmp", "-maxdepth", "2", "-name", &format!("{uid}*")]);
            found.ok().is_empty().then_some(())
        });
        assert_eq!(processes(node, &uid), Vec::<String>::new(), "{node}");
    }
}

/// Sidecars and init containers run once, beside the step, in the pod's network; a session in the step's container sees the
/// ranks of its node; deletion asks every rank to end.
#[test]
fn a_step_among_other_containers() {
    let ns = Namespace::new("mpi-beside");
    let ranks = "trap 'echo rank $SLURM_PROCID ends in order; exit 0' TERM; echo rank $SLURM_PROCID of $(hostname); \
                 touch /tmp/up.$SLURM_PROCID; sleep 600 & wait";
    let mut pod = four_ranks("p", ranks);
    pod["metadata"]["annotations"]["slurm-job.hpk.io/mpi-container"] = json!("main");
    let once = |name: &str, script: &str| {
        json!({"name": name, "image": TOOLBOX, "command": ["sh", "-c", script],
               "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}})
    };
    pod["spec"]["initContainers"] = json!([once("before", "echo once on $(hostname)")]);
    let main = pod["spec"]["containers"][0].take();
    pod["spec"]["containers"] = json!([once("beside", "echo at $(hostname -i); sleep 600"), main]);
    ns.apply(&pod.to_string());
    ns.wait_ready("p");

    assert_eq!(ns.kubectl(&["logs", "p", "-c", "before"]).ok(), "once on p");
    let ip = ns.get("pod", "p")["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(ns.kubectl(&["logs", "p", "-c", "beside"]).ok().contains(&ip));
    let logs = eventually("a line of each rank", PATIENCE, || {
        let logs = ns.kubectl(&["logs", "p", "-c", "main"]).ok().to_owned();
        (logs.lines().count() == 4).then_some(logs)
    });
    assert_eq!(sorted(&logs), ["rank 0 of c1", "rank 1 of c1", "rank 2 of c2", "rank 3 of c2"]);
    let exec = ns.kubectl(&["exec", "p", "-c", "main", "--", "sh", "-c", "ls /tmp/up.*; pgrep -xc sleep"]);
    assert_eq!(exec.ok(), "/tmp/up.0\n/tmp/up.1\n2");

    let follow = "kubectl -n $NS logs -f p -c main >/tmp/$NS.log & kubectl -n $NS delete pod p >/dev/null; wait; cat /tmp/$NS.log; rm /tmp/$NS.log";
    let last = ns.shell(follow);
    for rank in 0..4 {
        assert!(last.ok().contains(&format!("rank {rank} ends in order")), "{}", last.stdout);
    }
}

/// An emptyDir that the ranks have in common with another container is one folder for all of them, on every node; one of
/// their own is each node's.
#[test]
fn ranks_share_a_volume_with_an_init_container() {
    let ns = Namespace::new("mpi-volume");
    let script = "cat /input/word; echo $(hostname) >>/own/nodes; touch /input/rank-$SLURM_PROCID; \
                  until [ $(ls /input | grep -c rank-) = 4 ]; do sleep 0.1; done; \
                  if [ $SLURM_PROCID = 0 ] || [ $SLURM_PROCID = 3 ]; then sort -u /own/nodes; fi";
    let mut pod = four_ranks("p", script);
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    pod["spec"]["initContainers"] = json!([{"name": "fetch", "image": TOOLBOX, "volumeMounts": [mount("input", "/input")],
        "command": ["sh", "-c", "echo fetched >/input/word"]}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([mount("input", "/input"), mount("own", "/own")]);
    pod["spec"]["volumes"] = json!([{"name": "input", "emptyDir": {}}, {"name": "own", "emptyDir": {}}]);
    ns.apply(&pod.to_string());
    ns.wait_phase("p", "Succeeded");
    let logs = ns.kubectl(&["logs", "p", "-c", "main"]);
    assert_eq!(sorted(logs.ok()), ["c1", "c2", "fetched", "fetched", "fetched", "fetched"]);
}

/// What cannot be started says why where users look, and a restart is one of all ranks.
#[test]
fn starts_that_fail_and_restarts() {
    let ns = Namespace::new("mpi-start");
    let ended = |name: &str| ns.get("pod", name)["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ns.apply(&ranks("nothing", 4, &["no-such-program"]).to_string());
    let mut plug_in = ranks("plug-in", 4, &["true"]);
    plug_in["metadata"]["annotations"]["slurm-job.hpk.io/mpi-flags"] = json!("--mpi=nonsense");
    ns.apply(&plug_in.to_string());
    // A restart is a step of its own in the same job.
    let mut twice = four_ranks("twice", "[ $SLURM_STEP_ID = 0 ] || exit 0; sleep 1; exit 5");
    twice["spec"]["restartPolicy"] = json!("OnFailure");
    ns.apply(&twice.to_string());

    ns.wait_phase("nothing", "Failed");
    let end = ended("nothing");
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(128), &json!("StartError")));
    let message = end["message"].as_str().unwrap();
    assert!(
        message.starts_with("rank ") && message.contains("\"no-such-program\": executable file not found"),
        "{message}"
    );
    ns.wait_phase("plug-in", "Failed");
    let message = ended("plug-in")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("Invalid MPI type 'nonsense'"), "{message}");
    ns.wait_phase("twice", "Succeeded");
    assert_eq!(ns.get("pod", "twice")["status"]["containerStatuses"][0]["restartCount"], 1);
}

/// Memory counts for each rank, and the kernel's kill of one is told as such.
#[test]
fn a_rank_without_memory() {
    let ns = Namespace::new("mpi-oom");
    let text = "[ $SLURM_PROCID != 3 ] || exec python3 -c 'x = bytearray(2 << 30)'; sleep 600";
    ns.apply(&four_ranks("large", text).to_string());
    ns.wait_phase("large", "Failed");
    let end = &ns.get("pod", "large")["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&end["exitCode"], &end["reason"]), (&json!(137), &json!("OOMKilled")), "{end}");
    assert_eq!(end["message"], "rank 3 on c2 was killed by signal 9");
}
