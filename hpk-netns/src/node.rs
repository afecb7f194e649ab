//! This compute node, as its pods' networks need it: its name, its address towards the others, the MTU it leaves to pods,
//! why one of its ports cannot be had.

use hpk_api::link::LinkCredentials;
use hpk_sys::netdev::{Netlink, beside};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

/// Bytes of WireGuard and UDP around a packet, without the outer IP header.
const OVERHEAD: u32 = 32 + 8;

/// This node's host name.
pub(crate) fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What Slurm calls this node. Its host name may be longer, and srun knows no other name than Slurm's.
pub(crate) fn slurm_name() -> String {
    std::env::var("SLURMD_NODENAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(hostname)
}

/// The address by which this node speaks to the kubelet's: what other nodes reach it by, too. No packet is sent.
pub(crate) fn address(pod: &Path, login: Option<IpAddr>) -> IpAddr {
    let credentials = std::fs::read(pod.join(hpk_layout::pod::LINK))
        .ok()
        .and_then(|b| serde_json::from_slice::<LinkCredentials>(&b).ok());
    let target = credentials.map(|c| c.address).or(login.map(|ip| SocketAddr::new(ip, 9)));
    let found = target.and_then(|target| {
        let any: IpAddr = if target.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    found.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
}

/// [`address`], and where `both` families are wanted the other's of the same device, with a comma between.
pub(crate) fn addresses(ip: IpAddr, both: bool) -> String {
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices());
    let too = devices.ok().filter(|_| both).and_then(|devices| beside(&devices, ip));
    std::iter::once(ip).chain(too).map(|ip| ip.to_string()).collect::<Vec<_>>().join(",")
}

/// MTU for the pod's interface: the node's, less what is put around each packet.
pub(crate) fn pod_mtu(node_ip: IpAddr) -> u32 {
    let device = nix::ifaddrs::getifaddrs().ok().and_then(|mut all| {
        all.find(|a| {
            let ip = a.address.as_ref().and_then(|s| {
                s.as_sockaddr_in()
                    .map(|v4| IpAddr::V4(v4.ip()))
                    .or_else(|| s.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            });
            ip == Some(node_ip)
        })
    });
    let mtu = device.and_then(|d| std::fs::read_to_string(format!("/sys/class/net/{}/mtu", d.interface_name)).ok());
    let mtu = mtu.and_then(|text| text.trim().parse().ok()).unwrap_or(1500);
    inner_mtu(mtu, node_ip.is_ipv6())
}

/// At least what IPv6 needs, at most what one datagram of the largest size leaves.
fn inner_mtu(outer: u32, v6: bool) -> u32 {
    let header = if v6 { 40 } else { 20 };
    outer.saturating_sub(OVERHEAD + header).clamp(1280, 65_000)
}

/// Why a port of this host cannot be had, and what to do about it.
pub(crate) fn explain_bind(error: &io::Error, at: SocketAddr, host: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "an ordinary user cannot listen on port {}: use one from 1024 on, or the service's node port",
                at.port()
            )
        }
        io::ErrorKind::AddrInUse => {
            format!("port {} of the {host} is in use by somebody else: choose another", at.port())
        }
        io::ErrorKind::AddrNotAvailable => format!("{} is no address of the {host}", at.ip()),
        _ => error.to_string(),
    }
}

/// The id of the run that this process belongs to: a job's, one of the local executor, or a member's of a gang.
pub(crate) fn run_id() -> Option<String> {
    hpk_api::local::run_id(|name| std::env::var(name).ok())
}

#[cfg(test)]
mod tests {
    use super::inner_mtu;

    #[test]
    fn mtus() {
        assert_eq!(inner_mtu(1500, false), 1440);
        assert_eq!(inner_mtu(1500, true), 1420);
        assert_eq!(inner_mtu(9000, false), 8940);
        assert_eq!(inner_mtu(600, false), 1280);
        assert_eq!(inner_mtu(65_536, false), 65_000);
    }
}
