//! The control side of a pod's network on its node: one task that owns the link's events, the supervisor's requests on
//! `netns.sock` and, for an overlay, the datapath.
//!
//! ```text
//! hpk-pause ── TunOffer + descriptor ─▶ netns.sock ─▶ datapath.attach ─▶ (plug-ins of the list) ─▶ TunAnswer
//! hpk-kubelet ── facts ─▶ link ─▶ datapath.learn, or nftables       datapath ── questions ─▶ link
//! ```

use crate::cni;
use crate::datapath::{Config, Datapath, Encryption};
use crate::nat::{self, Heard, Progress};
use crate::node;
use crate::outage::{News, Outage};
use crate::outpost::{self, Outpost};
use crate::outward::{NotHad, Outward};
use crate::requests::{self, Asked, answer};
use hpk_api::link::{Hello, NetQuestion, NetUpdate};
use hpk_api::net::{HostPort, NetnsRequest, NetworkList, NetworkMode, Ready, TunAnswer};
use hpk_api::plan::SandboxPlan;
use hpk_layout::Home;
use hpk_link::client::{ClientConfig, keep};
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long a pod's start waits for the services to be known. Without the link it starts without them.
const SERVICES: Duration = Duration::from_secs(2);

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
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Network {
    /// Ends it when the sessions that are under way have had their last bytes and the plug-ins have given back what they
    /// made.
    pub(crate) async fn finish(self) {
        self.leave.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
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
    /// The pod's own on this node.
    pub(crate) local: &'a Path,
}

/// Begins to remove what pods left on this node whose jobs did not end in order.
pub(crate) type Sweep = Box<dyn Fn() + Send>;

/// Where this node stands in the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// Towards other nodes.
    pub(crate) node_ip: IpAddr,
    /// Interface MTU for the pod, bytes, when it is an overlay.
    pub(crate) mtu: Option<u32>,
}

/// Asks the node.
pub(crate) fn address(plan: &SandboxPlan, places: &Places<'_>) -> Address {
    let node_ip = node::address(places.pod, plan.network.host_ip);
    Address { node_ip, mtu: (plan.network.mode == NetworkMode::Overlay).then(|| node::pod_mtu(node_ip)) }
}

/// Starts link, datapath and `netns.sock` beside the parent container. What fails here is said to the supervisor when
/// it asks for its network; a pod without one of its own is not in need of it. `refused`: host ports that were not even
/// asked for. `sweep`: for when the kubelet says so.
pub(crate) fn start(
    plan: &SandboxPlan,
    places: &Places<'_>,
    job_id: Option<&str>,
    address: &Address,
    refused: Vec<NotHad>,
    sweep: Sweep,
) -> Network {
    let (ask, questions) = mpsc::channel(256);
    let node_ip = address.node_ip;
    for port in refused {
        tell_not_had(&ask, port);
    }
    let leave = CancellationToken::new();
    let (synced_in, synced) = watch::channel(false);
    let mut tasks = Vec::with_capacity(2);
    let carrier = match (plan.network.mode, address.mtu) {
        (NetworkMode::Overlay, Some(mtu)) => {
            let (plugins, task) = plugins(plan, places, &leave);
            tasks.extend(task);
            Carrier::Overlay(Box::new(overlay(plan, places, address, mtu, ask, plugins)))
        }
        (NetworkMode::Cni, _) => {
            let (heard, hears) = mpsc::unbounded_channel();
            let (progress_in, progress) = watch::channel(Progress::default());
            tokio::spawn(nat::keep(hears, progress_in));
            Carrier::Given { heard, progress }
        }
        _ => outpost(plan, places, node_ip, ask, synced.clone()).map_or(Carrier::Node, Carrier::Outpost),
    };
    let listener = UnixListener::bind(places.run.join(hpk_layout::node::NETNS_SOCK)).map_err(NetworkError::Socket);
    let running = match &carrier {
        Carrier::Overlay(overlay) => overlay.datapath.as_ref().ok(),
        Carrier::Outpost(outpost) => Some(&*outpost.datapath),
        _ => None,
    };
    let outposts = plan.network.outposts.first().filter(|_| matches!(carrier, Carrier::Outpost(_)));
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: plan.pod.uid.clone(),
        job_id: job_id.unwrap_or_default().to_owned(),
        node: crate::node::slurm_name(),
        datapath: running.map(|d| d.endpoint),
        public_key: running.and_then(|d| d.public_key.clone()),
        pod_ips: outposts.unwrap_or(&plan.network.pod_ips).clone(),
        outpost: 0,
        outward: match &carrier {
            Carrier::Overlay(overlay) => Some(overlay.outside.outward.exists()),
            _ => None,
        },
    };
    let config = ClientConfig {
        credentials: places.pod.join(hpk_layout::pod::LINK),
        hello,
        supervisor: places.run.join(hpk_layout::node::SUPERVISOR_SOCK),
    };
    let carriers = carriers(places);
    let link = LinkParts { config, carriers, questions, sweep, leave: leave.clone(), synced: (synced_in, synced) };
    tasks.push(AbortOnDropHandle::new(tokio::spawn(serve(link, carrier, listener, node_ip))));
    Network { leave, tasks }
}

