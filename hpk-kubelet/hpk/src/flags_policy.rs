//! Admission: no flags of Slurm from pods of namespaces whose PodSecurity level is baseline or restricted. What flags take
//! counts against no quota, and nobody who may only create pods there is to have more than the namespace gives.

use hpk_api::pod_flags;
use serde_json::{Value, json};

const NAME: &str = "hpk-pod-flags";
/// Label of a namespace: its pods may give flags all the same. Who may label it could lower its level too.
const EXCEPTION: &str = "slurm.hpk.io/pod-flags";

pub(crate) fn policy(labels: &Value) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                // A binding hands its annotations on to its pod.
                "resources": ["pods", "pods/status", "pods/binding", "bindings"],
            }]},
            "variables": [
                {"name": "now", "expression": "object.metadata.?annotations.orValue({})"},
                // A pod from before the label stays as it is, and can be changed otherwise.
                {"name": "was", "expression": "oldObject == null ? {} : oldObject.metadata.?annotations.orValue({})"},
                {"name": "given", "expression": format!(
                    "{:?}.filter(k, k in variables.now && !(k in variables.was && variables.was[k] == variables.now[k]))",
                    pod_flags::ANNOTATIONS,
                )},
            ],
            "validations": [{
                "expression": "variables.given.size() == 0",
                "reason": "Forbidden",
                "messageExpression": format!(
                    "'annotation ' + variables.given.join(', ') + ': no flags of Slurm in a namespace whose \
                     pod-security.kubernetes.io/enforce is baseline or restricted; remove it, or have the namespace labelled \
                     {EXCEPTION}=allow by whoever may label it'"
                ),
            }],
        },
    })
}

pub(crate) fn binding(labels: &Value) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "policyName": NAME,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchExpressions": [
                {"key": "pod-security.kubernetes.io/enforce", "operator": "Exists"},
                // A level that is none is taken for restricted by PodSecurity.
                {"key": "pod-security.kubernetes.io/enforce", "operator": "NotIn", "values": ["privileged"]},
                {"key": EXCEPTION, "operator": "NotIn", "values": ["allow"]},
            ]}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_annotation_is_in_the_expression() {
        let policy = policy(&json!({}));
        let given = policy["spec"]["variables"][2]["expression"].as_str().unwrap();
        // CEL and Rust write a list of texts alike.
        let list = r#"["slurm.hpk.io/flags", "slurm-job.hpk.io/flags", "slurm-job.hpk.io/mpi-flags"].filter("#;
        assert!(given.starts_with(list), "{given}");
    }
}
