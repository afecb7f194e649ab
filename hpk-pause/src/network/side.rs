//! The node side of a pod whose network is a list of CNI plug-ins: stock plug-ins look for what a real node has, a veth
//! whose other end is the pod's and a namespace of the node's in which the pod is routed to. So the pod gets such a node
//! of its own, a second network namespace that belongs to the pod's user namespace.
//!
//! ```text
//!   pod        eth0  10.244.0.7/32, default via 169.254.1.1
//!               ║
//!   node side  veth0 169.254.1.1     table 100: 10.244.0.7 dev veth0      (asked before the local table)
//!              tun0  10.244.0.7/32   default dev tun0 ──── descriptor ──▶ hpk-netns
//! ```
//! The pod's address is the node side's, too: a plug-in that asks whether a packet is for the node itself (portmap) is told
//! yes. The rule that sends what is for the pod on to it comes before the local table.
//!
//! It lives as long as hpk-netns has it open: nothing is left when that is gone.

use super::families::{like, one_family};
use super::{DEVICE, Network, NetworkError, PLUGINS_LIMIT, ask, in_sandbox};
use hpk_api::cni::{Address, CniResult, Interface, Route as CniRoute};
use hpk_api::net::{ChainOffer, NetnsRequest, NetworkPlan, POD_SANDBOX, TunOffer};
use hpk_sys::netdev::{self, NetError, Netlink, Route, Rule, TABLE_LOCAL, Tun};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Devices of the node side.
const VETH: &str = "veth0";
const TUN: &str = "tun0";
/// Where the route to the pod is.
const TABLE: u8 = 100;

/// What the families differ in.
#[derive(Clone, Copy)]
struct Family {
    any: IpAddr,
    /// The node side's address towards the pod: link-local, so it is nobody else's.
    gateway: IpAddr,
    forwarding: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        any: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        gateway: IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        forwarding: "net.ipv4.ip_forward",
    },
    Family {
        any: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        gateway: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        forwarding: "net.ipv6.conf.all.forwarding",
    },
];

/// Makes both sides and has hpk-netns run the plug-ins.
pub(super) fn make(plan: &NetworkPlan, socket: &Path, mtu: u32) -> Result<Network, NetworkError> {
    let user = user_namespace()?;
    let pod = network_namespace()?;
    let node = node_side(plan, &pod, mtu)?;
    let mac = pod_side(&node.pod_ips, mtu)?;
    let result = result(&node.pod_ips, mtu, (node.mac, mac));
    let chain = ChainOffer { result, interface: DEVICE.to_owned() };
    let offer = TunOffer { interface: TUN.to_owned(), mtu, vnet_hdr: node.tun.vnet_hdr, chain: Some(chain.clone()) };
    let fds = [node.tun.fd.as_fd(), user.as_fd(), pod.as_fd(), node.namespace.as_fd()];
    let ready = ask(socket, &NetnsRequest::Tun(Box::new(offer)), &fds, PLUGINS_LIMIT)?;
    let result = ready.result.unwrap_or_else(|| in_sandbox(chain.result, &ready.sandbox));
    let warnings = ready.warning.into_iter().chain(one_family(plan, &node.pod_ips)).collect();
    Ok(Network { result, warnings })
}

/// The calling process' user namespace.
pub(super) fn user_namespace() -> Result<OwnedFd, NetworkError> {
    open("/proc/self/ns/user")
}

/// The calling thread's network namespace.
pub(super) fn network_namespace() -> Result<OwnedFd, NetworkError> {
    open("/proc/thread-self/ns/net")
}

fn open(path: &'static str) -> Result<OwnedFd, NetworkError> {
    let opened = std::fs::File::open(path).map(OwnedFd::from);
    opened.map_err(|source| NetworkError::Namespace { what: "open a namespace of the pod", source })
}

/// What was made there.
struct NodeSide {
    namespace: OwnedFd,
    tun: Tun,
    /// Of [`VETH`].
    mac: String,
    /// Those of the plan's that the kernel has taken.
    pod_ips: Vec<IpAddr>,
}

/// On a thread of its own, which enters the new namespace and never comes back from it.
fn node_side(plan: &NetworkPlan, pod: &OwnedFd, mtu: u32) -> Result<NodeSide, NetworkError> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            let entered = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            entered.map_err(|errno| NetworkError::Namespace {
                what: "make the node side's network namespace",
                source: errno.into(),
            })?;
            fill(plan, pod, mtu)
        });
        let lost = || std::io::Error::other("the thread for it has failed");
        let what = "make the node side's network namespace";
        made.join().unwrap_or_else(|_| Err(NetworkError::Namespace { what, source: lost() }))
    })
}

