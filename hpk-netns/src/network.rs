//! The control side of a pod's network on its node: one task that owns the link's events, the supervisor's requests on
//! `netns.sock` and, for an overlay, the datapath.
//!
//! ```text
//! hpk-pause ── TunOffer + descriptor ─▶ netns.sock ─▶ datapath.attach ─▶ TunAnswer
//! hpk-kubelet ── facts ─▶ link ─▶ datapath.learn        datapath ── questions ─▶ link
//! ```

use crate::datapath::{Cidr, Config, Datapath};
use crate::outward::{NotHad, Outward};
use hpk_api::link::{Hello, LinkCredentials, NetQuestion, NetUpdate};
use hpk_api::net::{NetworkMode, TunAnswer, TunOffer};
use hpk_api::plan::SandboxPlan;
use hpk_link::client::{ClientConfig, ClientEvent, Kept, keep};
use std::io;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long a pod's start waits for the services to be known. Without the link it starts without them.
const SERVICES: Duration = Duration::from_secs(2);
/// How long the supervisor may take from connecting to its offer.
const OFFER: Duration = Duration::from_secs(10);
/// Bytes of WireGuard and UDP around a packet, without the outer IP header.
const OVERHEAD: u32 = 32 + 8;

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error("netns.sock: {0}")]
    Socket(io::Error),
    #[error("datapath: {0}")]
    Datapath(io::Error),
}

/// Runs for as long as this lives.
#[derive(Debug)]
pub(crate) struct Network {
    leave: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Network {
    /// Ends it when the sessions that are under way have had their last bytes.
    pub(crate) async fn finish(self) {
        self.leave.cancel();
        let _ = self.task.await;
    }
}

/// Folders that the network uses.
pub(crate) struct Places<'a> {
    /// The pod's folder with `link.json`.
    pub(crate) pod: &'a Path,
    /// Folder of the sockets.
    pub(crate) run: &'a Path,
    /// Folder of this cluster's pods on this node.
    pub(crate) net: &'a Path,
}

/// Where this node stands in the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// Towards other nodes.
    node_ip: IpAddr,
    /// Interface MTU for the pod, bytes, when it is an overlay.
    pub(crate) mtu: Option<u32>,
}

/// Asks the node.
pub(crate) fn address(plan: &SandboxPlan, places: &Places<'_>) -> Address {
    let node_ip = node_ip(places.pod, plan.network.host_ip);
    Address { node_ip, mtu: (plan.network.mode == NetworkMode::Overlay).then(|| pod_mtu(node_ip)) }
}

/// Starts link, datapath and `netns.sock` beside the parent container. What fails here is said to the supervisor when
/// it asks for its network; a pod without one of its own is not in need of it.
pub(crate) fn start(plan: &SandboxPlan, places: &Places<'_>, job_id: Option<&str>, address: &Address) -> Network {
    let (ask, questions) = mpsc::channel(256);
    let node_ip = address.node_ip;
    let ranges = |text: &str| text.split(',').filter_map(|c| Cidr::parse(c.trim())).collect();
    let overlay = plan.network.mode == NetworkMode::Overlay;
    let outward = address.mtu.map(|mtu| Outward::find(&plan.network.pod_ips, mtu, &plan.network.host_ports));
    let (ask_outward, asked_outward) = mpsc::channel(1);
    let tell = ask.clone();
    let datapath = overlay.then(|| {
        let config = Config {
            addresses: plan.network.pod_ips.clone(),
            pod_range: ranges(&plan.network.pod_cidr),
            service_range: ranges(&plan.network.service_cidr),
            outward: outward.as_ref().is_some_and(Outward::exists).then_some(ask_outward),
            node_ip,
            folder: places.net,
            plaintext: plan.network.plaintext,
        };
        Datapath::start(config, ask).map_err(NetworkError::Datapath)
    });
    let listener = UnixListener::bind(places.run.join(hpk_api::paths::NETNS_SOCK)).map_err(NetworkError::Socket);
    let running = datapath.as_ref().and_then(|d| d.as_ref().ok());
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: plan.pod.uid.clone(),
        job_id: job_id.unwrap_or_default().to_owned(),
        node: crate::run::hostname(),
        datapath: running.map(|d| d.endpoint),
        public_key: running.and_then(|d| d.public_key.clone()),
        pod_ips: plan.network.pod_ips.clone(),
        outward: outward.as_ref().map(Outward::exists),
    };
    let config = ClientConfig {
        credentials: places.pod.join(hpk_api::files::LINK),
        hello,
        supervisor: places.run.join(hpk_api::paths::SUPERVISOR_SOCK),
    };
    let carriers = carriers(places);
    let outside = outward.map(|outward| Outside { outward, asked: asked_outward, tell, login: plan.network.host_ip });
    let leave = CancellationToken::new();
    let link = LinkParts { config, carriers, questions, leave: leave.clone() };
    let task = tokio::spawn(serve(link, datapath, listener, node_ip, outside));
    Network { leave, task: AbortOnDropHandle::new(task) }
}

