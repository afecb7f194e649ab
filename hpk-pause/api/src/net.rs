//! The pod's network, as planned by the kubelet and as found by hpk-netns and hpk-pause.

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
    /// Prefix length of the pod network, for the on-link route (IPv4).
    #[serde(default)]
    pub pod_cidr: String,
    /// ClusterIP range: routed to the pod's interface too.
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
    /// Address of the Node object (status.hostIP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
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

/// What the supervisor sends to hpk-netns over `netns.sock` once its namespace stands; for
/// [`NetworkMode::Overlay`] the TUN's descriptor travels with it (SCM_RIGHTS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunOffer {
    /// Interface name in the pod's namespace.
    pub interface: String,
    /// MTU that was set, bytes.
    pub mtu: u32,
    /// Whether the TUN was opened with IFF_VNET_HDR and offloads.
    pub vnet_hdr: bool,
}

/// hpk-netns' answer: the network is carried from now on, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunAnswer {
    /// Packets flow.
    Ready {
        /// Host name of the compute node.
        node: String,
        /// Address of the compute node in the site's network, when known.
        node_ip: Option<IpAddr>,
    },
    /// Set-up failed: what, and what to do about it.
    Failed {
        /// One line for the pod's event.
        message: String,
    },
}
