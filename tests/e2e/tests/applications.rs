//! What people bring to a cluster's network: an application in tiers, names, an admission webhook; and a neighbour who
//! should get nothing.

use hpk_e2e::{Namespace, PATIENCE, TOOLBOX, eventually, kubectl, kubectl_with_input, sx};
use serde_json::json;
use std::path::PathBuf;

/// A pod `name` of the toolbox image that runs `command` on the compute node.
fn toolbox(ns: &Namespace, name: &str, node: &str, command: &[&str]) {
    let annotations = json!({"slurm-job.hpk.io/flags": format!("--nodelist={node}")});
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
            "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": TOOLBOX, "command": command}]}})
        .to_string(),
    );
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about two nodes")]
fn guestbook_of_three_deployments_over_both_nodes() {
    let ns = Namespace::new("guestbook");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../images/examples/guestbook.yaml");
    ns.apply(&std::fs::read_to_string(&path).expect("the example"));
    // The example says nothing of nodes; here its tiers must not be neighbours by chance.
    for (role, node) in [("leader", "c1"), ("follower", "c2"), ("frontend", "c1")] {
        let flags = json!({"spec": {"template": {"metadata": {"annotations":
            {"slurm-job.hpk.io/flags": format!("--nodelist={node}")}}}}});
        ns.kubectl(&["patch", "deployment", role, "-p", &flags.to_string()]).ok();
    }
    for role in ["leader", "follower", "frontend"] {
        ns.kubectl(&["rollout", "status", &format!("deployment/{role}"), "--timeout=120s"]).ok();
    }
    let ask = |path: &str| {
        let service = format!("/api/v1/namespaces/{}/services/frontend:80/proxy/{path}", ns.name());
        kubectl(&["get", "--raw", &service])
    };
    eventually("the first message is taken", PATIENCE, || ask("?say=hello").stdout.contains("hello").then_some(()));
    ask("?say=world").ok();
    let page = ask("").ok().to_owned();
    let lines: Vec<&str> = page.lines().collect();
    assert!(lines[0].starts_with("frontend ") && lines.contains(&"hello"), "{page}");
    assert_eq!(lines.last(), Some(&"world"), "{page}");
}

#[test]
fn nslookup_finds_the_api_server_by_its_short_name() {
    let ns = Namespace::new("nslookup");
    toolbox(&ns, "client", "c1", &["sleep", "infinity"]);
    ns.wait_ready("client");
    let found = ns.kubectl(&["exec", "client", "--", "nslookup", "kubernetes.default"]);
    let found = found.ok();
    assert!(found.contains("kubernetes.default.svc.cluster.local") && found.contains("10.96.0.1"), "{found}");
    let reverse = ns.kubectl(&["exec", "client", "--", "dig", "+short", "-x", "10.96.0.1"]);
    assert_eq!(reverse.ok(), "kubernetes.default.svc.cluster.local.");
}

/// Allows what does not have the label `forbidden`.
const WEBHOOK: &str = r#"
import http.server, json, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        labels = request["object"]["metadata"].get("labels") or {}
        answer = {"uid": request["uid"], "allowed": "forbidden" not in labels,
                  "status": {"message": "the label forbidden is forbidden"}}
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/keys/tls.crt", "/keys/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

