//! The datapath's thread: moves packets between TUN, UDP, local socket and the pure parts. It owns all of their state;
//! others send it [`Command`]s. It wakes for packets, commands and, while peers are talked to, once a second. When nothing has
//! come for a while, the process gives back memory and then sleeps until something comes.

use super::batch::Batch;
use super::bulk;
use super::coalesce::Coalescer;
use super::keys::{self, PublicKey};
use super::outward::{self, Offered, Way};
use super::packet::{self, View};
use super::peers::{Lookup, Peers};
use super::pipeline::{Outbound, Pipeline};
use super::policy::{Cidr, Policy};
use super::port::{LocalPort, Received, UdpPort, local_path};
use super::refuse;
use super::segment::Segments;
use super::vnet::{self, Header};
use super::wait::{Ready, Sources, Wait};
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet as WireGuard, TunnResult};
use hpk_api::link::{NetQuestion, NetUpdate};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Packets taken from one source before the others are looked at.
const TURN: usize = 16;
/// A frame: virtio header and the largest IP packet.
const FRAME: usize = vnet::LEN + 65_536;
/// A peer not talked to for so long needs no timers: longer than WireGuard's keep-alive and rekey timeouts together.
const QUIET: Duration = Duration::from_secs(30);
/// How often timers are looked at while some run.
const TICK: Duration = Duration::from_secs(1);
/// A peer that was sent to, but not heard for so long, may have moved: ask.
const SILENT: Duration = Duration::from_secs(6);
/// Bytes that WireGuard adds to a packet, and the faster cipher too.
const OVERHEAD: usize = 32;
/// Calls of unknown peers that wait for the kubelet's word.
const CALLS: usize = 16;

/// What the engine is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A network fact.
    Fact(NetUpdate),
    /// The link came up: services told from now to [`NetUpdate::ServicesSynced`] are all there are.
    Fresh,
    /// The pod's TUN.
    Tun { fd: OwnedFd, vnet_hdr: bool },
    /// The way out of the cluster that was asked for.
    Outward(Option<Way>),
    /// End the thread.
    Stop,
}

/// What it is made with.
pub(crate) struct Setup {
    pub(crate) addresses: Vec<IpAddr>,
    /// Addresses that pods have.
    pub(crate) pod_range: Vec<Cidr>,
    /// Addresses that services have.
    pub(crate) service_range: Vec<Cidr>,
    /// Where a way out of the cluster is asked for.
    pub(crate) outward: Option<tokio::sync::mpsc::Sender<()>>,
    /// Whether that way knows IPv6.
    pub(crate) outward_ipv6: bool,
    pub(crate) udp: UdpPort,
    pub(crate) local: Option<LocalPort>,
    /// Folder of the local sockets.
    pub(crate) folder: PathBuf,
    pub(crate) peers: Peers,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) questions: tokio::sync::mpsc::Sender<NetQuestion>,
    pub(crate) seed: u64,
}

/// Counts for people who look.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    refused: u64,
    dropped: u64,
}

/// The thread's state.
pub(crate) struct Engine {
    pipeline: Pipeline,
    pod_range: Vec<Cidr>,
    service_range: Vec<Cidr>,
    ask_outward: Option<tokio::sync::mpsc::Sender<()>>,
    outward_ipv6: bool,
    outward: outward::State,
    tun: Option<OwnedFd>,
    vnet: bool,
    udp: UdpPort,
    own: Option<SocketAddr>,
    local: Option<LocalPort>,
    folder: PathBuf,
    peers: Peers,
    commands: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    questions: tokio::sync::mpsc::Sender<NetQuestion>,
    batch: Batch,
    coalescer: Coalescer,
    piece: Vec<u8>,
    began: Instant,
    now: Instant,
    ticked: Instant,
    /// Handshakes of peers not yet known, by key.
    calls: Vec<(PublicKey, Vec<u8>, Option<IpAddr>)>,
    /// Services told since the link came up.
    told: HashSet<String>,
    wait: Wait,
    counters: Counters,
}

