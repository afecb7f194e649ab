//! Services as the kubelet told them: which address and port is a service's, and which endpoint a new connection
//! gets. Pure; randomness and time are given.

use super::policy::number;
use hpk_api::link::{ServiceFacts, ServicePort};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Address, protocol and port of a service.
pub(crate) type Front = (SocketAddr, u8);

#[derive(Clone, Debug)]
struct Backends {
    endpoints: Vec<SocketAddr>,
    /// Whose packets are served there; none: everybody's.
    sources: Vec<IpNet>,
    /// Seconds.
    affinity: Option<u32>,
    /// The endpoint that this pod, as a client, sticks to, and when it last began (seconds).
    stuck: Option<(SocketAddr, u64)>,
}

/// What a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// No service's address.
    NotAService,
    /// A service's address, but nobody answers there.
    Refused,
    /// Go there.
    Endpoint(SocketAddr),
}

#[derive(Debug, Default)]
pub(crate) struct Services {
    fronts: HashMap<Front, Backends>,
    addresses: HashMap<IpAddr, usize>,
    by_key: HashMap<String, ServiceFacts>,
}

impl Services {
    /// Replaces what is known of a service.
    pub(crate) fn apply(&mut self, facts: ServiceFacts) {
        let mut stuck = HashMap::new();
        if let Some(old) = self.by_key.get(&facts.key) {
            for (front, _) in fronts(old) {
                if let Some(s) = self.fronts.get(&front).and_then(|b| b.stuck) {
                    stuck.insert(front, s);
                }
            }
        }
        self.remove(&facts.key);
        for ip in &facts.cluster_ips {
            *self.addresses.entry(*ip).or_default() += 1;
        }
        for (front, port) in fronts(&facts) {
            let endpoints: Vec<_> =
                port.endpoints.iter().copied().filter(|e| e.is_ipv4() == front.0.is_ipv4()).collect();
            let stuck = stuck.get(&front).copied().filter(|(e, _)| endpoints.contains(e));
            let sources = if is_balancers(&facts, front.0, port) { facts.sources.clone() } else { Vec::new() };
            self.fronts.insert(front, Backends { endpoints, sources, affinity: facts.affinity_seconds, stuck });
        }
        self.by_key.insert(facts.key.clone(), facts);
    }

    /// Forgets a service.
    pub(crate) fn remove(&mut self, key: &str) {
        let Some(old) = self.by_key.remove(key) else { return };
        for (front, _) in fronts(&old) {
            self.fronts.remove(&front);
        }
        for ip in &old.cluster_ips {
            if let Some(count) = self.addresses.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(ip);
                }
            }
        }
    }

    /// Forgets those whose key is not in `known`: what vanished while nobody listened.
    pub(crate) fn retain(&mut self, known: &HashSet<String>) {
        let gone: Vec<String> = self.by_key.keys().filter(|k| !known.contains(*k)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Whether an endpoint still stands behind a front.
    pub(crate) fn has(&self, front: Front, endpoint: SocketAddr) -> bool {
        self.fronts.get(&front).is_some_and(|b| b.endpoints.contains(&endpoint))
    }

    /// Whether an address and port is some service's.
    pub(crate) fn is_front(&self, front: Front) -> bool {
        self.fronts.contains_key(&front)
    }

    /// The endpoint for a new connection of `client`. `now` in seconds; `random` picks.
    pub(crate) fn choose(&mut self, client: IpAddr, front: Front, now: u64, random: u64) -> Choice {
        let Some(backends) = self.fronts.get_mut(&front) else {
            return if self.addresses.contains_key(&front.0.ip()) { Choice::Refused } else { Choice::NotAService };
        };
        if !backends.sources.is_empty() && !backends.sources.iter().any(|range| range.contains(&client)) {
            return Choice::Refused;
        }
        if let (Some(seconds), Some((endpoint, last))) = (backends.affinity, backends.stuck)
            && now.saturating_sub(last) <= u64::from(seconds)
        {
            backends.stuck = Some((endpoint, now));
            return Choice::Endpoint(endpoint);
        }
        let count = u64::try_from(backends.endpoints.len()).unwrap_or(1).max(1);
        let index = usize::try_from(random % count).unwrap_or(0);
        let Some(endpoint) = backends.endpoints.get(index).copied() else { return Choice::Refused };
        if backends.affinity.is_some() {
            backends.stuck = Some((endpoint, now));
        }
        Choice::Endpoint(endpoint)
    }
}

/// The service's own addresses, and those that others have and lend it a port of (a node's, a load balancer's).
fn fronts(facts: &ServiceFacts) -> impl Iterator<Item = (Front, &ServicePort)> {
    facts.ports.iter().flat_map(|port| {
        let own = facts.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.port));
        own.chain(port.also.iter().copied()).map(move |at| ((at, number(port.protocol)), port))
    })
}

