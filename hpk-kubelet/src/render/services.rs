//! The environment variables that announce services to a pod
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).

use k8s_openapi::api::core::v1::Service;
use std::collections::BTreeMap;

/// Variables of the services that a pod in `namespace` sees: those of its own namespace when it wants them
/// (`enableServiceLinks`), and default/kubernetes always.
pub(crate) fn variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    enable_service_links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let Some(name) = service.metadata.name.as_deref() else { continue };
        let home = service.metadata.namespace.as_deref().unwrap_or_default();
        if home == namespace && (enable_service_links || (home == "default" && name == "kubernetes")) {
            chosen.insert(name, service);
        } else if home == "default" && name == "kubernetes" {
            // A service of the same name in the pod's own namespace wins.
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        add(name, service, &mut variables);
    }
    variables
}

fn add(name: &str, service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = service.spec.as_ref() else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let prefix = variable_name(name);
    variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string());
        }
    }
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let base = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{base}_PORT"), port.port.to_string());
        variables.insert(format!("{base}_ADDR"), ip.to_owned());
        variables.insert(base, url);
    }
}

/// Upper case, `-` and `.` become `_`; a leading digit gets a `_` before it.
fn variable_name(name: &str) -> String {
    let text: String = name.chars().map(|c| if c == '-' || c == '.' { '_' } else { c.to_ascii_uppercase() }).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) { format!("_{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": ip, "ports": [{"port": 6379, "name": "cl-ient"}, {"port": 53, "protocol": "UDP"}]}}))
        .expect("service")
    }

    #[test]
    fn documented_names() {
        let list = [service("ns", "redis-primary", "10.0.0.11"), service("ns", "headless", "None")];
        let vars = variables(&list, "ns", true);
        let expected = [
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_53_UDP", "udp://10.0.0.11:53"),
            ("REDIS_PRIMARY_PORT_53_UDP_ADDR", "10.0.0.11"),
            ("REDIS_PRIMARY_PORT_53_UDP_PORT", "53"),
            ("REDIS_PRIMARY_PORT_53_UDP_PROTO", "udp"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_CL_IENT", "6379"),
        ];
        let got: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn whose_services() {
        let list = [
            service("default", "kubernetes", "10.96.0.1"),
            service("default", "web", "10.96.0.2"),
            service("ns", "db", "10.96.0.3"),
        ];
        let hosts = |ns, links| {
            variables(&list, ns, links).into_keys().filter(|k| k.ends_with("_SERVICE_HOST")).collect::<Vec<_>>()
        };
        assert_eq!(hosts("ns", true), ["DB_SERVICE_HOST", "KUBERNETES_SERVICE_HOST"]);
        assert_eq!(hosts("ns", false), ["KUBERNETES_SERVICE_HOST"]);
        assert_eq!(hosts("default", true), ["KUBERNETES_SERVICE_HOST", "WEB_SERVICE_HOST"]);
        assert_eq!(hosts("default", false), ["KUBERNETES_SERVICE_HOST"]);
        assert_eq!(hosts("other", true), ["KUBERNETES_SERVICE_HOST"]);
    }
}
