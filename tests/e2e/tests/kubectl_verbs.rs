//! kubectl in all its verbs, with the real client and API server.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually, sx};
use serde_json::json;

/// A pod `tools` that sleeps, with bash, curl and python.
fn tools(ns: &Namespace) {
    let mut pod = ns.script_pod("tools", "Never", "");
    pod["spec"]["containers"][0]["image"] = json!(TOOLBOX);
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "infinity"]);
    pod["spec"]["containers"][0]["env"] = json!([{"name": "COLOUR", "value": "blue"}]);
    pod["spec"]["containers"][0]["workingDir"] = json!("/var");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "512Mi"}});
    ns.apply(&pod.to_string());
    ns.wait_ready("tools");
}

#[test]
fn exec_runs_in_the_container() {
    let ns = Namespace::new("exec");
    tools(&ns);
    assert_eq!(ns.kubectl(&["exec", "tools", "--", "sh", "-c", "echo $COLOUR; pwd"]).ok(), "blue\n/var");
    assert_eq!(ns.kubectl_with_input(&["exec", "-i", "tools", "--", "cat"], "hi\n").ok(), "hi");
    let seven = ns.kubectl(&["exec", "tools", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((seven.code, seven.stdout.as_str()), (Some(7), "out\n"));
    assert!(seven.stderr.starts_with("err\n"), "{}", seven.stderr);
    let none = ns.kubectl(&["exec", "tools", "--", "/no/such/program"]);
    assert!(none.err().contains("/no/such/program"), "{none:?}");
}

#[test]
fn exec_with_a_terminal() {
    let ns = Namespace::new("tty");
    tools(&ns);
    // `script` gives kubectl a terminal of 33 by 99.
    let run = ns.shell(
        r#"printf 'stty size; echo shell is $0\nexit 3\n' |
           script -qec "stty rows 33 cols 99; kubectl -n $NS exec -it tools -- bash" /dev/null"#,
    );
    assert!(run.stdout.contains("33 99"), "{run:?}");
    assert!(run.stdout.contains("shell is bash"), "{run:?}");
    assert_eq!(run.code, Some(3));
}

#[test]
fn streams_come_through_whole() {
    let ns = Namespace::new("bulk");
    tools(&ns);
    let out = ns.shell("kubectl -n $NS exec tools -- head -c 100M /dev/zero | sha256sum");
    let local = sx("login", None, &["bash", "-c", "head -c 100M /dev/zero | sha256sum"]);
    assert_eq!(out.ok(), local.ok());
    let both = ns.shell(
        "head -c 50M /dev/urandom > /tmp/$NS; sha256sum < /tmp/$NS; kubectl -n $NS exec -i tools -- cat < /tmp/$NS | sha256sum; rm /tmp/$NS",
    );
    let sums: Vec<&str> = both.ok().lines().collect();
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn many_execs_at_once() {
    let ns = Namespace::new("execs");
    tools(&ns);
    let run = ns.shell(
        "seq 50 | xargs -P 50 -I{} kubectl -n $NS exec tools -- echo {} | sort -n | sha256sum; seq 50 | sha256sum",
    );
    let sums: Vec<&str> = run.ok().lines().collect();
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn cp_of_a_tree_both_ways() {
    let ns = Namespace::new("cp");
    tools(&ns);
    let run = ns.shell(
        "set -e; d=$(mktemp -d); mkdir -p $d/a/b; head -c 5M /dev/urandom > $d/a/b/file; echo hi > $d/a/note
         kubectl -n $NS cp $d/a tools:/tmp/a; kubectl -n $NS cp tools:/tmp/a $d/back >/dev/null
         diff -r $d/a $d/back && echo same; rm -r $d",
    );
    assert_eq!(run.ok(), "same");
}

#[test]
fn port_forward_to_a_server_in_a_pod() {
    let ns = Namespace::new("forward");
    ns.run_script(
        "web",
        "Never",
        "mkdir /tmp/w; echo hello > /tmp/w/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/w",
    );
    ns.wait_ready("web");
    let run = ns.shell(
        "kubectl -n $NS port-forward pod/web :8080 > /tmp/$NS & p=$!
         until grep -q Forwarding /tmp/$NS; do kill -0 $p || exit; sleep 0.1; done
         port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) ->.*/\\1/p' /tmp/$NS)
         for i in $(seq 200); do curl -sf http://127.0.0.1:$port/; done | sort | uniq -c
         kill $p; rm /tmp/$NS",
    );
    assert_eq!(run.ok().trim(), "200 hello");
}

#[test]
fn attach_to_the_running_process() {
    let ns = Namespace::new("attach");
    let mut pod = ns.script_pod("echo", "Never", "while read line; do echo got $line; done");
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    pod["spec"]["containers"][0]["stdinOnce"] = json!(true);
    ns.apply(&pod.to_string());
    ns.wait_ready("echo");
    let run = ns.kubectl_with_input(&["attach", "-i", "echo"], "one\ntwo\n");
    assert!(run.ok().contains("got one\ngot two"), "{run:?}");
    ns.wait_phase("echo", "Succeeded");
}

#[test]
fn debug_with_an_ephemeral_container() {
    let ns = Namespace::new("debug");
    tools(&ns);
    let image = format!("--image={BUSYBOX}");
    ns.kubectl(&["debug", "tools", &image, "-c", "dbg", "--target=main", "--", "sh", "-c", "echo from debug; exit 4"])
        .ok();
    let pod = ns.until_pod("tools", PATIENCE, |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 4
    });
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(ns.kubectl(&["logs", "tools", "-c", "dbg"]).ok(), "from debug");
}

#[test]
fn debug_of_a_target_at_a_terminal() {
    let ns = Namespace::new("debug-target");
    tools(&ns);
    // Its own image (busybox: the target's has bash), the target's processes, a terminal of 33 by 99.
    let run = ns.shell(&format!(
        r#"printf 'ps\nls /bin/bash\nls -d /proc/1/root/bin/bash\nstty size\nexit 6\n' |
           script -qec "stty rows 33 cols 99; kubectl -n $NS debug -it tools -q --image={BUSYBOX} -c dbg --target=main -- sh" /dev/null"#
    ));
    assert!(run.stdout.contains("sleep infinity"), "{run:?}");
    assert!(run.stdout.contains("33 99"), "{run:?}");
    assert!(run.stdout.contains("/proc/1/root/bin/bash\r\n"), "{run:?}");
    assert!(run.stdout.contains("ls: /bin/bash: No such file"), "{run:?}");
    let pod = ns.until_pod("tools", PATIENCE, |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 6
    });
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn top_shows_what_a_pod_uses() {
    let ns = Namespace::new("top");
    tools(&ns);
    let stats = hpk_e2e::kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/stats/summary", hpk_e2e::NODE)]);
    let stats: serde_json::Value = serde_json::from_str(stats.ok()).expect("JSON");
    let pods = stats["pods"].as_array().expect("pods");
    let ours = pods.iter().find(|pod| pod["podRef"]["namespace"] == ns.name()).expect("our pod");
    assert!(ours["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0), "{ours}");
}

#[test]
fn strangers_get_nothing() {
    let ns = Namespace::new("bob");
    tools(&ns);
    let pod = ns.get("pod", "tools");
    let uid = pod["metadata"]["uid"].as_str().expect("uid");
    let home = format!("/home/alice/.hpk/pods/{uid}/plan.json");
    sx("login", Some("bob"), &["cat", &home]).err();
    sx("login", Some("bob"), &["env", "KUBECONFIG=/home/alice/.hpk/kubeconfig", "kubectl", "get", "pods"]).err();
    let node = ns.kubectl(&["get", "node", hpk_e2e::NODE, "-o", "json"]);
    let node: serde_json::Value = serde_json::from_str(node.ok()).expect("JSON");
    let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let url = format!("https://10.77.0.1:{port}/pods");
    let code = eventually("the kubelet answers", PATIENCE, || {
        let run = sx("login", Some("bob"), &["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        (run.code == Some(0)).then_some(run.stdout)
    });
    assert_eq!(code, "401");
}
