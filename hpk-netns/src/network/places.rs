//! Where a pod's network has its files, and where its node stands.

use crate::node;
use hpk_api::net::NetworkMode;
use hpk_api::plan::SandboxPlan;
use std::net::IpAddr;
use std::path::Path;

/// Folders that the network uses.
pub(crate) struct Places<'a> {
    /// The pod's folder with `link.json`.
    pub(crate) pod: &'a Path,
    /// Folder of the sockets.
    pub(crate) run: &'a Path,
    /// Folder of this cluster's pods on this node.
    pub(crate) net: &'a Path,
    /// The pod's own on this node.
    pub(crate) local: &'a Path,
}

/// Where this node stands in the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// Towards other nodes.
    pub(crate) node_ip: IpAddr,
    /// Interface MTU for the pod, bytes, when it is an overlay.
    pub(crate) mtu: Option<u32>,
}

/// Asks the node.
pub(crate) fn address(plan: &SandboxPlan, places: &Places<'_>) -> Address {
    let node_ip = node::address(places.pod, plan.network.host_ip);
    Address { node_ip, mtu: (plan.network.mode == NetworkMode::Overlay).then(|| node::pod_mtu(node_ip)) }
}
