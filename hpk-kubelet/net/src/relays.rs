//! Endpoints outside of the pod network, and the member's ports that stand for them. Pure.
//!
//! A port is derived from its target, so that a kubelet that restarts gives the same one and connections go on.

use hpk_api::link::{Protocol, Relay};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// First port; the API server's and CoreDNS' are among them.
const FIRST: u16 = 20_000;
const COUNT: u16 = 40_000;

/// The relays in use.
#[derive(Clone, Debug)]
pub struct Relays {
    /// Its addresses, one of each family.
    member: Vec<IpAddr>,
    ports: BTreeMap<(Protocol, u16), SocketAddr>,
}

impl Relays {
    /// For a member with these pod addresses.
    #[must_use]
    pub fn new(member: Vec<IpAddr>) -> Self {
        Self { member, ports: BTreeMap::new() }
    }

    /// The member's address of the target's family: a service's IPv6 address leads to IPv6 endpoints only.
    fn address(&self, target: SocketAddr) -> Option<IpAddr> {
        self.member.iter().copied().find(|ip| ip.is_ipv4() == target.is_ipv4())
    }

    /// What stands for a target: an address and port of the member. None: only TCP and UDP are relayed, and only
    /// families that the pods' network has.
    pub fn stand_in(&mut self, protocol: Protocol, target: SocketAddr) -> Option<SocketAddr> {
        if protocol == Protocol::Sctp {
            return None;
        }
        let member = self.address(target)?;
        let start = hash(&target.to_string());
        for step in 0..COUNT {
            let port = FIRST + (start.wrapping_add(step) % COUNT);
            let place = self.ports.entry((protocol, port)).or_insert(target);
            if *place == target {
                return Some(SocketAddr::new(member, port));
            }
        }
        None
    }

    /// All of them, for the member.
    #[must_use]
    pub fn all(&self) -> Vec<Relay> {
        self.ports
            .iter()
            .map(|((protocol, port), target)| Relay { protocol: *protocol, port: *port, target: *target })
            .collect()
    }

    /// Where one listens: the member's address, its port.
    #[must_use]
    pub fn place(&self, relay: &Relay) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address(relay.target)?, relay.port))
    }

    /// Keeps those that still stand for something.
    pub fn retain(&mut self, used: impl Fn(Protocol, SocketAddr) -> bool) {
        let member = &self.member;
        self.ports.retain(|(protocol, port), _| member.iter().any(|ip| used(*protocol, SocketAddr::new(*ip, *port))));
    }
}

/// FNV-1a, folded: the same in every build, as a standard hasher need not be.
fn hash(text: &str) -> u16 {
    let sum = text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    u16::try_from((sum >> 16) ^ (sum & 0xffff)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_for_one_target_the_same_each_time() {
        let member: Vec<IpAddr> = vec!["10.244.0.1".parse().unwrap(), "fd00:10:244::1".parse().unwrap()];
        let targets: Vec<SocketAddr> = (1..2000_u16).map(|n| SocketAddr::from(([10, 77, 0, 1], n))).collect();
        let (mut a, mut b) = (Relays::new(member.clone()), Relays::new(member[..1].to_vec()));
        let first: Vec<_> = targets.iter().map(|t| a.stand_in(Protocol::Tcp, *t).unwrap()).collect();
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), targets.len());
        assert_eq!(targets.iter().map(|t| a.stand_in(Protocol::Tcp, *t).unwrap()).collect::<Vec<_>>(), first);
        assert_eq!(b.stand_in(Protocol::Tcp, targets[0]).unwrap(), first[0]);
        assert_eq!(b.stand_in(Protocol::Sctp, targets[0]), None);
        let v6 = "[fd00::9]:443".parse().unwrap();
        let at = a.stand_in(Protocol::Tcp, v6).unwrap();
        assert_eq!(at.ip(), member[1]);
        assert_eq!(a.place(&Relay { protocol: Protocol::Tcp, port: at.port(), target: v6 }), Some(at));
        assert_eq!(b.stand_in(Protocol::Tcp, v6), None, "a member with one address");
        a.retain(|_, at| at == first[3]);
        assert_eq!(a.all().len(), 1);
        assert_eq!(a.all()[0].target, targets[3]);
    }
}
