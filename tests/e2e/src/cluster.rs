//! A second cluster, for cases that a cluster of their own must bear.
#![allow(clippy::print_stderr, reason = "what a failed case leaves is shown")]
#![allow(clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use crate::{HOME, PATIENCE, Run, eventually, sx};
use serde_json::Value;

/// The folder below which HPK is installed.
pub fn programs() -> String {
    format!("{HOME}/.local")
}

/// A cluster of its own beside alice's usual one, down with its pods when this is dropped.
pub struct Cluster {
    user: Option<&'static str>,
    /// Its `HPK_HOME`.
    pub home: String,
    node: &'static str,
}

impl Cluster {
    /// With these arguments of `hpk up`, on the login node.
    #[track_caller]
    pub fn up(user: Option<&'static str>, home: &str, args: &[&str]) -> Self {
        let cluster = Self { user, home: home.to_owned(), node: "login" };
        let all: Vec<&str> = ["up"].into_iter().chain(args.iter().copied()).collect();
        cluster.hpk(&all).ok();
        cluster
    }

    /// From now on commands run on this node.
    pub fn go_to(&mut self, node: &'static str) {
        self.node = node;
    }

    /// A command with this cluster's environment.
    pub fn run(&self, command: &[&str]) -> Run {
        let (home, kubeconfig) = (format!("HPK_HOME={}", self.home), format!("KUBECONFIG={}/kubeconfig", self.home));
        let prefix = format!("HPK_PREFIX={}", programs());
        let env = ["env", &home, &kubeconfig, &prefix];
        let all: Vec<&str> = env.into_iter().chain(command.iter().copied()).collect();
        sx(self.node, self.user, &all)
    }

    /// `hpk`.
    pub fn hpk(&self, args: &[&str]) -> Run {
        let program = format!("{}/bin/hpk", programs());
        let all: Vec<&str> = [program.as_str()].into_iter().chain(args.iter().copied()).collect();
        self.run(&all)
    }

    /// kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Run {
        let program = format!("{}/bin/kubectl", programs());
        let all: Vec<&str> = [program.as_str()].into_iter().chain(args.iter().copied()).collect();
        self.run(&all)
    }

    /// `kubectl apply`.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let script = format!("printf %s \"$1\" | {}/bin/kubectl apply -f -", programs());
        self.run(&["bash", "-o", "pipefail", "-c", &script, "-", manifest]).ok();
    }

    /// Until a pod is Ready.
    #[track_caller]
    pub fn wait_ready(&self, pod: &str) {
        let run = self.kubectl(&["wait", "--for=condition=Ready", "pod", pod, "--timeout=60s"]);
        assert_eq!(run.code, Some(0), "{}\n{}", run.stderr, self.kubectl(&["describe", "pods"]).stdout);
    }

    /// An object, or a list.
    pub fn get(&self, object: &[&str]) -> Value {
        let args: Vec<&str> = ["get"].into_iter().chain(object.iter().copied()).chain(["-o", "json"]).collect();
        serde_json::from_str(self.kubectl(&args).ok()).expect("JSON")
    }

    /// A script in a pod.
    pub fn exec(&self, pod: &str, script: &str) -> Run {
        self.kubectl(&["exec", pod, "--", "bash", "-c", script])
    }

    /// A script in a pod without bash.
    pub fn exec_sh(&self, pod: &str, script: &str) -> Run {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    /// An event of this object and reason that holds `text`.
    pub fn until_event(&self, object: &str, reason: &str, text: &str) -> String {
        eventually(&format!("event {reason} of {object} with {text:?}"), PATIENCE, || {
            let events = self.get(&["events", "--field-selector", &format!("involvedObject.name={object}")]);
            let mut all = events["items"].as_array()?.iter().filter(|e| e["reason"] == reason);
            all.find_map(|e| e["message"].as_str().filter(|m| m.contains(text)).map(str::to_owned))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.kubectl(&["get", "pods,services,events", "-A", "-o", "wide"]).stdout);
        }
        self.hpk(&["down", "--pods"]);
        // As root: images hold files of subordinate ids.
        sx("login", None, &["rm", "-rf", &self.home]);
    }
}
