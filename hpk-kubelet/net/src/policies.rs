//! NetworkPolicies compiled for one pod: selectors become addresses, named ports numbers. Pure.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>

use crate::services::protocol;
use hpk_api::link::{PolicyFacts, PolicyPeer, PolicyPort, PolicyRule, Protocol};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub type Labels = BTreeMap<String, String>;

/// A pod as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInfo {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub ips: Vec<IpAddr>,
    /// Its named container ports.
    pub ports: Vec<(String, Protocol, u16)>,
}

/// What the selectors select from.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    pub pods: &'a BTreeMap<String, PodInfo>,
    /// Labels of all namespaces.
    pub namespaces: &'a BTreeMap<String, Labels>,
}

/// Whether the policy is about this pod.
pub(crate) fn selects(policy: &NetworkPolicy, pod: &PodInfo) -> bool {
    let Some(spec) = policy.spec.as_ref() else { return false };
    let everyone = LabelSelector::default();
    policy.metadata.namespace.as_deref().unwrap_or_default() == pod.namespace
        && matches(spec.pod_selector.as_ref().unwrap_or(&everyone), &pod.labels)
}

fn peers(policy: &NetworkPolicy) -> impl Iterator<Item = &NetworkPolicyPeer> {
    let spec = policy.spec.iter();
    spec.flat_map(|spec| {
        let from = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
        from.chain(spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten()))
    })
}

/// Whether any of the policy's peers is chosen by its namespace's labels.
pub(crate) fn selects_namespaces(policy: &NetworkPolicy) -> bool {
    peers(policy).any(|peer| peer.namespace_selector.is_some())
}

/// Whether what the policy means depends on this pod, as a peer.
pub(crate) fn may_have_peer(policy: &NetworkPolicy, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
    let own = policy.metadata.namespace.as_deref().unwrap_or_default();
    // Ports by name are those of every pod, where a rule names no peer.
    let all_by_name = policy.spec.iter().flat_map(|spec| spec.egress.iter().flatten()).any(|rule| {
        let named = |port: &NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
        rule.to.as_ref().is_none_or(Vec::is_empty) && rule.ports.iter().flatten().any(named)
    });
    all_by_name || peers(policy).any(|peer| is_peer(peer, own, pod, namespaces))
}

/// Whether a peer clause of a policy in `namespace` chooses this pod.
fn is_peer(peer: &NetworkPolicyPeer, namespace: &str, pod: &PodInfo, namespaces: &BTreeMap<String, Labels>) -> bool {
    let in_namespace = match &peer.namespace_selector {
        None => pod.namespace == namespace,
        Some(selector) => namespaces.get(&pod.namespace).is_some_and(|labels| matches(selector, labels)),
    };
    peer.ip_block.is_none()
        && in_namespace
        && peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, &pod.labels))
}

/// The facts for one pod from all policies of its namespace.
pub fn compile<'a>(
    pod: &PodInfo,
    policies: impl Iterator<Item = &'a NetworkPolicy>,
    cluster: Cluster<'_>,
) -> PolicyFacts {
    let mut facts = PolicyFacts::default();
    for policy in policies.filter(|policy| selects(policy, pod)) {
        let Some(spec) = policy.spec.as_ref() else { continue };
        let own = policy.metadata.namespace.as_deref().unwrap_or_default();
        // Without policyTypes: ingress always, egress when there are egress rules.
        let types = spec.policy_types.clone().unwrap_or_default();
        let has = |name: &str| types.iter().any(|t| t == name);
        let egress_rules = spec.egress.as_deref().unwrap_or_default();
        if types.is_empty() || has("Ingress") {
            let rules = facts.ingress.get_or_insert_default();
            for rule in spec.ingress.iter().flatten() {
                // Ports of the pod itself.
                let to = std::slice::from_ref(pod);
                rules.extend(compile_rule(rule.from.as_deref(), rule.ports.as_deref(), own, cluster, Some(to)));
            }
        }
        if has("Egress") || (types.is_empty() && !egress_rules.is_empty()) {
            let rules = facts.egress.get_or_insert_default();
            for rule in egress_rules {
                rules.extend(compile_rule(rule.to.as_deref(), rule.ports.as_deref(), own, cluster, None));
            }
        }
    }
    facts
}

