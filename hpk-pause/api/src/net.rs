//! The pod's network, as planned by the kubelet and as found by hpk-netns and hpk-pause.

use crate::cni::CniResult;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How a pod is attached to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// TUN in the pod's own namespace, carried by hpk-netns between nodes.
    #[default]
    Overlay,
    /// Apptainer's `--net --network NAME`, as the site configured it.
    Cni,
    /// The node's own network.
    Host,
}

/// What the kubelet decided for a pod's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// Chosen mode.
    pub mode: NetworkMode,
    /// Pod addresses given by the kubelet's address management (empty for host and cni).
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// Addresses in the pods' network for processes of the pod that are in their node's own network: those of a pod with
    /// `hostNetwork` and the ranks of an MPI step. By the node's number in the job (SLURM_NODEID). Empty: none, where the pod
    /// has a network of its own there, or nobody is in need of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outposts: Vec<Vec<IpAddr>>,
    /// Pod address ranges, one of each family with a comma between: routed to the pod's interface.
    #[serde(default)]
    pub pod_cidr: String,
    /// ClusterIP ranges, likewise.
    #[serde(default)]
    pub service_cidr: String,
    /// Interface MTU in bytes; 0: hpk-netns decides.
    #[serde(default)]
    pub mtu: u32,
    /// CNI network name for [`NetworkMode::Cni`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_network: Option<String>,
    /// Overlay packets between nodes are not encrypted: only for a network that nobody else can send into.
    #[serde(default)]
    pub plaintext: bool,
    /// Ports of the compute node that lead to the pod (hostPort); empty for the node's own network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// The supervisor of this plan puts the compute node's address in the place of
    /// [`crate::plan::HOST_IP_PLACEHOLDER`].
    #[serde(default)]
    pub fills_host_ip: bool,
    /// And its addresses of both families in the place of [`crate::plan::HOST_IPS_PLACEHOLDER`].
    #[serde(default)]
    pub fills_host_ips: bool,
    /// Address of the Node object, the login node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The user's CNI configuration list, for [`NetworkMode::Overlay`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<NetworkList>,
    /// What the pod may send and receive; carried out by plug-ins of [`Self::list`] that can.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

impl NetworkPlan {
    /// Whether the cluster's pods have an address of each family.
    #[must_use]
    pub fn has_both_families(&self) -> bool {
        self.pod_cidr.contains(',')
    }
}

/// A CNI configuration list as the user wrote it: read by hpk-netns, which judges it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkList {
    /// File that it came from, for messages.
    pub file: String,
    /// Its content.
    pub text: String,
}

impl NetworkList {
    /// Whether it has plug-ins beside the overlay itself, as far as can be told without judging it.
    #[must_use]
    pub fn chains(&self) -> bool {
        let value: serde_json::Value = serde_json::from_str(&self.text).unwrap_or_default();
        value.get("plugins").and_then(serde_json::Value::as_array).is_none_or(|plugins| plugins.len() != 1)
    }
}

/// Annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u64>,
    /// From the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// Neither is said.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A container port's hostPort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: crate::link::Protocol,
    /// Address of the node; None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
}

/// What the supervisor asks hpk-netns over `netns.sock`, one JSON line with descriptors (SCM_RIGHTS), one request a
/// connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsRequest {
    /// The TUN of an overlay. Descriptors: the TUN; with a [`ChainOffer`] then [`NAMESPACES`] and the node side's network
    /// namespace.
    Tun(Box<TunOffer>),
    /// A network that somebody else made (mode cni). Descriptors: [`NAMESPACES`].
    Given(GivenOffer),
    /// CHECK of every plug-in of the list.
    Check,
    /// Start an MPI step; the connection stays, see [`crate::step`].
    Step(Box<crate::step::StepStart>),
    /// Run a command beside a rank; the connection stays, see [`crate::step`].
    Session(Box<crate::step::StepSession>),
}

/// Descriptors of the pod's namespaces, in this order: user, network.
pub const NAMESPACES: usize = 2;

/// See [`NetnsRequest::Tun`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunOffer {
    /// Interface name in the namespace where it was made.
    pub interface: String,
    /// MTU that was set, bytes.
    pub mtu: u32,
    /// Whether the TUN was opened with IFF_VNET_HDR and offloads.
    pub vnet_hdr: bool,
    /// The plan has a list: its further plug-ins are to be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainOffer>,
}

/// What the first plug-in of a list, the overlay itself, has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainOffer {
    /// Its result; devices in the pod have [`POD_SANDBOX`] as their sandbox.
    pub result: CniResult,
    /// The pod's interface (CNI_IFNAME).
    pub interface: String,
}

/// Stands for the pod's network namespace where its path is not known.
pub const POD_SANDBOX: &str = "pod";

/// See [`NetnsRequest::Given`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenOffer {
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
}

/// hpk-netns' answer: the network is carried from now on, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunAnswer {
    /// Packets flow.
    Ready(Box<Ready>),
    /// Set-up failed: what, and what to do about it.
    Failed {
        /// One line for the pod's event.
        message: String,
    },
}

/// See [`TunAnswer::Ready`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Host name of the compute node.
    #[serde(default)]
    pub node: String,
    /// Address of the compute node in the site's network, when known.
    #[serde(default)]
    pub node_ip: Option<IpAddr>,
    /// The pod's network namespace as a path on the node.
    #[serde(default)]
    pub sandbox: String,
    /// What the list's last plug-in returned; None: there is no list.
    #[serde(default)]
    pub result: Option<CniResult>,
    /// What is not as asked for, for the pod's events: reason and message.
    #[serde(default)]
    pub warning: Option<(String, String)>,
}

/// The address ranges of a list such as `10.244.0.0/16,fd00:10:244::/64`. An empty list has none. None: some part of the
/// list is no range.
#[must_use]
pub fn ranges(list: &str) -> Option<Vec<IpNet>> {
    if list.is_empty() {
        return Some(Vec::new());
    }
    list.split(',').map(|text| text.trim().parse().ok()).collect()
}

/// The first address that a host may have in a range: by convention the member's, in the pods' ranges.
#[must_use]
pub fn first_host(range: &IpNet) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base).wrapping_add(1)).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base).wrapping_add(1)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_a_list() {
        let shown = |text| ranges(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(shown("10.244.0.0/16").unwrap(), ["10.244.0.0/16"]);
        assert_eq!(shown("10.244.0.0/16, fd00::/64").unwrap(), ["10.244.0.0/16", "fd00::/64"]);
        assert!(shown("").unwrap().is_empty());
        for bad in ["10.244.0.0", "x/16", "10.0.0.0/33", "::/129", "10.0.0.0/8,fd00::", "10.244.0.0/16,", " "] {
            assert_eq!(ranges(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_first_host_of_each_family() {
        let first = |text: &str| first_host(&text.parse().unwrap()).to_string();
        assert_eq!(first("10.244.0.0/16"), "10.244.0.1");
        assert_eq!(first("10.244.3.4/16"), "10.244.0.1");
        assert_eq!(first("fd00:10:244::/64"), "fd00:10:244::1");
    }
}
