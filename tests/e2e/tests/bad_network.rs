//! Networks that lose, delay and reorder; nodes that are cut off; pods that come, go and move; many of them.
#![allow(clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, Run, TOOLBOX, eventually, job_of, sx};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A pod of one container that serves its own name at port 8080, on a node (empty: any).
fn server(name: &str, node: &str) -> Value {
    let serve = "mkdir /tmp/w; hostname >/tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";
    pod(name, node, BUSYBOX, serve)
}

fn pod(name: &str, node: &str, image: &str, script: &str) -> Value {
    let flags = if node.is_empty() { String::new() } else { format!("--nodelist={node}") };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"slurm-job.hpk.io/flags": flags}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", script],
                            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]
        }
    })
}

/// A pod with tools, which is ready as soon as it runs.
fn client(name: &str, node: &str) -> Value {
    let mut client = pod(name, node, TOOLBOX, "exec sleep infinity");
    client["spec"]["containers"][0].as_object_mut().expect("a container").remove("readinessProbe");
    client
}

fn ip_of(ns: &Namespace, pod: &str) -> String {
    ns.get("pod", pod)["status"]["podIP"].as_str().expect("a pod IP").to_owned()
}

fn in_pod(ns: &Namespace, pod: &str, script: &str) -> Run {
    ns.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// What the server at an address says, asked from a pod; it gets `seconds` for it.
fn said(ns: &Namespace, from: &str, ip: &str, seconds: u32) -> String {
    in_pod(ns, from, &format!("curl -s --max-time {seconds} http://{ip}:8080/")).stdout.trim().to_owned()
}

/// A shell command as root on a compute node, with `$dev`, its network device.
fn on_node(node: &str, command: &str) -> Run {
    sx(
        node,
        None,
        &["bash", "-c", &format!("dev=$(ip -o -4 addr show to 10.77.0.0/24 | awk '{{print $2}}'); {command}")],
    )
}

/// Something done to nodes' network; undone when dropped.
struct Trouble {
    nodes: &'static [&'static str],
    undo: &'static str,
}

impl Trouble {
    fn new(nodes: &'static [&'static str], make: &str, undo: &'static str) -> Self {
        // First: what is half made is undone too.
        let trouble = Self { nodes, undo };
        for node in nodes {
            on_node(node, make).ok();
        }
        trouble
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        for node in self.nodes {
            on_node(node, self.undo);
        }
    }
}

/// What netem does, with what every kernel has that can run the site: of the UDP packets between nodes, one in 50 is
/// lost as it comes in, and one in 20 is led through a narrow lane on its way out, where it waits and is overtaken. The
/// device takes large packets in pieces, so that single datagrams are lost, as on a wire.
const WEATHER: &str = "set -e
ip link set $dev gso_max_segs 1
tc qdisc add dev $dev root handle 1: htb default 10
tc class add dev $dev parent 1: classid 1:10 htb rate 10gbit quantum 60000
tc class add dev $dev parent 1: classid 1:20 htb rate 20mbit quantum 60000
nft -f - <<E
table inet weather {
  counter lost { }
  counter late { }
  chain in { type filter hook input priority 0
    meta l4proto udp numgen random mod 50 0 counter name lost drop
  }
  chain out { type filter hook output priority 0
    meta l4proto udp numgen random mod 20 0 counter name late meta priority set 1:20
  }
}
E";
const SUN: &str = "nft delete table inet weather; tc qdisc del dev $dev root; ip link set $dev gso_max_segs 65535";