fn fill(plan: &NetworkPlan, pod: &OwnedFd, mtu: u32) -> Result<NodeSide, NetworkError> {
    let namespace = network_namespace()?;
    netdev::loopback_up()?;
    // Packets come in and go out here by rules of our own: the check of where they should have come from has no part.
    for name in ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"] {
        netdev::sysctl(name, "0")?;
    }
    let tun = netdev::create_tun(TUN)?;
    let mut netlink = Netlink::open()?;
    netlink.add_veth(VETH, DEVICE, pod, mtu)?;
    let pod_ips = netlink.add_addresses(TUN, &plan.pod_ips)?;
    let families = || FAMILIES.into_iter().filter(|family| like(&pod_ips, family.any).is_some());
    for family in families() {
        netdev::sysctl(family.forwarding, "1")?;
        netlink.add_address(VETH, family.gateway, IpNet::from(family.gateway).prefix_len())?;
    }
    netlink.set_up(VETH, mtu)?;
    netlink.set_up(TUN, mtu)?;
    for &ip in &pod_ips {
        let prefix = IpNet::from(ip).prefix_len();
        netlink.add_route_in(TABLE, VETH, Route { destination: ip, prefix, gateway: None, source: None })?;
        netlink.add_rule(Rule { v6: ip.is_ipv6(), to: Some(ip), priority: 10, table: TABLE })?;
    }
    for family in families() {
        let local = Rule { v6: family.any.is_ipv6(), to: None, priority: 100, table: TABLE_LOCAL };
        netlink.add_rule(local)?;
        netlink.delete_rule(Rule { priority: 0, ..local })?;
        netlink.add_route(TUN, Route { destination: family.any, prefix: 0, gateway: None, source: None })?;
    }
    let mac = mac(&mut netlink, VETH)?;
    Ok(NodeSide { namespace, tun, mac, pod_ips })
}

fn mac(netlink: &mut Netlink, device: &str) -> Result<String, NetError> {
    Ok(netlink.devices()?.into_iter().find(|d| d.name == device).map(|d| d.mac).unwrap_or_default())
}

/// Gives the hardware address of the pod's device.
fn pod_side(pod_ips: &[IpAddr], mtu: u32) -> Result<String, NetworkError> {
    let mut netlink = Netlink::open()?;
    netlink.add_addresses(DEVICE, pod_ips)?;
    netlink.set_up(DEVICE, mtu)?;
    for route in routes(pod_ips) {
        let (destination, prefix) = (route.dst.addr(), route.dst.prefix_len());
        let source = like(pod_ips, destination);
        netlink.add_route(DEVICE, Route { destination, prefix, gateway: route.gw, source })?;
    }
    Ok(mac(&mut netlink, DEVICE)?)
}

/// The range of all addresses of a family.
fn everything(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

/// Of the pod: the way to the node side, then all else by it.
fn routes(pod_ips: &[IpAddr]) -> Vec<CniRoute> {
    let of = |Family { any, gateway, .. }: Family| {
        [CniRoute { dst: gateway.into(), gw: None }, CniRoute { dst: everything(any), gw: Some(gateway) }]
    };
    FAMILIES.into_iter().filter(|family| like(pod_ips, family.any).is_some()).flat_map(of).collect()
}

/// The result of the overlay as the list's first plug-in. `macs`: of the node side's device and of the pod's.
fn result(pod_ips: &[IpAddr], mtu: u32, macs: (String, String)) -> CniResult {
    let device = |name: &str, mac: String, sandbox: &str| Interface {
        name: name.to_owned(),
        mac,
        mtu: Some(mtu),
        sandbox: sandbox.to_owned(),
    };
    let gateway = |ip: IpAddr| FAMILIES.iter().find(|f| f.any.is_ipv4() == ip.is_ipv4()).map(|f| f.gateway);
    let address = |&ip: &IpAddr| Address { address: ip.into(), gateway: gateway(ip), interface: Some(1) };
    CniResult {
        interfaces: vec![device(VETH, macs.0, ""), device(DEVICE, macs.1, POD_SANDBOX)],
        ips: pod_ips.iter().map(address).collect(),
        routes: routes(pod_ips),
        ..CniResult::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_gateway() {
        let ips: Vec<IpAddr> = vec!["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let both = result(&ips, 1440, ("02:00:00:00:00:01".to_owned(), "02:00:00:00:00:02".to_owned()));
        let gateways: Vec<_> = both.ips.iter().map(|ip| ip.gateway.unwrap().to_string()).collect();
        assert_eq!(gateways, ["169.254.1.1", "fe80::1"]);
        let routes: Vec<_> = both.routes.iter().map(|r| r.dst.to_string()).collect();
        assert_eq!(routes, ["169.254.1.1/32", "0.0.0.0/0", "fe80::1/128", "::/0"]);
        assert_eq!(result(&ips[..1], 1440, (String::new(), String::new())).routes.len(), 2);
    }
}
