//! To and from pods of other nodes: tunnels, the faster cipher beside them, and packets in the clear.

use super::{Engine, QUIET, TICK, TURN};
use crate::datapath::batch::Batch;
use crate::datapath::bulk;
use crate::datapath::keys::{self, PublicKey};
use crate::datapath::packet;
use crate::datapath::port::{Received, UdpPort};
use crate::datapath::segment::Segments;
use crate::datapath::vnet::Header;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet as WireGuard, TunnResult};
use hpk_api::link::NetQuestion;
use std::net::IpAddr;

/// Bytes that WireGuard adds to a packet, and the faster cipher too.
const OVERHEAD: usize = 32;
/// Calls of unknown peers that wait for the kubelet's word.
const CALLS: usize = 16;

impl Engine {
    /// A frame (virtio header and packet) to a peer.
    pub(super) fn send_frame(&mut self, index: usize, frame: &[u8], scratch: &mut [u8]) {
        let now = self.now;
        let Some(peer) = self.peers.get(index) else { return };
        let idle = now.duration_since(peer.ticked) >= TICK;
        if now.duration_since(peer.active) >= QUIET {
            // Silence before this packet is nobody's fault.
            peer.heard = now;
        }
        peer.active = now;
        if let (Some(path), Some(port)) = (&peer.local, &self.local) {
            if port.send(frame, path) {
                peer.heard = now;
                return;
            }
            peer.local = None;
        }
        if idle {
            // Timers did not run while nothing was said: a session may have died of age.
            self.tick_peer(index, scratch);
        }
        let Some((header, bytes)) = Header::decode(frame) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        let Some(peer) = self.peers.get(index) else { return };
        let to = peer.endpoint;
        let mut bulk = peer.bulk.as_mut();
        if !bulk.as_mut().is_some_and(|bulk| bulk.carries(now)) {
            bulk = None;
        }
        let mut segments = Segments::new(bytes, &view, &header);
        while let Some(len) = segments.next_len() {
            let need = len + if peer.tunnel.is_some() { OVERHEAD } else { 0 };
            if !self.batch.accepts(to, need) {
                send_batch(&mut self.batch, &mut self.udp);
            }
            let Some(tunnel) = &mut peer.tunnel else {
                if let Some(place) = self.batch.space(len).get_mut(..len) {
                    segments.write_next(place);
                }
                self.batch.commit(to, len);
                continue;
            };
            if let Some(bulk) = &mut bulk {
                let Some(message) = self.batch.space(need).get_mut(..need) else { return };
                let Some(place) = message.get_mut(bulk::HEAD..bulk::HEAD + len) else { return };
                segments.write_next(place);
                if !bulk.seal(message) {
                    return;
                }
                self.batch.commit(to, need);
                continue;
            }
            self.piece.resize(len, 0);
            segments.write_next(&mut self.piece);
            if let TunnResult::WriteToNetwork(message) = tunnel.encapsulate(&self.piece, self.batch.space(need)) {
                // A handshake instead of the data (which waits inside) goes by itself.
                let (len, handshake) = (message.len(), message.first() != Some(&4));
                self.batch.commit(to, len);
                if handshake {
                    send_batch(&mut self.batch, &mut self.udp);
                }
            }
        }
    }

    pub(super) fn flush(&mut self) {
        send_batch(&mut self.batch, &mut self.udp);
    }

    pub(super) fn take_from_network(&mut self, buffer: &mut [u8], plain: &mut [u8]) {
        for _ in 0..TURN {
            let Some(Received { len, size, from }) = self.udp.receive(buffer) else { break };
            for datagram in buffer.get_mut(..len).unwrap_or_default().chunks_mut(size) {
                self.datagram(datagram, from, plain);
            }
        }
        self.flush_tun();
    }

    fn datagram(&mut self, datagram: &mut [u8], from: Option<IpAddr>, plain: &mut [u8]) {
        let Some(keys) = self.peers.keys() else {
            return self.clear_packet(datagram, from);
        };
        if let Some(index) = bulk::receiver(datagram) {
            return self.open_bulk(slot(index), datagram);
        }
        match boringtun::noise::Tunn::parse_incoming_packet(datagram) {
            Ok(WireGuard::PacketData(data)) => self.open(slot(data.receiver_idx), datagram, from, plain),
            Ok(WireGuard::HandshakeResponse(response)) => self.open(slot(response.receiver_idx), datagram, from, plain),
            Ok(WireGuard::PacketCookieReply(reply)) => self.open(slot(reply.receiver_idx), datagram, from, plain),
            Ok(WireGuard::HandshakeInit(_)) => {
                // Its first authentication code shows that the caller knows our key: before that, nothing is computed.
                let mut cookie = [0; 64];
                let limiter = self.peers.limiter().cloned();
                let Some(Ok(WireGuard::HandshakeInit(init))) =
                    limiter.map(|l| l.verify_packet(from, datagram, &mut cookie))
                else {
                    return;
                };
                let (private, public) = (keys.private(), *keys.public());
                let Ok(half) = parse_handshake_anon(&private, &public, &init) else { return };
                let key = PublicKey::new(half.peer_static_public);
                match self.peers.by_key(&key) {
                    Some(index) => self.open(index, datagram, from, plain),
                    None => {
                        self.calls.retain(|(k, _, _)| *k != key);
                        if self.calls.len() >= CALLS {
                            self.calls.remove(0);
                        }
                        self.calls.push((key, datagram.to_vec(), from));
                        self.ask(NetQuestion::PeerByKey { public_key: key.text() });
                    }
                }
            }
            Err(_) => {}
        }
    }

