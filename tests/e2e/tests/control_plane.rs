//! The control plane that `hpk up` started: it serves, it comes back, it reaches pods, and it is its owner's alone.
#![allow(clippy::unwrap_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{HPK_HOME, Namespace, PATIENCE, Step, TOOLBOX, at_terminal, eventually, kubectl, sx};
use serde_json::{Value, json};

/// `hpk status -o json`, whatever its exit code says.
fn status() -> Value {
    serde_json::from_str(&sx("login", Some("alice"), &["hpk", "status", "-o", "json"]).stdout).unwrap()
}

fn component(name: &str) -> Value {
    status()["components"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone()
}

fn ports() -> Value {
    let text = sx("login", Some("alice"), &["cat", ".hpk/control-plane.json"]);
    serde_json::from_str::<Value>(text.ok()).unwrap()["ports"].clone()
}

/// What curl says as bob: HTTP's status, or `000` when TLS ended it.
fn bob_gets(url: &str) -> String {
    sx("login", Some("bob"), &["curl", "-sk", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url]).stdout
}

#[test]
fn a_program_that_dies_is_started_again() {
    let before = component("kube-scheduler");
    let killed = sx(
        "login",
        Some("alice"),
        &["pkill", "-KILL", "-u", "alice", "-f", &format!("^/bin/kube-scheduler .*{HPK_HOME}/")],
    );
    killed.ok();
    let after = eventually("kube-scheduler serves again", PATIENCE, || {
        Some(component("kube-scheduler")).filter(|c| c["phase"] == "ready" && c["restarts"] != before["restarts"])
    });
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(status()["ready"], true, "{}", status());
}

#[test]
fn up_when_it_is_up_changes_nothing() {
    let before = component("etcd");
    sx("login", Some("alice"), &["hpk", "up"]).ok();
    assert_eq!(component("etcd")["pid"], before["pid"]);
}

#[test]
fn logs_and_a_shell_of_the_cluster() {
    let alice = |command: &[&str]| sx("login", Some("alice"), command);
    let list = alice(&["hpk", "logs"]);
    assert!(list.ok().lines().any(|name| name == "kube-apiserver"), "{}", list.stdout);
    assert_eq!(alice(&["hpk", "logs", "hpk-kubelet", "-n", "2"]).ok().lines().count(), 2);
    let unknown = alice(&["hpk", "logs", "kubelet"]);
    assert!(unknown.code != Some(0) && unknown.stderr.contains("hpk-kubelet"), "{}", unknown.stderr);

    let ready = alice(&["env", "-u", "KUBECONFIG", "hpk", "shell", "--", "kubectl", "get", "--raw", "/readyz"]);
    assert_eq!(ready.ok(), "ok");
    let typed = "echo \"config $KUBECONFIG\"; exit 7\n";
    let shell = at_terminal(
        &["env", "-u", "KUBECONFIG", "SHELL=/bin/bash", "hpk", "shell"],
        &[Step::Expect("[(]hpk[)] "), Step::Type(typed), Step::Expect("config /home/alice/.hpk/kubeconfig")],
    );
    assert_eq!(shell.code, Some(7), "{}", shell.stdout);

    let watch = alice(&["sh", "-c", "timeout 20 hpk status --watch -o json | head -n 1"]);
    let first: Value = serde_json::from_str(watch.ok()).unwrap();
    let has = |name: &str| first["components"].as_array().is_some_and(|all| all.iter().any(|c| c["name"] == name));
    assert!(has("etcd") && has("hpk-kubelet"), "{first}");
}

#[test]
fn another_user_gets_nothing() {
    let ports = ports();
    let api = format!("https://10.77.0.1:{}", ports["apiserver"]);
    assert_eq!(bob_gets(&format!("{api}/api/v1/namespaces/kube-system/secrets")), "401");
    assert_eq!(bob_gets(&format!("{api}/version")), "401");
    assert_eq!(bob_gets(&format!("https://10.77.0.1:{}/pods", ports["kubelet"])), "401");
    // Without a certificate of its authority there is no TLS with etcd at all.
    assert_eq!(bob_gets(&format!("https://127.0.0.1:{}/health", ports["etcd"])), "000");
    assert_eq!(bob_gets(&format!("https://127.0.0.1:{}/metrics", ports["controller_manager"])), "403");
    sx("login", Some("bob"), &["ls", HPK_HOME]).err();
    // Private even where the home itself is open to others.
    let modes =
        sx("login", None, &["find", &format!("{HPK_HOME}/pki"), &format!("{HPK_HOME}/kubeconfig"), "-perm", "/077"]);
    assert_eq!(modes.ok(), "", "files of alice's that others may read");
}

#[test]
fn the_api_server_reaches_pods_and_services() {
    let ns = Namespace::new("reach");
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
                "containers": [{
                    "name": "web", "image": TOOLBOX, "workingDir": "/tmp",
                    "command": ["sh", "-c", "echo hello > index.html; exec python3 -m http.server 8080"],
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
                }]}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
             "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}},
        ]})
        .to_string(),
    );
    ns.wait_ready("web");
    let get = |what: &str| kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{}/{what}/index.html", ns.name())]);
    assert_eq!(get("pods/web:8080/proxy").ok(), "hello");
    // The endpoint follows the pod's readiness a moment later.
    let through_service = eventually("the service has its endpoint", PATIENCE, || {
        let run = get("services/web:80/proxy");
        (run.code == Some(0)).then_some(run)
    });
    assert_eq!(through_service.ok(), "hello");
    // A port where nobody listens: the reason is the pod's own.
    let refused = get("pods/web:8081/proxy").err();
    assert!(refused.contains("connection refused"), "{refused}");
}

#[test]
fn a_supervisor_whose_socket_is_gone_makes_it_anew() {
    let before = status();
    sx("login", Some("alice"), &["rm", ".hpk/run/supervisor.sock", ".hpk/run/supervisor.json"]).ok();
    let after = status();
    assert_eq!((&after["pid"], &after["started"]), (&before["pid"], &before["started"]), "{after}");
}

#[test]
fn a_name_is_known_as_soon_as_its_service_is() {
    let ns = Namespace::new("names");
    let port = ports()["dns"].to_string();
    let ask = |name: &str| {
        let line = ["dig", "+noall", "+comments", "+answer", "@10.77.0.1", "-p", &port, name];
        sx("login", Some("alice"), &line).ok().to_owned()
    };
    let name = format!("late.{}.svc.cluster.local.", ns.name());
    assert!(ask(&name).contains("NXDOMAIN"), "{}", ask(&name));
    ns.kubectl(&["create", "service", "clusterip", "late", "--tcp=80"]).ok();
    // Far below the 30 s for which an absent name could be kept.
    eventually("the name is known", std::time::Duration::from_secs(10), || ask(&name).contains("10.96.").then_some(()));
    // The site has no resolver: what nobody knows does not exist.
    let unknown = ask("nosuchname.");
    assert!(unknown.contains("NXDOMAIN"), "{unknown}");
}
