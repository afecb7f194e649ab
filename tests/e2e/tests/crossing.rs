//! Processes in the nodes' network reach pods and Services: the ranks of MPI steps, and the containers of hostNetwork pods.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually, four_ranks};
use serde_json::{Value, json};

/// A web server `server` on the first node, with a Service `web`.
fn server(ns: &Namespace) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "server", "labels": {"app": "web"},
                     "annotations": {"slurm-job.hpk.io/flags": "--nodelist=c1"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": BUSYBOX,
            "command": ["sh", "-c", "mkdir /tmp/w; echo here I am > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
        }]}
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    });
    ns.apply(&pod.to_string());
    ns.apply(&service.to_string());
    ns.wait_ready("server");
}

/// A pod in the second node's network.
fn on_the_node(name: &str, image: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"slurm-job.hpk.io/flags": "--nodelist=c2"}},
        "spec": {"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet", "terminationGracePeriodSeconds": 1,
                 "containers": [{"name": "main", "image": image, "command": command}]}
    })
}

/// A case's policy for the server's callers.
fn only_friends(ns: &Namespace) {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "friends"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                 "ingress": [{"from": [{"podSelector": {"matchLabels": {"friend": "yes"}}}]}]}
    });
    ns.apply(&policy.to_string());
}

fn says(ns: &Namespace, command: &[&str], text: &str) {
    let mut last = String::new();
    eventually(&format!("{command:?} says {text:?}"), PATIENCE, || {
        let run = ns.kubectl(&[&["exec", "client", "--"], command].concat());
        last = format!("{run:?}");
        run.stdout.contains(text).then_some(())
    });
}

