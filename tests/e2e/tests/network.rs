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
