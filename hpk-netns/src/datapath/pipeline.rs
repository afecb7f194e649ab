//! What happens to each packet: services, connection tracking, policy. Pure: time and randomness are given.
//!
//! ```text
//! from the pod:  own address? ─▶ known connection? ─▶ service? endpoint chosen ─▶ policy ─▶ rewritten, to a peer
//!                                                       └ nobody there: refused     └ no: dropped
//!                                                       └ the pod itself: handed back (hairpin)
//! from a peer:   for the pod? ─▶ known connection? (undo the service's rewriting) ─▶ policy ─▶ to the pod
//! ```
//! A connection is known by what is on the wire between two pods ([`Wire`]). Services are translated on the
//! client's side only, so the server sees the client's own address, and two datapaths need not agree on anything.

use super::flow::{Flow, Translation, Wire, lifetime};
use super::packet::{self, Fragment, View, proto, tcp};
use super::policy::Policy;
use super::services::{Choice, Services};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Connections that are remembered at most; beyond, the oldest of those not in use are forgotten first.
const MAX_FLOWS: usize = 65_536;
/// Fragmented packets under way at once.
const MAX_FRAGMENTED: usize = 128;
/// Seconds between two looks for connections that are over.
const SWEEP: u64 = 15;

/// What to do with a packet from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// Forget it.
    Drop,
    /// Nobody is there: tell the pod.
    Refuse,
    /// Hand it back to the pod.
    Loop,
    /// Send it to who has this address.
    Send(IpAddr),
}

/// Pieces of a packet share addresses, protocol and identification.
type PieceKey = (IpAddr, IpAddr, u8, u32);

/// The decisions of one pod's datapath.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    addresses: Vec<IpAddr>,
    pub(crate) services: Services,
    pub(crate) policy: Policy,
    flows: HashMap<Wire, Flow>,
    /// The pod's view of translated connections: (protocol, client, service) to the wire's.
    translated: HashMap<(u8, SocketAddr, SocketAddr), Wire>,
    /// Connections of the pod to itself through a service: (protocol, source, destination) to the same rewritten.
    hairpins: HashMap<(u8, SocketAddr, SocketAddr), (SocketAddr, SocketAddr, u64)>,
    /// What was done with the first piece of a fragmented packet.
    pieces: HashMap<PieceKey, (SocketAddr, SocketAddr, Outbound)>,
    swept: u64,
    random: u64,
}

impl Pipeline {
    /// For a pod with these addresses. `seed` starts the choice of endpoints.
    pub(crate) fn new(addresses: Vec<IpAddr>, seed: u64) -> Self {
        Self { addresses, random: seed | 1, ..Self::default() }
    }

    /// xorshift64*: spreading, not secrecy.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Decides on a packet from the pod and rewrites it. `partial`: its transport checksum is partial. `now` in seconds.
    pub(crate) fn outbound(&mut self, packet: &mut [u8], view: &View, partial: bool, now: u64) -> Outbound {
        self.sweep(now);
        if !self.addresses.contains(&view.src) || !is_unicast(view.dst) {
            return Outbound::Drop;
        }
        if view.fragment == Fragment::Later {
            return self.outbound_piece(packet, view);
        }
        let (src, dst) = (view.source(), view.destination());
        let (decision, new_src, new_dst) = self.decide(view, src, dst, now);
        if (new_src, new_dst) != (src, dst) {
            packet::rewrite(packet, view, new_src, new_dst, partial);
        }
        if view.fragment == Fragment::First {
            if self.pieces.len() >= MAX_FRAGMENTED {
                self.pieces.clear();
            }
            self.pieces.insert(piece_key(packet, view), (new_src, new_dst, decision));
        }
        decision
    }

    fn outbound_piece(&mut self, packet: &mut [u8], view: &View) -> Outbound {
        // Later pieces follow the first; one that overtook it is dropped, as by any stateful filter.
        let Some((src, dst, decision)) = self.pieces.get(&piece_key(packet, view)).copied() else {
            return Outbound::Drop;
        };
        packet::rewrite(packet, view, src, dst, false);
        decision
    }

