//! Admission: who sets the labels of pods that say where they run changes nothing else of a pod.

use hpk_api::nodes::{JOB_ID, LABELLER, NODE, PARTITION};
use serde_json::{Value, json};

const NAME: &str = "hpk-pod-labels";

/// Its right, beside which there is the policy.
pub(crate) fn role(labels: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": LABELLER, "labels": labels},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}],
    })
}

pub(crate) fn role_binding(labels: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": LABELLER, "labels": labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": LABELLER},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": LABELLER}],
    })
}

pub(crate) fn policy(labels: &Value) -> Value {
    let same = |field: &str| format!("object.metadata.?{field} == oldObject.metadata.?{field}");
    let ours = format!("[{JOB_ID:?}, {PARTITION:?}, {NODE:?}]");
    let kept = format!(
        "variables.was.all(k, k in {ours} || (k in variables.now && variables.now[k] == variables.was[k])) && \
         variables.now.all(k, k in {ours} || k in variables.was)"
    );
    let validations = [
        "object.spec == oldObject.spec".to_owned(),
        same("annotations"),
        same("finalizers"),
        same("ownerReferences"),
        kept,
    ];
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"],
            }]},
            "matchConditions": [{"name": "labeller", "expression": format!("request.userInfo.username == {LABELLER:?}")}],
            "variables": [
                {"name": "now", "expression": "object.metadata.?labels.orValue({})"},
                {"name": "was", "expression": "oldObject.metadata.?labels.orValue({})"},
            ],
            "validations": validations.map(|expression| json!({
                "expression": expression, "message": format!("{LABELLER} sets {ours} and nothing else"),
            })),
        },
    })
}

pub(crate) fn binding(labels: &Value) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    })
}