impl Engine {
    pub(crate) fn new(setup: Setup) -> Self {
        let now = Instant::now();
        Self {
            pipeline: Pipeline::new(setup.addresses, setup.seed),
            pod_range: setup.pod_range,
            service_range: setup.service_range,
            ask_outward: setup.outward,
            outward_ipv6: setup.outward_ipv6,
            outward: outward::State::default(),
            tun: None,
            vnet: true,
            own: setup.udp.address().ok(),
            udp: setup.udp,
            local: setup.local,
            folder: setup.folder,
            peers: setup.peers,
            commands: setup.commands,
            wake: setup.wake,
            questions: setup.questions,
            batch: Batch::new(),
            coalescer: Coalescer::default(),
            piece: Vec::new(),
            began: now,
            now,
            ticked: now,
            calls: Vec::new(),
            told: HashSet::new(),
            wait: Wait::new(now),
            counters: Counters::default(),
        }
    }

    /// Until [`Command::Stop`], the other side's end, or the TUN's.
    pub(crate) fn run(mut self) {
        let (mut frame, mut plain) = (Vec::new(), Vec::new());
        loop {
            let Some(ready) = self.wait([&mut frame, &mut plain]) else { return };
            self.now = Instant::now();
            // No work, but after a long rest.
            frame.resize(FRAME, 0);
            plain.resize(FRAME, 0);
            if ready.commands && !self.obey(&mut plain) {
                return;
            }
            if ready.tun && !self.take_from_pod(&mut frame, &mut plain) {
                // The pod's namespace is gone, and the pod with it.
                return;
            }
            if ready.udp {
                self.take_from_network(&mut frame, &mut plain);
            }
            if ready.local {
                self.take_from_neighbours(&mut frame);
            }
            if ready.outward {
                self.take_from_outside(&mut plain);
            }
            if self.now.duration_since(self.ticked) >= TICK {
                self.tick(&mut plain);
            }
        }
    }

    fn wait(&mut self, frames: [&mut Vec<u8>; 2]) -> Option<Ready> {
        let busy = self.peers.is_asking() || !self.peers.active(self.now, QUIET).is_empty();
        if self.wait.rests(self.now, busy) {
            // All of them are empty between two turns.
            (self.batch, self.coalescer, self.piece) = (Batch::new(), Coalescer::default(), Vec::new());
            frames.into_iter().for_each(|frame| *frame = Vec::new());
        }
        let sources = Sources {
            wake: self.wake.as_fd(),
            udp: self.udp.as_fd(),
            tun: self.tun.as_ref().map(AsFd::as_fd),
            local: self.local.as_ref().map(AsFd::as_fd),
            outward: match &self.outward {
                outward::State::Open(link) => Some((link.as_fd(), link.is_full())),
                _ => None,
            },
        };
        self.wait.wait(&sources, self.now, busy.then(|| TICK.saturating_sub(self.ticked.elapsed())))
    }

    /// Seconds since the start, for the pure parts.
    fn seconds(&self) -> u64 {
        self.now.duration_since(self.began).as_secs()
    }

    fn ask(&self, question: NetQuestion) {
        // A full queue: the question is repeated by time.
        let _ = self.questions.try_send(question);
    }

    // ---- from the control side

    fn obey(&mut self, scratch: &mut [u8]) -> bool {
        let _ = self.wake.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Tun { fd, vnet_hdr }) => (self.tun, self.vnet) = (Some(fd), vnet_hdr),
                Ok(Command::Fresh) => self.told.clear(),
                Ok(Command::Outward(way)) => self.open_outward(way),
                Ok(Command::Fact(fact)) => self.learn(fact, scratch),
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn learn(&mut self, fact: NetUpdate, scratch: &mut [u8]) {
        match fact {
            NetUpdate::Service(facts) => {
                self.told.insert(facts.key.clone());
                self.pipeline.services.apply(facts);
                self.pipeline.services_changed();
            }
            NetUpdate::ServiceGone { key } => {
                self.pipeline.services.remove(&key);
                self.pipeline.services_changed();
            }
            NetUpdate::ServicesSynced => {
                self.pipeline.services.retain(&self.told);
                self.pipeline.services_changed();
            }
            NetUpdate::Policy(facts) => self.pipeline.policy = Policy::compile(&facts),
            // The control side's.
            NetUpdate::Relays(_) | NetUpdate::Listeners(_) => {}
            NetUpdate::Peer { ip, endpoint, public_key } => self.meet(ip, endpoint, public_key.as_deref(), scratch),
        }
    }