/// `targets`: whose named ports are meant; None: the selected peers' own, so that a rule may become one for each peer.
fn compile_rule(
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    namespace: &str,
    cluster: Cluster<'_>,
    targets: Option<&[PodInfo]>,
) -> Vec<PolicyRule> {
    let peers = peers.filter(|p| !p.is_empty());
    let ports = ports.filter(|p| !p.is_empty());
    let selected =
        peers.map(|peers| peers.iter().flat_map(|peer| select(peer, namespace, cluster)).collect::<Vec<_>>());
    let Some(ports) = ports else {
        return vec![PolicyRule {
            peers: selected.map(|s| s.into_iter().map(|(peer, _)| peer).collect()),
            ports: None,
        }];
    };
    let named = ports.iter().any(|p| matches!(p.port, Some(IntOrString::String(_))));
    match (targets, selected) {
        (Some(targets), selected) => {
            let ports = ports.iter().flat_map(|p| numbers(p, targets)).collect();
            vec![PolicyRule {
                peers: selected.map(|s| s.into_iter().map(|(peer, _)| peer).collect()),
                ports: Some(ports),
            }]
        }
        (None, Some(selected)) if named => selected
            .into_iter()
            .map(|(peer, pod)| {
                let of = pod.map(std::slice::from_ref).unwrap_or_default();
                PolicyRule { peers: Some(vec![peer]), ports: Some(ports.iter().flat_map(|p| numbers(p, of)).collect()) }
            })
            .collect(),
        (None, None) if named => cluster
            .pods
            .values()
            .map(|pod| PolicyRule {
                peers: Some(pod.ips.iter().map(|ip| single(*ip)).collect()),
                ports: Some(ports.iter().flat_map(|p| numbers(p, std::slice::from_ref(pod))).collect()),
            })
            .collect(),
        (None, selected) => {
            let ports = ports.iter().flat_map(|p| numbers(p, &[])).collect();
            vec![PolicyRule {
                peers: selected.map(|s| s.into_iter().map(|(peer, _)| peer).collect()),
                ports: Some(ports),
            }]
        }
    }
}

/// The addresses that one peer clause means, with the pod that has each.
fn select<'a>(
    peer: &NetworkPolicyPeer,
    namespace: &str,
    cluster: Cluster<'a>,
) -> Vec<(PolicyPeer, Option<&'a PodInfo>)> {
    if let Some(block) = &peer.ip_block {
        return vec![(PolicyPeer { cidr: block.cidr.clone(), except: block.except.clone().unwrap_or_default() }, None)];
    }
    cluster
        .pods
        .values()
        .filter(|pod| is_peer(peer, namespace, pod, cluster.namespaces))
        .flat_map(|pod| pod.ips.iter().map(move |ip| (single(*ip), Some(pod))))
        .collect()
}

pub(crate) fn single(ip: IpAddr) -> PolicyPeer {
    PolicyPeer { cidr: format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), except: Vec::new() }
}

/// One port clause as ranges; a name is looked up in the pods.
fn numbers(port: &NetworkPolicyPort, pods: &[PodInfo]) -> Vec<PolicyPort> {
    let Some(protocol) = protocol(port.protocol.as_deref()) else { return Vec::new() };
    match &port.port {
        None => vec![PolicyPort { protocol, first: 0, last: 0 }],
        Some(IntOrString::Int(n)) => {
            let Ok(first) = u16::try_from(*n) else { return Vec::new() };
            let last = port.end_port.and_then(|e| u16::try_from(e).ok()).unwrap_or(first).max(first);
            vec![PolicyPort { protocol, first, last }]
        }
        Some(IntOrString::String(name)) => pods
            .iter()
            .flat_map(|pod| &pod.ports)
            .filter(|(n, p, _)| n == name && *p == protocol)
            .map(|(_, _, number)| PolicyPort { protocol, first: *number, last: *number })
            .collect(),
    }
}

