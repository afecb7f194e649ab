//! Services as nftables rules for one pod's network namespace. Pure.
//!
//! ```text
//!   output, nat     service address and port ─▶ one endpoint each connection (by turns of chance; by affinity always the
//!                   same one)
//!   output, filter  what is for a service and was not translated is refused at once
//! ```
//! Only the pod itself sends from its namespace, so its own output is all there is to translate. Connections that stand
//! keep their endpoint, as the kernel's connection tracking has them.

use hpk_api::link::{NetUpdate, Protocol, ServiceFacts, ServicePort};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// Name of the tables.
const TABLE: &str = "hpk-services";

/// The services that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Services {
    all: BTreeMap<String, ServiceFacts>,
}

/// A UDP flow's service and an endpoint that is none any more: connection tracking would go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stale {
    pub(crate) service: SocketAddr,
    pub(crate) endpoint: SocketAddr,
}

impl Services {
    /// True: something has changed.
    pub(crate) fn learn(&mut self, update: &NetUpdate) -> bool {
        match update {
            NetUpdate::Service(facts) => self.all.insert(facts.key.clone(), facts.clone()).as_ref() != Some(facts),
            NetUpdate::ServiceGone { key } => self.all.remove(key).is_some(),
            _ => false,
        }
    }

    /// The link is new: all services come again, and those that do not are gone.
    pub(crate) fn forget(&mut self) {
        self.all.clear();
    }

    /// What was translated to in `former` and is not any more.
    pub(crate) fn stale(&self, former: &Self) -> BTreeSet<Stale> {
        let pairs = |services: &Self| -> BTreeSet<Stale> {
            let ports = services.ports().filter(|(_, port, _)| port.protocol == Protocol::Udp);
            let pairs = ports.flat_map(|(service, port, _)| {
                port.endpoints.iter().map(move |endpoint| Stale { service, endpoint: *endpoint })
            });
            pairs.collect()
        };
        pairs(former).difference(&pairs(self)).copied().collect()
    }

    /// Every address and port that leads to a service, and its affinity.
    fn ports(&self) -> impl Iterator<Item = (SocketAddr, &ServicePort, bool)> {
        self.all.values().flat_map(|service| {
            let sticky = service.affinity_seconds.is_some();
            service.ports.iter().flat_map(move |port| {
                let own = service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.port));
                own.chain(port.also.iter().copied()).map(move |at| (at, port, sticky))
            })
        })
    }

    /// Input of `nft -f -`: replaces what was there before in one step. `pod`: the addresses of the pod whose namespace it
    /// is; a family that it has no address of has no table, for the kernel may not know it.
    pub(crate) fn script(&self, pod: &[IpAddr]) -> String {
        let mut script = String::new();
        for (v4, family) in [(true, "ip"), (false, "ip6")] {
            if let Some(own) = pod.iter().find(|ip| ip.is_ipv4() == v4) {
                // Declared first, so that there is something to delete.
                let _ = write!(script, "table {family} {TABLE}\ndelete table {family} {TABLE}\n");
                self.table(&mut script, family, v4, &own.to_string());
            }
        }
        script
    }

    fn table(&self, script: &mut String, family: &str, v4: bool, seed: &str) {
        let (mut chains, mut translate, mut refuse) = (String::new(), String::new(), String::new());
        let mut own: BTreeSet<IpAddr> = BTreeSet::new();
        own.extend(self.all.values().flat_map(|s| &s.cluster_ips).filter(|ip| ip.is_ipv4() == v4));
        let ports = self.ports().filter(|(at, port, _)| at.is_ipv4() == v4 && port.protocol != Protocol::Sctp);
        for (number, (at, port, sticky)) in ports.enumerate() {
            let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
            let matches = format!("{family} daddr {} {protocol} dport {}", at.ip(), at.port());
            let endpoints: Vec<_> = port.endpoints.iter().filter(|e| e.is_ipv4() == v4).collect();
            match (endpoints.as_slice(), sticky) {
                ([], _) => {
                    let with = if protocol == "tcp" { " with tcp reset" } else { "" };
                    let _ = writeln!(refuse, "    {matches} reject{with}");
                }
                ([only], _) => {
                    let _ = writeln!(translate, "    {matches} dnat to {only}");
                }
                (many, true) => {
                    let chosen = many.iter().max_by_key(|endpoint| weight(seed, endpoint));
                    if let Some(chosen) = chosen {
                        let _ = writeln!(translate, "    {matches} dnat to {chosen}");
                    }
                }
                (many, false) => {
                    let mut arms = Vec::with_capacity(many.len());
                    for (turn, endpoint) in many.iter().enumerate() {
                        let _ = writeln!(
                            chains,
                            "  chain p{number}-{turn} {{ meta l4proto {protocol} dnat to {endpoint}; }}"
                        );
                        arms.push(format!("{turn} : goto p{number}-{turn}"));
                    }
                    let _ = writeln!(
                        translate,
                        "    {matches} numgen random mod {} vmap {{ {} }}",
                        many.len(),
                        arms.join(", ")
                    );
                }
            }
        }
        if translate.is_empty() && refuse.is_empty() && own.is_empty() {
            return;
        }
        for ip in own {
            // No port of a service: as a node's own address would, it refuses.
            let _ = writeln!(refuse, "    {family} daddr {ip} meta l4proto tcp reject with tcp reset");
            let _ = writeln!(refuse, "    {family} daddr {ip} meta l4proto udp reject");
        }
        let _ = write!(
            script,
            "table {family} {TABLE} {{\n{chains}  chain translate {{\n    type nat hook output priority -100; policy accept;\n\
             {translate}  }}\n  chain refuse {{\n    type filter hook output priority 0; policy accept;\n{refuse}  }}\n}}\n"
        );
    }
}

