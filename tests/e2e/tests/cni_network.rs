//! A network that the site has set up for Apptainer (`hpk up --network cni:NAME`): pods of root's jobs in it, and what an
//! ordinary user hears whose Apptainer cannot use it.
#![allow(clippy::print_stderr, reason = "what a failed case leaves is shown")]
#![allow(clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{BUSYBOX, Cluster, HOME, PATIENCE, TOOLBOX, eventually, programs, sx};
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each case has a control plane of its own and changes the nodes' routes: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// A network as an administrator sets it up for root's Apptainer on both nodes; taken away when this is dropped.
struct SiteNetwork {
    _one: MutexGuard<'static, ()>,
    name: &'static str,
    bridge: &'static str,
    /// Nodes, their addresses, their pods' subnets.
    nodes: [(&'static str, &'static str, &'static str); 2],
}

impl SiteNetwork {
    /// A subnet of each node's own and routes between them, as flannel's host-gw has it. Nothing is masqueraded; host
    /// ports are mapped.
    fn routed() -> Self {
        let nodes = [("c1", "10.77.0.11", "10.30.1.0/24"), ("c2", "10.77.0.12", "10.30.2.0/24")];
        let network = Self::of("e2e-routed", "e2ecni0", nodes);
        network.configure(false, &[serde_json::json!({"type": "portmap", "capabilities": {"portMappings": true}})]);
        for (_, via, subnet) in nodes {
            for node in ["login", "c1", "c2"] {
                if !nodes.iter().any(|(n, _, s)| *n == node && *s == subnet) {
                    sx(node, None, &["ip", "route", "replace", subnet, "via", via]).ok();
                }
            }
        }
        network
    }

    /// A bridge on each node by itself, behind the node's address: pods of one node reach each other and the world. Host
    /// ports are not mapped.
    fn bridge() -> Self {
        let nodes = [("c1", "10.77.0.11", "10.31.0.0/24"), ("c2", "10.77.0.12", "10.31.0.0/24")];
        let network = Self::of("e2e-bridge", "e2ecni1", nodes);
        network.configure(true, &[]);
        network
    }

    fn of(name: &'static str, bridge: &'static str, nodes: [(&'static str, &'static str, &'static str); 2]) -> Self {
        Self { _one: ONE.lock().unwrap_or_else(PoisonError::into_inner), name, bridge, nodes }
    }

    fn configure(&self, masquerade: bool, chained: &[Value]) {
        // /etc is the site's, so that the same file stands for each node's own.
        let own = format!("/var/lib/cni/{}.conflist", self.name);
        let shared = format!("/etc/apptainer/network/90-{}.conflist", self.name);
        sx("login", None, &["ln", "-sfn", &own, &shared]).ok();
        for (node, _, subnet) in self.nodes {
            let mut plugins = vec![serde_json::json!({
                "type": "bridge", "bridge": self.bridge, "isGateway": true, "ipMasq": masquerade, "hairpinMode": true, "mtu": 1450,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}})];
            plugins.extend_from_slice(chained);
            let list = serde_json::json!({"cniVersion": "1.0.0", "name": self.name, "plugins": plugins});
            sx(node, None, &["bash", "-c", &format!("printf %s \"$1\" > {own}"), "-", &list.to_string()]).ok();
        }
    }
}

impl Drop for SiteNetwork {
    fn drop(&mut self) {
        let name = self.name;
        sx("login", None, &["rm", "-f", &format!("/etc/apptainer/network/90-{name}.conflist")]);
        for (node, ..) in self.nodes {
            let own = format!("/var/lib/cni/{name}.conflist");
            sx(node, None, &["rm", "-rf", &own, &format!("/var/lib/cni/networks/{name}")]);
            sx(node, None, &["ip", "link", "delete", self.bridge]);
        }
        for (_, _, subnet) in self.nodes {
            for node in ["login", "c1", "c2"] {
                sx(node, None, &["ip", "route", "delete", subnet]);
            }
        }
    }
}

fn web(name: &str, node: &str) -> String {
    web_with(name, node, "")
}

/// `more`: further fields of its port.
fn web_with(name: &str, node: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}, annotations: {{slurm-job.hpk.io/flags: "--nodelist={node}"}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {TOOLBOX}
    command: [bash, -c, "mkdir /tmp/w; cd /tmp/w; hostname > index.html; exec python3 -m http.server 8080"]
    readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
    ports: [{{containerPort: 8080{more}}}]
---
"#
    )
}

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 18084, targetPort: 8080}]}
---
"#;

