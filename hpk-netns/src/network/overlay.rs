//! What a pod of the overlay has on its node: the datapath, the plug-ins of the list beside it, and the way out of the
//! cluster.

use super::places::{Address, Places};
use crate::cni::{self, ListError};
use crate::datapath::{Config, Datapath, Encryption};
use crate::outward::{NotHad, Outward};
use hpk_api::link::NetQuestion;
use hpk_api::net::{HostPort, NetworkList};
use hpk_api::plan::SandboxPlan;
use hpk_layout::Home;
use std::io;
use std::net::IpAddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The datapath did not start.
#[derive(Debug, thiserror::Error)]
#[error("datapath: {0}")]
pub(super) struct DatapathError(io::Error);

/// What a pod of the overlay has on its node.
pub(super) struct Overlay {
    pub(super) datapath: Result<Datapath, DatapathError>,
    pub(super) outside: Outside,
    /// The list, when it is one without further plug-ins and yet no good.
    pub(super) list: Result<(), ListError>,
    /// The task that runs the plug-ins of the list.
    pub(super) plugins: Option<mpsc::Sender<cni::Ask>>,
}

/// Starts the datapath. `ask`: the kubelet.
pub(super) fn overlay(
    plan: &SandboxPlan,
    places: &Places<'_>,
    address: &Address,
    mtu: u32,
    ask: mpsc::Sender<NetQuestion>,
    (plugins, list, maps_ports): Plugins,
) -> Overlay {
    let network = &plan.network;
    let ranges = |text: &str| hpk_api::net::ranges(text).unwrap_or_default();
    // Where a plug-in maps a host port to the pod's, it is to see the host port.
    let ports: Vec<HostPort> = network
        .host_ports
        .iter()
        .map(|port| HostPort {
            container_port: if maps_ports { port.host_port } else { port.container_port },
            ..port.clone()
        })
        .collect();
    let outward = Outward::find(&network.pod_ips, mtu, &ports);
    let (ask_outward, asked) = mpsc::channel(1);
    let config = Config {
        addresses: network.pod_ips.clone(),
        pod_range: ranges(&network.pod_cidr),
        service_range: ranges(&network.service_cidr),
        outward: outward.exists().then_some(ask_outward),
        outward_ipv6: outward.knows_ipv6(),
        node_ip: address.node_ip,
        folder: places.net,
        encryption: Encryption::unless(network.plaintext),
    };
    let datapath = Datapath::start(config, ask.clone()).map_err(DatapathError);
    Overlay { datapath, outside: Outside { outward, asked, tell: ask, login: network.host_ip }, list, plugins }
}

/// Where the plug-ins' task is asked, whether the list is good if it has no more than the overlay itself, and whether
/// a plug-in maps host ports.
pub(super) type Plugins = (Option<mpsc::Sender<cni::Ask>>, Result<(), ListError>, bool);

/// The task that runs the plug-ins, if the plan has a list.
pub(super) fn plugins(
    plan: &SandboxPlan,
    places: &Places<'_>,
    leave: &CancellationToken,
) -> (Plugins, Option<AbortOnDropHandle<()>>) {
    let home = Home::of_member(places.pod);
    let Some(chain) = cni::Chain::of(&plan.pod, &plan.network, &home, places.local) else {
        return ((None, Ok(()), false), None);
    };
    let chains = plan.network.list.as_ref().is_some_and(NetworkList::chains);
    let judged = if chains { Ok(()) } else { chain.judge() };
    let maps_ports = chain.maps_ports();
    let (asks_in, asks) = mpsc::channel(4);
    let task = tokio::spawn(chain.serve(asks, leave.clone()));
    ((Some(asks_in), judged, maps_ports), Some(AbortOnDropHandle::new(task)))
}

/// The pod's way out of the cluster, and who asks for it.
pub(super) struct Outside {
    pub(super) outward: Outward,
    pub(super) asked: mpsc::Receiver<()>,
    /// To the kubelet.
    tell: mpsc::Sender<NetQuestion>,
    /// The Node's address.
    login: Option<IpAddr>,
}

impl Outside {
    pub(super) fn start(&mut self, datapath: &Datapath) {
        let way = self.outward.start();
        if let Err(error) = &way {
            hpk_api::say!("hpk-netns: no way out of the cluster: {error}");
        }
        datapath.outward(way.ok());
    }

    /// Those that cannot be had are told to the kubelet.
    pub(super) fn open_ports(&mut self, node_ip: IpAddr) {
        for port in self.outward.check_ports(node_ip, self.login) {
            tell_not_had(&self.tell, port);
        }
    }
}

/// Says it here and to the kubelet.
pub(super) fn tell_not_had(kubelet: &mpsc::Sender<NetQuestion>, NotHad { port, at, message }: NotHad) {
    hpk_api::say!("hpk-netns: host port {}: {message}", port.host_port);
    let _ = kubelet.try_send(NetQuestion::NotListening { at, protocol: port.protocol, message });
}