#[test]
fn a_pod_in_the_nodes_network_reaches_services_pods_and_names() {
    let ns = Namespace::new("cross-host");
    server(&ns);
    ns.apply(&on_the_node("client", TOOLBOX, &["sleep", "infinity"]).to_string());
    ns.wait_ready("client");
    let ip = ns.get("service", "web")["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned();
    let ips = ns.get("pod", "server")["status"]["podIPs"].clone();
    let curl = |url: &str| ns.kubectl(&["exec", "client", "--", "curl", "-sS", "--max-time", "10", url]);
    says(&ns, &["curl", "-sS", "--max-time", "5", &format!("http://{ip}/")], "here I am");
    assert_eq!(curl("http://web/").ok(), "here I am", "by name");
    for ip in ips.as_array().expect("addresses").iter().filter_map(|ip| ip["ip"].as_str()) {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        assert_eq!(curl(&format!("http://{host}:8080/")).ok(), "here I am", "{ip}");
    }
    // Programs that wait for their connection, and those of threads.
    let python = format!(
        "import asyncio, concurrent.futures, urllib.request
async def one():
    reader, writer = await asyncio.open_connection('web', 80)
    writer.write(b'GET / HTTP/1.0\\r\\n\\r\\n')
    return b'here I am' in await reader.read()
async def many():
    return all(await asyncio.gather(*[one() for _ in range(20)]))
print(asyncio.run(many()))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    get = lambda _: urllib.request.urlopen('http://{ip}/').read() == b'here I am\\n'
    print(all(pool.map(get, range(40))))
"
    );
    assert_eq!(ns.kubectl(&["exec", "client", "--", "python3", "-c", &python]).ok(), "True\nTrue");
    assert_eq!(ns.kubectl(&["exec", "client", "--", "dig", "+short", "+search", "web"]).ok(), ip, "UDP");
    assert_eq!(ns.kubectl(&["exec", "client", "--", "dig", "+short", "+tcp", "+search", "web"]).ok(), ip);
    // Nobody listens there, and that is heard at once.
    assert_eq!(curl(&format!("http://{ip}:81/")).code, Some(7), "refused, and not timed out");
    // The node's network is as ever.
    let pod = ns.get("pod", "client");
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    assert_eq!(ns.kubectl(&["exec", "client", "--", "hostname"]).ok(), "c2");
    let api = curl("https://10.77.0.1:6443/healthz");
    assert!(!api.err().contains("unreachable"), "{api:?}");
}

/// The usual policy of a hostNetwork pod is its node's resolver, and a small image asks by itself.
#[test]
fn names_are_the_nodes_unless_the_pod_says_otherwise() {
    let ns = Namespace::new("cross-names");
    server(&ns);
    let mut pod = on_the_node("client", BUSYBOX, &["sleep", "1000"]);
    pod["spec"]["dnsPolicy"] = json!("ClusterFirst");
    ns.apply(&pod.to_string());
    ns.apply(&on_the_node("other", BUSYBOX, &["sleep", "1000"]).to_string());
    ns.wait_ready("client");
    ns.wait_ready("other");
    let get = |pod: &str| ns.kubectl(&["exec", pod, "--", "wget", "-q", "-T", "10", "-O", "-", "http://web/"]);
    eventually("the name", PATIENCE, || (get("other").stdout.trim() == "here I am").then_some(()));
    assert_ne!(get("client").code, Some(0));
}

#[test]
fn a_server_in_the_nodes_network_is_reached_as_ever() {
    let ns = Namespace::new("cross-server");
    let serve = "mkdir /tmp/w; echo of the node > /tmp/w/index.html; exec httpd -f -p 18473 -h /tmp/w";
    ns.apply(&on_the_node("client", BUSYBOX, &["sh", "-c", serve]).to_string());
    ns.wait_ready("client");
    ns.kubectl(&["expose", "pod", "client", "--name", "node", "--port", "80", "--target-port", "18473"]).ok();
    let run = ns.shell("curl -sS --max-time 10 --retry 5 --retry-connrefused http://10.77.0.12:18473/");
    assert_eq!(run.ok(), "of the node");
    // Through a Service, from the pod itself.
    says(&ns, &["wget", "-q", "-T", "5", "-O", "-", "http://node/"], "of the node");
}

#[test]
fn ranks_of_both_nodes_read_from_a_service_by_name() {
    let ns = Namespace::new("cross-mpi");
    server(&ns);
    let script = "until curl -sS --max-time 5 http://web/ > /tmp/got.$SLURM_PROCID; do sleep 1; done
        echo $SLURM_PROCID on $(hostname): $(cat /tmp/got.$SLURM_PROCID)
        exec sleep 600";
    ns.apply(&four_ranks("client", script).to_string());
    ns.wait_ready("client");
    let want = ["0 on c1: here I am", "1 on c1: here I am", "2 on c2: here I am", "3 on c2: here I am"];
    eventually("all ranks have read", PATIENCE, || {
        let logs = ns.kubectl(&["logs", "client"]).stdout;
        want.iter().all(|line| logs.contains(line)).then_some(())
    });
    // Commands beside a rank, too.
    says(&ns, &["rank:3", "curl", "-sS", "--max-time", "10", "http://web/"], "here I am");
    says(&ns, &["rank:0", "curl", "-sS", "--max-time", "10", "http://web/"], "here I am");

    only_friends(&ns);
    let reached = |rank: &str| {
        let run = ns.kubectl(&["exec", "client", "--", rank, "curl", "-sS", "--max-time", "3", "http://web/"]);
        run.stdout.contains("here I am")
    };
    for rank in ["rank:0", "rank:3"] {
        eventually("the policy keeps it out", PATIENCE, || (!reached(rank)).then_some(()));
    }
    ns.kubectl(&["label", "pod", "client", "friend=yes"]).ok();
    for rank in ["rank:0", "rank:3"] {
        eventually("the policy lets it in", PATIENCE, || reached(rank).then_some(()));
    }
}

/// The sender is the pod: policies mean it by its labels, as its own do.
#[test]
fn policies_hold_for_a_pod_in_the_nodes_network() {
    let ns = Namespace::new("cross-policy");
    server(&ns);
    ns.apply(&on_the_node("client", TOOLBOX, &["sleep", "infinity"]).to_string());
    ns.wait_ready("client");
    let reached = || {
        let run = ns.kubectl(&["exec", "client", "--", "curl", "-sS", "--max-time", "3", "http://web/"]);
        run.stdout.contains("here I am")
    };
    eventually("nothing is said", PATIENCE, || reached().then_some(()));
    only_friends(&ns);
    eventually("the policy keeps it out", PATIENCE, || (!reached()).then_some(()));
    ns.kubectl(&["label", "pod", "client", "friend=yes"]).ok();
    eventually("the policy lets it in", PATIENCE, || reached().then_some(()));
    let own = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "nowhere"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": []}
    });
    ns.apply(&own.to_string());
    eventually("its own policy keeps it in", PATIENCE, || (!reached()).then_some(()));
}
