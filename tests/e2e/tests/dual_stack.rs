//! Pods and Services by IPv6, beside IPv4, over nodes that speak IPv4 to each other. One of them has IPv6 to the world.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{NODE, Namespace, PATIENCE, TOOLBOX, eventually, kubectl};
use serde_json::{Value, json};

/// A web server `server` on c1, of both families, whose page is its name; pods `client` on c2 and `neighbour` on c1.
fn server_and_clients(ns: &Namespace) {
    let serve = "mkdir /tmp/w; hostname >/tmp/w/index.html; exec python3 -m http.server --bind :: -d /tmp/w 8080";
    let pods = [("server", "c1", serve), ("client", "c2", "exec sleep infinity"), ("neighbour", "c1", "exec sleep 1d")];
    for (name, node, script) in pods {
        let port = json!({"name": "http", "containerPort": 8080});
        let mut main = json!({"name": "main", "image": TOOLBOX, "command": ["sh", "-c", script],
            "env": [{"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}]});
        if name == "server" {
            main["ports"] = json!([port]);
            main["readinessProbe"] = json!({"tcpSocket": {"port": "http"}, "periodSeconds": 1});
        }
        ns.apply(
            &json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": name},
                    "annotations": {"slurm-job.hpk.io/flags": format!("--nodelist={node}")}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [main]}})
            .to_string(),
        );
    }
    for (name, ..) in pods {
        ns.wait_ready(name);
    }
}

fn texts(list: &Value, field: &str) -> Vec<String> {
    let text = |v: &Value| v.as_str().or_else(|| v[field].as_str()).expect("a text").to_owned();
    list.as_array().expect("a list").iter().map(text).collect()
}

/// IPv4 and IPv6 address of a pod, in this order.
fn ips(ns: &Namespace, pod: &str) -> [String; 2] {
    texts(&ns.get("pod", pod)["status"]["podIPs"], "ip").try_into().expect("one address of each family")
}

fn within(ns: &Namespace, pod: &str, script: &str) -> String {
    ns.kubectl(&["exec", pod, "--", "bash", "-c", script]).ok().to_owned()
}

/// A page of the server's, by any URL that leads there; what curl gives up on is empty.
fn page(ns: &Namespace, pod: &str, url: &str) -> String {
    within(ns, pod, &format!("curl -gs --max-time 5 {url} || true"))
}

#[test]
fn a_pod_has_an_address_of_each_family_and_is_reached_by_both() {
    let ns = Namespace::new("families");
    server_and_clients(&ns);
    let [v4, v6] = ips(&ns, "server");
    assert!(v4.starts_with("10.244.") && v6.starts_with("fd00:10:244::"), "{v4} {v6}");
    let status = &ns.get("pod", "server")["status"];
    assert_eq!(status["podIP"], json!(v4), "IPv4 is the first family");
    assert_eq!(texts(&status["hostIPs"], "ip"), [status["hostIP"].as_str().expect("hostIP")], "the login node's own");
    assert_eq!(within(&ns, "server", "echo $IPS"), format!("{v4},{v6}"));
    let hosts = within(&ns, "server", "grep -w server /etc/hosts | cut -f1 | xargs");
    assert_eq!(hosts, format!("{v4} {v6}"));
    for pod in ["client", "neighbour", "server"] {
        for ip in [v4.clone(), format!("[{v6}]")] {
            assert_eq!(page(&ns, pod, &format!("http://{ip}:8080/")), "server", "{pod} to {ip}");
        }
        let ping = within(&ns, pod, &format!("ping -6 -c 3 -i 0.2 -W 5 {v6} | grep -o '[0-9]* received'"));
        assert_eq!(ping, "3 received", "{pod}");
    }
    // More than one packet holds, both ways: the interface's MTU and its offloads.
    let sum = "head -c 20000000 /dev/zero | sha256sum | cut -d' ' -f1";
    let served = within(&ns, "server", &format!("head -c 20000000 /dev/zero >/tmp/w/large; {sum}"));
    let fetched =
        within(&ns, "client", &format!("curl -gs --max-time 60 http://[{v6}]:8080/large | sha256sum | cut -d' ' -f1"));
    assert_eq!(fetched, served);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about the site's IPv6")]
fn the_node_and_its_pods_hosts_have_both_families_where_they_are() {
    let ns = Namespace::new("families-host");
    let node = kubectl(&["get", "node", NODE, "-o", "json"]);
    let node: Value = serde_json::from_str(node.ok()).expect("a Node");
    let addresses = node["status"]["addresses"].as_array().expect("addresses").iter();
    let internal: Vec<&Value> = addresses.filter(|a| a["type"] == "InternalIP").map(|a| &a["address"]).collect();
    assert_eq!(internal, [&json!("10.77.0.1"), &json!("fd00:77::1")]);
    for (host, network, ips) in [
        ("c1", false, &["10.77.0.11"][..]),
        ("c2", false, &["10.77.0.12", "fd00:77::12"]),
        ("c2", true, &["10.77.0.12", "fd00:77::12"]),
    ] {
        let name = format!("{host}-{network}");
        let mut pod = ns.script_pod(&name, "Never", "echo $IPS; exec sleep 600");
        pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": format!("--nodelist={host}")});
        pod["spec"]["hostNetwork"] = json!(network);
        pod["spec"]["containers"][0]["env"] =
            json!([{"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIPs"}}}]);
        ns.apply(&pod.to_string());
        ns.wait_ready(&name);
        let status = ns.get("pod", &name)["status"].clone();
        assert_eq!(texts(&status["hostIPs"], "ip"), ips, "{name}");
        assert_eq!(ns.kubectl(&["logs", &name]).ok(), ips.join(","), "{name}");
        if network {
            assert_eq!(texts(&status["podIPs"], "ip"), ips, "{name} has its host's addresses");
        }
    }
}

