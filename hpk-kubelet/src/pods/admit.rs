//! Admission by the kubelet: pods that are refused for good (phase Failed), with upstream's reasons and texts.

use super::phase::is_sidecar;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// status.reason
    pub reason: &'static str,
    /// The event's text; status.message says before it that the pod was rejected.
    pub message: String,
}

/// Sysctls of a pod's own namespaces that harm nobody else (upstream's sysctl/safe_sysctls.go).
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Whether the kubelet refuses the pod.
#[must_use]
pub(crate) fn refuse(pod: &Pod) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(Refusal {
            reason: "PodOSNotSupported",
            message: "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
        });
    }
    let host_network = spec.host_network == Some(true);
    let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let problem = if !SAFE_SYSCTLS.contains(&name.as_str()) {
            format!("{name:?} not allowlisted")
        } else if host_network && name.starts_with("net.") {
            format!("{name:?} not allowed with host net enabled")
        } else {
            continue;
        };
        return Some(Refusal { reason: "SysctlForbidden", message: format!("forbidden sysctl: {problem}") });
    }
    None
}

/// Whether a port of the Node that the pod asks for is taken by one of the pods that the Node has already. `others`: of all
/// Nodes.
///
/// The scheduler keeps such pods apart, over all compute nodes, for they are one Node. A pod that names its Node itself comes
/// by no scheduler.
pub(crate) fn ports_taken<'a>(pod: &Pod, others: impl IntoIterator<Item = &'a Pod>) -> Option<Refusal> {
    let wanted: Vec<NodePort<'_>> = node_ports(pod).collect();
    if wanted.is_empty() {
        return None;
    }
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let here = node(pod);
    let taken = others
        .into_iter()
        .filter(|other| node(other) == here)
        .flat_map(node_ports)
        .any(|t| wanted.iter().any(|w| w.meets(&t)));
    taken.then(|| Refusal {
        reason: "NodePorts",
        message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".to_owned(),
    })
}

struct NodePort<'a> {
    protocol: &'a str,
    address: &'a str,
    number: i32,
}

impl NodePort<'_> {
    /// An address meets itself and all of them.
    fn meets(&self, other: &Self) -> bool {
        let addresses = [self.address, other.address];
        self.number == other.number
            && self.protocol == other.protocol
            && (self.address == other.address || addresses.contains(&ALL_ADDRESSES))
    }
}

const ALL_ADDRESSES: &str = "0.0.0.0";

/// Of containers that run as long as the pod does.
fn node_ports(pod: &Pod) -> impl Iterator<Item = NodePort<'_>> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|s| s.init_containers.iter().flatten()).filter(|c| is_sidecar(c));
    let ports = spec.flat_map(|s| &s.containers).chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p: &ContainerPort| {
        Some(NodePort {
            protocol: p.protocol.as_deref().unwrap_or("TCP"),
            address: p.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(ALL_ADDRESSES),
            number: p.host_port.filter(|number| *number > 0)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table() {
        let sysctl =
            |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let host = json!({"containers": [], "hostNetwork": true,
            "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}});
        for (spec, reason) in [
            (json!({"containers": []}), None),
            (json!({"containers": [], "os": {"name": "linux"}}), None),
            (json!({"containers": [], "os": {"name": "windows"}}), Some("PodOSNotSupported")),
            (sysctl("kernel.shm_rmid_forced"), None),
            (sysctl("kernel/shm_rmid_forced"), None),
            (sysctl("kernel.msgmax"), Some("SysctlForbidden")),
            (host, Some("SysctlForbidden")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("pod");
            assert_eq!(refuse(&pod).map(|r| r.reason), reason, "{spec}");
        }
    }

    #[test]
    fn a_port_of_the_node_is_one_pods() {
        let pod = |container: &str, port: serde_json::Value| -> Pod {
            let policy = if container == "sidecars" { json!("Always") } else { json!(null) };
            let one = json!([{"name": "c", "ports": [port], "restartPolicy": policy}]);
            let field = if container == "containers" { "containers" } else { "initContainers" };
            let mut spec = json!({"containers": []});
            spec[field] = one;
            serde_json::from_value(json!({"spec": spec})).expect("pod")
        };
        let web = json!({"containerPort": 80, "hostPort": 80});
        let with = |key: &str, value: &str| {
            let mut port = web.clone();
            port[key] = json!(value);
            port
        };
        for (has, asks, kind, taken) in [
            (web.clone(), web.clone(), "containers", true),
            (web.clone(), web.clone(), "sidecars", true),
            // It is done before the pod's containers begin.
            (web.clone(), web.clone(), "initContainers", false),
            (web.clone(), with("protocol", "TCP"), "containers", true),
            (web.clone(), with("protocol", "UDP"), "containers", false),
            (web.clone(), with("hostIP", "10.0.0.1"), "containers", true),
            (with("hostIP", "10.0.0.1"), with("hostIP", "0.0.0.0"), "containers", true),
            (with("hostIP", "10.0.0.1"), with("hostIP", "10.0.0.1"), "containers", true),
            (with("hostIP", "10.0.0.1"), with("hostIP", "10.0.0.2"), "containers", false),
            (json!({"containerPort": 80}), json!({"containerPort": 80}), "containers", false),
            (web.clone(), json!({"containerPort": 80, "hostPort": 81}), "containers", false),
        ] {
            let refusal = ports_taken(&pod(kind, asks.clone()), [&pod("containers", has.clone())]);
            assert_eq!(refusal.map(|r| r.reason), taken.then_some("NodePorts"), "{has} {kind} {asks}");
        }
        assert_eq!(ports_taken(&pod("containers", web.clone()), []), None);
        let mut elsewhere = pod("containers", web.clone());
        elsewhere.spec.get_or_insert_default().node_name = Some("another".to_owned());
        assert_eq!(ports_taken(&pod("containers", web), [&elsewhere]), None);
    }
}
