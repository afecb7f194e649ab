//! `hpk-netns outpost <pod folder> <folder>`: the outpost of a pod on one further node of its MPI step.
//!
//! The first rank there starts it, outside of the container and before it enters that: no process of the container sees or
//! reaches it. Until a rank asks for a socket it only waits. It ends with the last rank of the node, by the lock that each of
//! them holds.

use super::{Outpost, Parts};
use crate::node;
use crate::outage::{News, Outage};
use crate::run::layout::{Layout, Surroundings};
use crate::run::scratch;
use hpk_api::link::{Hello, NetUpdate};
use hpk_api::net::NetworkMode;
use hpk_api::plan::SandboxPlan;
use hpk_link::client::{ClientConfig, keep};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Starts the process, which serves `folder`/crossing.sock from its return on.
pub(crate) fn start(pod: &Path, folder: &Path) -> io::Result<()> {
    let path = folder.join(hpk_layout::node::CROSSING_SOCK);
    hpk_layout::remove_stale_socket(&path)?;
    let listener = UnixListener::bind(&path)?;
    Command::new(std::env::current_exe()?)
        .arg("outpost")
        .args([pod, folder])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        // srun waits for whoever holds its task's output.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .map(drop)
}

/// Waits for the first client, who asks at standard input; then `serve` is to be run in a runtime.
///
/// # Errors
/// There is no lock, or no thread to be had.
pub fn run(pod: &Path, folder: &Path, serve: impl FnOnce(Process) -> i32) -> io::Result<i32> {
    super::stay()?;
    let clients = io::stdin().as_fd().try_clone_to_owned()?;
    let lock = File::open(folder.join(hpk_layout::node::LOCK))?;
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // Each rank of the node holds it for its life.
        let _ = lock.lock();
        std::process::exit(0);
    })?;
    super::wait_for_client(clients.as_fd())?;
    Ok(serve(Process { pod: pod.to_owned(), folder: folder.to_owned(), clients }))
}

/// A process that somebody waits for.
#[derive(Debug)]
pub struct Process {
    pod: std::path::PathBuf,
    folder: std::path::PathBuf,
    clients: OwnedFd,
}

impl Process {
    /// Serves until the process is ended.
    pub async fn serve(self) -> i32 {
        match self.live().await {
            Ok(()) => 0,
            Err(error) => {
                // Closing what clients ask at tells them.
                hpk_api::say!("hpk-netns: outpost: {error}");
                1
            }
        }
    }

    async fn live(self) -> io::Result<()> {
        let Self { pod, folder, clients } = self;
        let bytes = std::fs::read(hpk_layout::pod::inside(&pod).join(hpk_layout::pod::PLAN))?;
        let plan = SandboxPlan::parse(&bytes).map_err(io::Error::other)?;
        let number = std::env::var("SLURM_NODEID").ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        let none = || io::Error::other(format!("the pod was given no address for node {number} of its job"));
        let addresses = plan.network.outposts.get(number).filter(|all| !all.is_empty()).ok_or_else(none)?;
        let outpost = u32::try_from(number).ok().filter(|number| *number > 0).ok_or_else(none)?;
        let around = Surroundings::of_this_process().map_err(io::Error::other)?;
        let layout = Layout::new(&pod, &plan.pod.uid, &around);
        scratch::keep(&layout, &layout.net, around.uid).map_err(io::Error::other)?;
        let (synced_in, synced) = watch::channel(false);
        let (ask, questions) = mpsc::channel(256);
        let node_ip = node::address(&pod, plan.network.host_ip);
        let network = hpk_api::net::NetworkPlan { mode: NetworkMode::Overlay, ..plan.network.clone() };
        let parts = Parts { addresses, network: &network, node_ip, net: &layout.net, folder: &folder, clients, synced };
        let made = Outpost::start(parts, ask)?;
        let datapath = &made.datapath;
        let hello = Hello {
            version: hpk_api::VERSION,
            pod_uid: plan.pod.uid.clone(),
            job_id: std::env::var("SLURM_JOB_ID").unwrap_or_default(),
            node: node::hostname(),
            datapath: Some(datapath.endpoint),
            public_key: datapath.public_key.clone(),
            pod_ips: addresses.clone(),
            outward: None,
            outpost,
        };
        let config = ClientConfig {
            credentials: pod.join(hpk_layout::pod::LINK),
            hello,
            // Nobody asks an outpost for it.
            supervisor: folder.join(hpk_layout::node::NO_SOCK),
        };
        let (events_in, mut events) = mpsc::channel(256);
        let mut link = std::pin::pin!(keep(config, events_in, questions, None, CancellationToken::new()));
        let mut outage = Outage::of("hpk-netns: outpost");
        loop {
            tokio::select! {
                () = &mut link => return Ok(()),
                Some(event) = events.recv() => match outage.take(event) {
                    None => {}
                    Some(News::Fresh) => datapath.fresh(),
                    Some(News::Net(update)) => {
                        let last = update == NetUpdate::ServicesSynced;
                        datapath.learn(update);
                        if last {
                            synced_in.send_replace(true);
                        }
                    }
                }
            }
        }
    }
}
