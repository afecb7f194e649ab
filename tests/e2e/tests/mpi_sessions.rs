//! Looking at MPI steps from outside: sessions beside a rank of any node, attach, labels, what the ranks use.

use hpk_e2e::{HOME, Namespace, PATIENCE, Step, at_terminal, eventually, four_ranks, sorted};
use serde_json::json;

/// `rank:N` reaches the rank on its node, with its environment; streams and exit codes are those of any session.
#[test]
fn exec_beside_a_rank() {
    let ns = Namespace::new("mpi-exec");
    ns.apply(&four_ranks("p", "exec sleep 600").to_string());
    ns.wait_ready("p");
    let who = "echo $SLURM_PROCID on $(hostname), $(pgrep -xc sleep) here";
    for (rank, node) in [(0, "c1"), (1, "c1"), (2, "c2"), (3, "c2")] {
        let word = format!("rank:{rank}");
        let run = ns.kubectl(&["exec", "p", "--", &word, "sh", "-c", who]);
        assert_eq!(run.ok(), format!("{rank} on {node}, 2 here"));
    }
    // Without the word: rank 0's container.
    assert_eq!(ns.kubectl(&["exec", "p", "--", "cat", "/etc/hostname"]).code, Some(0));
    let text = "line\n".repeat(100_000);
    let copy = ns.kubectl_with_input(&["exec", "-i", "p", "--", "rank:3", "cat"], &text);
    assert!(copy.stdout == text, "{} bytes of {} came back", copy.stdout.len(), text.len());
    let seven = ns.kubectl(&["exec", "p", "--", "rank:2", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((seven.code, seven.stdout.as_str()), (Some(7), "out\n"));
    assert!(seven.stderr.starts_with("err\n"), "{}", seven.stderr);
    for (command, says) in [
        (&["rank:4", "true"][..], "has the ranks 0 to 3, not 4"),
        (&["rank:2", "no-such-program"], "\"no-such-program\": executable file not found"),
        (&["rank:2"], "at least one command"),
    ] {
        let run = ns.kubectl(&[&["exec", "p", "--"], command].concat());
        assert!(run.err().contains(says), "{run:?}");
    }
    // The command that is meant for people says the same.
    let run = ns.shell("hpk exec --rank 3 -n $NS p -- sh -c 'echo $SLURM_PROCID on $(hostname)'");
    assert_eq!(run.ok(), "3 on c2");
}

/// A client that goes takes its command along, on whichever node it is.
#[test]
fn a_session_ends_with_its_client() {
    let ns = Namespace::new("mpi-gone");
    ns.apply(&four_ranks("p", "exec sleep 600").to_string());
    ns.wait_ready("p");
    let left = || ns.kubectl(&["exec", "p", "--", "rank:2", "pgrep", "-fc", "sleep 63456"]).stdout.trim().to_owned();
    ns.shell("timeout -s KILL 3 kubectl -n $NS exec p -- rank:2 sleep 63456");
    eventually("the command is gone", PATIENCE, || (left() == "0").then_some(()));
    // The step does not mind.
    assert_eq!(ns.get("pod", "p")["status"]["containerStatuses"][0]["ready"], true);
}

#[test]
fn a_terminal_beside_a_rank() {
    let ns = Namespace::new("mpi-tty");
    ns.apply(&four_ranks("p", "exec sleep 600").to_string());
    ns.wait_ready("p");
    let run = at_terminal(
        &["kubectl", "-n", ns.name(), "exec", "-it", "p", "--", "rank:3", "bash", "--norc"],
        &[
            Step::Expect("[$#] "),
            Step::Resize(40, 120),
            Step::Type("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo re''sized on $(hostname)\n"),
            Step::Expect("resized on c2"),
            Step::Type("sh -c 'echo st\"\"arted; exec sleep 1000'\n"),
            Step::Expect("started"),
            Step::Type("\x03"),
            Step::Type("echo shell goes on after $?\n"),
            Step::Expect("goes on after 130"),
            Step::Type("exit 3\n"),
        ],
    );
    assert_eq!(run.code, Some(3), "{run:?}");
}

/// `--label`, as srun has it; attach shows all ranks, too.
#[test]
fn labels_and_attach() {
    let ns = Namespace::new("mpi-label");
    let text = "until [ -e /h/$NAME ]; do sleep 0.2; done; echo one from $SLURM_PROCID; sleep 1; echo two";
    let mut pod = four_ranks("p", text);
    pod["metadata"]["annotations"]["slurm-job.hpk.io/mpi-flags"] = json!("--label");
    let main = &mut pod["spec"]["containers"][0];
    main["env"] = json!([{"name": "NAME", "value": ns.name()}]);
    main["volumeMounts"] = json!([{"name": "h", "mountPath": "/h"}]);
    pod["spec"]["volumes"] = json!([{"name": "h", "hostPath": {"path": HOME}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("p");
    // The ranks speak when somebody is attached; attach tells nobody when it is, so they wait for more than its start.
    let follow = "(sleep 2; touch ~/$NS) & timeout 40 kubectl -n $NS attach p 2>/dev/null; rm -f ~/$NS";
    let attached = ns.shell(follow).stdout;
    ns.wait_phase("p", "Succeeded");
    let mut want: Vec<String> =
        (0..4).flat_map(|rank| [format!("{rank}: one from {rank}"), format!("{rank}: two")]).collect();
    want.sort_unstable();
    assert_eq!(sorted(ns.kubectl(&["logs", "p"]).ok()), want);
    assert_eq!(sorted(&attached), want);
}

/// What the ranks of all nodes use is the container's.
#[test]
fn top_adds_up_over_nodes() {
    let ns = Namespace::new("mpi-top");
    let text = "exec python3 -c 'import time; x = bytearray(b\"x\" * (100 << 20)); time.sleep(600)'";
    let mut pod = four_ranks("p", text);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1", "memory": "256Mi"}});
    ns.apply(&pod.to_string());
    ns.wait_ready("p");
    let used = eventually("what four ranks use", PATIENCE, || {
        let run = ns.kubectl(&["top", "pod", "p", "--no-headers"]);
        let used: u64 = run.stdout.split_whitespace().nth(2)?.strip_suffix("Mi")?.parse().ok()?;
        (used >= 400).then_some(used)
    });
    assert!(used < 600, "{used} Mi: each node counts once");
}