/// Whether a label selector selects. An empty one selects everything; an operator that is not known nothing.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let exact = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    exact
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = |v: &String| e.values.iter().flatten().any(|x| x == v);
            match e.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|kv| kv.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn world() -> (BTreeMap<String, PodInfo>, BTreeMap<String, Labels>) {
        let pod = |namespace: &str, l: &str, ip: &str| PodInfo {
            namespace: namespace.into(),
            name: String::new(),
            labels: labels(l),
            ips: vec![ip.parse().unwrap()],
            ports: vec![("web".into(), Protocol::Tcp, 8080)],
        };
        let pods = [
            ("a", pod("x", "app=a", "10.244.0.1")),
            ("b", pod("x", "app=b", "10.244.0.2")),
            ("c", pod("y", "app=b", "10.244.0.3")),
        ];
        let namespaces = [("x", labels("team=one")), ("y", labels("team=two"))];
        (
            pods.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            namespaces.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        )
    }

    fn facts(spec: serde_json::Value) -> PolicyFacts {
        let (pods, namespaces) = world();
        let policy: NetworkPolicy =
            serde_json::from_value(json!({"metadata": {"namespace": "x", "name": "p"}, "spec": spec})).unwrap();
        compile(&pods["a"], [&policy].into_iter(), Cluster { pods: &pods, namespaces: &namespaces })
    }

    fn peers(rules: &Option<Vec<PolicyRule>>) -> Vec<String> {
        rules.iter().flatten().flat_map(|r| r.peers.iter().flatten().map(|p| p.cidr.clone())).collect()
    }

    #[test]
    fn who_is_selected_is_isolated() {
        let f = facts(json!({"podSelector": {}}));
        assert_eq!((f.ingress, f.egress), (Some(vec![]), None));
        let f = facts(json!({"podSelector": {}, "policyTypes": ["Egress"]}));
        assert_eq!((f.ingress, f.egress), (None, Some(vec![])));
        let f = facts(json!({"podSelector": {"matchLabels": {"app": "other"}}}));
        assert_eq!(f, PolicyFacts::default());
        let f = facts(json!({"podSelector": {}, "egress": [{}]}));
        assert_eq!(f.egress, Some(vec![PolicyRule::default()]), "an empty rule allows all");
    }

    #[test]
    fn peers_by_pod_namespace_and_both() {
        let from =
            |peer: serde_json::Value| peers(&facts(json!({"podSelector": {}, "ingress": [{"from": [peer]}]})).ingress);
        assert_eq!(from(json!({"podSelector": {"matchLabels": {"app": "b"}}})), ["10.244.0.2/32"]);
        assert_eq!(from(json!({"namespaceSelector": {"matchLabels": {"team": "two"}}})), ["10.244.0.3/32"]);
        assert_eq!(
            from(json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}})),
            ["10.244.0.2/32", "10.244.0.3/32"]
        );
        assert_eq!(from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}})), ["10.0.0.0/8"]);
        assert!(from(json!({"podSelector": {"matchLabels": {"app": "none"}}})).is_empty());
        // Selecting nobody is not allowing everybody.
        let f = facts(
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}]}),
        );
        assert_eq!(f.ingress.unwrap()[0].peers, Some(vec![]));
    }

    #[test]
    fn ports_by_number_range_and_name() {
        let ports = |p: serde_json::Value| {
            facts(json!({"podSelector": {}, "ingress": [{"ports": [p]}]})).ingress.unwrap()[0].ports.clone().unwrap()
        };
        let shown = |p: serde_json::Value| ports(p).iter().map(|p| (p.protocol, p.first, p.last)).collect::<Vec<_>>();
        assert_eq!(shown(json!({"port": 80})), [(Protocol::Tcp, 80, 80)]);
        assert_eq!(shown(json!({"protocol": "UDP", "port": 80, "endPort": 90})), [(Protocol::Udp, 80, 90)]);
        assert_eq!(shown(json!({"port": "web"})), [(Protocol::Tcp, 8080, 8080)]);
        assert_eq!(shown(json!({"protocol": "UDP"})), [(Protocol::Udp, 0, 0)]);
        assert!(shown(json!({"port": "none"})).is_empty());
        // Egress: the peer's own name.
        let f = facts(
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}]}),
        );
        assert!(f.egress.unwrap().iter().all(|r| r.ports.as_ref().unwrap()[0].first == 8080));
    }

    #[test]
    fn expressions() {
        let s = |operator: &str, values: &[&str]| -> LabelSelector {
            serde_json::from_value(json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}))
                .unwrap()
        };
        let (with, without) = (labels("k=a"), labels("z=a"));
        for (selector, on_with, on_without) in [
            (s("In", &["a", "b"]), true, false),
            (s("In", &["b"]), false, false),
            (s("NotIn", &["a"]), false, true),
            (s("Exists", &[]), true, false),
            (s("DoesNotExist", &[]), false, true),
            (s("Odd", &[]), false, false),
        ] {
            assert_eq!(
                (matches(&selector, &with), matches(&selector, &without)),
                (on_with, on_without),
                "{selector:?}"
            );
        }
    }
}