/// The socket for carriers of the link, and the word in the pod's folder where it is. Without it the link can only be
/// dialled.
fn carriers(places: &Places<'_>) -> Option<UnixListener> {
    let path = places.run.join(hpk_api::paths::LINK_SOCK);
    let listener = UnixListener::bind(&path).inspect_err(|error| eprintln!("hpk-netns: {}: {error}", path.display()));
    let file = places.pod.join(hpk_api::files::CARRIER);
    // The pod's folder is on the shared file system: nobody waits for it.
    tokio::task::spawn_blocking(move || {
        let text = format!("{}\n", path.display());
        let mut options = std::fs::File::options();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
        if let Err(error) = opened.and_then(|mut f| f.write_all(text.as_bytes())) {
            eprintln!("hpk-netns: {}: {error}", file.display());
        }
    });
    listener.ok()
}

/// What the link to the kubelet is made of.
struct LinkParts {
    config: ClientConfig,
    /// Streams that somebody else has dialled.
    carriers: Option<UnixListener>,
    /// For the kubelet.
    questions: mpsc::Receiver<NetQuestion>,
    /// Cancelled when the pod is over.
    leave: CancellationToken,
}

async fn serve(
    link: LinkParts,
    datapath: Option<Result<Datapath, NetworkError>>,
    listener: Result<UnixListener, NetworkError>,
    node_ip: IpAddr,
    mut outside: Option<Outside>,
) {
    let LinkParts { config, carriers, questions, leave } = link;
    let (events_in, mut events) = mpsc::channel(256);
    let node = config.hello.node.clone();
    let mut link = std::pin::pin!(keep(config, events_in, questions, carriers, leave.clone()));
    let mut refused = false;
    let mut said = false;
    let (synced_in, synced) = watch::channel(false);
    // Offers are received beside; what they bring comes here.
    let (offers_in, mut offers) = mpsc::channel::<(TunOffer, Option<OwnedFd>, UnixStream)>(4);
    match listener {
        Ok(listener) => drop(tokio::spawn(accept(listener, offers_in))),
        Err(error) => eprintln!("hpk-netns: {error}"),
    }
    loop {
        tokio::select! {
            end = &mut link, if !refused => match end {
                Kept::Refused(why) => {
                    eprintln!("hpk-netns: the kubelet refused the link: {why}");
                    refused = true;
                }
                Kept::Left => return,
            },
            () = leave.cancelled(), if refused => return,
            Some(event) = events.recv() => match event {
                ClientEvent::Up => {
                    said = false;
                    if let Some(Ok(d)) = &datapath {
                        d.fresh();
                    }
                }
                // Once for each outage: the job's output is not a log of dials.
                ClientEvent::Down { reason } => {
                    if !said {
                        eprintln!("hpk-netns: link to the kubelet: {reason}; dialling on");
                        said = true;
                    }
                }
                ClientEvent::Net(update) => {
                    let last = update == NetUpdate::ServicesSynced;
                    if let Some(Ok(d)) = &datapath {
                        d.learn(update);
                    }
                    if last {
                        synced_in.send_replace(true);
                    }
                }
            },
            Some(()) = asked(outside.as_mut()) => {
                if let (Some(outside), Some(Ok(datapath))) = (&mut outside, &datapath) {
                    outside.start(datapath);
                }
            }
            Some((offer, fd, stream)) = offers.recv() => {
                let answer = match (&datapath, fd) {
                    (Some(Ok(datapath)), Some(fd)) => {
                        datapath.attach(fd, offer.vnet_hdr);
                        if let Some(outside) = outside.as_mut().filter(|o| o.outward.has_ports()) {
                            outside.open_ports(node_ip);
                            outside.start(datapath);
                        }
                        TunAnswer::Ready { node: node.clone(), node_ip: Some(node_ip) }
                    }
                    (Some(Err(error)), _) => TunAnswer::Failed { message: error.to_string() },
                    (Some(Ok(_)), None) => TunAnswer::Failed { message: "the TUN's descriptor did not come with the offer".to_owned() },
                    (None, _) => TunAnswer::Ready { node: node.clone(), node_ip: Some(node_ip) },
                };
                let wait = datapath.is_some();
                tokio::spawn(answer_offer(stream, answer, synced.clone(), wait));
            }
        }
    }
}

/// The pod's way out of the cluster, and who asks for it.
struct Outside {
    outward: Outward,
    asked: mpsc::Receiver<()>,
    /// To the kubelet.
    tell: mpsc::Sender<NetQuestion>,
    /// The Node's address.
    login: Option<IpAddr>,
}

