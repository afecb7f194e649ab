//! The overlay: a TUN with the pod's addresses, whose packets hpk-netns carries.

use super::families::{like, one_family};
use super::{ANSWER_LIMIT, DEVICE, Network, NetworkError, alone, ask, in_sandbox, side};
use hpk_api::cni::{Address, CniResult, Interface, Route as CniRoute};
use hpk_api::net::{NetnsRequest, NetworkList, NetworkPlan, POD_SANDBOX, TunOffer, ranges};
use hpk_sys::netdev::{self, Netlink, Route};
use ipnet::IpNet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

/// MTU of the overlay when nobody says another: an encrypted packet then fits an Ethernet frame of 1500 bytes.
const DEFAULT_MTU: u32 = 1420;

/// Makes the devices and hands the TUN over.
pub(super) fn make(plan: &NetworkPlan, socket: &Path) -> Result<Network, NetworkError> {
    if !socket.exists() {
        let (device, pod_ips) = netdev::hold_addresses(&plan.pod_ips)?;
        let result = result(&pod_ips, device, 0, Vec::new());
        return Ok(Network { result, warnings: vec![alone("it has an address but no network")] });
    }
    let mtu = mtu(plan);
    if plan.list.as_ref().is_some_and(NetworkList::chains) {
        return side::make(plan, socket, mtu);
    }
    let tun = netdev::create_tun(DEVICE)?;
    let mut netlink = Netlink::open()?;
    let pod_ips = netlink.add_addresses(DEVICE, &plan.pod_ips)?;
    netlink.set_up(DEVICE, mtu)?;
    let routes = routes(plan, &pod_ips)?;
    for &route in &routes {
        netlink.add_route(DEVICE, route)?;
    }
    let offer = TunOffer { interface: DEVICE.to_owned(), mtu, vnet_hdr: tun.vnet_hdr, chain: None };
    let ready = ask(socket, &NetnsRequest::Tun(Box::new(offer)), &[tun.fd.as_fd()], ANSWER_LIMIT)?;
    let warnings = ready.warning.into_iter().chain(one_family(plan, &pod_ips)).collect();
    let dst = |r: &Route| IpNet::new(r.destination, r.prefix).ok();
    let routes = routes.iter().filter_map(dst).map(|dst| CniRoute { dst, gw: None }).collect();
    Ok(Network { result: in_sandbox(result(&pod_ips, DEVICE, mtu, routes), &ready.sandbox), warnings })
}

/// The plan's, else the node's less what is put around each packet, as hpk-netns says it.
fn mtu(plan: &NetworkPlan) -> u32 {
    let said = std::env::var("HPK_POD_MTU").ok().and_then(|text| text.parse().ok()).filter(|mtu| *mtu >= 1280);
    if plan.mtu > 0 { plan.mtu } else { said.unwrap_or(DEFAULT_MTU) }
}

/// To pods and services from the pod's own address of the same family, and to all else: whether there is a world outside
/// of the cluster is hpk-netns' to say. A family that the pod has no address of has no routes.
fn routes(plan: &NetworkPlan, pod_ips: &[IpAddr]) -> Result<Vec<Route>, NetworkError> {
    let mut routes = Vec::with_capacity(6);
    for (field, value) in [("pod_cidr", &plan.pod_cidr), ("service_cidr", &plan.service_cidr)] {
        for range in ranges(value).ok_or_else(|| NetworkError::Range { field, value: value.clone() })? {
            let (destination, prefix) = (range.addr(), range.prefix_len());
            if let Some(source) = like(pod_ips, destination) {
                routes.push(Route { destination, prefix, gateway: None, source: Some(source) });
            }
        }
    }
    for ip in pod_ips {
        let destination = if ip.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        routes.push(Route { destination, prefix: 0, gateway: None, source: None });
    }
    Ok(routes)
}

fn result(pod_ips: &[IpAddr], device: &str, mtu: u32, routes: Vec<CniRoute>) -> CniResult {
    let interface = Interface {
        name: device.to_owned(),
        mtu: Some(mtu).filter(|mtu| *mtu > 0),
        sandbox: POD_SANDBOX.to_owned(),
        ..Interface::default()
    };
    let address = |ip: &IpAddr| Address { address: IpNet::from(*ip), gateway: None, interface: Some(0) };
    let ips = pod_ips.iter().map(address).collect();
    CniResult { interfaces: vec![interface], ips, routes, ..CniResult::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_routed_from_its_own_address() {
        let plan = NetworkPlan {
            pod_cidr: "10.244.0.0/16,fd00:10:244::/64".to_owned(),
            service_cidr: "10.96.0.0/16,fd00:10:96::/112".to_owned(),
            ..NetworkPlan::default()
        };
        let shown = |ips: &[&str]| -> Vec<String> {
            let route = |r: Route| {
                let from = r.source.map(|ip| format!(" from {ip}")).unwrap_or_default();
                format!("{}/{}{from}", r.destination, r.prefix)
            };
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            routes(&plan, &ips).unwrap().into_iter().map(route).collect()
        };
        assert_eq!(
            shown(&["10.244.1.0", "fd00:10:244::100"]),
            [
                "10.244.0.0/16 from 10.244.1.0",
                "fd00:10:244::/64 from fd00:10:244::100",
                "10.96.0.0/16 from 10.244.1.0",
                "fd00:10:96::/112 from fd00:10:244::100",
                "0.0.0.0/0",
                "::/0"
            ]
        );
        assert_eq!(shown(&["10.244.1.0"]).len(), 3);
    }

    #[test]
    fn a_result_holds_both_addresses() {
        let ips: Vec<IpAddr> = vec!["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let result = result(&ips, "eth0", 1440, Vec::new());
        assert_eq!(result.pod_ips(), ips);
        assert_eq!(result.ips[1].address.to_string(), "fd00::7/128");
    }
}