/// The outpost of a pod that is in the node's network, if it was given addresses.
fn outpost(
    plan: &SandboxPlan,
    places: &Places<'_>,
    node_ip: IpAddr,
    ask: mpsc::Sender<NetQuestion>,
    synced: watch::Receiver<bool>,
) -> Option<Outpost> {
    let addresses = plan.network.outposts.first().filter(|all| !all.is_empty())?;
    let path = places.run.join(hpk_layout::node::CROSSING_SOCK);
    let clients = std::os::unix::net::UnixListener::bind(&path).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    });
    let made = clients.and_then(|clients| {
        let (network, net, folder) = (&plan.network, places.net, places.run);
        Outpost::start(outpost::Parts { addresses, network, node_ip, net, folder, clients, synced }, ask)
    });
    // The supervisor finds nobody at the socket, and tells the pod's owner.
    made.inspect_err(|error| hpk_api::say!("hpk-netns: no way to the pods' network: {error}")).ok()
}

fn overlay(
    plan: &SandboxPlan,
    places: &Places<'_>,
    address: &Address,
    mtu: u32,
    ask: mpsc::Sender<NetQuestion>,
    (plugins, list, maps_ports): Plugins,
) -> Overlay {
    let network = &plan.network;
    let ranges = |text: &str| hpk_api::net::ranges(text).unwrap_or_default();
    // Where a plug-in maps a host port to the pod's, it is to see the host port.
    let ports: Vec<HostPort> = network
        .host_ports
        .iter()
        .map(|port| HostPort {
            container_port: if maps_ports { port.host_port } else { port.container_port },
            ..port.clone()
        })
        .collect();
    let outward = Outward::find(&network.pod_ips, mtu, &ports);
    let (ask_outward, asked) = mpsc::channel(1);
    let config = Config {
        addresses: network.pod_ips.clone(),
        pod_range: ranges(&network.pod_cidr),
        service_range: ranges(&network.service_cidr),
        outward: outward.exists().then_some(ask_outward),
        outward_ipv6: outward.knows_ipv6(),
        node_ip: address.node_ip,
        folder: places.net,
        encryption: Encryption::unless(network.plaintext),
    };
    let datapath = Datapath::start(config, ask.clone()).map_err(NetworkError::Datapath);
    Overlay { datapath, outside: Outside { outward, asked, tell: ask, login: network.host_ip }, list, plugins }
}

/// Where the plug-ins' task is asked, whether the list is good if it has no more than the overlay itself, and whether
/// a plug-in maps host ports.
type Plugins = (Option<mpsc::Sender<cni::Ask>>, Result<(), String>, bool);

/// The task that runs the plug-ins, if the plan has a list.
fn plugins(
    plan: &SandboxPlan,
    places: &Places<'_>,
    leave: &CancellationToken,
) -> (Plugins, Option<AbortOnDropHandle<()>>) {
    let home = Home::of_member(places.pod);
    let Some(chain) = cni::Chain::of(&plan.pod, &plan.network, &home, places.local) else {
        return ((None, Ok(()), false), None);
    };
    let chains = plan.network.list.as_ref().is_some_and(NetworkList::chains);
    let judged = if chains { Ok(()) } else { chain.judge() };
    let maps_ports = chain.maps_ports();
    let (asks_in, asks) = mpsc::channel(4);
    let task = tokio::spawn(chain.serve(asks, leave.clone()));
    ((Some(asks_in), judged, maps_ports), Some(AbortOnDropHandle::new(task)))
}

