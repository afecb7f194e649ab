//! Admission by the kubelet: pods that are refused for good (phase Failed), with upstream's reasons and texts.

use k8s_openapi::api::core::v1::Pod;

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// status.reason
    pub reason: &'static str,
    /// status.message
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
pub fn refuse(pod: &Pod) -> Option<Refusal> {
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
}
