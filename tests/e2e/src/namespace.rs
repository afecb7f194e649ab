//! A namespace for one case, gone when the case ends.
#![allow(clippy::print_stderr, reason = "it prints for who calls it, and ends then")]

use crate::command::{Run, kubectl, kubectl_with_input, sx};
use crate::watch::until;
use serde_json::{Value, json};
use std::time::Duration;

/// A namespace of one case's own. Dropping it deletes it with everything in it, unless `HPK_E2E_KEEP` is
/// set in the environment; a case that failed prints its pods and events first.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `e2e-<case>-<process id>` and waits for its default service account, without
    /// which no pod can be created.
    pub fn new(case: &str) -> Self {
        let name = format!("e2e-{case}-{}", std::process::id());
        kubectl(&["create", "namespace", &name]).ok();
        let namespace = Self { name };
        namespace.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=60s"]).ok();
        namespace
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> Run {
        let all: Vec<&str> = ["-n", &self.name].into_iter().chain(args.iter().copied()).collect();
        kubectl(&all)
    }

    /// kubectl in this namespace with `input` on its standard input.
    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> Run {
        let all: Vec<&str> = ["-n", &self.name].into_iter().chain(args.iter().copied()).collect();
        kubectl_with_input(&all, input)
    }

    /// A shell command as alice on the login node, with `$NS` as this namespace: for pipelines, terminals
    /// and background clients.
    pub fn shell(&self, script: &str) -> Run {
        sx("login", Some("alice"), &["env", &format!("NS={}", self.name), "bash", "-o", "pipefail", "-c", script])
    }

    /// Applies a manifest (YAML or JSON), which the API server must accept.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        kubectl_with_input(&["-n", &self.name, "apply", "-f", "-"], manifest).ok();
    }

    /// Applies a pod of one busybox container `main` that runs `script`, and restarts as `restart` says.
    #[track_caller]
    pub fn run_script(&self, pod: &str, restart: &str, script: &str) {
        self.apply(&self.script_pod(pod, restart, script).to_string());
    }

    /// The pod of [`Self::run_script`], to be changed before it is applied.
    pub fn script_pod(&self, pod: &str, restart: &str, script: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": self.name},
            "spec": {
                "restartPolicy": restart, "terminationGracePeriodSeconds": 5,
                "containers": [{"name": "main", "image": crate::BUSYBOX, "command": ["sh", "-c", script],
                                "resources": {"requests": {"cpu": "1", "memory": "64Mi"}}}]
            }
        })
    }

    /// Waits until the pod's phase is `phase`.
    #[track_caller]
    pub fn wait_phase(&self, pod: &str, phase: &str) {
        let condition = format!("--for=jsonpath={{.status.phase}}={phase}");
        self.wait(&["pod", pod], &condition);
    }

    /// Waits until the pod's condition Ready is True.
    #[track_caller]
    pub fn wait_ready(&self, pod: &str) {
        self.wait(&["pod", pod], "--for=condition=Ready");
    }

    /// `kubectl wait` with the usual patience; shows the object when it fails.
    #[track_caller]
    pub fn wait(&self, object: &[&str], condition: &str) {
        let timeout = format!("--timeout={}s", crate::PATIENCE.as_secs());
        let args: Vec<&str> = ["wait"].into_iter().chain(object.iter().copied()).chain([condition, &timeout]).collect();
        let run = self.kubectl(&args);
        assert_eq!(run.code, Some(0), "{}\n{}{}\n{}", run.line, run.stdout, run.stderr, self.describe());
    }

    /// One object as JSON.
    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let run = self.kubectl(&["get", kind, name, "-o", "json"]);
        match serde_json::from_str(run.ok()) {
            Ok(value) => value,
            Err(error) => panic!("{}: {error}", run.line),
        }
    }

    /// Follows a pod until `accept` holds for it; gives that state of it.
    #[track_caller]
    pub fn until_pod(&self, pod: &str, deadline: Duration, accept: impl Fn(&Value) -> bool) -> Value {
        let field = format!("metadata.name={pod}");
        let args = ["-n", &self.name, "get", "pods", "--field-selector", &field, "-w", "-o", "json"];
        match until(&args, deadline, accept) {
            Some(value) => value,
            None => panic!("pod {pod} did not get there in {deadline:?}\n{}", self.describe()),
        }
    }

    /// Follows the events of an object until one's reason is `reason` and its message holds `text`; gives
    /// the message.
    #[track_caller]
    pub fn until_event(&self, object: &str, reason: &str, text: &str) -> String {
        let field = format!("involvedObject.name={object}");
        let args = ["-n", &self.name, "get", "events", "--field-selector", &field, "-w", "-o", "json"];
        let message = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
        let found = until(&args, crate::PATIENCE, |event| event["reason"] == reason && message(event).contains(text));
        match found {
            Some(event) => message(&event),
            None => panic!("no event {reason} with {text:?} about {object}\n{}", self.describe()),
        }
    }

    /// Deletes an object and waits until it is gone.
    #[track_caller]
    pub fn delete(&self, kind: &str, name: &str) {
        let timeout = format!("--timeout={}s", crate::PATIENCE.as_secs());
        self.kubectl(&["delete", kind, name, &timeout]).ok();
    }

    /// Pods, what failed pods have written, and events, for the message of a failed case.
    pub fn describe(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "-o", "wide"]).stdout;
        let failed = self.kubectl(&["get", "pods", "--field-selector=status.phase=Failed", "-o", "name"]).stdout;
        let failed: String = failed.lines().map(|pod| self.last_words(pod)).collect();
        let states =
            "jsonpath={range .items[?(@.status.phase!=\"Succeeded\")]}{.metadata.name} {.status}{\"\\n\"}{end}";
        let states = self.kubectl(&["get", "pods", "-o", states]).stdout;
        let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).stdout;
        format!("{pods}\n{failed}\n{states}\n{events}")
    }

    /// How the containers of `pod` have ended, and the ends of their logs.
    fn last_words(&self, pod: &str) -> String {
        let ends = self.kubectl(&["get", pod, "-o", "jsonpath={.status.containerStatuses[*].state}"]).stdout;
        let logs = self.kubectl(&["logs", pod, "--all-containers", "--prefix", "--tail=20"]);
        format!("{pod}: {ends}\n{}{}", logs.stdout, logs.stderr)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("namespace {}\n{}", self.name, self.describe());
        }
        if std::env::var_os("HPK_E2E_KEEP").is_none() {
            kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}