/// The socket for carriers of the link, and the word in the pod's folder where it is. Without it the link can only be
/// dialled.
fn carriers(places: &Places<'_>) -> Option<UnixListener> {
    let path = places.run.join(hpk_layout::node::LINK_SOCK);
    let listener =
        UnixListener::bind(&path).inspect_err(|error| hpk_api::say!("hpk-netns: {}: {error}", path.display()));
    let file = places.pod.join(hpk_layout::pod::CARRIER);
    // The pod's folder is on the shared file system: nobody waits for it.
    tokio::task::spawn_blocking(move || {
        let text = format!("{}\n", path.display());
        let mut options = std::fs::File::options();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
        if let Err(error) = opened.and_then(|mut f| f.write_all(text.as_bytes())) {
            hpk_api::say!("hpk-netns: {}: {error}", file.display());
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
    sweep: Sweep,
    /// Cancelled when the pod is over.
    leave: CancellationToken,
    /// Whether all Services are known.
    synced: (watch::Sender<bool>, watch::Receiver<bool>),
}

/// Who carries the pod's packets.
enum Carrier {
    Overlay(Box<Overlay>),
    /// The site, and Services are put into the pod's namespace.
    Given {
        heard: mpsc::UnboundedSender<Heard>,
        progress: watch::Receiver<Progress>,
    },
    /// The node itself.
    Node,
    /// The node itself, with a place in the pods' network.
    Outpost(Outpost),
}

/// See [`Carrier::Overlay`].
struct Overlay {
    datapath: Result<Datapath, NetworkError>,
    outside: Outside,
    /// The list, when it is one without further plug-ins and yet no good.
    list: Result<(), String>,
    /// The task that runs the plug-ins of the list.
    plugins: Option<mpsc::Sender<cni::Ask>>,
}

impl Carrier {
    fn fresh(&self) {
        match self {
            Self::Overlay(overlay) => overlay.datapath.iter().for_each(Datapath::fresh),
            Self::Given { heard, .. } => drop(heard.send(Heard::Fresh)),
            Self::Outpost(outpost) => outpost.datapath.fresh(),
            Self::Node => {}
        }
    }

    fn learn(&self, update: NetUpdate) {
        match self {
            Self::Overlay(overlay) => overlay.datapath.iter().for_each(|d| d.learn(update.clone())),
            Self::Given { heard, .. } => drop(heard.send(Heard::Fact(update))),
            Self::Outpost(outpost) => outpost.datapath.learn(update),
            Self::Node => {}
        }
    }

    /// Never, without an overlay.
    async fn asked_outward(&mut self) -> Option<()> {
        match self {
            Self::Overlay(overlay) => overlay.outside.asked.recv().await,
            _ => std::future::pending().await,
        }
    }
}

async fn serve(link: LinkParts, mut carrier: Carrier, listener: Result<UnixListener, NetworkError>, node_ip: IpAddr) {
    let LinkParts { config, carriers, questions, sweep, leave, synced: (synced_in, synced) } = link;
    let pod = config.credentials.parent().unwrap_or(Path::new("/")).to_owned();
    let (events_in, mut events) = mpsc::channel(256);
    let node = crate::node::hostname();
    let mut link = std::pin::pin!(keep(config, events_in, questions, carriers, leave.clone()));
    let mut outage = Outage::of("hpk-netns");
    // Requests are received beside; what they bring comes here.
    let (asked_in, mut asked) = mpsc::channel::<Asked>(4);
    match listener {
        Ok(listener) => drop(tokio::spawn(requests::accept(listener, asked_in))),
        Err(error) => hpk_api::say!("hpk-netns: {error}"),
    }
    loop {
        tokio::select! {
            () = &mut link => return,
            Some(event) = events.recv() => match outage.take(event) {
                None => {}
                Some(News::Fresh) => carrier.fresh(),
                Some(News::Net(NetUpdate::Sweep)) => sweep(),
                Some(News::Net(update)) => {
                    let last = update == NetUpdate::ServicesSynced;
                    carrier.learn(update);
                    if last {
                        synced_in.send_replace(true);
                    }
                }
            },
            Some(()) = carrier.asked_outward() => {
                if let Carrier::Overlay(overlay) = &mut carrier
                    && let Ok(datapath) = &overlay.datapath
                {
                    overlay.outside.start(datapath);
                }
            }
            Some(asked) = asked.recv() => {
                let ready = Ready { node: node.clone(), node_ip: Some(node_ip), sandbox: asked.sandbox(), ..Ready::default() };
                match asked {
                    Asked { request: NetnsRequest::Step(start), fds, stream } => {
                        drop(tokio::spawn(crate::step::run(pod.clone(), *start, fds, stream)));
                    }
                    Asked { request: NetnsRequest::Session(session), stream, .. } => {
                        drop(tokio::spawn(crate::step::session(pod.clone(), *session, stream)));
                    }
                    asked => request(&mut carrier, asked, ready, synced.clone()),
                }
            }
        }
    }
}

/// Begins what the supervisor asks for; the answer comes from a task of its own.
fn request(carrier: &mut Carrier, asked: Asked, ready: Ready, synced: watch::Receiver<bool>) {
    let Asked { request, fds, stream } = asked;
    let refuse = |stream, message: String| {
        tokio::spawn(async move { answer(stream, &TunAnswer::Failed { message }).await });
    };
    let mut fds = fds.into_iter();
    match (request, carrier) {
        (NetnsRequest::Tun(offer), Carrier::Overlay(overlay)) => {
            let Overlay { datapath, outside, list, plugins } = overlay.as_mut();
            let datapath = match (datapath, list) {
                (Err(error), _) => return refuse(stream, error.to_string()),
                (_, Err(error)) => return refuse(stream, error.clone()),
                (Ok(datapath), Ok(())) => datapath,
            };
            let Some(tun) = fds.next() else {
                return refuse(stream, "the TUN's descriptor did not come with the offer".to_owned());
            };
            datapath.attach(tun, offer.vnet_hdr);
            if outside.outward.has_ports() {
                outside.open_ports(ready.node_ip.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)));
                outside.start(datapath);
            }
            let Some(offer) = offer.chain else {
                tokio::spawn(ready_soon(stream, ready, synced));
                return;
            };
            let (Some(user), Some(pod), Some(node_side)) = (fds.next(), fds.next(), fds.next()) else {
                return refuse(stream, "the namespaces did not come with the offer".to_owned());
            };
            let (answered, result) = oneshot::channel();
            let namespaces = cni::Namespaces { user, pod, node_side };
            let add = cni::Add { offer, namespaces, sandbox: ready.sandbox.clone(), answer: answered };
            let plugins = plugins.clone();
            tokio::spawn(async move {
                match ask_plugins(plugins, cni::Ask::Add(Box::new(add)), result).await {
                    Ok(cni::Added { result, unsound }) => {
                        let warning = unsound.map(|message| ("NetworkCheckFailed".to_owned(), message));
                        ready_soon(stream, Ready { result: Some(result), warning, ..ready }, synced).await;
                    }
                    Err(message) => answer(stream, &TunAnswer::Failed { message }).await,
                }
            });
        }
        (NetnsRequest::Check, Carrier::Overlay(overlay)) => {
            let Some(plugins) = overlay.plugins.clone() else {
                return refuse(stream, "this pod's network has no plug-ins to ask".to_owned());
            };
            let (answered, result) = oneshot::channel();
            tokio::spawn(async move {
                let checked = ask_plugins(Some(plugins), cni::Ask::Check(answered), result).await;
                let said = checked
                    .map_or_else(|message| TunAnswer::Failed { message }, |()| TunAnswer::Ready(Box::new(ready)));
                answer(stream, &said).await;
            });
        }
        (NetnsRequest::Given(offer), Carrier::Given { heard, progress }) => {
            let (Some(user), Some(network)) = (fds.next(), fds.next()) else {
                return refuse(stream, "the namespaces did not come with the offer".to_owned());
            };
            let _ = heard.send(Heard::Pod(nat::Pod { user, network, ips: offer.pod_ips }));
            let mut progress = progress.clone();
            tokio::spawn(async move {
                let put = tokio::time::timeout(SERVICES, progress.wait_for(|p| *p != Progress::Waiting)).await;
                let warning = match put.map(|p| p.map(|p| p.clone())) {
                    Ok(Ok(Progress::Failed(message))) => Some(("ServicesNotReady".to_owned(), message)),
                    _ => None,
                };
                answer(stream, &TunAnswer::Ready(Box::new(Ready { warning, ..ready }))).await;
            });
        }
        _ => refuse(stream, "that is not of this pod's network mode".to_owned()),
    }
}

/// What the plug-ins' task says.
async fn ask_plugins<T>(
    plugins: Option<mpsc::Sender<cni::Ask>>,
    ask: cni::Ask,
    answered: oneshot::Receiver<Result<T, cni::ChainError>>,
) -> Result<T, String> {
    let over = || "the pod is ending".to_owned();
    plugins.ok_or_else(|| "the plan has no list of plug-ins".to_owned())?.send(ask).await.map_err(|_| over())?;
    answered.await.map_err(|_| over())?.map_err(|error| error.to_string())
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
            hpk_api::say!("hpk-netns: no way out of the cluster: {error}");
        }
        datapath.outward(way.ok());
    }

    /// Those that cannot be had are told to the kubelet.
    fn open_ports(&mut self, node_ip: IpAddr) {
        for port in self.outward.check_ports(node_ip, self.login) {
            tell_not_had(&self.tell, port);
        }
    }
}

fn tell_not_had(kubelet: &mpsc::Sender<NetQuestion>, NotHad { port, at, message }: NotHad) {
    hpk_api::say!("hpk-netns: host port {}: {message}", port.host_port);
    let _ = kubelet.try_send(NetQuestion::NotListening { at, protocol: port.protocol, message });
}

/// Waits a moment for the services to be known, so that a pod's first connection finds them.
async fn ready_soon(stream: UnixStream, ready: Ready, mut synced: watch::Receiver<bool>) {
    let _ = tokio::time::timeout(SERVICES, synced.wait_for(|s| *s)).await;
    answer(stream, &TunAnswer::Ready(Box::new(ready))).await;
}