/// Whether it is the load balancer's: the service's own port at an address that is not the service's own. A node port is no part
/// of the load balancer, as with kube-proxy.
fn is_balancers(facts: &ServiceFacts, at: SocketAddr, port: &ServicePort) -> bool {
    !facts.cluster_ips.contains(&at.ip()) && at.port() == port.port
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::packet::proto;
    use super::*;
    use hpk_api::link::Protocol;

    pub(crate) fn facts(key: &str, vip: &str, port: u16, endpoints: &[&str], affinity: Option<u32>) -> ServiceFacts {
        ServiceFacts {
            sources: vec![],
            key: key.into(),
            cluster_ips: vec![vip.parse().unwrap()],
            affinity_seconds: affinity,
            ports: vec![ServicePort {
                protocol: Protocol::Tcp,
                port,
                endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
                also: Vec::new(),
            }],
        }
    }

    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 9));

    fn front(text: &str) -> Front {
        (text.parse().unwrap(), proto::TCP)
    }

    #[test]
    fn a_service_spreads_refuses_and_goes() {
        let mut s = Services::default();
        s.apply(facts("a/b", "10.96.0.5", 80, &["10.244.0.1:8080", "10.244.0.2:8080"], None));
        let chosen: HashSet<_> = (0..4).map(|r| format!("{:?}", s.choose(ME, front("10.96.0.5:80"), 0, r))).collect();
        assert_eq!(chosen.len(), 2);
        assert_eq!(s.choose(ME, front("10.96.0.5:81"), 0, 0), Choice::Refused, "a port that it has not");
        assert_eq!(s.choose(ME, front("10.96.0.6:80"), 0, 0), Choice::NotAService);
        s.apply(facts("a/b", "10.96.0.5", 80, &[], None));
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 0, 0), Choice::Refused);
        s.remove("a/b");
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 0, 0), Choice::NotAService);
    }

    #[test]
    fn a_node_port_is_one_port_of_an_address_that_is_not_the_services() {
        let mut s = Services::default();
        let mut f = facts("a/b", "10.96.0.5", 80, &["10.244.0.1:8080"], None);
        f.ports[0].also = vec!["10.77.0.1:30080".parse().unwrap()];
        s.apply(f.clone());
        let endpoint = Choice::Endpoint("10.244.0.1:8080".parse().unwrap());
        assert_eq!(s.choose(ME, front("10.77.0.1:30080"), 0, 0), endpoint);
        assert_eq!(s.choose(ME, front("10.77.0.1:22"), 0, 0), Choice::NotAService, "the node's own");
        f.ports[0].endpoints.clear();
        s.apply(f);
        assert_eq!(s.choose(ME, front("10.77.0.1:30080"), 0, 0), Choice::Refused);
        s.remove("a/b");
        assert_eq!(s.choose(ME, front("10.77.0.1:30080"), 0, 0), Choice::NotAService);
    }

    #[test]
    fn source_ranges_are_the_load_balancers_alone() {
        let mut s = Services::default();
        let mut f = facts("a/b", "10.96.0.5", 80, &["10.244.0.1:8080"], None);
        f.ports[0].also = vec!["10.77.0.1:30080".parse().unwrap(), "10.77.0.1:80".parse().unwrap()];
        for (sources, wanted) in
            [(&["10.244.0.8/32"][..], false), (&["10.244.0.8/32", "10.244.0.9/32"], true), (&[], true)]
        {
            f.sources = sources.iter().map(|range| range.parse().unwrap()).collect();
            s.apply(f.clone());
            let endpoint = Choice::Endpoint("10.244.0.1:8080".parse().unwrap());
            let balancers = if wanted { endpoint } else { Choice::Refused };
            assert_eq!(s.choose(ME, front("10.77.0.1:80"), 0, 0), balancers, "{sources:?}");
            assert_eq!(s.choose(ME, front("10.77.0.1:30080"), 0, 0), endpoint, "the node port");
            assert_eq!(s.choose(ME, front("10.96.0.5:80"), 0, 0), endpoint, "the service's own address");
        }
    }

    #[test]
    fn affinity_holds_for_its_time_and_while_the_endpoint_does() {
        let mut s = Services::default();
        let all = ["10.244.0.1:1", "10.244.0.2:1"];
        s.apply(facts("a/b", "10.96.0.5", 80, &all, Some(100)));
        let first = s.choose(ME, front("10.96.0.5:80"), 0, 0);
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 100, 1), first);
        // Told again: still stuck. Renewed at 100, so over at 201.
        s.apply(facts("a/b", "10.96.0.5", 80, &all, Some(100)));
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 200, 1), first);
        assert_ne!(s.choose(ME, front("10.96.0.5:80"), 301, 1), first);
        s.apply(facts("a/b", "10.96.0.5", 80, &all[..1], Some(100)));
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 302, 1), first);
    }

    #[test]
    fn what_vanished_unheard_is_forgotten() {
        let mut s = Services::default();
        s.apply(facts("a/b", "10.96.0.5", 80, &["10.244.0.1:1"], None));
        s.apply(facts("a/c", "10.96.0.6", 80, &["10.244.0.1:1"], None));
        s.retain(&HashSet::from(["a/c".to_owned()]));
        assert_eq!(s.choose(ME, front("10.96.0.5:80"), 0, 0), Choice::NotAService);
        assert!(s.has(front("10.96.0.6:80"), "10.244.0.1:1".parse().unwrap()));
    }
}