#[test]
fn pods_of_root_in_a_routed_network_over_both_nodes() {
    let _network = SiteNetwork::routed();
    let cluster = Cluster::up(None, "/home/e2e-cni-root", &["--network", "cni:e2e-routed"]);
    let one = web_with("one", "c1", ", hostPort: 18083");
    cluster.apply(&format!("{SERVICES}{one}{}{}", web("two", "c2"), web("three", "c2")));
    for pod in ["one", "two", "three"] {
        cluster.wait_ready(pod);
    }
    let pod = cluster.get(&["pod", "one"]);
    let ip = pod["status"]["podIP"].as_str().expect("a pod IP").to_owned();
    assert!(ip.starts_with("10.30.1."), "{ip}");

    // What was found in the namespace is the pod's CNI result.
    let socket = format!("/tmp/hpk-0/{}/run/supervisor.sock", pod["metadata"]["uid"].as_str().expect("a uid"));
    let ctl = format!("{}/libexec/hpk/hpk-pause", programs());
    let state: Value =
        serde_json::from_str(sx("c1", None, &[&ctl, "ctl", "--socket", &socket, "status"]).ok()).expect("JSON");
    let result = &state["network"];
    assert_eq!(result["ips"][0]["address"], format!("{ip}/24"), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.30.1.1", "{result}");
    assert_eq!(
        (&result["interfaces"][0]["mtu"], &result["dns"]["nameservers"][0]),
        (&1450.into(), &"10.96.0.10".into())
    );
    assert!(result["routes"].to_string().contains(r#"{"dst":"0.0.0.0/0","gw":"10.30.1.1"}"#), "{result}");

    let ask = |pod: &str, url: &str| cluster.exec(pod, &format!("curl -s --max-time 5 {url}")).stdout.trim().to_owned();
    assert_eq!(ask("two", &format!("http://{ip}:8080/")), "one", "pod to pod over two nodes");
    let many = "for i in $(seq 24); do curl -s --max-time 5 http://$0/; done | sort -u";
    let over = |service: &str| {
        let run = cluster.kubectl(&["exec", "two", "--", "bash", "-c", many, service]);
        run.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("all endpoints are used, by name and so by UDP to CoreDNS", PATIENCE, || {
        (over("web") == ["one", "three", "two"]).then_some(())
    });
    assert_eq!(over("sticky").len(), 1, "one endpoint for one client");

    // From outside of the pods' network, as another user: the login node listens, and has a route to the pods.
    let outside = cluster.get(&["service", "outside"]);
    assert_eq!(outside["status"]["loadBalancer"]["ingress"][0]["ip"], "10.77.0.1", "{outside}");
    let node_port = outside["spec"]["ports"][0]["nodePort"].as_u64().expect("a node port");
    for url in [format!("http://10.77.0.1:{node_port}/"), "http://10.77.0.1:18084/".to_owned()] {
        let many = format!("for i in $(seq 24); do curl -s --max-time 5 {url}; done | sort -u");
        eventually(&format!("all endpoints answer at {url} on the login node"), PATIENCE, || {
            let run = sx("login", Some("bob"), &["bash", "-c", &many]);
            (run.stdout.split_whitespace().collect::<Vec<_>>() == ["one", "three", "two"]).then_some(())
        });
        assert!(["one", "two", "three"].contains(&ask("one", &url).as_str()), "from a pod, at {url}");
    }
    let mapped = ["curl", "-s", "--max-time", "5", "http://10.77.0.11:18083/"];
    assert_eq!(sx("login", Some("bob"), &mapped).stdout.trim(), "one", "hostPort by the site's portmap");

    let token = "cd /var/run/secrets/kubernetes.io/serviceaccount; curl -s --max-time 10 --cacert ca.crt \
                 -H \"Authorization: Bearer $(cat token)\" https://kubernetes.default.svc/version";
    let version = cluster.exec("one", token);
    assert!(version.stdout.contains("gitVersion"), "{version:?}");
    let seconds = cluster.exec("one", "curl -s --max-time 10 -o /dev/null -w '%{time_total}' http://empty/ || true");
    assert!(seconds.ok().parse::<f32>().expect("seconds") < 1.0, "no endpoints: refused at once");
    // A packet that is refused on its way out is an error of the send itself.
    let udp = "python3 - $(getent hosts empty | cut -d' ' -f1) <<'E'\nimport socket, sys\ns = socket.socket(socket.AF_INET, \
               socket.SOCK_DGRAM)\ns.settimeout(5)\ntry:\n  s.connect((sys.argv[1], 80)); s.send(b'x'); s.recv(1)\nexcept \
               Exception as e: print(type(e).__name__)\nE";
    let error = cluster.exec("one", udp).stdout.trim().to_owned();
    assert!(matches!(error.as_str(), "PermissionError" | "ConnectionRefusedError"), "{error}");

    // Facts arrive over the link: endpoints that go are not asked any more, and the last one is asked by itself.
    cluster.kubectl(&["delete", "pod", "two", "three", "--wait=true"]).ok();
    eventually("only one endpoint is left, which reaches itself by its service", PATIENCE, || {
        let all = cluster.kubectl(&["exec", "one", "--", "bash", "-c", many, "web"]);
        (all.stdout.trim() == "one").then_some(())
    });
    assert_eq!(ask("one", "http://sticky/"), "one");

    cluster.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}, policyTypes: [Ingress]}}",
    );
    cluster.until_event("deny", "NotEnforced", "the site's");

    cluster.kubectl(&["delete", "pod", "one", "--wait=true"]).ok();
    assert_ne!(sx("login", Some("bob"), &mapped).code, Some(0), "the port goes with its pod");
    eventually("the site's plug-ins have had their addresses back", PATIENCE, || {
        let kept = sx("c1", None, &["bash", "-c", "ls /var/lib/cni/networks/e2e-routed | grep '^10[.]' || true"]);
        kept.stdout.trim().is_empty().then_some(())
    });
}

