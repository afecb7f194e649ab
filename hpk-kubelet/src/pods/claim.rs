//! Which of the addresses that a pod's supervisor says the pod has are believed. Pure.
//!
//! A pod's addresses become its status, the endpoints of Services and the peers of NetworkPolicies: who could say what he
//! likes would be sent others' traffic.

use hpk_api::net::{NetworkMode, ranges};
use ipnet::IpNet;
use std::net::IpAddr;

/// What is known about the pod and its cluster.
pub(crate) struct Known<'a> {
    /// The pod's network.
    pub mode: NetworkMode,
    /// Addresses that the kubelet gave it (overlay).
    pub given: &'a [IpAddr],
    /// Addresses that were believed before: its status has them.
    pub had: &'a [IpAddr],
    /// Ranges of pods and Services, `CIDR[,CIDR]`.
    pub pod_cidr: &'a str,
    /// See above.
    pub service_cidr: &'a str,
    /// The Node's address.
    pub node_ip: IpAddr,
}

/// Keeps in `said` what is believed; the text is about the rest. `others`: whether another living pod has an address of its
/// own there.
pub(crate) fn judge(known: &Known<'_>, said: &mut Vec<IpAddr>, others: impl Fn(IpAddr) -> bool) -> Option<String> {
    let services = ranges(known.service_cidr).unwrap_or_default();
    let pods = ranges(known.pod_cidr).unwrap_or_default();
    let within = |ranges: &[IpNet], ip: IpAddr| ranges.iter().any(|range| range.contains(&ip));
    let mut first = None;
    said.retain(|ip| {
        let ip = *ip;
        let wrong = match known.mode {
            NetworkMode::Overlay if known.given.contains(&ip) => return true,
            NetworkMode::Overlay => "the kubelet did not give it to this pod",
            _ if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => "it is no host's",
            _ if within(&services, ip) => "it is in the range of Services",
            NetworkMode::Cni if ip == known.node_ip => "it is the Node's",
            // Where pods have the node's network, the overlay's range is the overlay's.
            NetworkMode::Host if within(&pods, ip) => "it is in the range of pods",
            _ if !known.had.contains(&ip) && others(ip) => "another pod has it",
            _ => return true,
        };
        first.get_or_insert(format!("the pod's supervisor says that {ip} is the pod's, and is not believed: {wrong}"));
        false
    });
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn believed(mode: NetworkMode, said: &[&str]) -> (Vec<String>, Option<String>) {
        let given = [ip("10.244.1.7"), ip("fd00:10:244::107")];
        let known = Known {
            mode,
            given: &given,
            had: &[],
            pod_cidr: "10.244.0.0/16,fd00:10:244::/64",
            service_cidr: "10.96.0.0/16,fd00:10:96::/112",
            node_ip: ip("10.77.0.1"),
        };
        let mut said = said.iter().map(|text| ip(text)).collect();
        let why = judge(&known, &mut said, |other| other == ip("10.22.0.9"));
        (said.iter().map(ToString::to_string).collect(), why)
    }

    #[test]
    fn an_overlay_pod_has_what_it_was_given() {
        let (kept, why) = believed(NetworkMode::Overlay, &["10.244.1.7", "fd00:10:244::107"]);
        assert_eq!((kept.len(), why), (2, None));
        for claim in ["10.244.0.1", "10.244.1.8", "10.96.0.1", "10.77.0.1", "fd00:10:244::1"] {
            let (kept, why) = believed(NetworkMode::Overlay, &["10.244.1.7", claim]);
            assert_eq!(kept, ["10.244.1.7"]);
            assert!(why.unwrap().contains(claim));
        }
    }

    #[test]
    fn elsewhere_a_pod_has_what_nobody_else_has() {
        use NetworkMode::{Cni, Host};
        for (mode, claim, believable) in [
            (Cni, "10.22.0.7", true),
            (Cni, "10.244.0.7", true), // a site's own network may have the range that the overlay would
            (Cni, "10.22.0.9", false),
            (Cni, "10.96.0.10", false),
            (Cni, "10.77.0.1", false),
            (Cni, "127.0.0.1", false),
            (Cni, "0.0.0.0", false),
            (Cni, "fd00:10:96::a", false),
            (Host, "10.77.0.11", true),
            (Host, "10.77.0.1", true), // jobs may run on the login node
            (Host, "10.244.1.7", false),
            (Host, "10.96.0.1", false),
            (Host, "10.22.0.9", false),
        ] {
            let (kept, why) = believed(mode, &[claim]);
            assert_eq!((kept.len() == 1, why.is_none()), (believable, believable), "{mode:?} {claim}: {why:?}");
        }
    }

    #[test]
    fn a_pod_keeps_what_it_has_whoever_says_later_that_it_is_his() {
        let had = [ip("10.22.0.9")];
        let known = Known {
            mode: NetworkMode::Cni,
            given: &[],
            had: &had,
            pod_cidr: "",
            service_cidr: "10.96.0.0/16",
            node_ip: ip("10.77.0.1"),
        };
        let mut said = had.to_vec();
        assert_eq!(judge(&known, &mut said, |_| true), None);
        assert_eq!(said, had);
    }
}
