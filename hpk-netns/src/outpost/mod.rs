//! An outpost of a pod in the pods' network: for processes that are in their node's own network (ADR 25).
//!
//! ```text
//!  a process's connect ─▶ hpk-pause or hpk-netns rank ─▶ crossing.sock ─▶ helper in a network of its own: makes sockets
//!                                                                           │ TUN, address of the outpost
//!  other pods ═════════════════ overlay ══════════════════════ datapath ════╯   Services, NetworkPolicies as for any pod
//! ```
//! The datapath stands from the start, for the kubelet is told of it when the link comes up. The helper, and with it the
//! network, is made when somebody asks for the first socket: most such pods never do.
//!
//! On the node of the pod's `hpk-netns` the outpost is a part of that and of its link. On the other nodes of an MPI step it is a
//! process with a link of its own ([`process`]).

mod inside;
mod process;

pub use inside::run as inside;
pub(crate) use process::start as start_process;
pub use process::{Process, run};

use crate::datapath::{Config, Datapath, Encryption};
use crate::requests::receive_tun;
use hpk_api::net::{NetworkPlan, TunAnswer};
use hpk_sys::userns::{self, Surroundings, Users};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// First argument of the program that is the helper.
pub const INSIDE: &str = "outpost-inside";
/// How long the helper may take to make its network.
const HELPER: Duration = Duration::from_secs(10);
/// How long the first client waits for the Services to be known.
const SERVICES: Duration = Duration::from_secs(2);

/// What an outpost is made of.
pub(crate) struct Parts<'a> {
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) network: &'a NetworkPlan,
    pub(crate) node_ip: IpAddr,
    /// Folder of this cluster's pods on this node.
    pub(crate) net: &'a Path,
    /// Folder for the sockets.
    pub(crate) folder: &'a Path,
    /// Where it is asked for sockets. Listens.
    pub(crate) clients: OwnedFd,
    /// All Services are known.
    pub(crate) synced: watch::Receiver<bool>,
}

/// Runs for as long as this lives.
#[derive(Debug)]
pub(crate) struct Outpost {
    pub(crate) datapath: Arc<Datapath>,
    _task: AbortOnDropHandle<()>,
}

impl Outpost {
    /// Starts the datapath. Questions to the kubelet go to `questions`.
    pub(crate) fn start(parts: Parts<'_>, questions: mpsc::Sender<hpk_api::link::NetQuestion>) -> io::Result<Self> {
        let ranges = |text: &str| hpk_api::net::ranges(text).unwrap_or_default();
        let network = parts.network;
        let config = Config {
            addresses: parts.addresses.to_vec(),
            pod_range: ranges(&network.pod_cidr),
            service_range: ranges(&network.service_cidr),
            // What leads outside has the node's own network.
            outward: None,
            outward_ipv6: false,
            node_ip: parts.node_ip,
            folder: parts.net,
            encryption: Encryption::unless(network.plaintext),
        };
        let datapath = Arc::new(Datapath::start(config, questions)?);
        let inside = Inside {
            offers: parts.folder.join(hpk_layout::node::OUTPOST_SOCK),
            arguments: [
                parts.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                crate::node::pod_mtu(parts.node_ip).to_string(),
                network.pod_cidr.clone(),
                network.service_cidr.clone(),
            ],
            clients: parts.clients,
            synced: parts.synced,
        };
        let attached = Arc::clone(&datapath);
        let task = tokio::spawn(async move {
            if let Err(error) = inside.serve(&attached).await {
                hpk_api::say!("hpk-netns: the pods' network for processes in the node's: {error}");
            }
        });
        Ok(Self { datapath, _task: AbortOnDropHandle::new(task) })
    }
}

/// Returns when somebody asks there; the connection is left for who serves. A thread waits, for the runtime's listener could only
/// take the client.
async fn first_client(clients: OwnedFd) -> io::Result<OwnedFd> {
    let (came, comes) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("crossing".to_owned()).stack_size(64 << 10).spawn(move || {
        let _ = came.send(wait_for_client(clients.as_fd()).map(|()| clients));
    })?;
    Ok(comes.await.map_err(io::Error::other)??)
}

/// Slurm's signals are for the ranks, who may need the network until they have ended. To be called before there are threads.
fn stay() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let ignored = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCONT, Signal::SIGUSR1, Signal::SIGUSR2];
    Ok(ignored.into_iter().collect::<SigSet>().thread_block()?)
}

/// Blocks until somebody asks there.
fn wait_for_client(clients: BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::new(clients, PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// The helper, still to be started.
struct Inside {
    offers: PathBuf,
    arguments: [String; 4],
    clients: OwnedFd,
    synced: watch::Receiver<bool>,
}

impl Inside {
    /// Waits for the first client, then makes the network; the helper serves from then on. Returns with an error only. Whoever
    /// asks then hears that nobody serves.
    async fn serve(self, datapath: &Datapath) -> io::Result<()> {
        let Self { offers, arguments, clients, mut synced } = self;
        let clients = first_client(clients).await?;
        let _ = tokio::time::timeout(SERVICES, synced.wait_for(|s| *s)).await;
        let listener = UnixListener::bind(&offers)?;
        let mut args: Vec<OsString> = vec![INSIDE.into(), offers.clone().into_os_string()];
        args.extend(arguments.into_iter().map(OsString::from));
        let around = Surroundings {
            users: Users::One,
            network: true,
            env: Some(&[]),
            folder: Some(Path::new("/")),
            stdin: Some(clients),
            ..Surroundings::default()
        };
        let program = std::env::current_exe()?;
        let _helper = userns::start(&program, &args, around).map_err(io::Error::other)?;
        let offered = async {
            let (stream, _) = listener.accept().await?;
            let (offer, tun) = receive_tun(&stream).await?;
            Ok::<_, io::Error>((stream, offer, tun))
        };
        let offered = tokio::time::timeout(HELPER, offered).await;
        let (stream, offer, tun) =
            offered.map_err(|_| io::Error::other("its helper made no network within 10 s"))??;
        let _ = std::fs::remove_file(&offers);
        datapath.attach(tun, offer.vnet_hdr);
        let ready = TunAnswer::Ready(Box::default());
        let mut line = serde_json::to_vec(&ready)?;
        line.push(b'\n');
        let mut stream = stream;
        tokio::io::AsyncWriteExt::write_all(&mut stream, &line).await?;
        // The end of this connection tells the helper to go.
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    }
}
