//! kube-apiserver: listens on the login node's address (compute nodes and pods reach it there), refuses
//! whoever has no certificate or token.

use super::probe::{Credentials, Probe};
use super::{Component, Kind, Layout, etcd, flags, image};
use crate::gates;
use hpk_layout::pki;
use std::net::SocketAddr;
use std::time::Duration;

/// Pods of a node that is not heard of are evicted only after this time. A job goes on while the login
/// node is being rebooted, so the Kubernetes default of 300 s would throw good work away
/// (docs/adr/0006-node-monitoring.md). Seconds; 30 days.
const TOLERATION_SECONDS: u64 = 30 * 24 * 3600;

/// Of TLS 1.2: those with forward secrecy and authenticated encryption. (TLS 1.3 has no others.)
const CIPHERS: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

pub(super) fn component(l: &Layout) -> Component {
    let ports = &l.control_plane.ports;
    let ip = l.cluster.node_ip.to_string();
    let mut args = flags([
        ("bind-address", ip.clone()),
        ("advertise-address", ip),
        ("secure-port", ports.apiserver.to_string()),
        // Beside the supervisor, which holds the port so that nobody else gets it.
        ("permit-port-sharing", "true".into()),
        // Watches end at once when it is told to stop, and other long requests within 2 s: hpk down would wait for as long
        // as anybody watches.
        ("shutdown-watch-termination-grace-period", "1s".into()),
        ("shutdown-send-retry-after", "true".into()),
        ("tls-cipher-suites", CIPHERS.join(",")),
        ("etcd-servers", format!("https://127.0.0.1:{}", ports.etcd)),
        ("etcd-cafile", l.certificate(pki::ETCD_CA)),
        ("etcd-certfile", l.certificate(pki::APISERVER_ETCD_CLIENT)),
        ("etcd-keyfile", l.key(pki::APISERVER_ETCD_CLIENT)),
        ("client-ca-file", l.certificate(pki::CA)),
        ("tls-cert-file", l.certificate(pki::APISERVER)),
        ("tls-private-key-file", l.key(pki::APISERVER)),
        ("anonymous-auth", "false".into()),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", plugins(&l.control_plane.apiserver_flags).join(",")),
        ("allow-privileged", "true".into()),
        ("profiling", "false".into()),
        ("service-cluster-ip-range", l.cluster.service_cidr.clone()),
        ("service-account-issuer", format!("https://kubernetes.default.svc.{}", l.cluster.cluster_domain)),
        ("service-account-key-file", l.public_key(pki::SERVICE_ACCOUNTS)),
        ("service-account-signing-key-file", l.key(pki::SERVICE_ACCOUNTS)),
        ("kubelet-certificate-authority", l.certificate(pki::CA)),
        ("kubelet-client-certificate", l.certificate(pki::APISERVER_KUBELET_CLIENT)),
        ("kubelet-client-key", l.key(pki::APISERVER_KUBELET_CLIENT)),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("requestheader-client-ca-file", l.certificate(pki::FRONT_PROXY_CA)),
        ("requestheader-allowed-names", "front-proxy-client".into()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
        ("requestheader-group-headers", "X-Remote-Group".into()),
        ("requestheader-username-headers", "X-Remote-User".into()),
        ("proxy-client-cert-file", l.certificate(pki::FRONT_PROXY_CLIENT)),
        ("proxy-client-key-file", l.key(pki::FRONT_PROXY_CLIENT)),
        ("enable-aggregator-routing", "true".into()),
        ("default-not-ready-toleration-seconds", TOLERATION_SECONDS.to_string()),
        ("default-unreachable-toleration-seconds", TOLERATION_SECONDS.to_string()),
    ]);
    if egress_config(l).is_some() {
        args.push(format!("--egress-selector-config-file={}", l.config("egress.yaml")));
    }
    args.extend(gates::arguments(&l.cluster));
    args.extend(gates::apis(&l.cluster));
    args.extend(l.control_plane.apiserver_flags.iter().cloned());
    // The folder: the kubelet makes its socket anew at each start.
    let socket = l.control_plane.egress.as_ref().and_then(|s| s.parent()).map(|dir| dir.display().to_string());
    let (program, args) = image::command(l, "kube-apiserver", args, socket.as_slice());
    Component {
        name: "kube-apiserver",
        needs: if l.control_plane.etcd_base.is_some() { &["etcd", etcd::SNAPSHOTS] } else { &["etcd"] },
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Https {
            addr: SocketAddr::new(l.cluster.node_ip, ports.apiserver),
            path: "/readyz".into(),
            credentials: Credentials::new(l, "ca", "admin"),
        },
        grace: Duration::from_secs(15),
    }
}

/// Admission plug-ins beside Kubernetes' own choice, but for those that the user's flags switch off.
fn plugins(flags: &[String]) -> Vec<&'static str> {
    let disabled = |plugin: &str| {
        let lists = flags.iter().filter_map(|f| f.strip_prefix("--disable-admission-plugins="));
        lists.flat_map(|list| list.split(',')).any(|name| name == plugin)
    };
    // Whoever may make a Service could take any address's traffic by externalIPs.
    ["NodeRestriction", "DenyServiceExternalIPs"].into_iter().filter(|plugin| !disabled(plugin)).collect()
}

/// Connections to the cluster (pods, and the kubelet itself) go through hpk-kubelet's socket: pod addresses
/// mean nothing on the login node.
pub(super) fn egress_config(l: &Layout) -> Option<String> {
    l.control_plane.kubelet.as_ref()?;
    let socket = serde_json::Value::from(l.control_plane.egress.as_ref()?.display().to_string());
    Some(format!(
        "apiVersion: apiserver.k8s.io/v1beta1\n\
         kind: EgressSelectorConfiguration\n\
         egressSelections:\n\
         - name: cluster\n\
         \x20 connection:\n\
         \x20   proxyProtocol: HTTPConnect\n\
         \x20   transport:\n\
         \x20     uds:\n\
         \x20       udsName: {socket}\n"
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn external_addresses_are_denied_unless_the_user_allows_them() {
        let plugins = |flags: &[&str]| super::plugins(&flags.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(plugins(&["--v=4"]), ["NodeRestriction", "DenyServiceExternalIPs"]);
        assert_eq!(plugins(&["--disable-admission-plugins=X,DenyServiceExternalIPs"]), ["NodeRestriction"]);
    }
}
