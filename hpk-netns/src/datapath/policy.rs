//! NetworkPolicies as the kubelet compiled them for this pod. Pure.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>: a pod is isolated for a direction when
//! some policy selects it for that direction; then only what some rule allows may *start*; answers always pass. A
//! pod always reaches itself.

use super::packet::proto;
use hpk_api::link::{PolicyFacts, PolicyRule, Protocol};
use ipnet::IpNet;
use std::net::IpAddr;

/// One rule, ready to be asked.
#[derive(Clone, Debug)]
struct Rule {
    /// None: everyone.
    peers: Option<Vec<(IpNet, Vec<IpNet>)>>,
    /// None: everything. Protocol number, first and last port.
    ports: Option<Vec<(u8, u16, u16)>>,
}

impl Rule {
    fn compile(rule: &PolicyRule) -> Self {
        let cidrs = |texts: &[String]| texts.iter().filter_map(|t| t.parse().ok()).collect::<Vec<IpNet>>();
        // A range that cannot be read allows nobody: policies fail closed.
        let peers = rule
            .peers
            .as_ref()
            .map(|peers| peers.iter().filter_map(|p| Some((p.cidr.parse().ok()?, cidrs(&p.except)))).collect());
        let ports = rule.ports.as_ref().map(|ports| {
            ports
                .iter()
                .map(|p| {
                    if p.last == 0 && p.first == 0 {
                        (number(p.protocol), 0, u16::MAX)
                    } else {
                        (number(p.protocol), p.first, p.last)
                    }
                })
                .collect()
        });
        Self { peers, ports }
    }

    fn allows(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        let peer_ok = self.peers.as_ref().is_none_or(|peers| {
            peers.iter().any(|(range, except)| range.contains(&peer) && !except.iter().any(|e| e.contains(&peer)))
        });
        peer_ok
            && self.ports.as_ref().is_none_or(|ports| {
                ports.iter().any(|(p, first, last)| *p == protocol && (*first..=*last).contains(&port))
            })
    }
}

/// IP protocol number.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Sctp => proto::SCTP,
    }
}

/// Both directions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policy {
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Policy {
    /// From the kubelet's facts.
    pub(crate) fn compile(facts: &PolicyFacts) -> Self {
        let rules = |rules: &Option<Vec<PolicyRule>>| rules.as_ref().map(|r| r.iter().map(Rule::compile).collect());
        Self { ingress: rules(&facts.ingress), egress: rules(&facts.egress) }
    }

    /// May `peer` start towards the pod's `port`?
    pub(crate) fn admits(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        asked(&self.ingress, peer, protocol, port)
    }

    /// May the pod start towards `peer`'s `port`?
    pub(crate) fn lets_out(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        asked(&self.egress, peer, protocol, port)
    }
}

fn asked(rules: &Option<Vec<Rule>>, peer: IpAddr, protocol: u8, port: u16) -> bool {
    rules.as_ref().is_none_or(|rules| rules.iter().any(|rule| rule.allows(peer, protocol, port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::link::{PolicyPeer, PolicyPort};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rules() {
        let facts = PolicyFacts {
            ingress: Some(vec![
                PolicyRule {
                    peers: Some(vec![PolicyPeer { cidr: "10.0.0.0/8".into(), except: vec!["10.9.0.0/16".into()] }]),
                    ports: Some(vec![PolicyPort { protocol: Protocol::Tcp, first: 80, last: 90 }]),
                },
                PolicyRule {
                    peers: Some(vec![PolicyPeer { cidr: "10.9.9.9/32".into(), except: vec![] }]),
                    ports: None,
                },
            ]),
            egress: None,
        };
        let p = Policy::compile(&facts);
        assert!(p.admits(ip("10.1.1.1"), proto::TCP, 80) && p.admits(ip("10.1.1.1"), proto::TCP, 90));
        assert!(!p.admits(ip("10.1.1.1"), proto::TCP, 91));
        assert!(!p.admits(ip("10.1.1.1"), proto::UDP, 80));
        assert!(!p.admits(ip("10.9.1.1"), proto::TCP, 80), "excepted");
        assert!(p.admits(ip("10.9.9.9"), proto::UDP, 5), "allowed by the other rule");
        assert!(!p.admits(ip("11.0.0.1"), proto::TCP, 80));
        assert!(p.lets_out(ip("11.0.0.1"), proto::TCP, 80), "not isolated");
    }

    #[test]
    fn default_deny_and_unreadable_ranges_allow_nobody() {
        let deny = Policy::compile(&PolicyFacts {
            ingress: Some(vec![]),
            egress: Some(vec![PolicyRule {
                peers: Some(vec![PolicyPeer { cidr: "?".into(), except: vec![] }]),
                ports: None,
            }]),
        });
        assert!(!deny.admits(ip("10.0.0.1"), proto::TCP, 1));
        assert!(!deny.lets_out(ip("10.0.0.1"), proto::TCP, 1));
    }
}