#[test]
#[ignore = "disturbs the network of both nodes for all: make long"]
fn loss_delay_and_reordering_cost_time_and_nothing_else() {
    let ns = Namespace::new("weather");
    let serve = "mkdir /tmp/w; head -c 8M /dev/urandom >/tmp/w/big; exec python3 -m http.server -d /tmp/w 8080";
    for (name, node) in [("here", "c1"), ("there", "c2")] {
        ns.apply(&pod(name, node, TOOLBOX, serve).to_string());
        ns.kubectl(&["create", "service", "clusterip", name, "--tcp=80:8080"]).ok();
    }
    ns.wait_ready("here");
    ns.wait_ready("there");
    let both = [("here", "there"), ("there", "here")];
    let sum = |pod| in_pod(&ns, pod, "sha256sum </tmp/w/big").ok().to_owned();
    let fetch = |from, to| in_pod(&ns, from, &format!("curl -s --max-time 60 http://{to}/big | sha256sum"));
    for (from, to) in both {
        let sum = sum(to);
        eventually("the service leads to the pod", PATIENCE, || (fetch(from, to).stdout.trim() == sum).then_some(()));
    }
    let _weather = Trouble::new(&["c1", "c2"], WEATHER, SUN);
    for (from, to) in both {
        let sum = sum(to);
        for _ in 0..2 {
            assert_eq!(fetch(from, to).ok(), sum, "{to} from {from}");
        }
        // Connections begin and end, and names are asked for, through the same.
        for _ in 0..5 {
            in_pod(&ns, from, &format!("curl -s --max-time 30 http://{to}/ >/dev/null")).ok();
        }
    }
    // There was weather.
    for node in ["c1", "c2"] {
        for counter in ["lost", "late"] {
            let count = on_node(node, &format!("nft list counter inet weather {counter} | grep -o 'packets [0-9]*'"));
            let packets: u64 = count.ok().trim_start_matches("packets ").parse().expect("a number");
            assert!(packets >= 10, "{packets} {counter} on {node}");
        }
    }
}

#[test]
#[ignore = "disturbs the network of a node for all: make long"]
fn pods_reach_each_other_again_after_a_node_was_cut_off() {
    let ns = Namespace::new("cut");
    let serve = "mkdir /tmp/w; head -c 8M /dev/urandom >/tmp/w/big; exec python3 -m http.server -d /tmp/w 8080";
    ns.apply(&pod("server", "c1", TOOLBOX, serve).to_string());
    ns.apply(&client("client", "c2").to_string());
    ns.wait_ready("server");
    ns.wait_ready("client");
    let ip = ip_of(&ns, "server");
    let sum = in_pod(&ns, "server", "sha256sum </tmp/w/big").ok().to_owned();
    let fetch = || in_pod(&ns, "client", &format!("curl -s --max-time 60 http://{ip}:8080/big | sha256sum"));
    eventually("the client is answered", PATIENCE, || (fetch().stdout.trim() == sum).then_some(()));
    {
        let _cut = Trouble::new(&["c1"], "ip link set $dev down", "ip link set $dev up");
        let cut = in_pod(&ns, "client", &format!("curl -s --max-time 5 http://{ip}:8080/ >/dev/null"));
        assert_ne!(cut.code, Some(0), "c1 is cut off");
    }
    eventually("the client is answered again", PATIENCE, || (fetch().stdout.trim() == sum).then_some(()));
}

/// Names and addresses of the pods with a label.
fn addresses(ns: &Namespace, label: &str) -> BTreeMap<String, String> {
    let run = ns.kubectl(&[
        "get",
        "pods",
        "-l",
        label,
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}",
    ]);
    run.ok().lines().filter_map(|line| line.split_once(' ')).map(|(n, ip)| (n.to_owned(), ip.to_owned())).collect()
}

#[test]
fn pods_that_come_and_go_under_traffic_are_found_and_never_taken_for_others() {
    let ns = Namespace::new("churn");
    let mut template = server("web", "");
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": template["spec"].take()});
    let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                     "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    ns.apply(&web.to_string());
    ns.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]).ok();
    ns.apply(&client("client", "c2").to_string());
    ns.wait_ready("client");
    ns.wait(&["deployment", "web"], "--for=condition=Available");
    // Asks without pause, of the Service, until the case ends.
    let ask = "while :; do curl -s --max-time 2 http://web/ || echo none; done >/tmp/said 2>&1 &";
    in_pod(&ns, "client", &format!("setsid sh -c '{ask}'")).ok();
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    let mut known: BTreeSet<String> = addresses(&ns, "app=web").into_keys().collect();
    for _ in 0..5 {
        let before = addresses(&ns, "app=web");
        let victim = before.keys().next().expect("a pod").clone();
        ns.kubectl(&["delete", "pod", &victim, "--wait=false"]).ok();
        ns.wait(&["pod", &victim], "--for=delete");
        ns.wait(&["deployment", "web"], "--for=jsonpath={.status.readyReplicas}=3");
        let after = addresses(&ns, "app=web");
        assert!(!after.contains_key(&victim));
        known.extend(after.keys().cloned());
        for (name, ip) in &after {
            // At once: it is ready, and its address is known.
            let answer = said(&ns, "client", ip, 3);
            assert_eq!(&answer, name, "at {ip}");
            let first = used.entry(ip.clone()).or_insert_with(|| name.clone());
            assert_eq!(first, name, "{ip} is not given again so soon");
        }
        // And the Service leads to pods that are there.
        let last = in_pod(&ns, "client", "for i in $(seq 20); do curl -s --max-time 3 http://web/ || echo none; done");
        for name in last.ok().lines() {
            assert!(after.contains_key(name), "{name:?} of {after:?}");
        }
    }
    let all = in_pod(&ns, "client", "cat /tmp/said").stdout;
    let names: Vec<&str> = all.lines().filter(|line| *line != "none").collect();
    println!("{} answers, {} requests without", names.len(), all.lines().count() - names.len());
    assert!(names.len() > 100, "traffic went on: {all}");
    assert!(names.iter().all(|name| known.contains(*name)), "only they answered: {known:?}\n{all}");
}