    fn decide(
        &mut self,
        view: &View,
        src: SocketAddr,
        dst: SocketAddr,
        now: u64,
    ) -> (Outbound, SocketAddr, SocketAddr) {
        let protocol = view.protocol;
        if let Some((new_src, new_dst, last)) = self.hairpins.get_mut(&(protocol, src, dst)) {
            *last = now;
            return (Outbound::Loop, *new_src, *new_dst);
        }
        let front = (dst, protocol);
        if let Some(wire) = self.translated.get(&(protocol, src, dst)).copied() {
            if self.reusable(&wire, view, front, now) {
                self.touch(&wire, view, true, now);
                return (Outbound::Send(wire.remote.ip()), wire.local, wire.remote);
            }
            self.forget(&wire);
        }
        let endpoint = match self.services.choose(src.ip(), front, now, self.random) {
            Choice::NotAService => {
                let wire = Wire { protocol, local: src, remote: dst };
                let known = self.flows.get(&wire).filter(|f| !f.expired(protocol, now)).map(|f| f.service);
                if known.is_none() && !self.policy.lets_out(dst.ip(), protocol, dst.port()) {
                    return (Outbound::Drop, src, dst);
                }
                // A service's connection looks like this one on the wire: this one gets another port.
                let (wire, service) = if known.flatten().is_some() {
                    let Some(other) = self.free_wire(protocol, src, dst, now) else {
                        return (Outbound::Drop, src, dst);
                    };
                    (other, Some(Translation { client: src, service: dst }))
                } else {
                    (wire, None)
                };
                self.track(wire, service, now);
                self.touch(&wire, view, true, now);
                return (Outbound::Send(dst.ip()), wire.local, wire.remote);
            }
            Choice::Refused => return (Outbound::Refuse, src, dst),
            Choice::Endpoint(endpoint) => endpoint,
        };
        self.random();
        if self.addresses.contains(&endpoint.ip()) {
            // From the service's address with the client's port, so that the answer comes back here.
            let seen = SocketAddr::new(dst.ip(), src.port());
            self.hairpins.insert((protocol, src, dst), (seen, endpoint, now));
            self.hairpins.insert((protocol, endpoint, seen), (dst, src, now));
            return (Outbound::Loop, seen, endpoint);
        }
        if !self.policy.lets_out(endpoint.ip(), protocol, endpoint.port()) {
            return (Outbound::Drop, src, dst);
        }
        let Some(wire) = self.free_wire(protocol, src, endpoint, now) else { return (Outbound::Drop, src, dst) };
        self.track(wire, Some(Translation { client: src, service: dst }), now);
        self.touch(&wire, view, true, now);
        (Outbound::Send(endpoint.ip()), wire.local, endpoint)
    }

    /// Whether a translated connection goes on with the endpoint it has.
    fn reusable(&self, wire: &Wire, view: &View, front: (SocketAddr, u8), now: u64) -> bool {
        let Some(flow) = self.flows.get(wire) else { return false };
        let begins = view.protocol == proto::TCP && view.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        // A new connection from the port of an old one, or a first packet repeated to who is no endpoint any more.
        let over = begins && (flow.closing || flow.heard_remote);
        // (Not a service: a direct connection that was given another port.)
        let stale =
            front.0 != wire.remote && !self.services.has(front, wire.remote) && (view.protocol != proto::TCP || begins);
        !over && !stale && !flow.expired(wire.protocol, now)
    }

    /// The pod's own port on the wire, or another when two services lead one port to one endpoint.
    fn free_wire(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr, now: u64) -> Option<Wire> {
        let mut wire = Wire { protocol, local, remote };
        for _ in 0..64 {
            match self.flows.get(&wire) {
                Some(flow) if !flow.expired(protocol, now) => {}
                Some(_) => {
                    self.forget(&wire);
                    return Some(wire);
                }
                None => return Some(wire),
            }
            let port = u16::try_from(self.random() % 64_000).unwrap_or(0) + 1024;
            wire.local.set_port(port);
        }
        None
    }

    fn track(&mut self, wire: Wire, service: Option<Translation>, now: u64) {
        if let Some(flow) = self.flows.get(&wire)
            && flow.service == service
            && !flow.expired(wire.protocol, now)
        {
            return;
        }
        if self.flows.len() >= MAX_FLOWS {
            self.make_room();
        }
        if let Some(t) = service {
            self.translated.insert((wire.protocol, t.client, t.service), wire);
        }
        self.flows.insert(wire, Flow { service, heard_local: false, heard_remote: false, closing: false, last: now });
    }

    fn touch(&mut self, wire: &Wire, view: &View, from_pod: bool, now: u64) {
        if let Some(flow) = self.flows.get_mut(wire) {
            flow.touch(view, from_pod, now);
        }
    }

    fn forget(&mut self, wire: &Wire) {
        if let Some(t) = self.flows.remove(wire).and_then(|f| f.service) {
            self.translated.remove(&(wire.protocol, t.client, t.service));
        }
    }

    /// Decides on a packet from a peer and rewrites it; true: it is for the pod. Its transport checksum is not looked
    /// at: the caller makes it partial or completes it afterwards.
    pub(crate) fn inbound(&mut self, packet: &mut [u8], view: &View, now: u64) -> bool {
        self.sweep(now);
        if !self.addresses.contains(&view.dst) {
            return false;
        }
        if view.fragment == Fragment::Later {
            return matches!(self.outbound_piece(packet, view), Outbound::Loop);
        }
        let wire = Wire { protocol: view.protocol, local: view.destination(), remote: view.source() };
        // One look-up for all but a connection's first packet: this runs once for each piece of a stream.
        let (accepted, src, dst) = match self.flows.get_mut(&wire) {
            Some(flow) if !flow.expired(view.protocol, now) => {
                flow.touch(view, false, now);
                match flow.service {
                    Some(t) => (true, t.service, t.client),
                    None => (true, wire.remote, wire.local),
                }
            }
            _ if is_icmp_error(packet, view) => (self.undo_quoted(packet, view), wire.remote, wire.local),
            _ => {
                let admitted = self.policy.admits(view.src, view.protocol, view.dst_port);
                if admitted {
                    self.track(wire, None, now);
                    self.touch(&wire, view, false, now);
                }
                (admitted, wire.remote, wire.local)
            }
        };
        if accepted && (src, dst) != (view.source(), view.destination()) {
            packet::rewrite(packet, view, src, dst, false);
        }
        if view.fragment == Fragment::First {
            if self.pieces.len() >= MAX_FRAGMENTED {
                self.pieces.clear();
            }
            let key = piece_key_of(packet, view, wire.remote.ip(), wire.local.ip());
            self.pieces.insert(key, (src, dst, if accepted { Outbound::Loop } else { Outbound::Drop }));
        }
        accepted
    }

