//! A pod's network as a CNI result, and CNI plug-ins of the user's own choice chained to it (`~/.hpk/net.d`).
#![allow(clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{BUSYBOX, HOME, HPK_HOME, NODE_FOLDER, Namespace, PATIENCE, TOOLBOX, eventually, sx};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the plug-in `e2e-recorder` writes down, one line a call.
fn record_file() -> String {
    format!("{HOME}/e2e-cni-record")
}

/// A list holds for every pod that is made while it is there: one case at a time.
static ONE: Mutex<()> = Mutex::new(());

/// A list in place until this is dropped.
struct List(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl List {
    fn of(plugins: Value) -> Self {
        Self::text(&json!({"cniVersion": "1.0.0", "name": "e2e", "plugins": plugins}).to_string())
    }

    fn text(text: &str) -> Self {
        let held = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let script = format!(
            "mkdir -p {HPK_HOME}/net.d {HPK_HOME}/cni/bin; rm -f {}; printf %s \"$1\" > {HPK_HOME}/net.d/10-e2e.conflist",
            record_file()
        );
        sx("login", Some("alice"), &["bash", "-ec", &script, "-", text]).ok();
        Self(held)
    }
}

impl Drop for List {
    fn drop(&mut self) {
        sx(
            "login",
            Some("alice"),
            &["rm", "-rf", &format!("{HPK_HOME}/net.d"), &format!("{HPK_HOME}/cni"), &record_file()],
        );
    }
}

/// Plug-ins of alice's own: one that writes down its calls, one that fails, one that waits.
fn install_own_plugins() {
    let recorder = format!(
        r#"#!/usr/bin/python3
import json, os, sys
conf = json.load(sys.stdin)
name = os.environ["CNI_COMMAND"] + " " + conf.get("label", "-")
with open("{}", "a") as f:
    f.write(name + " " + os.environ["CNI_IFNAME"] + " " + os.environ["CNI_ARGS"] + "\n")
if conf.get("fail") == os.environ["CNI_COMMAND"]:
    print(json.dumps({{"cniVersion": "1.0.0", "code": 100, "msg": "no more widgets", "details": "ask for some"}}))
    sys.exit(1)
if os.environ["CNI_COMMAND"] == "ADD":
    if "hang" in conf:
        import time
        time.sleep(300)
    print(json.dumps(conf["prevResult"]))
"#,
        record_file()
    );
    let script =
        format!("printf %s \"$1\" > {HPK_HOME}/cni/bin/e2e-recorder; chmod 755 {HPK_HOME}/cni/bin/e2e-recorder");
    sx("login", Some("alice"), &["bash", "-ec", &script, "-", &recorder]).ok();
}

fn record() -> Vec<String> {
    let text = sx("login", Some("alice"), &["cat", &record_file()]).stdout;
    text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn uid(ns: &Namespace, pod: &str) -> String {
    ns.get("pod", pod)["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

/// `hpk-pause ctl` on the pod's node, as its owner.
fn ctl(ns: &Namespace, pod: &str, command: &str) -> hpk_e2e::Run {
    let node = hpk_e2e::job_of(ns.name(), pod).expect("the pod's job").node;
    let socket = format!("{NODE_FOLDER}/{}/run/supervisor.sock", uid(ns, pod));
    sx(&node, Some("alice"), &[&format!("{HOME}/.local/libexec/hpk/hpk-pause"), "ctl", "--socket", &socket, command])
}

fn result(ns: &Namespace, pod: &str) -> Value {
    let state: Value = serde_json::from_str(ctl(ns, pod, "status").ok()).expect("JSON");
    state["network"].clone()
}

/// status.podIPs
fn ips(ns: &Namespace, pod: &str) -> Vec<String> {
    let pod = ns.get("pod", pod);
    let all = pod["status"]["podIPs"].as_array().expect("pod IPs").iter();
    all.filter_map(|ip| ip["ip"].as_str().map(str::to_owned)).collect()
}

/// A web server on port 8080 of the pod, on node `node`.
fn server(ns: &Namespace, name: &str, node: &str, annotation: &str, port: &str) {
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  annotations: {{slurm-job.hpk.io/flags: "--nodelist={node}"{annotation}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {TOOLBOX}
    command: [bash, -c, "mkdir /tmp/w; hostname > /tmp/w/index.html; cd /tmp/w; iperf3 -s & exec python3 -m http.server 8080"]
    ports: [{{containerPort: 8080{port}}}]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"#
    ));
}

#[test]
fn a_pods_network_is_a_cni_result() {
    // Held, so that no list is there.
    let _held = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ns = Namespace::new("cni-result");
    ns.run_script("own", "Never", "sleep 600");
    let mut host = ns.script_pod("host", "Never", "sleep 600");
    host["spec"]["hostNetwork"] = json!(true);
    ns.apply(&host.to_string());
    ns.wait_ready("own");
    ns.wait_ready("host");
    let single = |ip: &String| if ip.contains(':') { format!("{ip}/128") } else { format!("{ip}/32") };
    let expected: Vec<Value> =
        ips(&ns, "own").iter().map(|ip| json!({"address": single(ip), "interface": 0})).collect();
    let own = result(&ns, "own");
    assert_eq!(own["cniVersion"], "1.1.0", "{own}");
    assert_eq!(own["ips"], json!(expected));
    assert_eq!(own["interfaces"][0]["name"], "eth0");
    assert_eq!(own["dns"]["nameservers"], json!(["10.96.0.10"]), "{own}");
    assert_eq!(
        own["interfaces"].as_array().map(Vec::len),
        Some(1),
        "a pod without a list has its TUN and nothing else"
    );
    // The namespace that it names is the pod's.
    let sandbox = own["interfaces"][0]["sandbox"].as_str().expect("a sandbox");
    let node = hpk_e2e::job_of(ns.name(), "own").expect("a job").node;
    let inside = ns.kubectl(&["exec", "own", "--", "readlink", "/proc/self/ns/net"]).ok().to_owned();
    assert_eq!(sx(&node, Some("alice"), &["readlink", sandbox]).ok(), inside);
    let refused = ctl(&ns, "own", "check").err();
    assert!(refused.contains("no plug-ins"), "{refused}");
    let host_ip = ns.get("pod", "host")["status"]["podIP"].as_str().expect("a pod IP").to_owned();
    let host = result(&ns, "host");
    assert_eq!(host["ips"][0]["address"], format!("{host_ip}/24"), "{host}");
    assert!(host["interfaces"][0].get("sandbox").is_none() && !host["interfaces"][0]["mac"].is_null(), "{host}");
}

#[test]
fn tuning_and_bandwidth_hold_and_are_checked() {
    let _list = List::of(json!([
        {"type": "hpk-overlay"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]));
    let ns = Namespace::new("cni-tuning");
    let limits = ", kubernetes.io/ingress-bandwidth: 20M, kubernetes.io/egress-bandwidth: 60M";
    server(&ns, "server", "c1", limits, "");
    server(&ns, "client", "c2", "", "");
    ns.wait_ready("server");
    ns.wait_ready("client");
    let exec = |pod: &str, script: &str| ns.kubectl(&["exec", pod, "--", "bash", "-c", script]).ok().to_owned();
    assert_eq!(exec("server", "cat /proc/sys/net/core/somaxconn"), "512");
    // Between two clients iperf3's server listens nowhere for a moment.
    let iperf3 = |arguments: &str| {
        eventually("iperf3's server takes the next client", PATIENCE, || {
            let run = ns.kubectl(&["exec", "client", "--", "bash", "-c", &format!("iperf3 {arguments}")]);
            (run.code == Some(0)).then_some(run.stdout)
        })
    };
    let all = ips(&ns, "server");
    for ip in &all {
        iperf3(&format!("-t 1 -c {ip}"));
    }
    let ip = &all[0];
    assert_eq!(exec("client", &format!("curl -s --max-time 10 http://{ip}:8080/")), "server");
    let rate = |reverse: &str| -> f64 {
        let text = iperf3(&format!("-J -t 3 {reverse} -c {ip}"));
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6
    };
    let (towards, from) = (rate(""), rate("-R"));
    assert!((5.0..25.0).contains(&towards), "20 Mbit/s are allowed, {towards} were had");
    assert!((25.0..70.0).contains(&from), "60 Mbit/s are allowed the other way, {from} were had");

    let result = result(&ns, "server");
    let names: Vec<_> =
        result["interfaces"].as_array().expect("interfaces").iter().map(|i| i["name"].clone()).collect();
    assert_eq!(names[..2], [json!("veth0"), json!("eth0")], "{result}");
    assert!(result["interfaces"][1]["sandbox"].as_str().is_some_and(|s| s.starts_with("/proc/")), "{result}");

    ctl(&ns, "server", "check").ok();
    // Somebody changes what tuning has set.
    let sandbox = result["interfaces"][1]["sandbox"].as_str().expect("a sandbox");
    sx("c1", None, &["nsenter", &format!("--net={sandbox}"), "sysctl", "-qw", "net.core.somaxconn=99"]).ok();
    let error = ctl(&ns, "server", "check").err();
    assert!(error.contains("tuning (CHECK)") && error.contains("somaxconn"), "{error}");
}

#[test]
fn portmap_carries_a_host_port() {
    // In version 1.1.1 portmap's CHECK asks for rules of IPv6 whatever the pod has.
    let plugins = json!([{"type": "hpk-overlay"}, {"type": "portmap", "capabilities": {"portMappings": true}}]);
    let _list = List::text(
        &json!({"cniVersion": "1.0.0", "name": "e2e", "disableCheck": true, "plugins": plugins}).to_string(),
    );
    let ns = Namespace::new("cni-portmap");
    server(&ns, "server", "c2", "", ", hostPort: 18081");
    ns.wait_ready("server");
    let ask = ["curl", "-s", "--max-time", "5", "http://10.77.0.12:18081/"];
    eventually("the port answers", PATIENCE, || {
        (sx("login", Some("bob"), &ask).stdout.trim() == "server").then_some(())
    });
    // From the node to the node side the port is the host's own: the mapping is portmap's.
    let passt = hpk_e2e::processes("c2", "--tcp-ports");
    assert!(passt.iter().any(|line| line.contains("18081:18081")), "{passt:?}");
}

#[test]
fn plugins_are_run_in_order_and_undone_in_reverse() {
    let recorder = |label: &str| json!({"type": "e2e-recorder", "label": label});
    let _list = List::of(json!([{"type": "hpk-overlay"}, recorder("a"), recorder("b")]));
    install_own_plugins();
    let ns = Namespace::new("cni-order");
    ns.run_script("pod", "Never", "sleep 600");
    ns.wait_ready("pod");
    assert_eq!(record(), ["ADD a", "ADD b", "CHECK a", "CHECK b"]);
    let line = sx("login", Some("alice"), &["head", "-1", &record_file()]).stdout;
    let args = format!("eth0 IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME=pod;", ns.name());
    assert!(line.contains(&args), "{line}");
    ns.delete("pod", "pod");
    eventually("the plug-ins were told", PATIENCE, || (record().len() == 6).then_some(()));
    assert_eq!(record()[4..], ["DEL b", "DEL a"]);
}

#[test]
fn a_plugin_that_fails_undoes_the_others_and_is_named() {
    let recorder = |label: &str| json!({"type": "e2e-recorder", "label": label});
    let failing = json!({"type": "e2e-recorder", "label": "c", "fail": "ADD"});
    let _list = List::of(json!([{"type": "hpk-overlay"}, recorder("a"), failing, recorder("d")]));
    install_own_plugins();
    let ns = Namespace::new("cni-fails");
    ns.run_script("pod", "Never", "echo started");
    ns.until_event("pod", "FailedCreatePodSandBox", "CNI plug-in e2e-recorder (ADD): no more widgets: ask for some");
    ns.wait_phase("pod", "Failed");
    assert_eq!(record(), ["ADD a", "ADD c", "DEL c", "DEL a"]);
    let conditions = ns.get("pod", "pod")["status"]["conditions"].clone();
    assert!(conditions.to_string().contains("no more widgets"), "{conditions}");
}

#[test]
fn a_bad_list_is_told_by_file_and_field() {
    let ns = Namespace::new("cni-bad");
    {
        let _list = List::of(json!([{"type": "hpk-overlay"}, {"type": "no-such-plugin"}]));
        ns.run_script("missing", "Never", "true");
        let event = ns.until_event("missing", "FailedCreatePodSandBox", "plugins[1].type");
        assert!(event.contains("10-e2e.conflist") && event.contains("no-such-plugin"), "{event}");
        ns.wait_phase("missing", "Failed");
    }
    let _list = List::text(r#"{"cniVersion":"0.3.1","name":"old","plugins":[{"type":"hpk-overlay"}]}"#);
    ns.run_script("old", "Never", "true");
    let event = ns.until_event("old", "FailedCreatePodSandBox", "cniVersion");
    assert!(event.contains("10-e2e.conflist: cniVersion: \"0.3.1\""), "{event}");
}

/// Network namespaces, scratch and processes of pods on a node.
fn left(node: &str, uid: &str) -> String {
    let script = r#"ls -d "$2/$1" 2>/dev/null; lsns -n -t net -o NS,NPROCS,COMMAND | grep -v '/usr/bin/tini\|systemd'; ps -e -o args | grep "[/]$1" "#;
    sx(node, None, &["bash", "-c", script, "-", uid, NODE_FOLDER]).stdout
}

#[test]
fn nothing_is_left_when_a_part_is_killed() {
    let _list = List::of(json!([
        {"type": "hpk-overlay"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
        {"type": "e2e-recorder", "label": "r"},
    ]));
    install_own_plugins();
    let ns = Namespace::new("cni-killed");
    for (pod, victim) in [("supervisor", "hpk-pause --plan"), ("node-side", "hpk-netns work"), ("job", "hpk-netns run")]
    {
        let mut plan = ns.script_pod(pod, "Never", "sleep 600");
        plan["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
        ns.apply(&plan.to_string());
        ns.wait_ready(pod);
        let uid = uid(&ns, pod);
        let namespace = result(&ns, pod)["interfaces"][1]["sandbox"].as_str().expect("a sandbox").to_owned();
        let inode = sx("c1", Some("alice"), &["readlink", &namespace]).ok().to_owned();
        assert!(left("c1", &uid).contains(&uid), "the look finds a pod that runs");
        let pid = match victim {
            "hpk-pause --plan" => namespace.split('/').nth(2).expect("a pid").to_owned(),
            _ => {
                let found = hpk_e2e::processes("c1", victim).into_iter().find(|line| line.contains(&uid));
                found.expect("hpk-netns").split_whitespace().next().expect("a pid").to_owned()
            }
        };
        sx("c1", None, &["kill", "-KILL", &pid]).ok();
        ns.wait_phase(pod, "Failed");
        if victim == "hpk-netns work" {
            let message = ns.get("pod", pod)["status"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains("hpk-netns was ended by SIGKILL"), "{message}");
        }
        if victim == "hpk-netns run" {
            // The job's first process: Slurm ended all of it, and nobody was left to remove its folder. The user's next pod
            // on the node does.
            let mut next = ns.script_pod("next", "Never", "true");
            next["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
            ns.apply(&next.to_string());
            ns.wait_phase("next", "Succeeded");
        }
        eventually("nothing is left on the node", PATIENCE, || {
            let left = left("c1", &uid);
            let number = inode.trim_matches(|c: char| !c.is_ascii_digit());
            (!left.contains(&uid) && !left.contains(number)).then_some(())
        });
    }
    // The supervisor's death does not keep the plug-ins from their DEL.
    assert_eq!(record()[..3], ["ADD r", "CHECK r", "DEL r"]);
}

#[test]
fn a_plugin_that_is_killed_fails_the_pod() {
    let _list = List::of(json!([{"type": "hpk-overlay"}, {"type": "e2e-recorder", "label": "h", "hang": 1}]));
    install_own_plugins();
    let ns = Namespace::new("cni-hangs");
    let mut plan = ns.script_pod("pod", "Never", "sleep 600");
    plan["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
    plan["spec"]["containers"][0]["image"] = json!(BUSYBOX);
    ns.apply(&plan.to_string());
    let pid = eventually("the plug-in runs and has said so", PATIENCE, || {
        record().first()?;
        let found = hpk_e2e::processes("c1", "cni/bin/e2e-recorder").into_iter().next()?;
        Some(found.split_whitespace().next()?.to_owned())
    });
    sx("c1", None, &["kill", "-KILL", &pid]).ok();
    ns.until_event("pod", "FailedCreatePodSandBox", "CNI plug-in e2e-recorder (ADD): ended by a signal");
    ns.wait_phase("pod", "Failed");
    assert_eq!(record(), ["ADD h", "DEL h"]);
}