#[test]
fn validating_webhook_served_by_a_pod() {
    let ns = Namespace::new("webhook");
    let name = ns.name();
    // On the login node, as alice would: a key for the Service's name, which is its own authority.
    let keys = ns.shell(
        "d=$(mktemp -d) && cd $d && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout tls.key -out tls.crt \
           -subj /CN=hook -addext subjectAltName=DNS:hook.$NS.svc 2>/dev/null &&
         kubectl -n $NS create secret tls keys --cert=tls.crt --key=tls.key >/dev/null && base64 -w0 tls.crt && rm -r $d",
    );
    let authority = keys.ok();
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hook", "labels": {"app": "hook"}},
            "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": TOOLBOX, "command": ["python3", "-c", WEBHOOK],
                    "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "keys", "mountPath": "/keys"}]}],
                "volumes": [{"name": "keys", "secret": {"secretName": "keys"}}]}})
        .to_string(),
    );
    ns.kubectl(&["create", "service", "clusterip", "hook", "--tcp=443:8443"]).ok();
    ns.wait_ready("hook");
    // It goes with the namespace.
    let uid = kubectl(&["get", "namespace", name, "-o", "jsonpath={.metadata.uid}"]).ok().to_owned();
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": name, "uid": uid}]},
        "webhooks": [{"name": "labels.hpk.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 5,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
            "clientConfig": {"service": {"namespace": name, "name": "hook"}, "caBundle": authority},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["configmaps"], "scope": "Namespaced"}]}]});
    kubectl_with_input(&["apply", "-f", "-"], &configuration.to_string()).ok();

    let create = |labels: serde_json::Value| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"generateName": "try-", "labels": labels}});
        ns.kubectl_with_input(&["create", "-f", "-"], &object.to_string())
    };
    // The API server learns of the webhook a moment later.
    eventually("the webhook refuses", PATIENCE, || {
        create(json!({"forbidden": "yes"})).stderr.contains("the label forbidden is forbidden").then_some(())
    });
    create(json!({"allowed": "yes"})).ok();
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about two nodes")]
fn a_neighbour_sends_to_every_port_of_the_overlay_and_gets_nothing() {
    let ns = Namespace::new("neighbour");
    let serve = "mkdir /tmp/w; echo mine >/tmp/w/index.html; exec python3 -m http.server -d /tmp/w 8080";
    toolbox(&ns, "server", "c1", &["sh", "-c", serve]);
    toolbox(&ns, "client", "c2", &["sleep", "infinity"]);
    ns.wait_ready("server");
    ns.wait_ready("client");
    let ip = ns.get("pod", "server")["status"]["podIP"].as_str().expect("a pod IP").to_owned();
    let ask = format!("curl -s --max-time 5 http://{ip}:8080/");
    let friend = || ns.kubectl(&["exec", "client", "--", "bash", "-c", &ask]).stdout;
    eventually("the client is answered", PATIENCE, || (friend().trim() == "mine").then_some(()));
    // By the pod's address there is no way from another user's processes, on the very node either.
    for node in ["c1", "c2", "login"] {
        assert_ne!(sx(node, Some("bob"), &["bash", "-c", &ask]).stdout.trim(), "mine", "bob on {node}");
    }
    // What the pod would take if it came in the clear: a whole IP packet, a WireGuard message of each type, noise; to
    // every UDP port that is open on the node.
    let stranger = r#"
import os, socket, sys
ip, ports = sys.argv[1], sys.argv[2].split()
ping = bytes.fromhex("4500001c000000004001") + b"\0\0" + socket.inet_aton("10.244.255.1") + socket.inet_aton(ip)
ping += bytes.fromhex("0800f7ff00000000")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
for port in ports:
    for message in [ping, bytes([0] * 10) + ping] + [bytes([t, 0, 0, 0]) + os.urandom(144) for t in (1, 2, 3, 4)] + [os.urandom(1400)]:
        s.sendto(message, ("10.77.0.11", int(port)))
try:
    print("answered", s.recvfrom(2048))
except (TimeoutError, ConnectionRefusedError):
    print("nothing")
"#;
    let open =
        sx("c1", None, &["bash", "-c", "ss -Huln | awk '{n = split($4, a, \":\"); print a[n]}' | sort -un | xargs"]);
    let ports = open.ok().to_owned();
    assert!(!ports.is_empty(), "the pod's datapath listens");
    let heard = sx("c2", Some("bob"), &["python3", "-c", stranger, &ip, &ports]);
    assert_eq!(heard.ok(), "nothing");
    assert_eq!(friend().trim(), "mine", "and the pod's own traffic goes on");
}

#[test]
fn expose_listens_on_the_login_node_while_it_runs() {
    let ns = Namespace::new("expose");
    let serve = "mkdir /tmp/w; echo mine >/tmp/w/index.html; exec python3 -m http.server -d /tmp/w 8080";
    toolbox(&ns, "server", "c1", &["sh", "-c", serve]);
    ns.kubectl(&["create", "service", "clusterip", "server", "--tcp=80:8080"]).ok();
    ns.wait_ready("server");
    for (target, port) in [("pod/server 8080", "28080"), ("service/server", "28081"), ("service/server 80", "")] {
        let flag = if port.is_empty() { String::new() } else { format!("--port {port}") };
        // Its first line says where; it is asked as long as the listener may take to come.
        let run = ns.shell(&format!(
            "exec 3< <(exec hpk expose -n $NS {target} {flag} -o json); pid=$!; read -r said <&3
             at=$(python3 -c 'import json, sys; d = json.loads(sys.argv[1]); print(d[\"address\"], d[\"port\"], sep=\":\")' \"$said\")
             curl -s --max-time 5 --retry 60 --retry-delay 1 --retry-all-errors http://$at/ && kill $pid && wait $pid; echo ended $? at $at"
        ));
        let said = run.ok();
        assert!(
            said.starts_with("mine\nended 0 at 10.77.0.1:") && said.ends_with(port),
            "{target}: {said} {}",
            run.stderr
        );
    }
    let left = ns.kubectl(&["get", "services", "-l", "app.kubernetes.io/managed-by=hpk-expose", "-o", "name"]);
    assert_eq!(left.ok(), "", "each took its own away");
    let wrong = ns.shell("hpk expose -n $NS service/server 81").err();
    assert!(wrong.contains("it has 80"), "{wrong}");
    assert!(ns.shell("hpk expose -n $NS pod/server --port 80").err().contains("--port 80"));
}
