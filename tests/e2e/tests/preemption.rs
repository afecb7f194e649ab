//! Resources that somebody has added to the Node, licences say, are the scheduler's to share out, and it takes them from pods of
//! a lower priority.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that finds nothing fails its case")]

use hpk_e2e::{NODE, Namespace, PATIENCE, kubectl, kubectl_with_input, sacct};
use serde_json::{Value, json};

/// As an extended resource of the Node, until this is dropped. As Kubernetes' guide has it, the capacity alone is changed, and the
/// kubelet makes it allocatable.
struct Licence(String);

impl Licence {
    fn of(ns: &Namespace, count: u32) -> Self {
        let licence = Self(format!("e2e.example.com/{}", ns.name()));
        licence.patch(json!(count.to_string()));
        licence
    }

    fn patch(&self, count: Value) {
        let patch = json!({"status": {"capacity": {&self.0: count}}}).to_string();
        kubectl(&["patch", "node", NODE, "--subresource=status", "--type=merge", "-p", &patch]);
    }
}

impl Drop for Licence {
    fn drop(&mut self) {
        self.patch(Value::Null);
    }
}

struct Class(String);

impl Class {
    fn make(name: String) -> Self {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000});
        kubectl_with_input(&["apply", "-f", "-"], &class.to_string()).ok();
        Self(name)
    }
}

impl Drop for Class {
    fn drop(&mut self) {
        kubectl(&["delete", "priorityclass", &self.0]);
    }
}

fn pod(ns: &Namespace, name: &str, licence: &Licence, more: Value) {
    let mut pod = ns.script_pod(name, "Never", "exec sleep 600");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["resources"]["limits"] = json!({&licence.0: "1"});
    pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ns.apply(&pod.to_string());
}

#[test]
fn a_licence_is_waited_for_and_taken_from_a_pod_of_lower_priority() {
    let ns = Namespace::new("licence");
    let (licence, class) = (Licence::of(&ns, 1), Class::make(format!("{}-high", ns.name())));
    pod(&ns, "low", &licence, json!({}));
    ns.wait_ready("low");
    pod(&ns, "second", &licence, json!({}));
    let waits = ns.until_pod("second", PATIENCE, |pod| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "False")
    });
    let text = waits["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(text.contains(&format!("Insufficient {}", licence.0)), "{text}");
    assert!(sacct(ns.name(), "second").is_empty(), "it has no job");
    pod(&ns, "high", &licence, json!({"priorityClassName": &class.0}));
    ns.until_event("low", "Preempted", "");
    ns.wait_ready("high");
    assert_ne!(ns.kubectl(&["get", "pod", "low"]).code, Some(0), "it has made room");
}
