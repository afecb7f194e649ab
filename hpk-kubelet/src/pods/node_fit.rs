//! Whether a pod may be on its Node by the Node's labels and taints: what upstream's kubelet looks at once more, since a pod
//! can name its Node itself and so come by no scheduler.

use super::admit::Refusal;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration};
use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;

/// Why the Node is not one for the pod.
#[must_use]
pub(crate) fn refuse(pod: &Pod, node: &Node) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    if !selected(spec, node) {
        return Some(Refusal {
            reason: "NodeAffinity",
            message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned(),
        });
    }
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let tolerated = |taint: &Taint| spec.tolerations.iter().flatten().any(|t| tolerates(t, taint));
    // Upstream's kubelet looks at those that would end the pod.
    taints.filter(|t| t.effect == "NoExecute").any(|t| !tolerated(t)).then(|| Refusal {
        reason: "TaintToleration",
        message: "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate".to_owned(),
    })
}

fn selected(spec: &PodSpec, node: &Node) -> bool {
    let empty = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if spec.node_selector.iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches(term, labels, name)))
}

/// A term with nothing in it matches no Node.
fn matches(term: &NodeSelectorTerm, labels: &Labels, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |r: &NodeSelectorRequirement| meets(r, Some(name).filter(|_| r.key == "metadata.name"));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| meets(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(field)
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|v| values.iter().any(|w| w == v));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(is, than)| is > than),
        "Lt" => numbers().is_some_and(|(is, than)| is < than),
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same = |ours: &Option<String>, theirs: &str| ours.as_deref().is_none_or(|o| o.is_empty() || o == theirs);
    if !same(&toleration.effect, &taint.effect) || !same(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            let value = |v: &Option<String>| v.clone().unwrap_or_default();
            toleration.key.as_deref().is_some_and(|k| !k.is_empty()) && value(&toleration.value) == value(&taint.value)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        let spec = json!({"taints": [
            {"key": "full", "value": "yes", "effect": "NoSchedule"}, {"key": "evil", "value": "1", "effect": "NoExecute"},
        ]});
        let metadata = json!({"name": "n", "labels": {"slurm.hpk.io/partition": "debug", "cpus": "64"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("node")
    }

    fn refused(mut spec: Value, tolerations: Value) -> Option<&'static str> {
        spec["containers"] = json!([]);
        spec["tolerations"] = tolerations;
        refuse(&serde_json::from_value(json!({"spec": spec})).expect("pod"), &node()).map(|r| r.reason)
    }

    #[test]
    fn nodes_are_selected_as_the_scheduler_does() {
        let all = json!([{"operator": "Exists"}]);
        let affinity = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let partition = "slurm.hpk.io/partition";
        let no = Some("NodeAffinity");
        for (spec, reason) in [
            (json!({}), None),
            (json!({"nodeSelector": {partition: "debug"}}), None),
            (json!({"nodeSelector": {partition: "main"}}), no),
            (affinity(json!([expression(partition, "In", &["a", "debug"])])), None),
            (affinity(json!([expression(partition, "NotIn", &["debug"])])), no),
            (affinity(json!([expression("none", "NotIn", &["debug"])])), None),
            (affinity(json!([expression("none", "Exists", &[])])), no),
            (affinity(json!([expression("none", "Exists", &[]), expression("cpus", "Gt", &["63"])])), None),
            (affinity(json!([expression("cpus", "Lt", &["64"])])), no),
            (affinity(json!([{}])), no),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])), None),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}])), no),
        ] {
            assert_eq!(refused(spec.clone(), all.clone()), reason, "{spec}");
        }
    }

    #[test]
    fn a_taint_that_ends_pods_must_be_tolerated() {
        for (tolerations, reason) in [
            (json!([]), Some("TaintToleration")),
            (json!([{"key": "full", "operator": "Exists"}]), Some("TaintToleration")),
            (json!([{"key": "evil", "operator": "Exists"}]), None),
            (json!([{"key": "evil", "value": "1"}]), None),
            (json!([{"key": "evil", "value": "2"}]), Some("TaintToleration")),
            (json!([{"key": "evil", "value": "1", "effect": "NoSchedule"}]), Some("TaintToleration")),
            (json!([{"operator": "Exists", "effect": "NoExecute"}]), None),
            (json!([{"value": "1"}]), Some("TaintToleration")),
        ] {
            assert_eq!(refused(json!({}), tolerations.clone()), reason, "{tolerations}");
        }
    }
}
