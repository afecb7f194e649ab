//! Who carries a pod's packets, by the mode of its network.

use super::overlay::Overlay;
use super::places::Places;
use crate::datapath::Datapath;
use crate::nat::{Heard, Progress};
use crate::outpost::{self, Outpost};
use hpk_api::link::{NetQuestion, NetUpdate};
use hpk_api::plan::SandboxPlan;
use std::net::IpAddr;
use tokio::sync::{mpsc, watch};

/// Who carries the pod's packets.
pub(super) enum Carrier {
    Overlay(Box<Overlay>),
    /// The site, and Services are put into the pod's namespace.
    Given {
        heard: mpsc::UnboundedSender<Heard>,
        progress: watch::Receiver<Progress>,
    },
    /// The node itself.
    Node,
    /// The node itself, with a place in the pods' network.
    Outpost(Outpost),
}

impl Carrier {
    /// The datapath that the kubelet is told of.
    pub(super) fn datapath(&self) -> Option<&Datapath> {
        match self {
            Self::Overlay(overlay) => overlay.datapath.as_ref().ok(),
            Self::Outpost(outpost) => Some(&*outpost.datapath),
            _ => None,
        }
    }

    /// Whether the pod can leave the cluster through us. None: it goes by another way.
    pub(super) fn outward(&self) -> Option<bool> {
        match self {
            Self::Overlay(overlay) => Some(overlay.outside.outward.exists()),
            _ => None,
        }
    }

    pub(super) fn fresh(&self) {
        match self {
            Self::Overlay(overlay) => overlay.datapath.iter().for_each(Datapath::fresh),
            Self::Given { heard, .. } => drop(heard.send(Heard::Fresh)),
            Self::Outpost(outpost) => outpost.datapath.fresh(),
            Self::Node => {}
        }
    }

    pub(super) fn learn(&self, update: NetUpdate) {
        match self {
            Self::Overlay(overlay) => overlay.datapath.iter().for_each(|d| d.learn(update.clone())),
            Self::Given { heard, .. } => drop(heard.send(Heard::Fact(update))),
            Self::Outpost(outpost) => outpost.datapath.learn(update),
            Self::Node => {}
        }
    }

    /// Never, without an overlay.
    pub(super) async fn asked_outward(&mut self) -> Option<()> {
        match self {
            Self::Overlay(overlay) => overlay.outside.asked.recv().await,
            _ => std::future::pending().await,
        }
    }
}

/// The outpost of a pod that is in the node's network, if it was given addresses.
pub(super) fn outpost(
    plan: &SandboxPlan,
    places: &Places<'_>,
    node_ip: IpAddr,
    ask: mpsc::Sender<NetQuestion>,
    synced: watch::Receiver<bool>,
) -> Option<Outpost> {
    let addresses = plan.network.outposts.first().filter(|all| !all.is_empty())?;
    let path = places.run.join(hpk_layout::node::CROSSING_SOCK);
    let clients = std::os::unix::net::UnixListener::bind(&path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    });
    let made = clients.and_then(|clients| {
        let (network, net, folder) = (&plan.network, places.net, places.run);
        Outpost::start(outpost::Parts { addresses, network, node_ip, net, folder, clients, synced }, ask)
    });
    // The supervisor finds nobody at the socket, and tells the pod's owner.
    made.inspect_err(|error| hpk_api::say!("hpk-netns: no way to the pods' network: {error}")).ok()
}
