//! What a pod may send and receive, by the annotations that Kubernetes' documentation of network plug-ins names.

use crate::quantity;
use hpk_api::net::{Bandwidth, NetworkList};
use k8s_openapi::api::core::v1::Pod;

/// Towards the pod, bits a second, as a quantity (`10M`).
pub(crate) const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// From the pod.
pub(crate) const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Upstream's limits of what is reasonable (pkg/util/bandwidth): 1k and 1P bits a second.
const REASONABLE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// What the pod asks for; Err: the annotation that is no such quantity.
///
/// # Errors
/// The annotation's key.
pub(crate) fn asked(pod: &Pod) -> Result<Bandwidth, &'static str> {
    let read = |key: &'static str| {
        let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
        let bits = |text: &String| quantity::value(text).filter(|bits| REASONABLE.contains(bits)).ok_or(key);
        value.map(bits).transpose()
    };
    Ok(Bandwidth { ingress: read(INGRESS)?, egress: read(EGRESS)? })
}

/// Whether a plug-in of the list carries it out.
#[must_use]
pub(crate) fn carried(list: Option<&NetworkList>) -> bool {
    let value: Option<serde_json::Value> = list.and_then(|list| serde_json::from_str(&list.text).ok());
    let plugins = value.as_ref().and_then(|v| v.get("plugins")?.as_array());
    plugins.is_some_and(|all| all.iter().any(|p| p.pointer("/capabilities/bandwidth") == Some(&true.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_of_bits() {
        let of = |annotations| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).expect("pod");
            asked(&pod)
        };
        assert_eq!(of(json!({})), Ok(Bandwidth::default()));
        assert_eq!(of(json!({INGRESS: "10M"})), Ok(Bandwidth { ingress: Some(10_000_000), egress: None }));
        assert_eq!(of(json!({EGRESS: "1500k"})), Ok(Bandwidth { ingress: None, egress: Some(1_500_000) }));
        for bad in ["10", "fast", "2P"] {
            assert_eq!(of(json!({EGRESS: bad})), Err(EGRESS), "{bad}");
        }
    }

    #[test]
    fn a_plugin_has_to_declare_it() {
        let list = |plugins| NetworkList { file: String::new(), text: json!({"plugins": plugins}).to_string() };
        assert!(carried(Some(&list(json!([{"type": "x"}, {"type": "b", "capabilities": {"bandwidth": true}}])))));
        assert!(!carried(Some(&list(json!([{"type": "b", "capabilities": {"bandwidth": false}}])))));
        assert!(!carried(None));
    }
}
