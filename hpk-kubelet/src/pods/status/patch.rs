//! How the API's status becomes the one that was made.

use hpk_api::pod_flags;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The strategic-merge patch that brings the API from `old` to `new`. None: nothing to say.
///
/// `requested`: what was asked of Slurm, for the pod's annotation. (A kubelet may write annotations with the status only.)
///
/// Lists that merge by key cannot lose fields by being silent, so texts that vanished are null.
#[must_use]
pub(crate) fn patch(pod: &Pod, old: &PodStatus, new: &PodStatus, requested: Option<&str>) -> Option<Value> {
    let object = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (before, mut after) = (object(old), object(new));
    let mut changes = Map::new();
    for key in before.keys() {
        if !after.contains_key(key) {
            after.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in after {
        if before.get(&key) == Some(&value) || (value.is_null() && !before.contains_key(&key)) {
            continue;
        }
        changes.insert(key, value);
    }
    if let Some(Value::Array(list)) = changes.get_mut("conditions") {
        let kinds = |s: &PodStatus| s.conditions.iter().flatten().map(|c| c.type_.clone()).collect::<BTreeSet<_>>();
        let gone: Vec<String> = kinds(old).difference(&kinds(new)).cloned().collect();
        for condition in list.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
        list.extend(gone.into_iter().map(|kind| json!({"type": kind, "$patch": "delete"})));
    }
    // Both merge by address: without this an address that changed would stay beside its successor.
    for field in ["podIPs", "hostIPs"] {
        if let Some(Value::Array(list)) = changes.get_mut(field) {
            list.push(json!({"$patch": "replace"}));
        }
    }
    let told = |text: &str| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get(pod_flags::REQUESTED)).is_some_and(|old| old == text)
    };
    let requested = requested.filter(|text| !told(text));
    if changes.is_empty() && requested.is_none() {
        return None;
    }
    let mut metadata = json!({"uid": pod.metadata.uid});
    if let Some(text) = requested {
        metadata["annotations"] = json!({pod_flags::REQUESTED: text});
    }
    Some(json!({"metadata": metadata, "status": changes}))
}
