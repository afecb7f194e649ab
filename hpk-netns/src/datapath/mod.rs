//! The overlay's datapath: packets between the pod's TUN, its peers and its services.
//!
//! ```text
//!   pod's TUN ─▶ engine ─▶ pipeline (services, connections, policy) ─▶ cut ─▶ WireGuard ─▶ UDP, many at once
//!   pod's TUN ◀─ engine ◀─ join ◀─ pipeline ◀──────────────────────────── WireGuard ◀─ UDP, many at once
//! ```
//! Where both ends have instructions for AES, most packets are encrypted with it, by keys told through WireGuard ([`bulk`]).
//! What is neither a pod's nor a service's goes to a user-mode network stack on the node ([`outward`]), after the same
//! services and policy.
//!
//! One thread of its own ([`engine`]) owns all state; everything that decides is pure and tested by properties.
//!
//! Between datapaths transport checksums are not kept: encryption vouches for the bytes between two TUNs, so the
//! receiver hands packets to its kernel as checked, which costs nothing on either side.

mod batch;
mod bulk;
mod checksum;
mod coalesce;
mod engine;
mod flow;
mod keys;
mod outward;
mod packet;
mod peers;
mod pipeline;
mod policy;
mod port;
mod refuse;
mod segment;
mod services;
mod vnet;
mod wait;
mod window;

use engine::{Engine, Setup};
use hpk_api::link::{NetQuestion, NetUpdate};
use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use peers::Peers;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, mpsc};

pub use outward::{Framing, Way};
pub(crate) use port::remove_dead_sockets;

/// What a datapath is made for.
#[derive(Debug)]
pub struct Config<'a> {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Ranges of all pods' addresses.
    pub pod_range: Vec<IpNet>,
    /// This node's address towards others.
    pub node_ip: IpAddr,
    /// Our user's folder on this node, for packets between its pods.
    pub folder: &'a Path,
    /// Ranges of services' addresses: what is none is nobody's, and never the world's.
    pub service_range: Vec<IpNet>,
    /// Asked once for each time that a way out of the cluster is needed: answered by [`Datapath::outward`]. None: there
    /// is none.
    pub outward: Option<tokio::sync::mpsc::Sender<()>>,
    /// Whether that way knows IPv6.
    pub outward_ipv6: bool,
    /// How packets between nodes are protected.
    pub encryption: Encryption,
}

/// How packets between nodes are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    Off,
    /// By WireGuard alone, as where the processor has no instructions for AES.
    WireGuard,
    /// By WireGuard, and by AES-GCM with peers whose processor and ours have instructions for it.
    Fastest,
}

impl Encryption {
    /// By the cluster's choice.
    #[must_use]
    pub fn unless(plaintext: bool) -> Self {
        if plaintext { Self::Off } else { Self::Fastest }
    }
}

/// A running datapath; it ends when this is dropped.
#[derive(Debug)]
pub struct Datapath {
    commands: mpsc::Sender<engine::Command>,
    wake: Arc<EventFd>,
    /// Where peers send to.
    pub endpoint: SocketAddr,
    /// WireGuard key, base64.
    pub public_key: Option<String>,
}

impl Datapath {
    /// Starts the thread. Questions to the kubelet go to `questions`.
    pub fn start(config: Config<'_>, questions: tokio::sync::mpsc::Sender<NetQuestion>) -> io::Result<Self> {
        let udp = port::UdpPort::bind(config.node_ip)?;
        let endpoint = udp.address()?;
        let keys = if config.encryption == Encryption::Off { None } else { Some(keys::Keys::generate()?) };
        let fastest = config.encryption == Encryption::Fastest && bulk::is_fast_here();
        let public_key = keys.as_ref().map(keys::Keys::public_text);
        // Without the shortcut, pods of one node speak as those of two do.
        let local = config.addresses.first().and_then(|ip| port::LocalPort::bind(config.folder, *ip).ok());
        let (commands, obeyed) = mpsc::channel();
        let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let setup = Setup {
            addresses: config.addresses,
            pod_range: config.pod_range,
            service_range: config.service_range,
            outward: config.outward,
            outward_ipv6: config.outward_ipv6,
            udp,
            local,
            folder: config.folder.to_path_buf(),
            peers: Peers::new(keys, fastest.then(std::time::Instant::now)),
            commands: obeyed,
            wake: wake.clone(),
            questions,
            seed: hpk_link::random(),
        };
        std::thread::Builder::new()
            .name("datapath".to_owned())
            .stack_size(256 << 10)
            .spawn(move || Engine::new(setup).run())?;
        Ok(Self { commands, wake, endpoint, public_key })
    }

    /// Packets flow from and to this TUN from now on.
    pub fn attach(&self, fd: OwnedFd, vnet_hdr: bool) {
        self.send(engine::Command::Tun { fd, vnet_hdr });
    }

    /// The way out of the cluster; None: there is none.
    pub fn outward(&self, way: Option<Way>) {
        self.send(engine::Command::Outward(way));
    }

    /// The link came up: all facts will be told again.
    pub fn fresh(&self) {
        self.send(engine::Command::Fresh);
    }

    /// A network fact.
    pub fn learn(&self, fact: NetUpdate) {
        self.send(engine::Command::Fact(fact));
    }

    fn send(&self, command: engine::Command) {
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.send(engine::Command::Stop);
    }
}
