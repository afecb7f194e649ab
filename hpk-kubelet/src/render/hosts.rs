//! Content of a pod's /etc/hosts and its host name, as the kubelet's documentation and users expect them.

use k8s_openapi::api::core::v1::{HostAlias, Pod};
use thiserror::Error;

/// Longest host name that a UTS namespace takes (Linux `__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;

/// With setHostnameAsFQDN: the full name does not fit into a UTS namespace (upstream's text).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({MAX_HOSTNAME} characters is the max, {} characters requested)",
    fqdn.len()
)]
pub(crate) struct HostnameTooLong {
    fqdn: String,
}

/// spec.hostname or the pod's name, cut to 63 characters; with setHostnameAsFQDN the full name;
/// spec.hostnameOverride wins over both. Empty for a pod in the node's network, which has the node's name whatever its
/// spec.hostname says.
///
/// # Errors
/// See [`HostnameTooLong`].
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> Result<String, HostnameTooLong> {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()) {
        return Ok(name);
    }
    if spec.and_then(|s| s.host_network) == Some(true) {
        return Ok(String::new());
    }
    let short = short_hostname(pod);
    if spec.and_then(|s| s.set_hostname_as_fqdn) != Some(true) {
        return Ok(short);
    }
    match domain(pod, cluster_domain) {
        None => Ok(short),
        Some(domain) => {
            let fqdn = format!("{short}.{domain}");
            if fqdn.len() > MAX_HOSTNAME {
                return Err(HostnameTooLong { fqdn });
            }
            Ok(fqdn)
        }
    }
}

fn short_hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec
        .and_then(|s| s.hostname.as_deref())
        .filter(|h| !h.is_empty())
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `<subdomain>.<namespace>.svc.<cluster domain>`, when the pod has a subdomain.
fn domain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    Some(format!("{subdomain}.{namespace}.svc.{cluster_domain}"))
}

/// The managed hosts file of a pod in its own network. `ips` may be placeholders.
#[must_use]
pub(crate) fn managed(pod: &Pod, ips: &[String], cluster_domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let overridden = pod.spec.as_ref().and_then(|s| s.hostname_override.as_deref());
    let short = overridden.map_or_else(|| short_hostname(pod), str::to_owned);
    // hostnameOverride takes the place of any FQDN (KEP-4762).
    let names = match domain(pod, cluster_domain).filter(|_| overridden.is_none()) {
        Some(domain) => format!("{short}.{domain}\t{short}"),
        None => short,
    };
    for ip in ips {
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text.push_str(&aliases(pod));
    text
}

/// The hosts file of a pod in the node's network: the node's own and the aliases.
#[must_use]
pub(crate) fn host_network(pod: &Pod, node_hosts: &str) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file (host network).\n");
    text.push_str(node_hosts);
    text.push_str(&aliases(pod));
    text
}

fn aliases(pod: &Pod) -> String {
    let list: &[HostAlias] = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if list.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in list {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn host_names() {
        let long = "a".repeat(62) + "-bc";
        for (spec, name) in [
            (json!({"containers": []}), "web-0"),
            (json!({"containers": [], "hostname": "h"}), "h"),
            (json!({"containers": [], "hostname": long}), &long[..62]),
            (json!({"containers": [], "hostname": "h", "subdomain": "s"}), "h"),
            (
                json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
                "h.s.ns.svc.cluster.local",
            ),
            (json!({"containers": [], "setHostnameAsFQDN": true}), "web-0"),
            (json!({"containers": [], "hostname": "h", "hostnameOverride": "other.example"}), "other.example"),
            (json!({"containers": [], "hostname": "h", "hostNetwork": true}), ""),
        ] {
            assert_eq!(hostname(&pod(spec), "cluster.local"), Ok(name.to_owned()));
        }
        let spec = json!({"containers": [], "hostname": "h".repeat(50), "subdomain": "s", "setHostnameAsFQDN": true});
        assert!(hostname(&pod(spec), "cluster.local").is_err());
    }

    #[test]
    fn managed_file() {
        let spec = json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]});
        let text = managed(&pod(spec), &["10.244.0.5".to_owned()], "cluster.local");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "fe00::2\tip6-allrouters\n10.244.0.5\tweb-0.s.ns.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ));
    }
}