#[test]
fn pods_of_root_on_a_bridge_behind_their_node() {
    let _network = SiteNetwork::bridge();
    let cluster = Cluster::up(None, "/home/e2e-cni-bridge", &["--network", "cni:e2e-bridge"]);
    let one = web_with("one", "c1", ", hostPort: 18085");
    cluster.apply(&format!("{SERVICES}{one}{}", web("two", "c1")));
    // Nothing of this network maps ports: that is said, and the pod runs.
    cluster.until_event("one", "HostPortNotAvailable", "e2e-bridge has no plug-in with the capability portMappings");
    cluster.wait_ready("one");
    cluster.wait_ready("two");
    let ip = cluster.get(&["pod", "one"])["status"]["podIP"].as_str().expect("a pod IP").to_owned();
    assert!(ip.starts_with("10.31.0."), "{ip}");
    assert_eq!(cluster.exec("two", &format!("curl -s --max-time 5 http://{ip}:8080/")).ok(), "one");
    eventually("the Service answers by name", PATIENCE, || {
        let run = cluster.exec("two", "curl -s --max-time 5 http://web/");
        matches!(run.stdout.trim(), "one" | "two").then_some(())
    });
}

#[test]
fn an_ordinary_user_hears_that_apptainer_has_fallen_back() {
    let _network = SiteNetwork::bridge();
    let cluster = Cluster::up(Some("alice"), &format!("{HOME}/.hpk-cni"), &["--network", "cni:e2e-bridge"]);
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: pod}}, spec: {{restartPolicy: Never, containers: [{{name: main, image: '{BUSYBOX}', command: [echo, started]}}]}}}}"
    ));
    let event = cluster.until_event("pod", "FailedCreatePodSandBox", "no interface but lo");
    assert!(event.contains("e2e-bridge") && event.contains("hpk up --network overlay"), "{event}");
    cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/pod", "--timeout=60s"]).ok();
    let status = cluster.get(&["pod", "pod"])["status"].clone();
    assert_eq!(status["reason"], "CreatePodSandboxError", "{status}");
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreatePodSandboxError", "{status}");
    assert!(waiting["message"].as_str().is_some_and(|m| m.contains("no interface but lo")), "{status}");
    // The same is told beforehand.
    let doctor = cluster.hpk(&["doctor", "--job"]);
    assert!(doctor.stdout.contains("FAILED  compute: network cni "), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("without setuid"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("ok      compute: network overlay "), "{}", doctor.stdout);
}
