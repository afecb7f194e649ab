//! Which certificates the control plane needs: names, issuers, subjects, uses. Pure.

use hpk_layout::pki as names;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The three certificate authorities. Separate ones, because each is a right of its own: a client of etcd
/// must not be a client of the API server, and only the aggregator may speak for other users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Authority {
    /// Signs everything that talks to the API server, and its own certificate: `ca.crt`.
    Cluster,
    /// Signs etcd's certificates: `etcd-ca.crt`.
    Etcd,
    /// Signs the aggregator's client certificate: `front-proxy-ca.crt`.
    FrontProxy,
}

impl Authority {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Cluster, Self::Etcd, Self::FrontProxy];

    /// File name without extension.
    #[must_use]
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Cluster => names::CA,
            Self::Etcd => names::ETCD_CA,
            Self::FrontProxy => names::FRONT_PROXY_CA,
        }
    }

    /// Common name.
    #[must_use]
    pub(crate) fn common_name(self) -> &'static str {
        match self {
            Self::Cluster => "hpk-ca",
            Self::Etcd => "hpk-etcd-ca",
            Self::FrontProxy => "hpk-front-proxy-ca",
        }
    }
}

/// What a certificate may be used for (extended key usage).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Usage {
    /// TLS client.
    Client,
    /// TLS server.
    Server,
    /// Both: etcd's own, which dials itself.
    Both,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf {
    /// File name without extension.
    pub file: String,
    /// Who signs.
    pub authority: Authority,
    /// CN: the user name for clients of the API server.
    pub common_name: String,
    /// O: the groups.
    pub groups: Vec<String>,
    /// For what.
    pub usage: Usage,
    /// DNS names.
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
}

/// What the subjects and names depend on.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// The one Node's name.
    pub node_name: &'a str,
    /// The login node's address.
    pub node_ip: IpAddr,
    /// The login node's host name.
    pub hostname: &'a str,
    /// First address of the service range: service default/kubernetes.
    pub apiserver_service_ip: IpAddr,
    /// DNS domain of the cluster.
    pub domain: &'a str,
}

/// Every certificate of the cluster.
///
/// Subjects follow <https://kubernetes.io/docs/setup/best-practices/certificates/>.
#[must_use]
pub(crate) fn leaves(s: &Subject<'_>) -> Vec<Leaf> {
    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let client = |file: &str, common_name: &str, groups: &[&str]| Leaf {
        file: file.into(),
        authority: Authority::Cluster,
        common_name: common_name.into(),
        groups: groups.iter().map(ToString::to_string).collect(),
        usage: Usage::Client,
        dns: vec![],
        ips: vec![],
    };
    let server = |file: &str, dns: Vec<String>, ips: Vec<IpAddr>| Leaf {
        file: file.into(),
        authority: Authority::Cluster,
        common_name: file.into(),
        groups: vec![],
        usage: Usage::Server,
        dns,
        ips,
    };
    let node_user = format!("system:node:{}", s.node_name);
    vec![
        server(
            names::APISERVER,
            [
                "kubernetes".into(),
                "kubernetes.default".into(),
                "kubernetes.default.svc".into(),
                format!("kubernetes.default.svc.{}", s.domain),
                s.hostname.into(),
                "localhost".into(),
            ]
            .into(),
            vec![s.apiserver_service_ip, s.node_ip, LOCALHOST],
        ),
        server(names::CONTROLLER_MANAGER_SERVER, vec!["localhost".into()], vec![LOCALHOST]),
        server(names::SCHEDULER_SERVER, vec!["localhost".into()], vec![LOCALHOST]),
        Leaf {
            common_name: node_user.clone(),
            groups: vec!["system:nodes".into()],
            ..server(
                names::KUBELET_SERVER,
                // The last is the service by which the aggregator reaches the kubelet's metrics API.
                vec![s.node_name.into(), s.hostname.into(), "localhost".into(), "hpk-metrics.kube-system.svc".into()],
                vec![s.node_ip, LOCALHOST],
            )
        },
        client(names::ADMIN, "hpk-admin", &["system:masters"]),
        client(names::APISERVER_KUBELET_CLIENT, "kube-apiserver-kubelet-client", &["system:masters"]),
        client(names::CONTROLLER_MANAGER, "system:kube-controller-manager", &[]),
        client(names::SCHEDULER, "system:kube-scheduler", &[]),
        client(names::COREDNS, "system:coredns", &[]),
        client(names::KUBELET, &node_user, &["system:nodes"]),
        Leaf { authority: Authority::FrontProxy, ..client(names::FRONT_PROXY_CLIENT, "front-proxy-client", &[]) },
        Leaf {
            authority: Authority::Etcd,
            usage: Usage::Both,
            ..server(names::ETCD, vec!["localhost".into()], vec![LOCALHOST])
        },
        Leaf { authority: Authority::Etcd, ..client(names::APISERVER_ETCD_CLIENT, "kube-apiserver-etcd-client", &[]) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn subject() -> Subject<'static> {
        Subject {
            node_name: "hpk-site",
            node_ip: "10.77.0.1".parse().unwrap(),
            hostname: "login",
            apiserver_service_ip: "10.96.0.1".parse().unwrap(),
            domain: "cluster.local",
        }
    }

    fn leaf(file: &str) -> Leaf {
        leaves(&subject()).into_iter().find(|l| l.file == file).unwrap()
    }

    #[test]
    fn file_names_are_unique_and_not_an_authoritys() {
        let all = leaves(&subject());
        let mut seen: HashSet<String> = Authority::ALL.iter().map(|a| a.file().to_owned()).collect();
        for l in &all {
            assert!(seen.insert(l.file.clone()), "{} twice", l.file);
        }
    }

    #[test]
    fn the_api_server_answers_to_every_name_it_is_called_by() {
        let l = leaf("apiserver");
        for name in ["kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "login"] {
            assert!(l.dns.iter().any(|d| d == name), "{name}");
        }
        for ip in ["10.96.0.1", "10.77.0.1", "127.0.0.1"] {
            assert!(l.ips.contains(&ip.parse().unwrap()), "{ip}");
        }
        assert_eq!(l.usage, Usage::Server);
    }

    #[test]
    fn only_two_are_masters_and_etcd_trusts_none_of_the_clusters() {
        let all = leaves(&subject());
        let masters: Vec<_> = all.iter().filter(|l| l.groups.iter().any(|g| g == "system:masters")).collect();
        assert_eq!(masters.iter().map(|l| l.file.as_str()).collect::<Vec<_>>(), ["admin", "apiserver-kubelet-client"]);
        assert!(all.iter().all(|l| (l.authority == Authority::Etcd) == l.file.contains("etcd")));
        assert_eq!(leaf("kubelet").common_name, "system:node:hpk-site");
        assert_eq!(leaf("kubelet").groups, ["system:nodes"]);
    }
}
