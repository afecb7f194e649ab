//! The pod's network, as far as it is the supervisor's: its devices, addresses and routes, and the hand-over of the
//! TUN to hpk-netns.
//!
//! ```text
//!   overlay   TUN eth0: address, routes to pods and services ─── TunOffer + descriptor ──▶ hpk-netns (netns.sock)
//!                                                            ◀── TunAnswer ─────────────
//!   cni, host the namespace is given; the address is found
//! ```
//! Blocking: runs before the first container, off the event loop.

use crate::paths::Paths;
use hpk_api::net::{NetworkMode, NetworkPlan, TunAnswer, TunOffer};
use hpk_sys::netdev::{self, NetError, Netlink, Route};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The pod's interface.
const DEVICE: &str = "eth0";

/// MTU of the overlay when the plan leaves it open: an encrypted packet then fits an Ethernet frame of 1500 bytes.
const DEFAULT_MTU: u32 = 1420;

/// How long hpk-netns may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Addresses of the pod.
    pub pod_ips: Vec<IpAddr>,
    /// What is not as planned, for the pod's events.
    pub warning: Option<String>,
}

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A device.
    #[error(transparent)]
    Device(#[from] NetError),
    /// A range in the plan.
    #[error("network.{field}: {value:?} is no range such as 10.244.0.0/16")]
    Range {
        /// Field of the plan.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The socket of hpk-netns.
    #[error("hpk-netns does not answer on {path}: {source}")]
    Netns {
        /// Socket.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// It answered that it cannot.
    #[error("hpk-netns: {0}")]
    Refused(String),
}

/// Sets the network up.
///
/// # Errors
/// What failed, with the remedy where there is one.
pub fn make(plan: &NetworkPlan, paths: &Paths) -> Result<Network, NetworkError> {
    match plan.mode {
        NetworkMode::Host => Ok(Network { pod_ips: own_address(plan).into_iter().collect(), warning: None }),
        NetworkMode::Cni => {
            netdev::loopback_up()?;
            engine_sysctls();
            Ok(Network { pod_ips: own_address(plan).into_iter().collect(), warning: None })
        }
        NetworkMode::Overlay => {
            netdev::loopback_up()?;
            engine_sysctls();
            let warning = if paths.netns().exists() {
                overlay(plan, &paths.netns())?;
                None
            } else {
                address_without_network(plan)?;
                Some("there is no hpk-netns beside this pod: it has an address but no network".to_owned())
            };
            Ok(Network { pod_ips: plan.pod_ips.clone(), warning })
        }
    }
}

/// Ports below 1024 and ping for every user of the pod, as engines allow them. Not worth a pod's life.
fn engine_sysctls() {
    if let Err(error) = netdev::engine_sysctls() {
        eprintln!("hpk-pause: {error}");
    }
}

fn overlay(plan: &NetworkPlan, socket: &Path) -> Result<(), NetworkError> {
    let mtu = if plan.mtu == 0 { DEFAULT_MTU } else { plan.mtu };
    let tun = netdev::create_tun(DEVICE)?;
    let mut netlink = Netlink::open()?;
    for &ip in &plan.pod_ips {
        netlink.add_address(DEVICE, ip, if ip.is_ipv4() { 32 } else { 128 })?;
    }
    netlink.set_up(DEVICE, mtu)?;
    for (field, value) in [("pod_cidr", &plan.pod_cidr), ("service_cidr", &plan.service_cidr)] {
        if !value.is_empty() {
            let (destination, prefix) = range(field, value)?;
            netlink.add_route(
                DEVICE,
                Route { destination, prefix, gateway: None, source: plan.pod_ips.first().copied() },
            )?;
        }
    }
    // Whether there is a world outside of the cluster is hpk-netns' to say.
    if plan.pod_ips.iter().any(IpAddr::is_ipv4) {
        let destination = [0u8; 4].into();
        netlink.add_route(DEVICE, Route { destination, prefix: 0, gateway: None, source: None })?;
    }
    let offer = TunOffer { interface: DEVICE.to_owned(), mtu, vnet_hdr: tun.vnet_hdr };
    let netns = |source| NetworkError::Netns { path: socket.display().to_string(), source };
    let stream = UnixStream::connect(socket).map_err(netns)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(netns)?;
    let mut line = serde_json::to_vec(&offer).map_err(|e| netns(e.into()))?;
    line.push(b'\n');
    hpk_sys::fdpass::send(&stream, &line, &[tun.fd.as_fd()]).map_err(|e| netns(e.into()))?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).map_err(netns)?;
    match serde_json::from_str(&answer).map_err(|e| netns(e.into()))? {
        TunAnswer::Ready { .. } => Ok(()),
        TunAnswer::Failed { message } => Err(NetworkError::Refused(message)),
    }
}

fn address_without_network(plan: &NetworkPlan) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open()?;
    let device = if netlink.add_dummy(DEVICE).is_ok() { DEVICE } else { "lo" };
    for &ip in &plan.pod_ips {
        netlink.add_address(device, ip, if ip.is_ipv4() { 32 } else { 128 })?;
    }
    netlink.set_up(device, 0)?;
    Ok(())
}

fn range(field: &'static str, value: &str) -> Result<(IpAddr, u8), NetworkError> {
    value
        .split_once('/')
        .and_then(|(ip, prefix)| Some((ip.parse().ok()?, prefix.parse().ok()?)))
        .ok_or_else(|| NetworkError::Range { field, value: value.to_owned() })
}

/// The address by which this node speaks to the login node: no packet is sent.
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
    fn ranges() {
        assert_eq!(range("pod_cidr", "10.244.0.0/16").unwrap(), ("10.244.0.0".parse().unwrap(), 16));
        for bad in ["10.244.0.0", "x/16", "10.0.0.0/999"] {
            let error = range("pod_cidr", bad).unwrap_err().to_string();
            assert!(error.contains("pod_cidr") && error.contains(bad), "{error}");
        }
    }
}
