//! What links tell: their beginning and end, what their pods' networks need, and who hears it.

use crate::registry::Ask;
use hpk_api::link::{Hello, NetQuestion};
use tokio::sync::mpsc;

/// What happens to links, for the pod controller. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A link stands; replaces an earlier one of the pod.
    Up {
        hello: Hello,
        /// It came over [`crate::server::LinkServer::carry`]: its node may not be able to dial.
        carried: bool,
    },
    /// It is gone (not sent when it was replaced).
    Down {
        /// Pod UID.
        uid: String,
        reason: String,
    },
    /// Somebody who has the pod's certificate was refused for what he said.
    Refused {
        /// Pod UID.
        uid: String,
        /// Why, for people.
        why: String,
    },
}

/// What the pods' networks need, for the owner of the network facts. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// Where a pod's datapath is now.
    Up { hello: Hello },
    /// The pod's facts stream stands: send it everything ([`crate::server::LinkServer::push`]).
    Subscribed {
        /// Pod UID.
        uid: String,
    },
    /// A question to be answered by [`crate::server::LinkServer::push`].
    Asked {
        /// Pod UID.
        uid: String,
        /// What it asks.
        question: NetQuestion,
    },
    /// The link is gone.
    Down {
        /// Pod UID.
        uid: String,
    },
}

/// The two streams of events; each must be read, a full queue holds up the links.
#[derive(Debug)]
pub struct Events {
    /// For the pod controller.
    pub links: mpsc::Receiver<LinkEvent>,
    /// For the network facts.
    pub net: mpsc::Receiver<NetEvent>,
}

/// Where connections report to.
#[derive(Clone)]
pub(crate) struct Out {
    pub(crate) ask: mpsc::Sender<Ask>,
    pub(crate) links: mpsc::Sender<LinkEvent>,
    pub(crate) net: mpsc::Sender<NetEvent>,
}