    /// A WireGuard message of a known peer.
    pub(super) fn open(&mut self, index: usize, datagram: &[u8], from: Option<IpAddr>, plain: &mut [u8]) {
        let now = self.now;
        let Some(peer) = self.peers.get(index) else { return };
        if now.duration_since(peer.ticked) >= TICK {
            // The tunnel takes its time from its last look at the clock. After a silence that is long past, and a
            // session made now would be dated back to it and die of age at the next look.
            self.tick_peer(index, plain);
        }
        let Some(peer) = self.peers.get(index) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let mut message = datagram;
        loop {
            match tunnel.decapsulate(from, message, plain) {
                TunnResult::WriteToNetwork(answer) => {
                    self.udp.send(answer, None, peer.endpoint);
                    (peer.active, peer.heard) = (now, now);
                    // Asked again with nothing, it gives what waited for the session.
                    message = &[];
                }
                TunnResult::WriteToTunnelV4(bytes, source) if source.is_unspecified() => {
                    // No pod's: it is the other datapath that speaks.
                    peer.heard = now;
                    let answer = peer.bulk.as_mut().and_then(|bulk| bulk.hear(bytes, now, keys::fresh));
                    return self.offer_bulk(index, answer, plain);
                }
                TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
                    self.deliver_from(index, bytes);
                    return self.offer_bulk(index, None, plain);
                }
                TunnResult::Done => {
                    peer.heard = now;
                    return self.offer_bulk(index, None, plain);
                }
                TunnResult::Err(_) => return,
            }
        }
    }

    /// A message past the tunnel of a peer.
    fn open_bulk(&mut self, index: usize, message: &mut [u8]) {
        let now = self.now;
        let Some(bulk) = self.peers.get(index).and_then(|peer| peer.bulk.as_mut()) else { return };
        let Some(packet) = bulk.open(message, now) else { return };
        self.deliver_from(index, packet);
    }

    /// Says through the tunnel what the other is to know of our keys; `answer`: that it asked for.
    fn offer_bulk(&mut self, index: usize, answer: Option<bulk::Offer>, scratch: &mut [u8]) {
        let now = self.now;
        let Some(peer) = self.peers.get(index) else { return };
        let (Some(bulk), Some(tunnel)) = (&mut peer.bulk, &mut peer.tunnel) else { return };
        let Some(offer) = answer.or_else(|| bulk.offer(now, keys::fresh)) else { return };
        if let TunnResult::WriteToNetwork(message) = tunnel.encapsulate(&offer, scratch) {
            self.udp.send(message, None, peer.endpoint);
        }
    }

    /// A packet as it is: from whom its source address says, when he says it from where he is.
    fn clear_packet(&mut self, datagram: &[u8], from: Option<IpAddr>) {
        let Some(view) = packet::parse(datagram) else { return };
        let now = self.now;
        match self.peers.index_of(view.src).and_then(|index| self.peers.get(index)) {
            Some(peer) if Some(peer.endpoint.ip()) == from => (peer.active, peer.heard) = (now, now),
            Some(_) => return,
            None => {
                // Asked, not believed: the next packet finds the answer.
                if self.pod_range.iter().any(|r| r.contains(&view.src)) {
                    self.ask(NetQuestion::Peer { ip: view.src });
                }
                return;
            }
        }
        self.gather(datagram, &view);
    }

    /// An authentic packet of a peer, if it is from an address of his.
    fn deliver_from(&mut self, index: usize, packet: &[u8]) {
        let now = self.now;
        let Some(view) = packet::parse(packet) else { return };
        let Some(peer) = self.peers.get(index).filter(|peer| peer.ips.contains(&view.src)) else { return };
        (peer.active, peer.heard) = (now, now);
        self.gather(packet, &view);
    }

    pub(super) fn tick_peer(&mut self, index: usize, scratch: &mut [u8]) {
        let now = self.now;
        let Some(peer) = self.peers.get(index) else { return };
        peer.ticked = now;
        let Some(tunnel) = &mut peer.tunnel else { return };
        match tunnel.update_timers(scratch) {
            TunnResult::WriteToNetwork(message) => self.udp.send(message, None, peer.endpoint),
            TunnResult::Err(_) => self.peers.reset(index),
            _ => {}
        }
    }
}

/// The peer whose session a receiver index names (boringtun counts sessions in the low byte).
fn slot(index: u32) -> usize {
    usize::try_from(index >> 8).unwrap_or(usize::MAX)
}

fn send_batch(batch: &mut Batch, udp: &mut UdpPort) {
    if let Some((bytes, size, to)) = batch.take() {
        udp.send(bytes, size, to);
    }
}
