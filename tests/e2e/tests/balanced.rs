//! Ports of the login node that lead to Services: what a LoadBalancer's status says of each, and who may come by them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually, sx};
use serde_json::{Value, json};

/// The login node's addresses on this site.
const LOGIN: &str = "10.77.0.1";
const LOGIN_V6: &str = "fd00:77::1";

/// A web server whose page is its name, ready.
fn server(ns: &Namespace, name: &str) {
    let script = "mkdir /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}})
        .to_string(),
    );
    ns.wait_ready(name);
}

fn balanced(ns: &Namespace, name: &str, app: &str, ports: &[u16], more: Value) {
    let ports: Vec<Value> =
        ports.iter().map(|p| json!({"name": format!("p{p}"), "port": p, "targetPort": 8080})).collect();
    let mut spec = json!({"type": "LoadBalancer", "selector": {"app": app}, "ports": ports});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ns.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}).to_string());
}

/// A port's error in the Service's status, by port; empty: the status names no ports.
fn errors(ns: &Namespace, service: &str) -> Vec<(u64, Option<String>)> {
    let ingress = ns.get("service", service)["status"]["loadBalancer"]["ingress"][0].clone();
    let ports = ingress["ports"].as_array().cloned().unwrap_or_default();
    ports.iter().map(|p| (p["port"].as_u64().unwrap(), p["error"].as_str().map(str::to_owned))).collect()
}

fn page(at: &str) -> String {
    sx("login", Some("bob"), &["curl", "-gs", "--max-time", "5", &format!("http://{at}/")]).stdout
}

#[test]
fn a_port_that_is_not_listened_on_has_its_error_and_the_others_go_on() {
    let ns = Namespace::new("lbports");
    server(&ns, "web");
    balanced(&ns, "web", "web", &[80, 18_190], json!({}));
    let error = || Some("PortNotAvailable".to_owned());
    eventually("port 80 is root's", PATIENCE, || (errors(&ns, "web") == [(80, error()), (18_190, None)]).then_some(()));
    eventually("the other port leads to the pod", PATIENCE, || {
        (page(&format!("{LOGIN}:18190")).trim() == "web").then_some(())
    });
    ns.until_event("web", "PortNotAvailable", "ordinary user cannot listen on port 80");

    // A second Service on a port that the first one has.
    server(&ns, "late");
    balanced(&ns, "late", "late", &[18_190, 18_191], json!({}));
    eventually("the second one has its error", PATIENCE, || {
        (errors(&ns, "late") == [(18_190, error()), (18_191, None)]).then_some(())
    });
    ns.until_event("late", "PortNotAvailable", &format!("the Service {}/web has this port", ns.name()));
    eventually("its other port serves", PATIENCE, || (page(&format!("{LOGIN}:18191")).trim() == "late").then_some(()));
    assert_eq!(page(&format!("{LOGIN}:18190")).trim(), "web", "who came first keeps it");
    assert_eq!(
        ns.get("service", "web")["metadata"]["finalizers"],
        json!(["service.kubernetes.io/load-balancer-cleanup"])
    );
    ns.delete("service", "web");
    eventually("the port is the second one's now", PATIENCE, || {
        (errors(&ns, "late").is_empty() && page(&format!("{LOGIN}:18190")).trim() == "late").then_some(())
    });
}

#[test]
fn source_ranges_hold_for_pods_and_for_everybody_else() {
    let ns = Namespace::new("lbsources");
    server(&ns, "web");
    for name in ["friend", "stranger"] {
        let mut pod = ns.script_pod(name, "Never", "exec sleep 600");
        pod["spec"]["containers"][0]["image"] = json!(TOOLBOX);
        ns.apply(&pod.to_string());
        ns.wait_ready(name);
    }
    let friend = ns.get("pod", "friend")["status"]["podIP"].as_str().unwrap().to_owned();
    let at = format!("{LOGIN}:18192");
    balanced(&ns, "web", "web", &[18_192], json!({"loadBalancerSourceRanges": [format!("{friend}/32")]}));
    let from = |pod: &str, at: &str| {
        let run = ns.kubectl(&["exec", pod, "--", "sh", "-c", &format!("curl -s --max-time 5 http://{at}/ || true")]);
        run.stdout.trim().to_owned()
    };
    eventually("the friend is served", PATIENCE, || (from("friend", &at) == "web").then_some(()));
    assert_eq!(from("stranger", &at), "");
    assert_eq!(page(&at), "", "the login node's users");
    // Neither the Service's own address nor its node port is the load balancer's.
    let service = ns.get("service", "web");
    let own = service["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(from("stranger", &format!("{own}:18192")), "web");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert_eq!(from("stranger", &format!("{LOGIN}:{port}")), "web");
    balanced(&ns, "web", "web", &[18_192], json!({"loadBalancerSourceRanges": []}));
    eventually("everybody is served", PATIENCE, || {
        (from("stranger", &at) == "web" && page(&at).trim() == "web").then_some(())
    });
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about the site's IPv6")]
fn services_of_both_families_are_reached_by_both_of_the_login_nodes_addresses() {
    let ns = Namespace::new("lbfamilies");
    server(&ns, "web");
    balanced(&ns, "web", "web", &[18_193], json!({"ipFamilyPolicy": "RequireDualStack"}));
    balanced(&ns, "plain", "web", &[18_194], json!({}));
    let ips = |service: &str| -> Vec<String> {
        let list = ns.get("service", service)["status"]["loadBalancer"]["ingress"].clone();
        list.as_array().into_iter().flatten().map(|i| i["ip"].as_str().unwrap().to_owned()).collect()
    };
    eventually("it has both addresses", PATIENCE, || (ips("web") == [LOGIN, LOGIN_V6]).then_some(()));
    eventually("the other has its own", PATIENCE, || (ips("plain") == [LOGIN]).then_some(()));
    let port = ns.get("service", "web")["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    for at in [
        format!("{LOGIN}:18193"),
        format!("[{LOGIN_V6}]:18193"),
        format!("{LOGIN}:{port}"),
        format!("[{LOGIN_V6}]:{port}"),
    ] {
        eventually(&format!("{at} leads to the pod"), PATIENCE, || (page(&at).trim() == "web").then_some(()));
    }
    assert_eq!(page(&format!("[{LOGIN_V6}]:18194")), "", "it did not ask for IPv6");
}
