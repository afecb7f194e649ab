//! The datapath's thread: moves packets between TUN, UDP, local socket and the pure parts. It owns all of their state;
//! others send it [`Command`]s. It wakes for packets, commands and, while peers are talked to, once a second. When nothing has
//! come for a while, the process gives back memory and then sleeps until something comes.

mod neighbours;
mod nodes;
mod outside;
mod pod;

use super::batch::Batch;
use super::coalesce::Coalescer;
use super::keys::PublicKey;
use super::outward::{self, Way};
use super::peers::Peers;
use super::pipeline::Pipeline;
use super::policy::Policy;
use super::port::{LocalPort, UdpPort, local_path};
use super::vnet;
use super::wait::{Ready, Sources, Wait};
use hpk_api::link::{NetQuestion, NetUpdate};
use ipnet::IpNet;
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
    pub(crate) pod_range: Vec<IpNet>,
    /// Addresses that services have.
    pub(crate) service_range: Vec<IpNet>,
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
    pod_range: Vec<IpNet>,
    service_range: Vec<IpNet>,
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
            NetUpdate::Sweep | NetUpdate::Relays(_) | NetUpdate::Listeners(_) => {}
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
}
