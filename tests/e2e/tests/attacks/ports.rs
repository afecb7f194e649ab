//! Ports and folders that another user of the machine takes first.
//!
//! The victim is a second cluster of alice's on the login node, so that the other cases keep theirs.
#![allow(clippy::unwrap_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{HOME, PATIENCE, eventually, sx};
use serde_json::Value;

/// A cluster in a home of its own, taken down at the end.
struct Cluster {
    home: String,
    tmp: String,
}

impl Cluster {
    /// Not started yet. `tmp` is where node-local folders are made.
    fn new(name: &str, tmp: &str) -> Self {
        let cluster = Self { home: format!("{HOME}/.hpk-{name}"), tmp: tmp.to_owned() };
        cluster.remove();
        cluster
    }

    fn hpk(&self, args: &[&str]) -> hpk_e2e::Run {
        let (home, tmp) = (format!("HPK_HOME={}", self.home), format!("TMPDIR={}", self.tmp));
        sx("login", Some("alice"), &[&["env", &home, &tmp, "hpk"], args].concat())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.hpk(&["status", "-o", "json"]).stdout).unwrap_or_default()
    }

    fn components(&self) -> Vec<Value> {
        self.status()["components"].as_array().cloned().unwrap_or_default()
    }

    fn ports(&self) -> Value {
        let text = sx("login", Some("alice"), &["cat", &format!("{}/control-plane.json", self.home)]);
        serde_json::from_str::<Value>(text.ok()).unwrap()["ports"].clone()
    }

    fn remove(&self) {
        self.hpk(&["down"]);
        sx("login", Some("alice"), &["rm", "-rf", &self.home]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Tries each port at its address and at all for so many seconds in every way that the kernel offers, and prints those that it got.
const GRAB: &str = r"
import socket, sys, time
end = time.time() + float(sys.argv[1])
got = set()
print('begins', flush=True)
while time.time() < end:
    for place in sys.argv[2:]:
        address, port = place.split(':')
        for address in (address, '0.0.0.0'):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    s = socket.socket(socket.AF_INET, kind)
                    if option: s.setsockopt(socket.SOL_SOCKET, option, 1)
                    try:
                        s.bind((address, int(port)))
                        got.add(address + ':' + port)
                    except OSError:
                        pass
                    s.close()
print(*sorted(got), flush=True)
";

/// Begins a cluster where the cases run.
const UP: &[&str] = if cfg!(feature = "site") { &["up"] } else { &["up", "--executor", "local"] };

/// Where each port is.
fn places(ports: &Value) -> Vec<String> {
    let at = |(name, port): (&String, &Value)| {
        let outside = ["apiserver", "kubelet", "link", "dns"].contains(&name.as_str());
        format!("{}:{port}", if outside { "10.77.0.1" } else { "127.0.0.1" })
    };
    ports.as_object().unwrap().iter().map(at).collect()
}

#[test]
fn a_port_of_the_control_plane_is_nobody_elses_while_its_servers_restart() {
    let cluster = Cluster::new("ports", "/tmp");
    cluster.hpk(UP).ok();
    let before = cluster.ports();
    let mut all = places(&before);
    // One that is free, so that the attacker is seen to work.
    all.push("127.0.0.1:32001".to_owned());
    let grabber = std::thread::spawn(move || {
        let line: Vec<&str> = ["python3", "-c", GRAB, "15"].into_iter().chain(all.iter().map(String::as_str)).collect();
        sx("login", Some("bob"), &line).ok().to_owned()
    });
    let servers: Vec<Value> = cluster.components().into_iter().filter(|c| c["pid"].is_u64()).collect();
    assert_eq!(servers.len(), 7, "{servers:?}");
    for server in &servers {
        sx("login", Some("alice"), &["kill", "-KILL", &server["pid"].to_string()]);
    }
    eventually("all serve again", PATIENCE, || {
        let now = cluster.components();
        let again = servers.iter().all(|s| now.iter().any(|n| n["name"] == s["name"] && n["pid"] != s["pid"]));
        (again && cluster.status()["ready"] == true).then_some(())
    });
    assert_eq!(grabber.join().unwrap().lines().last(), Some("0.0.0.0:32001 127.0.0.1:32001"));
}

#[test]
fn ports_that_another_user_took_meanwhile_are_exchanged() {
    let cluster = Cluster::new("moved", "/tmp");
    cluster.hpk(UP).ok();
    let before = cluster.ports();
    cluster.hpk(&["down"]).ok();
    // bob answers at two of them, for as long as this case needs.
    let (api, dns) = (before["apiserver"].to_string(), before["dns"].to_string());
    let script = "import socket, sys
sockets = []
for port in map(int, sys.argv[1:]):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('10.77.0.1', port))
        if kind == socket.SOCK_STREAM: s.listen()
        sockets.append(s)
import os
if os.fork() == 0:
    os.setsid(); os.close(0); os.close(1); os.close(2)
    import time; time.sleep(60)
";
    sx("login", Some("bob"), &["python3", "-c", script, &api, &dns]).ok();
    cluster.hpk(UP).ok();
    let after = cluster.ports();
    sx("login", None, &["pkill", "-u", "bob", "-f", &format!("{api} {dns}$")]);
    for (name, port) in after.as_object().unwrap() {
        let moved = name == "apiserver" || name == "dns";
        assert_eq!(*port != before[name], moved, "{name}: {before} {after}");
    }
    // Who looks is told where the API server is now.
    let config = sx("login", Some("alice"), &["cat", &format!("{}/kubeconfig", cluster.home)]);
    assert!(config.ok().contains(&format!("https://10.77.0.1:{}\"", after["apiserver"])), "{config:?}");
}

#[test]
fn a_folder_that_another_user_made_first_is_passed_over() {
    let tmp = "/tmp/hpk-attack-folder";
    sx("login", None, &["rm", "-rf", tmp]).ok();
    sx("login", Some("bob"), &["sh", "-c", &format!("mkdir -m 1777 {tmp} && mkdir -m 0777 {tmp}/hpk-1000")]).ok();
    {
        let cluster = Cluster::new("folder", tmp);
        // Ready means that the member serves, which needs its folder.
        cluster.hpk(UP).ok();
        let member = cluster.components().into_iter().find(|c| c["name"] == "hpk-netns-member").unwrap();
        assert_eq!((member["phase"].as_str(), member["restarts"].as_u64()), (Some("ready"), Some(0)), "{member}");
        assert_eq!(
            sx("login", None, &["ls", "-A", &format!("{tmp}/hpk-1000")]).ok(),
            "",
            "nothing of alice's in bob's"
        );
        let own = sx("login", None, &["stat", "-c", "%U %a", &format!("{tmp}/hpk-1000.1")]);
        assert_eq!(own.ok(), "alice 700");
    }
    sx("login", None, &["rm", "-rf", tmp]).ok();
}
