//! kubectl in all its verbs, with the real client and API server.

use hpk_e2e::{
    BUSYBOX, HPK_HOME, NODE_FOLDER, Namespace, PATIENCE, Step, TOOLBOX, at_terminal, eventually, job_of, sx,
};
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

/// Typed at a shell: says so when the terminal has the size that it was given at first.
const FIRST_SIZE: &str = "until [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; echo first si''ze\n";

#[test]
fn exec_with_a_terminal() {
    let ns = Namespace::new("tty");
    tools(&ns);
    let run = at_terminal(
        &["kubectl", "-n", ns.name(), "exec", "-it", "tools", "--", "bash", "--norc"],
        &[
            Step::Expect("[$#] "),
            // The first size comes beside the first input, as with every kubelet.
            Step::Type(FIRST_SIZE),
            Step::Expect("first size"),
            Step::Resize(40, 120),
            Step::Type("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo re''sized\n"),
            Step::Expect("resized"),
            // The foreground process alone is interrupted; the shell goes on and says so.
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

#[test]
fn debug_at_a_terminal() {
    let ns = Namespace::new("debugtty");
    tools(&ns);
    let image = format!("--image={BUSYBOX}");
    let run = at_terminal(
        &["kubectl", "-n", ns.name(), "debug", "-it", "tools", &image, "-c", "dbg", "--target=main", "--", "sh"],
        &[
            // A shell may ask its terminal something after the prompt.
            Step::Expect("# "),
            // The target's processes are seen.
            Step::Type("ps | grep -c 'sleep [i]nfinity'\n"),
            Step::Expect("1\r\n"),
            Step::Type(FIRST_SIZE),
            Step::Expect("first size"),
            Step::Resize(20, 70),
            Step::Type("until [ \"$(stty size)\" = '20 70' ]; do sleep 0.1; done; echo re''sized\n"),
            Step::Expect("resized"),
            Step::Type("exit\n"),
        ],
    );
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn streams_come_through_whole() {
    let ns = Namespace::new("bulk");
    tools(&ns);
    let out = ns.shell("kubectl -n $NS exec tools -- head -c 100M /dev/zero | sha256sum");
    let local = sx("login", None, &["bash", "-c", "head -c 100M /dev/zero | sha256sum"]);
    assert_eq!(out.ok(), local.ok());
    let both = ns.shell(
        "head -c 100M /dev/urandom > /tmp/$NS; sha256sum < /tmp/$NS; kubectl -n $NS exec -i tools -- cat < /tmp/$NS | sha256sum; rm /tmp/$NS",
    );
    let sums: Vec<&str> = both.ok().lines().collect();
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn many_execs_at_once() {
    let ns = Namespace::new("execs");
    tools(&ns);
    // diff shows which answers are missing, kubectl why.
    ns.shell("seq 50 | xargs -P 50 -I{} kubectl -n $NS exec tools -- echo {} | sort -n | diff - <(seq 50)").ok();
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
         curl -sf -H 'Connection: close' \"http://127.0.0.1:$port/?[1-1000]\" | sort | uniq -c
         kill $p; rm /tmp/$NS",
    );
    assert_eq!(run.ok().trim(), "1000 hello");
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
        r#"printf 'ps\nls /bin/bash\nls -d /proc/1/root/bin/bash\nuntil [ "$(stty size)" != "0 0" ]; do sleep 0.1; done\nstty size\nexit 6\n' |
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

/// Every client of whom one may come along: today's and the minor version before, each over WebSocket and SPDY.
const CLIENTS: [(&str, &str); 4] =
    [("kubectl", "true"), ("kubectl", "false"), ("kubectl-older", "true"), ("kubectl-older", "false")];

/// Shell text before which `k` is such a client.
fn client((program, websockets): (&str, &str)) -> String {
    format!(
        "set -e; command -v {program} > /dev/null || {{ echo '{program} is not installed: make e2e does it'; exit 1; }}
         export KUBECTL_REMOTE_COMMAND_WEBSOCKETS={websockets} KUBECTL_PORT_FORWARD_WEBSOCKETS={websockets}
         program={program}; k() {{ $program -n $NS \"$@\"; }}; w=/tmp/$NS-{program}-{websockets}; mkdir -p $w; "
    )
}

#[test]
fn every_verb_with_older_clients_and_both_protocols() {
    let ns = Namespace::new("clients");
    tools(&ns);
    let mut web =
        ns.script_pod("web", "Never", "mkdir /tmp/w; echo hello > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w");
    web["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "64Mi"}});
    ns.apply(&web.to_string());
    let mut echo = ns.script_pod("echo", "Never", "while read line; do echo got $line; done; sleep 1000");
    echo["spec"]["containers"][0]["stdin"] = json!(true);
    ns.apply(&echo.to_string());
    ns.wait_ready("web");
    ns.wait_ready("echo");
    for (number, who) in CLIENTS.into_iter().enumerate() {
        let k = client(who);
        let run = |script: &str| ns.shell(&format!("{k}{script}"));
        assert_eq!(run("echo hi | k exec -i tools -- cat").ok(), "hi", "{who:?}");
        let seven = run("k exec tools -- sh -c 'echo out; echo err >&2; exit 7'");
        assert_eq!((seven.code, seven.stdout.as_str()), (Some(7), "out\n"), "{who:?}");
        assert!(seven.stderr.contains("err\n"), "{seven:?}");
        let sums = run("head -c 20M /dev/urandom > $w/f; sha256sum < $w/f; k exec -i tools -- cat < $w/f | sha256sum");
        let sums: Vec<&str> = sums.ok().lines().collect();
        assert_eq!(sums[0], sums[1], "{who:?}");
        let tree = format!(
            "mkdir -p $w/a/b; echo note > $w/a/b/n; k cp $w/a tools:/tmp/a{number}; k cp tools:/tmp/a{number} $w/back > /dev/null; diff -r $w/a $w/back && echo same"
        );
        assert_eq!(run(&tree).ok(), "same", "{who:?}");
        let attached = run(&format!(
            "(echo line{number}; sleep 3) | timeout 8 $program -n $NS attach -i echo 2>&1 | head -n 20 || true; k logs echo | grep -c line{number}"
        ));
        assert!(attached.ok().contains(&format!("got line{number}")), "{who:?} {attached:?}");
        let forwarded = run("$program -n $NS port-forward pod/web :8080 > $w/out & p=$!
             until grep -q Forwarding $w/out; do kill -0 $p; sleep 0.1; done
             port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) ->.*/\\1/p' $w/out)
             curl -sf \"http://127.0.0.1:$port/?[1-50]\" | sort | uniq -c; kill $p");
        assert_eq!(forwarded.ok().trim(), "50 hello", "{who:?}");
        assert!(run("k logs web; k top pod tools --no-headers").ok().contains("tools"), "{who:?}");
        run("rm -r $w").ok();
        let (program, websockets) = who;
        let websockets = format!("KUBECTL_REMOTE_COMMAND_WEBSOCKETS={websockets}");
        let tty = at_terminal(
            &["env", &websockets, program, "-n", ns.name(), "exec", "-it", "tools", "--", "sh"],
            &[Step::Expect("[$#] "), Step::Type(FIRST_SIZE), Step::Expect("first size"), Step::Type("exit 4\n")],
        );
        assert_eq!(tty.code, Some(4), "{who:?} {tty:?}");
    }
}

#[test]
fn a_killed_client_takes_along_what_it_ran() {
    let ns = Namespace::new("killed");
    tools(&ns);
    for who in CLIENTS {
        // The process does not read, so everything on the way is full when the client is killed.
        let run = ns.shell(&format!(
            "{}k exec -i tools -- sleep 1000 < /dev/zero & p=$!
             until k exec tools -- pgrep -fx 'sleep 1000'; do sleep 0.2; done
             sleep 2; kill -9 $(pgrep -P $p || echo $p)",
            client(who)
        ));
        run.ok();
        eventually("the process is gone", PATIENCE, || {
            let run = ns.kubectl(&["exec", "tools", "--", "pgrep", "-fx", "sleep 1000"]);
            (run.code == Some(1) && run.stdout.is_empty()).then_some(())
        });
    }
}

#[test]
fn a_reader_that_stops_holds_up_nobody_and_nothing_grows() {
    let ns = Namespace::new("slow");
    tools(&ns);
    ns.run_script("chatty", "Never", "yes 0123456789012345678901234567890123456789 | head -c 2000000000");
    ns.wait_phase("chatty", "Running");
    let rss = |when: &str| {
        let run = sx("login", None, &["sh", "-c", "awk '/VmRSS/ {print $2}' /proc/$(pgrep -ox hpk-kubelet)/status"]);
        run.ok().parse::<u64>().unwrap_or_else(|error| panic!("{when}: {error}: {run:?}"))
    };
    let before = rss("before");
    // Each fills what lies between and then reads no more for twenty seconds.
    let run = ns.shell(
        "for n in 1 2 3; do kubectl -n $NS exec tools -- cat /dev/zero | sleep 20 & kubectl -n $NS logs -f chatty | sleep 20 & done
         sleep 8; kubectl -n $NS exec tools -- echo others go on; kubectl -n $NS logs chatty --tail=1 | wc -l",
    );
    // Other cases stream beside; without bounds, these six alone would come to gigabytes.
    let grown = rss("after").saturating_sub(before);
    assert!(run.ok().starts_with("others go on\n1"), "{run:?}");
    assert!(grown < 256 << 10, "the kubelet grew by {grown} KiB");
}

#[test]
fn logs_follow_short_lives_to_their_end() {
    let ns = Namespace::new("short");
    let run = ns.shell(
        r#"one() {
             kubectl -n $NS create -f - > /dev/null << END
             {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p$1"}, "spec": {"restartPolicy": "Never",
               "containers": [{"name": "main", "image": "login:5000/busybox:1",
                 "command": ["sh", "-c", "sleep 1; seq 500; echo the end"], "resources": {"requests": {"memory": "32Mi"}}}]}}
END
             # Before its start there is no log to be followed.
             for i in $(seq 200); do kubectl -n $NS logs -f p$1 2> /dev/null > $w/$1 && break; sleep 0.2; done
             echo "$(wc -l < $w/$1) $(tail -n 1 $w/$1)"
           }
           export -f one; export w=$(mktemp -d); seq 18 | xargs -P 6 -I{} bash -c 'one {}' | sort | uniq -c; rm -r $w"#,
    );
    assert_eq!(run.ok().trim(), "18 501 the end");
}

#[test]
fn logs_of_all_containers_are_followed() {
    let ns = Namespace::new("alllogs");
    let mut pod = ns.script_pod("two", "Never", "for i in 1 2 3; do echo one $i; sleep 1; done");
    let mut second = pod["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    second["command"] = json!(["sh", "-c", "for i in 1 2 3; do echo two $i; sleep 1; done"]);
    pod["spec"]["containers"].as_array_mut().expect("containers").push(second);
    ns.apply(&pod.to_string());
    ns.wait_phase("two", "Running");
    let run = ns.shell("kubectl -n $NS logs -f two --all-containers | sort");
    assert_eq!(run.ok(), "one 1\none 2\none 3\ntwo 1\ntwo 2\ntwo 3");
}

#[test]
fn the_supervisor_answers_on_its_node() {
    let ns = Namespace::new("ctl");
    tools(&ns);
    let pod = ns.get("pod", "tools");
    let uid = pod["metadata"]["uid"].as_str().expect("uid").to_owned();
    let node = job_of(ns.name(), "tools").expect("job").node;
    let ctl = |arguments: &str| {
        let line = format!(
            "~/.local/libexec/hpk/hpk-pause ctl --socket /tmp/hpk-$(id -u)/{uid}/run/supervisor.sock {arguments}"
        );
        sx(&node, Some("alice"), &["bash", "-c", &line])
    };
    assert!(ctl("status").ok().contains("\"running\""));
    assert!(ctl("stats").ok().contains("memory_bytes"));
    assert_eq!(ctl("exec main -- sh -c 'echo $COLOUR; exit 6'").code, Some(6));
    assert_eq!(sx(&node, Some("alice"), &["bash", "-c", &format!("echo hi | ~/.local/libexec/hpk/hpk-pause ctl --socket /tmp/hpk-$(id -u)/{uid}/run/supervisor.sock exec -i main cat")]).ok(), "hi");
    ctl("logs main").ok();
    assert!(ctl("exec nosuch true").err().contains("not found"));
    // Bob, on the same node.
    for socket in ["supervisor.sock", "netns.sock", "link.sock"] {
        let path = format!("{NODE_FOLDER}/{uid}/run/{socket}");
        let run = sx(
            &node,
            Some("bob"),
            &["python3", "-c", "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])", &path],
        );
        assert!(run.err().contains("PermissionError"), "{run:?}");
    }
    ctl("stop --grace 1").ok();
    ns.until_pod("tools", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
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
    let top = ns.kubectl(&["top", "pod", "tools", "--no-headers"]);
    assert!(top.ok().starts_with("tools ") && top.stdout.contains("Mi"), "{top:?}");
}

#[test]
fn strangers_get_nothing() {
    let ns = Namespace::new("bob");
    tools(&ns);
    let pod = ns.get("pod", "tools");
    let uid = pod["metadata"]["uid"].as_str().expect("uid");
    let home = format!("{HPK_HOME}/pods/{uid}/pod/plan.json");
    sx("login", Some("bob"), &["cat", &home]).err();
    sx("login", Some("bob"), &["env", &format!("KUBECONFIG={HPK_HOME}/kubeconfig"), "kubectl", "get", "pods"]).err();
    let node = ns.kubectl(&["get", "node", hpk_e2e::NODE, "-o", "json"]);
    let node: serde_json::Value = serde_json::from_str(node.ok()).expect("JSON");
    let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let url = format!("https://10.77.0.1:{port}/pods");
    let code = eventually("the kubelet answers", PATIENCE, || {
        let run = sx("login", Some("bob"), &["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        (run.code == Some(0)).then_some(run.stdout)
    });
    assert_eq!(code, "401");
    // A certificate that no authority of ours signed; a user who may not; sockets of the login node.
    let forged = sx(
        "login",
        Some("bob"),
        &[
            "bash",
            "-c",
            &format!(
                "cd $(mktemp -d); openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k -out c -days 1 -subj /O=system:masters/CN=root 2> /dev/null; curl -sk --cert c --key k -o /dev/null -w %{{http_code}} {url}"
            ),
        ],
    );
    assert_eq!(forged.ok(), "401");
    let token = ns.kubectl(&["create", "token", "default"]);
    let header = format!("Authorization: Bearer {}", token.ok());
    let known =
        sx("login", Some("bob"), &["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header, &url]);
    assert_eq!(known.ok(), "403");
    let egress =
        format!("import glob, socket, sys; socket.socket(socket.AF_UNIX).connect('{HPK_HOME}/run/egress.sock')");
    assert!(sx("login", Some("bob"), &["python3", "-c", &egress]).err().contains("PermissionError"));
    let cluster = sx("login", Some("alice"), &["jq", "-r", ".link_addr", &format!("{HPK_HOME}/cluster.json")]);
    let tls = sx(
        "login",
        Some("bob"),
        &[
            "bash",
            "-c",
            &format!(
                "timeout 20 openssl s_client -connect {} -ign_eof < /dev/null 2>&1 | grep -c 'alert certificate required'",
                cluster.ok()
            ),
        ],
    );
    assert_eq!(tls.ok(), "1", "{tls:?}");
}
