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
mod tests {
    use super::super::packet::parse;
    use super::super::packet::tests::{build, is_correct};
    use super::super::services::tests::facts;
    use super::*;
    use hpk_api::link::{PolicyFacts, PolicyPeer, PolicyRule, Protocol};
    use proptest::prelude::*;

    const POD: &str = "10.244.0.5";

    fn pipeline() -> Pipeline {
        Pipeline::new(vec![POD.parse().unwrap()], 1)
    }

    fn sock(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn packet(src: &str, dst: &str, protocol: u8, flags: u8) -> Vec<u8> {
        build(sock(src), sock(dst), protocol, flags, b"data")
    }

    /// Decision and the packet's addresses afterwards.
    fn out(p: &mut Pipeline, src: &str, dst: &str, flags: u8, now: u64) -> (Outbound, SocketAddr, SocketAddr) {
        let mut bytes = packet(src, dst, proto::TCP, flags);
        let view = parse(&bytes).unwrap();
        let decision = p.outbound(&mut bytes, &view, false, now);
        assert!(is_correct(&bytes));
        let view = parse(&bytes).unwrap();
        (decision, view.source(), view.destination())
    }

    fn back(
        p: &mut Pipeline,
        src: SocketAddr,
        dst: SocketAddr,
        flags: u8,
        now: u64,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let mut bytes = build(src, dst, proto::TCP, flags, b"data");
        let view = parse(&bytes).unwrap();
        p.inbound(&mut bytes, &view, now).then(|| {
            assert!(is_correct(&bytes));
            let view = parse(&bytes).unwrap();
            (view.source(), view.destination())
        })
    }

    #[test]
    fn a_service_connection_keeps_its_endpoint_both_ways() {
        let mut p = pipeline();
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080", "10.244.1.2:8080"], None));
        let (decision, src, endpoint) = out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
        assert_eq!((decision, src), (Outbound::Send(endpoint.ip()), sock("10.244.0.5:4000")));
        for now in 1..50 {
            assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::ACK, now).2, endpoint);
            assert_eq!(back(&mut p, endpoint, src, tcp::ACK, now), Some((sock("10.96.0.9:80"), src)));
        }
        // An established connection outlives its endpoint's readiness.
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.3:8080"], None));
        p.services_changed();
        assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::ACK, 51).2, endpoint);
        // A new connection from the same port does not.
        assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 52).2, sock("10.244.1.3:8080"));
    }

    #[test]
    fn a_first_packet_repeated_goes_elsewhere_once_its_endpoint_is_gone() {
        let mut p = pipeline();
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None));
        out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.3:8080"], None));
        assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 1).2, sock("10.244.1.3:8080"));
        p.services.apply(facts("d/s", "10.96.0.9", 80, &[], None));
        assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 2).0, Outbound::Refuse);
    }

    #[test]
    fn two_services_on_one_endpoint_do_not_mix() {
        let mut p = pipeline();
        p.services.apply(facts("d/a", "10.96.0.1", 80, &["10.244.1.1:8080"], None));
        p.services.apply(facts("d/b", "10.96.0.2", 80, &["10.244.1.1:8080"], None));
        let (_, direct, _) = out(&mut p, "10.244.0.5:4000", "10.244.1.1:8080", tcp::SYN, 0);
        let (_, a, end) = out(&mut p, "10.244.0.5:4000", "10.96.0.1:80", tcp::SYN, 0);
        let (_, b, _) = out(&mut p, "10.244.0.5:4000", "10.96.0.2:80", tcp::SYN, 0);
        assert!(a != b && a != direct && b != direct);
        assert_eq!(back(&mut p, end, a, tcp::ACK, 1), Some((sock("10.96.0.1:80"), direct)));
        assert_eq!(back(&mut p, end, b, tcp::ACK, 1), Some((sock("10.96.0.2:80"), direct)));
        assert_eq!(back(&mut p, end, direct, tcp::ACK, 1), Some((end, direct)));
    }

    #[test]
    fn a_pod_reaches_itself_through_its_service() {
        let mut p = pipeline();
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.0.5:8080"], None));
        p.policy = Policy::compile(&PolicyFacts { ingress: Some(vec![]), egress: Some(vec![]) });
        let there = out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
        assert_eq!(there, (Outbound::Loop, sock("10.96.0.9:4000"), sock("10.244.0.5:8080")));
        let answer = out(&mut p, "10.244.0.5:8080", "10.96.0.9:4000", tcp::SYN | tcp::ACK, 0);
        assert_eq!(answer, (Outbound::Loop, sock("10.96.0.9:80"), sock("10.244.0.5:4000")));
    }

    #[test]
    fn policy_judges_who_starts_and_answers_pass() {
        let mut p = pipeline();
        p.policy = Policy::compile(&PolicyFacts { ingress: Some(vec![]), egress: None });
        let (peer, pod) = (sock("10.244.1.1:80"), sock("10.244.0.5:4000"));
        assert_eq!(back(&mut p, peer, pod, tcp::SYN, 0), None);
        out(&mut p, "10.244.0.5:4000", "10.244.1.1:80", tcp::SYN, 0);
        assert!(back(&mut p, peer, pod, tcp::SYN | tcp::ACK, 0).is_some());
        // The other way round.
        let only =
            PolicyRule { peers: Some(vec![PolicyPeer { cidr: "10.244.9.9/32".into(), except: vec![] }]), ports: None };
        let mut p = pipeline();
        p.policy = Policy::compile(&PolicyFacts { ingress: None, egress: Some(vec![only]) });
        assert_eq!(out(&mut p, "10.244.0.5:80", "10.244.1.1:4000", tcp::SYN, 0).0, Outbound::Drop);
        assert_eq!(
            out(&mut p, "10.244.0.5:80", "10.244.9.9:4000", tcp::SYN, 0).0,
            Outbound::Send("10.244.9.9".parse().unwrap())
        );
        assert!(back(&mut p, sock("10.244.1.1:4000"), sock("10.244.0.5:80"), tcp::SYN, 0).is_some());
        assert_ne!(out(&mut p, "10.244.0.5:80", "10.244.1.1:4000", tcp::ACK, 0).0, Outbound::Drop);
    }

    #[test]
    fn egress_is_judged_by_the_endpoint() {
        let mut p = pipeline();
        p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None));
        let rule = PolicyRule {
            peers: None,
            ports: Some(vec![hpk_api::link::PolicyPort { protocol: Protocol::Tcp, first: 8080, last: 8080 }]),
        };
        p.policy = Policy::compile(&PolicyFacts { ingress: None, egress: Some(vec![rule]) });
        assert_ne!(out(&mut p, "10.244.0.5:1", "10.96.0.9:80", tcp::SYN, 0).0, Outbound::Drop);
    }

    #[test]
    fn strangers_addresses_go_nowhere() {
        let mut p = pipeline();
        assert_eq!(out(&mut p, "10.244.0.6:1", "10.244.1.1:80", tcp::SYN, 0).0, Outbound::Drop);
        assert_eq!(out(&mut p, "10.244.0.5:1", "224.0.0.1:80", tcp::SYN, 0).0, Outbound::Drop);
        assert_eq!(back(&mut p, sock("10.244.1.1:80"), sock("10.244.0.6:1"), tcp::SYN, 0), None);
    }

    #[test]
    fn pieces_follow_the_first() {
        let mut p = pipeline();
        let mut f = facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None);
        f.ports[0].protocol = Protocol::Udp;
        p.services.apply(f);
        let mut first = packet("10.244.0.5:4000", "10.96.0.9:80", proto::UDP, 0);
        packet::set_word(&mut first, 6, 0x2000);
        packet::fix_v4_header(&mut first);
        let mut later = first.clone();
        packet::set_word(&mut later, 6, 0x0003);
        packet::fix_v4_header(&mut later);
        let mut early = later.clone();
        let view = parse(&early).unwrap();
        assert_eq!(p.outbound(&mut early, &view, false, 0), Outbound::Drop, "overtook the first");
        for bytes in [&mut first, &mut later] {
            let view = parse(bytes).unwrap();
            assert_eq!(p.outbound(bytes, &view, false, 0), Outbound::Send("10.244.1.1".parse().unwrap()));
            assert_eq!(parse(bytes).unwrap().dst, "10.244.1.1".parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn an_icmp_error_is_told_in_the_pods_words() {
        let mut p = pipeline();
        let mut f = facts("d/s", "10.96.0.9", 53, &["10.244.1.1:5353"], None);
        f.ports[0].protocol = Protocol::Udp;
        p.services.apply(f);
        let mut ask = packet("10.244.0.5:4000", "10.96.0.9:53", proto::UDP, 0);
        let original = ask.clone();
        let view = parse(&ask).unwrap();
        p.outbound(&mut ask, &view, false, 0);
        let mut error = super::super::refuse::refuse(&ask, &parse(&ask).unwrap()).unwrap();
        let view = parse(&error).unwrap();
        assert!(p.inbound(&mut error, &view, 0));
        assert_eq!(&error[28..], &original[..]);
        assert_eq!(super::super::checksum::Sum::default().bytes(&error[20..]).folded(), 0xffff);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut p = pipeline();
        for port in 1..1000_u16 {
            out(&mut p, &format!("10.244.0.5:{port}"), "10.244.1.1:80", tcp::SYN, 0);
        }
        assert_eq!(p.len(), 999);
        out(&mut p, "10.244.0.5:1", "10.244.1.2:80", tcp::SYN, lifetime::OPENING + 1);
        assert_eq!(p.len(), 1);
    }

    proptest! {
        /// Whatever the pod sends, an answer to what left is given back as the pod knows it, and no two connections of
        /// the pod look alike on the wire.
        #[test]
        fn answers_find_their_way(sends in proptest::collection::vec((1..6_u16, 0..4_u8, any::<bool>()), 1..60)) {
            let mut p = pipeline();
            p.services.apply(facts("d/a", "10.96.0.1", 80, &["10.244.1.1:8080", "10.244.1.2:8080"], None));
            p.services.apply(facts("d/b", "10.96.0.2", 80, &["10.244.1.1:8080"], Some(60)));
            let targets = ["10.96.0.1:80", "10.96.0.2:80", "10.244.1.1:8080", "10.244.1.2:8080"];
            let mut wires: HashMap<(SocketAddr, SocketAddr), (SocketAddr, SocketAddr)> = HashMap::new();
            for (port, target, syn) in sends {
                let src = format!("10.244.0.5:{port}");
                let dst = targets[usize::from(target)];
                let (decision, wire_src, wire_dst) = out(&mut p, &src, dst, if syn { tcp::SYN } else { tcp::ACK }, 1);
                prop_assert_eq!(decision, Outbound::Send(wire_dst.ip()));
                let logical = (sock(&src), sock(dst));
                wires.retain(|_, l| *l != logical);
                prop_assert_eq!(wires.insert((wire_src, wire_dst), logical), None);
                for ((s, d), (client, service)) in &wires {
                    prop_assert_eq!(back(&mut p, *d, *s, tcp::ACK, 1), Some((*service, *client)));
                }
            }
        }
    }
}
