//! A network that is there already: the node's own, or what a site's CNI plug-ins have put into the pod's namespace.

use hpk_api::cni::{Address, CniResult, Interface, Route};
use hpk_api::net::{NetworkPlan, POD_SANDBOX};
use hpk_sys::netdev::{Device, NetError, Netlink};
use ipnet::IpNet;
use std::net::{IpAddr, UdpSocket};

/// In the node's network: the address by which this node speaks to the login node. What the node does not tell of its
/// device is left out; the address alone matters.
pub(super) fn host(plan: &NetworkPlan) -> CniResult {
    let Some(ip) = own_address(plan) else { return CniResult::default() };
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices()).unwrap_or_default();
    let too = beside(plan, &devices, ip);
    let device = devices.into_iter().find(|d| d.addresses.iter().any(|(own, _)| *own == ip));
    let addresses = device.iter().flat_map(|d| &d.addresses);
    let prefix = |ip: IpAddr| addresses.clone().find(|(own, _)| *own == ip).map(|(_, prefix)| *prefix);
    let ips = std::iter::once(ip).chain(too);
    let ips =
        ips.map(|ip| Address { address: net(ip, prefix(ip)), gateway: None, interface: device.as_ref().map(|_| 0) });
    CniResult {
        ips: ips.collect(),
        interfaces: device.iter().map(|d| interface(d, "")).collect(),
        ..CniResult::default()
    }
}

/// In a namespace that others have filled. None: there is nothing but the loopback device.
pub(super) fn given() -> Result<Option<CniResult>, NetError> {
    let devices = Netlink::open()?.devices()?;
    Ok(of(&devices))
}

fn of(devices: &[Device]) -> Option<CniResult> {
    let mut result = CniResult::default();
    for device in devices.iter().filter(|d| !d.loopback && !d.addresses.is_empty()) {
        let index = result.interfaces.len();
        result.interfaces.push(interface(device, POD_SANDBOX));
        let hop = |v4: bool| device.routes.iter().find(|r| r.1 == 0 && r.0.is_ipv4() == v4).and_then(|r| r.2);
        result.ips.extend(device.addresses.iter().map(|&(ip, prefix)| Address {
            address: net(ip, Some(prefix)),
            gateway: hop(ip.is_ipv4()),
            interface: Some(index),
        }));
        let route = |&(ip, prefix, gw): &(IpAddr, u8, Option<IpAddr>)| Route { dst: net(ip, Some(prefix)), gw };
        // Every device has a route to its own link's addresses; that is no news.
        let own = |r: &&(IpAddr, u8, Option<IpAddr>)| !matches!(r.0, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast());
        result.routes.extend(device.routes.iter().filter(own).map(route));
    }
    (!result.ips.is_empty()).then_some(result)
}

/// The kernel's prefix lengths are within the family's; without one it is the address alone.
fn net(ip: IpAddr, prefix: Option<u8>) -> IpNet {
    prefix.and_then(|prefix| IpNet::new(ip, prefix).ok()).unwrap_or(IpNet::from(ip))
}

fn interface(device: &Device, sandbox: &str) -> Interface {
    Interface { name: device.name.clone(), mac: device.mac.clone(), mtu: Some(device.mtu), sandbox: sandbox.to_owned() }
}

/// The address of the other family beside `ip`, where the cluster has both.
fn beside(plan: &NetworkPlan, devices: &[Device], ip: IpAddr) -> Option<IpAddr> {
    if plan.has_both_families() { hpk_sys::netdev::beside(devices, ip) } else { None }
}

/// The node's addresses for who is in its network: [`own_address`], and the other family's.
pub(crate) fn own_addresses(plan: &NetworkPlan) -> Vec<IpAddr> {
    let Some(ip) = own_address(plan) else { return Vec::new() };
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices()).unwrap_or_default();
    std::iter::once(ip).chain(beside(plan, &devices, ip)).collect()
}

/// The address by which this node speaks to the login node. No packet is sent.
fn own_address(plan: &NetworkPlan) -> Option<IpAddr> {
    let login = plan.host_ip?;
    let any: IpAddr = if login.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((login, 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_alone_is_no_network() {
        let lo = Device { name: "lo".into(), loopback: true, mtu: 65536, ..Device::default() };
        let down = Device { name: "tunl0".into(), mtu: 1480, ..Device::default() };
        assert_eq!(of(&[lo.clone(), down.clone()]), None);
        let gateway: IpAddr = "10.22.0.1".parse().unwrap();
        let eth0 = Device {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1450,
            addresses: vec![("10.22.0.2".parse().unwrap(), 24), ("fd22::2".parse().unwrap(), 64)],
            routes: vec![
                ("0.0.0.0".parse().unwrap(), 0, Some(gateway)),
                ("10.22.0.0".parse().unwrap(), 24, None),
                ("fe80::".parse().unwrap(), 64, None),
            ],
            ..Device::default()
        };
        let result = of(&[lo, down, eth0]).unwrap();
        assert_eq!(result.interfaces.len(), 1);
        assert_eq!((result.ips[0].gateway, result.ips[1].gateway), (Some(gateway), None));
        assert_eq!(result.routes.len(), 2);
        assert_eq!(result.pod_ips()[0].to_string(), "10.22.0.2");
    }

    #[test]
    fn the_nodes_own_address() {
        let plan = NetworkPlan { host_ip: Some([127, 0, 0, 1].into()), ..NetworkPlan::default() };
        let result = host(&plan);
        assert_eq!(result.pod_ips(), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(host(&NetworkPlan::default()), CniResult::default());
    }
}
