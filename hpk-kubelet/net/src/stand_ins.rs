//! Egress rules for what lies behind a relay. Pure.
//!
//! A policy speaks of an endpoint as it is: an address and port of the login node (an `ipBlock` for the API server), or
//! CoreDNS, which everywhere else is a pod of kube-system that listens on port 53. The datapath sees the member's port
//! that stands for it, so whatever the rules say of the endpoint is said of that port too.

use crate::policies::{Labels, PodInfo, single};
use hpk_api::link::{PolicyFacts, PolicyPort, PolicyRule, Protocol, ServiceFacts};
use ipnet::IpNet;
use std::net::SocketAddr;

/// The Service whose endpoint is CoreDNS.
pub const DNS_SERVICE: &str = "kube-system/kube-dns";
/// CoreDNS' port where it is a pod.
const DNS_PORT: u16 = 53;

/// A port of the member, and what it stands for under every name that a policy may have for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The member's.
    pub at: SocketAddr,
    pub targets: Vec<SocketAddr>,
}

/// CoreDNS as the pod that policies take it for: labelled as by kubeadm, at the Service's own address.
#[must_use]
pub fn dns_pod(service: &ServiceFacts) -> PodInfo {
    PodInfo {
        namespace: "kube-system".to_owned(),
        name: "coredns".to_owned(),
        labels: Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
        ips: service.cluster_ips.clone(),
        ports: vec![("dns".to_owned(), Protocol::Udp, DNS_PORT), ("dns-tcp".to_owned(), Protocol::Tcp, DNS_PORT)],
    }
}

/// The name of [`dns_pod`] for a port of the member, when CoreDNS is behind it.
pub fn dns_names(service: &ServiceFacts, protocol: Protocol, at: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let leads = service.ports.iter().any(|p| p.protocol == protocol && p.endpoints.contains(&at));
    service.cluster_ips.iter().filter(move |_| leads).map(|ip| SocketAddr::new(*ip, DNS_PORT))
}

/// Adds a rule for each stand-in of which the egress rules allow what it stands for.
pub fn extend(facts: &mut PolicyFacts, stand_ins: &[StandIn]) {
    let Some(rules) = facts.egress.as_mut() else { return };
    let open: Vec<PolicyRule> = stand_ins
        .iter()
        .filter(|s| s.targets.iter().any(|target| rules.iter().any(|rule| allows(rule, s.protocol, *target))))
        .map(|s| PolicyRule {
            peers: Some(vec![single(s.at.ip())]),
            ports: Some(vec![PolicyPort { protocol: s.protocol, first: s.at.port(), last: s.at.port() }]),
        })
        .collect();
    rules.extend(open);
}

fn allows(rule: &PolicyRule, protocol: Protocol, target: SocketAddr) -> bool {
    let within = |cidr: &str| cidr.parse::<IpNet>().is_ok_and(|range| range.contains(&target.ip()));
    let peer = rule
        .peers
        .as_ref()
        .is_none_or(|peers| peers.iter().any(|p| within(&p.cidr) && !p.except.iter().any(|except| within(except))));
    let port = |p: &PolicyPort| {
        p.protocol == protocol && ((p.first, p.last) == (0, 0) || (p.first..=p.last).contains(&target.port()))
    };
    peer && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::link::{PolicyPeer, ServicePort};

    fn rule(cidr: Option<&str>, port: Option<(Protocol, u16)>) -> PolicyRule {
        PolicyRule {
            peers: cidr.map(|c| vec![PolicyPeer { cidr: c.to_owned(), except: vec!["10.9.0.0/16".to_owned()] }]),
            ports: port.map(|(protocol, n)| vec![PolicyPort { protocol, first: n, last: n }]),
        }
    }

    #[test]
    fn what_is_allowed_of_the_endpoint_is_allowed_of_its_stand_in() {
        let at: SocketAddr = "10.244.0.1:31234".parse().unwrap();
        let targets = vec!["10.77.0.1:20104".parse().unwrap(), "10.96.0.10:53".parse().unwrap()];
        let stand_ins = [StandIn { protocol: Protocol::Udp, at, targets }];
        for (allowed, egress) in [
            (true, rule(None, None)),
            (true, rule(None, Some((Protocol::Udp, 53)))),
            (true, rule(Some("10.96.0.10/32"), Some((Protocol::Udp, 53)))),
            (true, rule(Some("10.77.0.0/24"), Some((Protocol::Udp, 20104)))),
            (true, rule(Some("10.77.0.1/32"), Some((Protocol::Udp, 0)))),
            (false, rule(None, Some((Protocol::Tcp, 53)))),
            (false, rule(Some("10.77.0.1/32"), Some((Protocol::Udp, 53)))),
            (false, rule(Some("10.244.0.0/16"), None)),
            (false, rule(Some("nonsense"), None)),
        ] {
            let mut facts = PolicyFacts { ingress: None, egress: Some(vec![egress.clone()]) };
            extend(&mut facts, &stand_ins);
            let rules = facts.egress.unwrap();
            assert_eq!(rules.len() == 2, allowed, "{egress:?}");
            if allowed {
                assert!(allows(&rules[1], Protocol::Udp, at) && !allows(&rules[1], Protocol::Tcp, at));
            }
        }
        let mut none = PolicyFacts::default();
        extend(&mut none, &stand_ins);
        assert_eq!(none, PolicyFacts::default(), "a pod that is not isolated stays so");
    }

    #[test]
    fn coredns_has_the_name_of_a_pod() {
        let at: SocketAddr = "10.244.0.1:31234".parse().unwrap();
        let port = ServicePort { protocol: Protocol::Udp, port: 53, endpoints: vec![at], also: Vec::new() };
        let dns = ServiceFacts {
            sources: vec![],
            key: DNS_SERVICE.to_owned(),
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            affinity_seconds: None,
            ports: vec![port],
        };
        let names = |protocol, at| dns_names(&dns, protocol, at).collect::<Vec<_>>();
        assert_eq!(names(Protocol::Udp, at), ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(names(Protocol::Tcp, at), []);
        assert_eq!(names(Protocol::Udp, "10.244.0.1:1".parse().unwrap()), []);
        assert_eq!(dns_pod(&dns).ips, dns.cluster_ips);
    }
}
