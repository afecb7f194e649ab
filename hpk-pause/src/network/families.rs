//! Pods of one or two address families.

use hpk_api::net::NetworkPlan;
use std::net::IpAddr;

/// What to say of a pod that has fewer addresses than planned.
pub(super) fn one_family(plan: &NetworkPlan, pod_ips: &[IpAddr]) -> Option<(String, String)> {
    let message = "this node's kernel has no IPv6, or it is switched off: the pod has its IPv4 address only";
    (pod_ips.len() < plan.pod_ips.len()).then(|| ("NetworkNotReady".to_owned(), message.to_owned()))
}

/// The pod's address of the same family.
pub(super) fn like(pod_ips: &[IpAddr], to: IpAddr) -> Option<IpAddr> {
    pod_ips.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).copied()
}