    fn meet(&mut self, ip: IpAddr, endpoint: Option<SocketAddr>, key: Option<&str>, scratch: &mut [u8]) {
        let key = key.and_then(PublicKey::parse);
        let same_node = self.local.is_some() && endpoint.map(|e| e.ip()) == self.own.map(|o| o.ip());
        let local = same_node.then(|| local_path(&self.folder, ip)).filter(|p| p.exists());
        let (index, waiting) = self.peers.told(ip, endpoint, key, local, self.now);
        let Some(index) = index else { return };
        for frame in waiting {
            self.send_frame(index, &frame, scratch);
        }
        self.flush();
        if let Some(key) = key
            && let Some(at) = self.calls.iter().position(|(k, _, _)| *k == key)
        {
            let (_, call, from) = self.calls.swap_remove(at);
            self.open(index, &call, from, scratch);
        }
    }

    // ---- from the pod

    fn take_from_pod(&mut self, frame: &mut [u8], scratch: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let from = if self.vnet { 0 } else { vnet::LEN };
            let (Some(tun), Some(buffer)) = (&self.tun, frame.get_mut(from..)) else { return true };
            let len = match nix::unistd::read(tun, buffer) {
                Ok(0) => return false,
                Ok(n) => from + n,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                // EBADFD: the device was removed with its namespace.
                Err(_) => return false,
            };
            if from > 0
                && let Some(head) = frame.get_mut(..vnet::LEN)
            {
                head.fill(0);
            }
            if let Some(frame) = frame.get_mut(..len) {
                self.outbound(frame, scratch);
            }
        }
        self.flush();
        self.flush_tun();
        true
    }

    fn outbound(&mut self, frame: &mut [u8], scratch: &mut [u8]) {
        let Some((header, _)) = Header::decode(frame) else { return };
        let Some(bytes) = frame.get_mut(vnet::LEN..) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        let seconds = self.seconds();
        match self.pipeline.outbound(bytes, &view, header.needs_checksum, seconds) {
            Outbound::Drop => self.counters.dropped += 1,
            Outbound::Refuse => self.answer_refusal(bytes, &view),
            // Straight back, uncut as it came: addresses are changed, the virtio header still fits.
            Outbound::Loop => self.write_frame(frame),
            Outbound::Send(ip) => {
                if !self.pod_range.iter().any(|range| range.contains(ip)) {
                    return self.out_of_cluster(ip, frame);
                }
                match self.peers.lookup(ip, frame, self.now) {
                    Lookup::Peer(index) => self.send_frame(index, frame, scratch),
                    Lookup::Wait { ask: true } => self.ask(NetQuestion::Peer { ip }),
                    Lookup::Wait { ask: false } | Lookup::Absent => {}
                }
            }
        }
    }

    fn answer_refusal(&mut self, bytes: &[u8], view: &View) {
        self.counters.refused += 1;
        if let Some(answer) = refuse::refuse(bytes, view) {
            let mut frame = vec![0; vnet::LEN];
            frame.extend_from_slice(&answer);
            self.write_frame(&frame);
        }
    }

    // ---- to and from the world

    /// A frame for an address that is no pod's.
    fn out_of_cluster(&mut self, ip: IpAddr, frame: &[u8]) {
        let way = self.ask_outward.is_some() && (ip.is_ipv4() || self.outward_ipv6);
        if !way || self.service_range.iter().any(|range| range.contains(ip)) {
            return self.no_way(frame);
        }
        match self.outward.offer(frame, self.now) {
            Offered::Send => self.send_outward(frame),
            Offered::Wait { ask: true } => {
                if let Some(ask) = &self.ask_outward {
                    // Full: asked already.
                    let _ = ask.try_send(());
                }
            }
            Offered::Wait { ask: false } => {}
            Offered::Refuse => self.no_way(frame),
        }
    }

    fn no_way(&mut self, frame: &[u8]) {
        self.counters.refused += 1;
        let Some(bytes) = frame.get(vnet::LEN..) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        if let Some(answer) = refuse::no_way(bytes, &view) {
            let mut frame = vec![0; vnet::LEN];
            frame.extend_from_slice(&answer);
            self.write_frame(&frame);
        }
    }

    fn open_outward(&mut self, way: Option<Way>) {
        for frame in self.outward.answered(way, self.now) {
            match self.outward {
                outward::State::Open(_) => self.send_outward(&frame),
                _ => self.no_way(&frame),
            }
        }
    }

    /// Cut and with checksums: behind the stack are others than datapaths.
    fn send_outward(&mut self, frame: &[u8]) {
        let Some((header, bytes)) = Header::decode(frame) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        let Some(link) = self.outward.link() else { return };
        let mut piece = std::mem::take(&mut self.piece);
        let mut segments = Segments::new(bytes, &view, &header);
        let mut alive = true;
        while let Some(len) = segments.next_len().filter(|_| alive) {
            piece.resize(len, 0);
            segments.write_next(&mut piece);
            if let Some(view) = packet::parse(&piece) {
                packet::complete(&mut piece, &view);
            }
            alive = link.send(&piece);
        }
        self.piece = piece;
        if !alive {
            self.outward = outward::State::shut(self.now);
        }
    }

    fn take_from_outside(&mut self, plain: &mut [u8]) {
        for _ in 0..TURN {
            let Some(link) = self.outward.link() else { return };
            let alive = link.flush() && link.receive();
            if !alive {
                self.outward = outward::State::shut(self.now);
                break;
            }
            let mut any = false;
            while let Some(len) = self.outward.link().and_then(|link| link.next(plain)) {
                any = true;
                self.deliver(plain.get(..len).unwrap_or_default());
            }
            if !any {
                break;
            }
        }
        self.flush_tun();
    }

    /// A frame (virtio header and packet) to a peer.
    fn send_frame(&mut self, index: usize, frame: &[u8], scratch: &mut [u8]) {
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
        let mut bulk = peer.bulk.as_mut().filter(|_| peer.tunnel.is_some());
        let past_tunnel = bulk.as_mut().is_some_and(|bulk| bulk.carries(now));
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
            if let (true, Some(bulk)) = (past_tunnel, &mut bulk) {
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

    fn flush(&mut self) {
        send_batch(&mut self.batch, &mut self.udp);
    }

    // ---- from other nodes

    fn take_from_network(&mut self, buffer: &mut [u8], plain: &mut [u8]) {
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
    fn open(&mut self, index: usize, datagram: &[u8], from: Option<IpAddr>, plain: &mut [u8]) {
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
                    let answer = peer.bulk.as_mut().and_then(|bulk| bulk.hear(bytes, now));
                    return self.offer_bulk(index, answer, plain);
                }
                TunnResult::WriteToTunnelV4(bytes, source) => {
                    self.deliver_from(index, source.into(), bytes);
                    return self.offer_bulk(index, None, plain);
                }
                TunnResult::WriteToTunnelV6(bytes, source) => {
                    self.deliver_from(index, source.into(), bytes);
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
        let Some(bulk) = self.peers.get(index).and_then(|peer| peer.bulk.as_mut()) else { return };
        let Some(packet) = bulk.open(message) else { return };
        let Some(view) = packet::parse(packet) else { return };
        self.deliver_from(index, view.src, packet);
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
                if self.pod_range.iter().any(|r| r.contains(view.src)) {
                    self.ask(NetQuestion::Peer { ip: view.src });
                }
                return;
            }
        }
        self.gather(datagram, &view);
    }

    /// An authentic packet of a peer, if it is from an address of his.
    fn deliver_from(&mut self, index: usize, source: IpAddr, packet: &[u8]) {
        let now = self.now;
        let Some(peer) = self.peers.get(index).filter(|peer| peer.ips.contains(&source)) else { return };
        (peer.active, peer.heard) = (now, now);
        self.deliver(packet);
    }

    /// An authentic packet, to the pod if it may.
    fn deliver(&mut self, packet: &[u8]) {
        if let Some(view) = packet::parse(packet) {
            self.gather(packet, &view);
        }
    }

    fn gather(&mut self, packet: &[u8], view: &View) {
        if !self.coalescer.push(packet, view) {
            self.flush_tun();
            self.coalescer.push(packet, view);
        }
        if !self.vnet {
            self.flush_tun();
        }
    }

    fn flush_tun(&mut self) {
        let seconds = self.seconds();
        let (pipeline, counters) = (&mut self.pipeline, &mut self.counters);
        let admit = |packet: &mut [u8], view: &View| {
            let admitted = pipeline.inbound(packet, view, seconds);
            counters.dropped += u64::from(!admitted);
            admitted
        };
        if let (Some(bytes), Some(tun)) = (self.coalescer.finish(self.vnet, admit), &self.tun) {
            // A full queue inside the pod drops, as any.
            let _ = nix::unistd::write(tun, bytes);
        }
    }

    /// A frame that needs no joining: as it is.
    fn write_frame(&mut self, frame: &[u8]) {
        let from = if self.vnet { 0 } else { vnet::LEN };
        if let (Some(tun), Some(bytes)) = (&self.tun, frame.get(from..)) {
            let _ = nix::unistd::write(tun, bytes);
        }
    }

    // ---- from pods on this node

    fn take_from_neighbours(&mut self, frame: &mut [u8]) {
        for _ in 0..TURN {
            let Some(len) = self.local.as_ref().and_then(|l| l.receive(frame)) else { break };
            let Some(frame) = frame.get_mut(..len) else { break };
            let Some((mut header, _)) = Header::decode(frame) else { continue };
            let Some(bytes) = frame.get_mut(vnet::LEN..) else { continue };
            let Some(view) = packet::parse(bytes) else { continue };
            let seconds = self.seconds();
            if !self.pipeline.inbound(bytes, &view, seconds) {
                self.counters.dropped += 1;
                continue;
            }
            let Some(view) = packet::parse(bytes) else { continue };
            if !self.vnet {
                packet::complete(bytes, &view);
            } else if packet::make_partial(bytes, &view) {
                header.needs_checksum = true;
                header.csum_start = u16::try_from(view.transport).unwrap_or(0);
                header.csum_offset = if view.protocol == packet::proto::TCP { 16 } else { 6 };
            }
            if let Some(head) = frame.first_chunk_mut::<{ vnet::LEN }>() {
                *head = header.encode();
            }
            self.write_frame(frame);
        }
    }

    // ---- time

    fn tick(&mut self, scratch: &mut [u8]) {
        self.ticked = self.now;
        if let Some(limiter) = self.peers.limiter() {
            limiter.reset_count();
        }
        for ip in self.peers.overdue(self.now) {
            self.ask(NetQuestion::Peer { ip });
        }
        for index in self.peers.active(self.now, QUIET) {
            self.tick_peer(index, scratch);
            let now = self.now;
            let Some(peer) = self.peers.get(index) else { continue };
            if peer.active > peer.heard && now.duration_since(peer.heard) >= SILENT {
                peer.heard = now;
                if let Some(ip) = peer.ips.first().copied() {
                    self.ask(NetQuestion::Peer { ip });
                }
            }
        }
    }

    fn tick_peer(&mut self, index: usize, scratch: &mut [u8]) {
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