#[test]
fn services_of_one_family_the_other_and_both() {
    let ns = Namespace::new("families-svc");
    server_and_clients(&ns);
    let service = |name: &str, more: Value| {
        let mut spec = json!({"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": "http"}]});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        ns.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}).to_string());
        texts(&ns.get("service", name)["spec"]["clusterIPs"], "")
    };
    let both = service("both", json!({"ipFamilyPolicy": "RequireDualStack"}));
    let prefer = service("prefer", json!({"ipFamilyPolicy": "PreferDualStack"}));
    let six = service("six", json!({"ipFamilies": ["IPv6"]}));
    let plain = service("plain", json!({}));
    service("heads", json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack"}));
    assert!(both.len() == 2 && both[0].starts_with("10.96.") && both[1].starts_with("fd00:10:96::"), "{both:?}");
    assert!(prefer.len() == 2 && six.len() == 1 && six[0].starts_with("fd00:10:96::"), "{prefer:?} {six:?}");
    assert!(plain.len() == 1 && plain[0].starts_with("10.96."), "a Service that does not ask has IPv4: {plain:?}");

    for pod in ["client", "neighbour", "server"] {
        for ip in both.iter().chain(&six) {
            let url = if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") };
            eventually(&format!("{pod} reaches {url}"), PATIENCE, || (page(&ns, pod, &url) == "server").then_some(()));
        }
    }
    let dig = |what: &str| within(&ns, "client", &format!("dig +short +search {what} | sort | xargs"));
    assert_eq!(dig("AAAA both"), both[1]);
    assert_eq!(dig("AAAA plain"), "");
    assert_eq!(dig("A six"), "");
    let [v4, v6] = ips(&ns, "server");
    assert_eq!((dig("A heads"), dig("AAAA heads")), (v4, v6));
    let name = format!("six.{}.svc.cluster.local.", ns.name());
    assert_eq!(dig(&format!("-x {}", six[0])), name);
    assert_eq!(page(&ns, "client", "http://six/"), "server", "by its name");

    // A port that it has not is refused at once, as by IPv4.
    let took = within(
        &ns,
        "client",
        &format!("curl -gs -o /dev/null -w '%{{time_total}}' --max-time 9 http://[{}]:81/ || true", six[0]),
    );
    assert!(took.parse::<f32>().expect("seconds") < 1.0, "refused after {took} s");

    // The API server has no IPv6 here; the pod's supervisor dials for it.
    let path = format!("/api/v1/namespaces/{}/services/six:80/proxy/", ns.name());
    assert_eq!(kubectl(&["get", "--raw", &path]).ok(), "server");
}

