//! A connection that the pipeline remembers, and for how long.

use super::packet::{View, proto, tcp};
use std::net::SocketAddr;

/// Seconds without a packet until a connection is forgotten.
pub(super) mod lifetime {
    /// TCP, both sides heard (kube-proxy's conntrack setting).
    pub(in crate::datapath) const ESTABLISHED: u64 = 24 * 3600;
    /// TCP, FIN or RST seen.
    pub(in crate::datapath) const CLOSING: u64 = 60;
    /// TCP, one side heard.
    pub(in crate::datapath) const OPENING: u64 = 120;
    /// UDP and others, both sides heard.
    pub(in crate::datapath) const STREAM: u64 = 180;
    /// UDP and others, one side heard.
    pub(in crate::datapath) const SINGLE: u64 = 60;
}

/// A connection as the network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wire {
    pub(super) protocol: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// The pod talks to a service; the wire has an endpoint instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) client: SocketAddr,
    pub(super) service: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) service: Option<Translation>,
    pub(super) heard_local: bool,
    pub(super) heard_remote: bool,
    pub(super) closing: bool,
    /// Seconds.
    pub(super) last: u64,
}

impl Flow {
    pub(super) fn expired(&self, protocol: u8, now: u64) -> bool {
        let both = self.heard_local && self.heard_remote;
        let lifetime = match (protocol, self.closing, both) {
            (proto::TCP, true, _) => lifetime::CLOSING,
            (proto::TCP, _, true) => lifetime::ESTABLISHED,
            (proto::TCP, _, false) => lifetime::OPENING,
            (_, _, true) => lifetime::STREAM,
            (_, _, false) => lifetime::SINGLE,
        };
        now.saturating_sub(self.last) > lifetime
    }

    pub(super) fn touch(&mut self, view: &View, from_pod: bool, now: u64) {
        self.last = now;
        if from_pod {
            self.heard_local = true;
        } else {
            self.heard_remote = true;
        }
        if view.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            self.closing = true;
        } else if view.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
            self.closing = false;
        }
    }
}