impl Outside {
    fn start(&mut self, datapath: &Datapath) {
        let way = self.outward.start();
        if let Err(error) = &way {
            eprintln!("hpk-netns: no way out of the cluster: {error}");
        }
        datapath.outward(way.ok());
    }

    /// Those that cannot be had are told to the kubelet.
    fn open_ports(&mut self, node_ip: IpAddr) {
        for NotHad { port, at, message } in self.outward.check_ports(node_ip, self.login) {
            eprintln!("hpk-netns: host port {}: {message}", port.host_port);
            let question = NetQuestion::NotListening { service: None, at, protocol: port.protocol, message };
            let _ = self.tell.try_send(question);
        }
    }
}

/// Never, without an outside.
async fn asked(outside: Option<&mut Outside>) -> Option<()> {
    match outside {
        Some(outside) => outside.asked.recv().await,
        None => std::future::pending().await,
    }
}

/// Takes offers from our own user only.
async fn accept(listener: UnixListener, offers: mpsc::Sender<(TunOffer, Option<OwnedFd>, UnixStream)>) {
    while let Ok((stream, _)) = listener.accept().await {
        let ours = stream.peer_cred().is_ok_and(|c| c.uid() == nix::unistd::getuid().as_raw());
        if !ours {
            continue;
        }
        match tokio::time::timeout(OFFER, receive_offer(&stream)).await {
            Ok(Ok((offer, fd))) => {
                if offers.send((offer, fd, stream)).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => eprintln!("hpk-netns: the supervisor's offer: {error}"),
            Err(_) => eprintln!("hpk-netns: the supervisor connected and offered nothing"),
        }
    }
}

/// One JSON line with, for an overlay, one descriptor.
///
/// # Errors
/// The stream's, or a line that is no offer.
pub async fn receive_offer(stream: &UnixStream) -> io::Result<(TunOffer, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptor = None;
    let mut buffer = [0; 4096];
    loop {
        let (n, fds) = stream
            .async_io(Interest::READABLE, || hpk_sys::fdpass::receive(stream, &mut buffer).map_err(io::Error::from))
            .await?;
        descriptor = fds.into_iter().next().or(descriptor);
        line.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if n == 0 || line.len() > 64 << 10 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        if line.ends_with(b"\n") {
            return Ok((serde_json::from_slice(&line)?, descriptor));
        }
    }
}

async fn answer_offer(mut stream: UnixStream, answer: TunAnswer, mut synced: watch::Receiver<bool>, wait: bool) {
    if wait && matches!(answer, TunAnswer::Ready { .. }) {
        let _ = tokio::time::timeout(SERVICES, synced.wait_for(|s| *s)).await;
    }
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    let _ = stream.write_all(&line).await;
}

/// The address by which this node speaks to the kubelet's: what other nodes reach it by, too. No packet is sent.
fn node_ip(pod: &Path, login: Option<IpAddr>) -> IpAddr {
    let credentials = std::fs::read(pod.join(hpk_api::files::LINK))
        .ok()
        .and_then(|b| serde_json::from_slice::<LinkCredentials>(&b).ok());
    let target = credentials.map(|c| c.address).or(login.map(|ip| SocketAddr::new(ip, 9)));
    let found = target.and_then(|target| {
        let any: IpAddr = if target.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    found.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
}

/// MTU for the pod's interface: the node's, less what is put around each packet.
pub(crate) fn pod_mtu(node_ip: IpAddr) -> u32 {
    let device = nix::ifaddrs::getifaddrs().ok().and_then(|mut all| {
        all.find(|a| {
            let ip = a.address.as_ref().and_then(|s| {
                s.as_sockaddr_in()
                    .map(|v4| IpAddr::V4(v4.ip()))
                    .or_else(|| s.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            });
            ip == Some(node_ip)
        })
    });
    let mtu = device.and_then(|d| std::fs::read_to_string(format!("/sys/class/net/{}/mtu", d.interface_name)).ok());
    let mtu = mtu.and_then(|text| text.trim().parse().ok()).unwrap_or(1500);
    inner_mtu(mtu, node_ip.is_ipv6())
}

/// At least what IPv6 needs, at most what one datagram of the largest size leaves.
fn inner_mtu(outer: u32, v6: bool) -> u32 {
    let header = if v6 { 40 } else { 20 };
    outer.saturating_sub(OVERHEAD + header).clamp(1280, 65_000)
}

#[cfg(test)]
mod tests {
    use super::inner_mtu;

    #[test]
    fn mtus() {
        assert_eq!(inner_mtu(1500, false), 1440);
        assert_eq!(inner_mtu(1500, true), 1420);
        assert_eq!(inner_mtu(9000, false), 8940);
        assert_eq!(inner_mtu(600, false), 1280);
        assert_eq!(inner_mtu(65_536, false), 65_000);
    }
}
