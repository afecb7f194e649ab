//! The downward API: `fieldRef` and `resourceFieldRef` of a pod, as text.

use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use thiserror::Error;

/// What the downward API knows beside the pod's own object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Pod addresses, or placeholders for them; empty: none yet.
    pub pod_ips: Vec<String>,
    /// The compute node's address, or a placeholder for it.
    pub host_ip: String,
    /// Its addresses with a comma between, or a placeholder for them.
    pub host_ips: String,
    /// Allocatable CPU of the node in millicores and memory and ephemeral storage in bytes: what a container
    /// without a limit is told.
    pub allocatable_milli_cpu: u64,
    /// Bytes.
    pub allocatable_memory: u64,
    /// Bytes.
    pub allocatable_storage: u64,
}

/// A reference that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum FieldError {
    /// Not a field that the downward API has.
    #[error("unsupported fieldPath: {0}")]
    UnknownField(String),
    /// Not a resource that the downward API has.
    #[error("unsupported container resource : {0}")]
    UnknownResource(String),
    /// `containerName` names none.
    #[error("container {0} not found")]
    UnknownContainer(String),
    /// A divisor that is no quantity.
    #[error("invalid divisor {0:?} of resourceFieldRef")]
    Divisor(String),
}

/// Value of a `fieldRef.fieldPath`.
///
/// # Errors
/// [`FieldError::UnknownField`].
pub(crate) fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(FieldError::UnknownField(path.to_owned())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "spec.host" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "status.hostIP" => facts.host_ip.clone(),
        "status.hostIPs" => facts.host_ips.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(FieldError::UnknownField(path.to_owned())),
    })
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted, values quoted as Go's `%q` does.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Value of a `resourceFieldRef` for a container; limits that it has not are the pod's, else the node's allocatable.
///
/// # Errors
/// An unknown resource or a bad divisor.
pub(crate) fn resource(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, FieldError> {
    let resources = container.resources.clone().unwrap_or_default();
    let (limits, requests) = (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
    let (kind, name) =
        selector.resource.split_once('.').ok_or_else(|| FieldError::UnknownResource(selector.resource.clone()))?;
    let given = match kind {
        "limits" => limits.get(name).or_else(|| {
            let whole = pod.spec.as_ref()?.resources.as_ref()?;
            whole.limits.as_ref()?.get(name)
        }),
        // A request that is not set is the limit (the API server's defaulting does the same).
        "requests" => requests.get(name),
        _ => return Err(FieldError::UnknownResource(selector.resource.clone())),
    };
    let fallback = |node: u64| if kind == "limits" { node } else { 0 };
    let divisor = selector.divisor.as_ref().map_or("1", |d| d.0.as_str());
    let divisor = if divisor == "0" { "1" } else { divisor };
    let bad = || FieldError::Divisor(divisor.to_owned());
    let amount = match name {
        "cpu" => {
            let milli = given.map_or(fallback(facts.allocatable_milli_cpu), quantity::milli_of);
            let unit = quantity::milli(divisor).filter(|d| *d > 0).ok_or_else(bad)?;
            milli.div_ceil(unit)
        }
        "memory" | "ephemeral-storage" => {
            let node = if name == "memory" { facts.allocatable_memory } else { facts.allocatable_storage };
            let bytes = given.map_or(fallback(node), quantity::value_of);
            let unit = quantity::value(divisor).filter(|d| *d > 0).ok_or_else(bad)?;
            bytes.div_ceil(unit)
        }
        _ if name.starts_with("hugepages-") => {
            let unit = quantity::value(divisor).filter(|d| *d > 0).ok_or_else(bad)?;
            given.map_or(0, quantity::value_of).div_ceil(unit)
        }
        _ => return Err(FieldError::UnknownResource(selector.resource.clone())),
    };
    Ok(amount.to_string())
}

/// The container that a `resourceFieldRef` in a volume means.
///
/// # Errors
/// [`FieldError::UnknownContainer`].
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Container, FieldError> {
    let spec = pod.spec.as_ref();
    spec.into_iter()
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
        .find(|c| c.name == name)
        .ok_or_else(|| FieldError::UnknownContainer(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k": "l1\nl2"}},
            "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "d"}]}
        }))
        .expect("pod")
    }

    #[test]
    fn fields() {
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".into(), "fd00::1".into()],
            host_ip: "1.1.1.1".into(),
            host_ips: "1.1.1.1,fd00::2".into(),
            ..Facts::default()
        };
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("metadata.annotations", "k=\"l1\\nl2\""),
            ("spec.nodeName", "n"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "1.1.1.1"),
            ("status.hostIPs", "1.1.1.1,fd00::2"),
            ("status.podIP", "10.0.0.1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
        ] {
            assert_eq!(field(&pod(), path, &facts).as_deref(), Ok(value), "{path}");
        }
        assert!(field(&pod(), "status.phase", &facts).is_err());
    }

    #[test]
    fn resources() {
        let facts = Facts { allocatable_milli_cpu: 8000, allocatable_memory: 1 << 30, ..Facts::default() };
        let cases = [
            ("c", "limits.cpu", "", "2"),
            ("c", "limits.cpu", "1m", "1250"),
            ("c", "requests.cpu", "1m", "250"),
            ("c", "limits.memory", "1Mi", "64"),
            ("c", "limits.memory", "0", "67108864"),
            ("d", "limits.cpu", "1", "8"),
            ("d", "requests.cpu", "1", "0"),
            ("d", "limits.memory", "1Mi", "1024"),
        ];
        for (name, resource_name, divisor, value) in cases {
            let selector: ResourceFieldSelector = if divisor.is_empty() {
                serde_json::from_value(json!({"resource": resource_name})).expect("selector")
            } else {
                serde_json::from_value(json!({"resource": resource_name, "divisor": divisor})).expect("selector")
            };
            let pod = pod();
            let container = container(&pod, name).expect("container");
            assert_eq!(
                resource(&pod, container, &selector, &facts).as_deref(),
                Ok(value),
                "{name} {resource_name} {divisor}"
            );
        }
        let mut whole = pod();
        let limits = json!({"limits": {"cpu": "2", "memory": "512Mi"}, "requests": {"cpu": "1"}});
        whole.spec.as_mut().expect("spec").resources = Some(serde_json::from_value(limits).expect("resources"));
        for (name, resource_name, value) in [
            ("c", "limits.cpu", "2"),
            ("c", "limits.memory", "67108864"),
            ("d", "limits.cpu", "2"),
            ("d", "limits.memory", "536870912"),
            ("d", "requests.cpu", "0"),
        ] {
            let selector = serde_json::from_value(json!({"resource": resource_name})).expect("selector");
            let container = container(&whole, name).expect("container");
            assert_eq!(resource(&whole, container, &selector, &facts).as_deref(), Ok(value), "{name} {resource_name}");
        }
    }
}
