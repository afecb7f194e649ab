//! Extended resources that somebody else has added to a Node: licences, say. Its capacity has what they added; the kubelet
//! makes it allocatable, as upstream's does. Pure.

use k8s_openapi::api::core::v1::NodeStatus;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What of `allocatable` is to follow the capacity, as a patch of that map; None: nothing. `ours`: what the kubelet tells.
pub(super) fn follow(status: &NodeStatus, ours: &BTreeMap<String, String>) -> Option<Value> {
    let theirs = |name: &str| is_extended(name) && !ours.contains_key(name);
    let (capacity, allocatable) = (status.capacity.as_ref(), status.allocatable.as_ref());
    let of = |name: &str| allocatable.and_then(|list| list.get(name));
    let added = capacity.into_iter().flatten().filter(|(name, count)| theirs(name) && of(name) != Some(count));
    let gone = allocatable
        .into_iter()
        .flatten()
        .map(|(name, _)| name)
        .filter(|name| theirs(name) && !capacity.is_some_and(|list| list.contains_key(*name)));
    let patch: Map<String, Value> = added
        .map(|(name, count)| (name.clone(), json!(count)))
        .chain(gone.map(|name| (name.clone(), Value::Null)))
        .collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Upstream's `IsExtendedResourceName`.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_follows_what_others_have_added_and_removed() {
        let of = |capacity: Value, allocatable: Value| {
            let status = serde_json::from_value(json!({"capacity": capacity, "allocatable": allocatable})).unwrap();
            let ours = [("cpu", "4"), ("nvidia.com/gpu", "2")].map(|(name, count)| (name.to_owned(), count.to_owned()));
            follow(&status, &ours.into())
        };
        assert_eq!(of(json!({"x.org/a": "5"}), json!({})), Some(json!({"x.org/a": "5"})));
        assert_eq!(of(json!({"x.org/a": "5"}), json!({"x.org/a": "4"})), Some(json!({"x.org/a": "5"})));
        assert_eq!(of(json!({"x.org/a": "5"}), json!({"x.org/a": "5"})), None);
        assert_eq!(of(json!({}), json!({"x.org/a": "5"})), Some(json!({"x.org/a": null})));
        let own = json!({"cpu": "4", "nvidia.com/gpu": "2", "hugepages-2Mi": "0", "a.kubernetes.io/b": "1"});
        assert_eq!(of(own, json!({"cpu": "9", "nvidia.com/gpu": "1"})), None, "not theirs");
        assert_eq!(follow(&NodeStatus::default(), &BTreeMap::new()), None);
    }
}