/// The endpoint with the greatest weight is a pod's for good: that others come changes it rarely, that others go never.
fn weight(seed: &str, endpoint: &SocketAddr) -> u64 {
    let text = format!("{seed} {endpoint}");
    // FNV-1a, then mixed, for neighbouring addresses differ in one bit.
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(affinity: Option<u32>, protocol: Protocol, endpoints: &[&str]) -> NetUpdate {
        NetUpdate::Service(ServiceFacts {
            sources: vec![],
            key: "d/s".to_owned(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            affinity_seconds: affinity,
            ports: vec![ServicePort {
                protocol,
                port: 80,
                endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
                also: vec!["10.77.0.1:30080".parse().unwrap()],
            }],
        })
    }

    fn script(update: &NetUpdate) -> String {
        let mut services = Services::default();
        assert!(services.learn(update));
        assert!(!services.learn(update), "the same again is no news");
        services.script(&["10.22.0.5".parse().unwrap(), "fd22::5".parse().unwrap()])
    }

    #[test]
    fn one_many_and_no_endpoints() {
        let one = script(&service(None, Protocol::Tcp, &["10.22.0.2:8080"]));
        assert!(one.contains("    ip daddr 10.96.0.7 tcp dport 80 dnat to 10.22.0.2:8080\n"), "{one}");
        assert!(one.contains("    ip daddr 10.77.0.1 tcp dport 30080 dnat to 10.22.0.2:8080\n"), "{one}");
        assert!(!one.contains("table ip6 hpk-services {"), "{one}");
        let two = script(&service(None, Protocol::Udp, &["10.22.0.2:53", "10.22.0.3:53"]));
        assert!(two.contains("numgen random mod 2 vmap { 0 : goto p0-0, 1 : goto p0-1 }"), "{two}");
        assert!(two.contains("  chain p0-1 { meta l4proto udp dnat to 10.22.0.3:53; }"), "{two}");
        let none = script(&service(None, Protocol::Tcp, &[]));
        assert!(none.contains("    ip daddr 10.96.0.7 tcp dport 80 reject with tcp reset\n"), "{none}");
        assert!(!none.contains("dnat"), "{none}");
    }

    #[test]
    fn affinity_outlives_the_coming_and_going_of_others() {
        let all = ["10.22.0.2:80", "10.22.0.3:80", "10.22.0.4:80", "10.22.0.5:80"];
        let chosen = |endpoints: &[&str]| {
            let text = script(&service(Some(10_800), Protocol::Tcp, endpoints));
            text.lines().find_map(|l| l.split("dnat to ").nth(1).map(str::to_owned)).unwrap()
        };
        let first = chosen(&all);
        for gone in all {
            let rest: Vec<&str> = all.into_iter().filter(|e| *e != gone).collect();
            assert_eq!(chosen(&rest) == first, gone != first, "{gone}");
        }
    }

    #[test]
    fn udp_flows_to_an_endpoint_that_is_gone_are_stale() {
        let mut before = Services::default();
        before.learn(&service(None, Protocol::Udp, &["10.22.0.2:53", "10.22.0.3:53"]));
        let mut after = Services::default();
        after.learn(&service(None, Protocol::Udp, &["10.22.0.3:53"]));
        let stale: Vec<_> = after.stale(&before).into_iter().collect();
        assert_eq!(stale.len(), 2, "by the service's address and by the node's: {stale:?}");
        assert!(before.stale(&after).is_empty() && before.stale(&before).is_empty());
        let mut tcp = Services::default();
        tcp.learn(&service(None, Protocol::Tcp, &["10.22.0.2:53"]));
        assert!(after.stale(&tcp).is_empty());
    }

    #[test]
    fn two_families_meet_their_own_endpoints() {
        let update = NetUpdate::Service(ServiceFacts {
            sources: vec![],
            key: "d/s".to_owned(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd96::7".parse().unwrap()],
            affinity_seconds: None,
            ports: vec![ServicePort {
                protocol: Protocol::Tcp,
                port: 80,
                endpoints: vec!["10.22.0.2:80".parse().unwrap(), "[fd22::2]:80".parse().unwrap()],
                also: vec![],
            }],
        });
        let text = script(&update);
        assert!(text.contains("ip daddr 10.96.0.7 tcp dport 80 dnat to 10.22.0.2:80\n"), "{text}");
        assert!(text.contains("ip6 daddr fd96::7 tcp dport 80 dnat to [fd22::2]:80\n"), "{text}");
        let mut services = Services::default();
        services.learn(&update);
        assert!(!services.script(&["10.22.0.5".parse().unwrap()]).contains("ip6"), "a pod of one family");
    }
}
