//! Pods reach each other, services, names and the API server, with nothing asked of an administrator.

use hpk_e2e::{BUSYBOX, Namespace, PATIENCE, TOOLBOX, eventually};

/// A web server `server` and a pod `client`, each on its own compute node, and a Service `web`.
fn server_and_client(ns: &Namespace) {
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: server, labels: {{app: web}}, annotations: {{slurm-job.hpk.io/flags: "--nodelist=c1"}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, "mkdir /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"]
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, annotations: {{slurm-job.hpk.io/flags: "--nodelist=c2"}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: {TOOLBOX}, command: [sleep, infinity]}}]
"#
    ));
    ns.wait_ready("server");
    ns.wait_ready("client");
}

fn client(ns: &Namespace, script: &str) -> String {
    ns.kubectl(&["exec", "client", "--", "bash", "-c", script]).ok().to_owned()
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about two nodes")]
fn pods_on_two_nodes_reach_each_other() {
    let ns = Namespace::new("pods");
    server_and_client(&ns);
    let ip = ns.get("pod", "server")["status"]["podIP"].as_str().expect("a pod IP").to_owned();
    assert!(ip.starts_with("10.244."), "{ip}");
    assert_eq!(client(&ns, &format!("curl -s --max-time 10 http://{ip}:8080/")), "server");
}

#[test]
fn service_by_address_name_and_variable() {
    let ns = Namespace::new("service");
    server_and_client(&ns);
    let ip = ns.get("service", "web")["spec"]["clusterIP"].as_str().expect("a cluster IP").to_owned();
    eventually("the service has its endpoint", PATIENCE, || {
        let run = ns.kubectl(&["exec", "client", "--", "curl", "-s", "--max-time", "5", &format!("http://{ip}/")]);
        (run.stdout.trim() == "server").then_some(())
    });
    assert_eq!(client(&ns, "curl -s --max-time 10 http://web/"), "server");
    assert_eq!(client(&ns, "dig +short +search web"), ip);
    let host = client(&ns, "echo $KUBERNETES_SERVICE_HOST");
    assert_eq!(host, "10.96.0.1");
}

#[test]
fn api_server_from_a_pod_with_its_token() {
    let ns = Namespace::new("apiserver");
    server_and_client(&ns);
    let reply = client(
        &ns,
        "cd /var/run/secrets/kubernetes.io/serviceaccount
         curl -s --max-time 10 --cacert ca.crt -H \"Authorization: Bearer $(cat token)\" https://kubernetes.default.svc/version",
    );
    assert!(reply.contains("gitVersion"), "{reply}");
}

#[test]
fn service_without_endpoints_refuses_at_once() {
    let ns = Namespace::new("refuse");
    server_and_client(&ns);
    ns.kubectl(&["create", "service", "clusterip", "empty", "--tcp=80:80"]).ok();
    let seconds = client(&ns, "sleep 1; curl -s --max-time 10 -o /dev/null -w '%{time_total}' http://empty/ || true");
    let seconds: f32 = seconds.parse().expect("seconds");
    assert!(seconds < 1.0, "refused after {seconds} s");
}

#[test]
fn api_server_reaches_a_pod() {
    let ns = Namespace::new("proxy");
    server_and_client(&ns);
    let path = format!("/api/v1/namespaces/{}/pods/server:8080/proxy/", ns.name());
    assert_eq!(hpk_e2e::kubectl(&["get", "--raw", &path]).ok(), "server");
}

#[test]
fn outside_of_the_cluster_is_reached_unless_a_policy_forbids_it() {
    let ns = Namespace::new("outward");
    server_and_client(&ns);
    // The site's registry is no pod and no Service: it listens on the login node itself.
    let ask = "curl -s -o /dev/null -w '%{http_code}' --max-time 5 http://10.77.0.1:5000/v2/";
    assert_eq!(client(&ns, ask), "200");
    let stranger = "passt or slirp4netns serves this pod, as a process of its job";
    let node = hpk_e2e::job_of(ns.name(), "client").expect("the client's job").node;
    assert!(!hpk_e2e::processes(&node, "passt").is_empty(), "{stranger}");
    ns.apply(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: inside-only}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {}}]
  # As everywhere: CoreDNS is a pod of kube-system, whatever it is here.
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{protocol: UDP, port: 53}]
"#,
    );
    eventually("the policy holds for what leaves the cluster", PATIENCE, || {
        (ns.kubectl(&["exec", "client", "--", "bash", "-c", ask]).stdout.trim() == "000").then_some(())
    });
    assert_eq!(client(&ns, "curl -s --max-time 10 http://web/"), "server");
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about a compute node")]
fn host_port_is_a_port_of_the_compute_node() {
    let ns = Namespace::new("hostport");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: server, annotations: {{slurm-job.hpk.io/flags: "--nodelist=c2"}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, "mkdir /tmp/w; hostname > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"]
    ports: [{{containerPort: 8080, hostPort: 18080}}]
"#
    ));
    ns.wait_ready("server");
    let ask = ["curl", "-s", "--max-time", "5", "http://10.77.0.12:18080/"];
    eventually("the port answers", PATIENCE, || {
        (hpk_e2e::sx("login", Some("bob"), &ask).stdout.trim() == "server").then_some(())
    });
    // slurmd has this one. (The scheduler sees to ports that two pods want.)
    let mut taken = ns.script_pod("taken", "Never", "sleep 600");
    taken["spec"]["containers"][0]["ports"] = serde_json::json!([{"containerPort": 8080, "hostPort": 6818}]);
    ns.apply(&taken.to_string());
    ns.until_event("taken", "HostPortNotAvailable", "6818");
    ns.wait_ready("taken");
    ns.kubectl(&["delete", "pod", "server", "--wait=true"]).ok();
    eventually("the port is closed with its pod", PATIENCE, || {
        (hpk_e2e::sx("login", Some("bob"), &ask).code != Some(0)).then_some(())
    });
}