    /// An ICMP error quotes what the pod sent as it was on the wire: give it back as the pod knows it. True when it is
    /// about a connection that is known.
    fn undo_quoted(&self, packet: &mut [u8], view: &View) -> bool {
        let from = view.transport + 8;
        let Some(quoted) = packet.get(from..view.total) else { return false };
        // The quotation is shorter than its own length field: parse as much as is there.
        let mut patched = quoted.to_vec();
        let length = patched.len();
        if patched.first().is_some_and(|b| b >> 4 == 4) {
            packet::set_word(&mut patched, 2, u16::try_from(length).unwrap_or(0));
        } else {
            packet::set_word(&mut patched, 4, u16::try_from(length.saturating_sub(40)).unwrap_or(0));
        }
        let Some(inner) = packet::parse(&patched) else { return false };
        let wire = Wire { protocol: inner.protocol, local: inner.source(), remote: inner.destination() };
        let Some(flow) = self.flows.get(&wire) else { return false };
        if let (Some(t), Some(quoted)) = (flow.service, packet.get_mut(from..view.total)) {
            packet::rewrite(quoted, &inner, t.client, t.service, false);
            super::refuse::fix_icmp(packet, view);
        }
        true
    }

    /// Forgets datagram connections to endpoints that a service no longer has: the next packet chooses anew.
    pub(crate) fn services_changed(&mut self) {
        let gone: Vec<Wire> = self
            .flows
            .iter()
            .filter(|(wire, flow)| {
                let stale = flow.service.is_some_and(|t| {
                    t.service != wire.remote && !self.services.has((t.service, wire.protocol), wire.remote)
                });
                stale && (wire.protocol != proto::TCP || !flow.heard_remote)
            })
            .map(|(wire, _)| *wire)
            .collect();
        gone.iter().for_each(|wire| self.forget(wire));
        let services = &self.services;
        // Only the side that starts names the service; its answers go with it.
        let stale: Vec<_> = self
            .hairpins
            .iter()
            .filter(|((p, _, dst), (_, endpoint, _))| {
                *p != proto::TCP && services.is_front((*dst, *p)) && !services.has((*dst, *p), *endpoint)
            })
            .map(|((p, src, dst), (seen, endpoint, _))| [(*p, *src, *dst), (*p, *endpoint, *seen)])
            .collect();
        for key in stale.into_iter().flatten() {
            self.hairpins.remove(&key);
        }
    }

    fn sweep(&mut self, now: u64) {
        if now.saturating_sub(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let over: Vec<Wire> = self.flows.iter().filter(|(w, f)| f.expired(w.protocol, now)).map(|(w, _)| *w).collect();
        over.iter().for_each(|wire| self.forget(wire));
        self.hairpins.retain(|_, (_, _, last)| now.saturating_sub(*last) <= lifetime::ESTABLISHED);
        self.pieces.clear();
    }

    /// A full table: an eighth goes, the quietest first, those that never were answered before the others.
    fn make_room(&mut self) {
        let mut all: Vec<(bool, u64, Wire)> =
            self.flows.iter().map(|(w, f)| (f.heard_local && f.heard_remote && !f.closing, f.last, *w)).collect();
        all.sort_unstable_by_key(|(alive, last, _)| (*alive, *last));
        for (_, _, wire) in all.iter().take(MAX_FLOWS / 8) {
            self.forget(wire);
        }
    }

    /// Connections remembered now.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.flows.len()
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

/// Destination unreachable, packet too big, time exceeded, parameter problem.
fn is_icmp_error(packet: &[u8], view: &View) -> bool {
    let kind = packet.get(view.transport).copied();
    match (view.protocol, kind) {
        (proto::ICMP, Some(kind)) => matches!(kind, 3 | 11 | 12),
        (proto::ICMPV6, Some(kind)) => (1..=4).contains(&kind),
        _ => false,
    }
}

fn piece_key(packet: &[u8], view: &View) -> PieceKey {
    piece_key_of(packet, view, view.src, view.dst)
}

fn piece_key_of(packet: &[u8], view: &View, src: IpAddr, dst: IpAddr) -> PieceKey {
    let id = if view.src.is_ipv4() {
        u32::from(packet::word(packet, 4).unwrap_or(0))
    } else {
        // The fragment header ends where the transport header starts.
        let at = view.transport.saturating_sub(4);
        packet.get(at..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_be_bytes(*b))
    };
    (src, dst, view.protocol, id)
}

#[cfg(test)]
mod tests;