#[test]
fn policies_hold_for_ipv6() {
    let ns = Namespace::new("families-pol");
    server_and_clients(&ns);
    let [v4, v6] = ips(&ns, "server");
    let [_, client] = ips(&ns, "client");
    let by_v6 = format!("http://[{v6}]:8080/");
    assert_eq!(page(&ns, "neighbour", &by_v6), "server");
    ns.apply(
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "one-address"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"ipBlock": {"cidr": format!("{client}/128")}}]}]}})
        .to_string(),
    );
    eventually("the policy holds", PATIENCE, || page(&ns, "neighbour", &by_v6).is_empty().then_some(()));
    assert_eq!(page(&ns, "client", &by_v6), "server", "its address is in the block");
    assert_eq!(page(&ns, "client", &format!("http://{v4}:8080/")), "", "its other address is not");
    // By labels both addresses are meant.
    ns.apply(
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "one-address"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "neighbour"}}}]}]}})
        .to_string(),
    );
    for url in [by_v6.clone(), format!("http://{v4}:8080/")] {
        eventually(&format!("{url} is open to the neighbour"), PATIENCE, || {
            (page(&ns, "neighbour", &url) == "server").then_some(())
        });
    }
    assert_eq!(page(&ns, "client", &by_v6), "");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about two nodes")]
fn the_world_is_reached_by_ipv6_where_the_node_has_a_way_and_elsewhere_that_is_said_at_once() {
    let ns = Namespace::new("v6-outward");
    for node in ["c1", "c2"] {
        let mut pod = ns.script_pod(node, "Never", "exec sleep infinity");
        pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": format!("--nodelist={node}")});
        pod["spec"]["containers"][0]["image"] = json!(TOOLBOX);
        ns.apply(&pod.to_string());
    }
    // The site's registry, at an address that no node of the site's own network has.
    let ask = "curl -g -s -o /dev/null --max-time 5 -w '%{http_code} %{time_total}' 'http://[fd00:77:1::1]:5000/v2/'";
    let asked = |pod: &str| {
        ns.wait_ready(pod);
        let run = ns.kubectl(&["exec", pod, "--", "sh", "-c", &format!("{ask} || true")]);
        let (code, seconds) = run.ok().split_once(' ').map(|(c, s)| (c.to_owned(), s.to_owned())).expect("two words");
        (code, seconds.parse::<f32>().expect("seconds"))
    };
    assert_eq!(asked("c2").0, "200");
    let (code, seconds) = asked("c1");
    assert!(code == "000" && seconds < 1.0, "told at once that there is no way: {code} after {seconds} s");
    // Names that have both: whoever takes the family that is missing is not kept waiting for the other.
    let both = "curl -s -o /dev/null --max-time 5 -w '%{http_code}' --resolve world:5000:[fd00:77:1::1],10.77.0.1 http://world:5000/v2/";
    assert_eq!(ns.kubectl(&["exec", "c1", "--", "sh", "-c", both]).ok(), "200");
}

/// Open MPI 5 takes two families for no way at all; the image says which one to leave out.
#[test]
fn mpi_over_tcp_in_a_pod_of_both_families() {
    let ns = Namespace::new("dualmpi");
    let mut pod = ns.script_pod("ring", "Never", "");
    let mpirun =
        "mpirun --allow-run-as-root --bind-to none --oversubscribe --mca btl self,tcp --mca pml ob1 -n 2 mpi-ring";
    pod["spec"]["containers"][0]["image"] = json!(TOOLBOX);
    pod["spec"]["containers"][0]["command"] = json!(["bash", "-c", format!("{mpirun} 2>&1")]);
    // The image of a site that was up before may be older.
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    ns.apply(&pod.to_string());
    ns.wait_phase("ring", "Succeeded");
    let logs = ns.kubectl(&["logs", "ring"]);
    assert_eq!(logs.ok().lines().count(), 3, "two ranks and their sum, no warning: {}", logs.stdout);
}