#[test]
fn a_pod_that_moves_to_another_node_is_found_there() {
    let ns = Namespace::new("moves");
    let mut moving = server("moving", "c1");
    moving["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--requeue --nodelist=c1"});
    ns.apply(&moving.to_string());
    ns.apply(&client("near", "c1").to_string());
    ns.apply(&client("far", "c2").to_string());
    for pod in ["moving", "near", "far"] {
        ns.wait_ready(pod);
    }
    let ip = ip_of(&ns, "moving");
    for from in ["near", "far"] {
        assert_eq!(said(&ns, from, &ip, 5), "moving");
    }
    let job = job_of(ns.name(), "moving").expect("the job");
    sx("login", Some("alice"), &["scontrol", "requeue", &job.id]).ok();
    ns.until_event("moving", "SlurmRequeued", &job.id);
    // Again and again: when the old run is gone from its node, Slurm sets the time anew at which the job may start.
    let elsewhere = ["scontrol", "update", &format!("jobid={}", job.id), "reqnodelist=c2", "starttime=now"];
    eventually("its owner sends it elsewhere, where it starts", PATIENCE, || {
        sx("login", Some("alice"), &elsewhere);
        job_of(ns.name(), "moving").filter(|j| j.state == "RUNNING" && j.node == "c2").map(drop)
    });
    let moved = ns.until_pod("moving", PATIENCE, |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    // It was told to end and did so in time: that is how its first run ended, and the pod was never over.
    let last = &moved["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(137), &json!("Error")));
    assert_eq!(ip_of(&ns, "moving"), ip, "it is the same pod");
    for from in ["near", "far"] {
        eventually("it is found again", Duration::from_secs(10), || {
            (said(&ns, from, &ip, 2) == "moving").then_some(())
        });
    }
}

#[test]
#[ignore = "a hundred pods: make long"]
fn a_hundred_pods_reach_each_other() {
    const PODS: usize = 100;
    let ns = Namespace::new("mesh");
    let pods: Vec<Value> = (0..PODS)
        .map(|n| {
            let mut pod = server(&format!("mesh-{n}"), if n % 2 == 0 { "c1" } else { "c2" });
            pod["metadata"]["labels"] = json!({"mesh": "yes"});
            pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1", "memory": "64Mi"}});
            pod
        })
        .collect();
    ns.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string());
    ns.kubectl(&["wait", "pod", "-l", "mesh=yes", "--for=condition=Ready", "--timeout=300s"]).ok();
    let all = addresses(&ns, "mesh=yes");
    assert_eq!(all.len(), PODS);
    let unique: BTreeSet<&String> = all.values().collect();
    assert_eq!(unique.len(), PODS, "an address each");
    let ask: String = all.iter().map(|(name, ip)| format!("ask {name} {ip}\n")).collect();
    let script = format!(
        "ask() {{ got=$(wget -q -T 20 -O - http://$2:8080/); [ \"$got\" = $1 ] || echo \"$1 at $2: $got\"; }}\n{ask}echo asked"
    );
    // A few at a time, as many as the machine has processors for.
    let names: Vec<&String> = all.keys().collect();
    std::thread::scope(|scope| {
        for part in names.chunks(PODS / 4) {
            let (ns, script) = (&ns, &script);
            scope.spawn(move || {
                for name in part {
                    assert_eq!(in_pod(ns, name, script).ok(), "asked", "from {name}");
                }
            });
        }
    });
}
