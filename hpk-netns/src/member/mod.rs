//! `hpk-netns member <HPK_HOME>`: the control plane's place in the pod network, on the login node.
//!
//! ```text
//!   pods ══ overlay ══ TUN in a namespace of its own ── socket on the member's port ─▶ API server, CoreDNS, …
//! ```
//! An ordinary user cannot put an interface into the login node's network; but a socket belongs to the namespace that
//! it was made in, so a helper inside ([`inside`]) makes sockets for this process outside, and no address translation
//! or routing is needed. It is a pod's datapath in all else: a link, facts, peers. The same the other way round: what
//! comes to a service's port of the login node ([`listen`]) goes on by a socket made inside. (From the API server to
//! a pod, another way leads over that pod's own link; it is the kubelet's.)

mod datagrams;
mod direct;
pub mod inside;
mod listen;
mod listener;
mod relay;
mod spread;

use crate::datapath::{Config, Datapath, Encryption};
use crate::node;
use crate::outage::{News, Outage};
use crate::requests::receive_tun;
use crate::run::member_folders;
use hpk_api::cluster::ClusterConfig;
use hpk_api::link::{Hello, MEMBER, NetUpdate, Protocol, Relay};
use hpk_api::net::{NetworkMode, first_host, ranges};
use hpk_layout::Home;
use hpk_link::client::{ClientConfig, keep};
use inside::{Answer, Ask};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long the helper may take to make the interface.
const HELPER: Duration = Duration::from_secs(10);

/// Why the control plane is not in the pod network.
#[derive(Debug, thiserror::Error)]
enum MemberError {
    #[error("{}: {source}; run hpk up", path.display())]
    Cluster { path: PathBuf, source: io::Error },
    #[error("pod_cidr {0:?} in cluster.json: must be an address and a prefix length, or one of each family")]
    Range(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("the helper in the member's namespace ended: {0}; are user namespaces allowed here? `hpk doctor` says")]
    Helper(String),
    #[error("the link has ended")]
    Left,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> MemberError {
    move |source| MemberError::Io { what: what.into(), source }
}

/// Runs until it is ended.
pub async fn run(home: &Path) -> i32 {
    match live(home).await {
        Ok(never) => match never {},
        Err(error) => {
            hpk_api::say!("hpk-netns: member: {error}");
            1
        }
    }
}

/// Where requests to the helper go.
#[derive(Clone, Debug)]
struct Helper {
    /// None: pods are in a network of the site's ([`direct`]), and sockets of the login node's own lead to them.
    socket: Option<PathBuf>,
}

impl Helper {
    /// A connection into the pod network.
    async fn connect(&self, at: SocketAddr) -> io::Result<TcpStream> {
        if self.socket.is_none() {
            return TcpStream::connect(at).await;
        }
        let socket = std::net::TcpStream::from(self.ask(Ask::Towards(Protocol::Tcp, at)).await?);
        TcpSocket::from_std_stream(socket).connect(at).await
    }

    /// A UDP socket whose peer is in the pod network.
    async fn udp(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        let socket = if self.socket.is_none() {
            let any: IpAddr = if at.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
            UdpSocket::bind((any, 0)).await?
        } else {
            UdpSocket::from_std(std::net::UdpSocket::from(self.ask(Ask::Towards(Protocol::Udp, at)).await?))?
        };
        socket.connect(at).await?;
        Ok(socket)
    }

    /// A socket made inside.
    async fn ask(&self, ask: Ask) -> io::Result<OwnedFd> {
        let socket = self.socket.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_vec(&ask)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut text = Vec::new();
        let mut descriptor = None;
        let mut buffer = [0; 4096];
        while !text.ends_with(b"\n") {
            let (n, fds) = stream
                .async_io(Interest::READABLE, || {
                    hpk_sys::fdpass::receive(&stream, &mut buffer).map_err(io::Error::from)
                })
                .await?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            descriptor = fds.into_iter().next().or(descriptor);
            text.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        match (serde_json::from_slice::<Answer>(&text)?, descriptor) {
            (Answer::Ok(()), Some(fd)) => Ok(fd),
            (Answer::Ok(()), None) => Err(io::Error::other("no descriptor came")),
            (Answer::Failed(message), _) => Err(io::Error::other(message)),
        }
    }
}

async fn live(home: &Path) -> Result<std::convert::Infallible, MemberError> {
    let path = Home::at(home).cluster_json();
    let read = std::fs::read(&path).and_then(|b| Ok(serde_json::from_slice::<ClusterConfig>(&b)?));
    let cluster = read.map_err(|source| MemberError::Cluster { path, source })?;
    let pods = ranges(&cluster.pod_cidr).filter(|all| !all.is_empty());
    let pods = pods.ok_or_else(|| MemberError::Range(cluster.pod_cidr.clone()))?;
    let ips: Vec<_> = pods.iter().map(first_host).collect();
    let home = &home.canonicalize().map_err(io_error(home.display().to_string()))?;
    let (net, folder) = member_folders(home).map_err(io_error("node-local folder"))?;
    if cluster.network_mode == NetworkMode::Cni {
        return direct::live(home, &folder).await;
    }
    let helper = Helper { socket: Some(folder.join(hpk_layout::node::INSIDE_SOCK)) };

    let offers = bind(&folder.join(hpk_layout::node::NETNS_SOCK))?;
    let (questions, asked) = mpsc::channel(256);
    let mut listeners = listen::Listeners::new(helper.clone(), questions.clone());
    let config = Config {
        addresses: ips.clone(),
        pod_range: pods,
        service_range: Vec::new(),
        outward: None,
        outward_ipv6: false,
        node_ip: cluster.node_ip,
        folder: &net,
        encryption: Encryption::unless(cluster.plaintext),
    };
    let datapath = Datapath::start(config, questions).map_err(io_error("datapath"))?;
    let mut child =
        start_helper(&folder, &ips, node::pod_mtu(cluster.node_ip), &cluster).map_err(io_error("starting unshare"))?;
    let offered = async {
        let (stream, _) = offers.accept().await?;
        let (offer, fd) = receive_tun(&stream).await?;
        Ok::<_, io::Error>((stream, offer, fd))
    };
    // Held open: its end tells the helper to go.
    let (_held, offer, fd) = tokio::select! {
        offered = tokio::time::timeout(HELPER, offered) => match offered {
            Ok(offered) => offered.map_err(io_error("the helper's offer"))?,
            Err(_) => return Err(MemberError::Helper("no interface within 10 s".to_owned())),
        },
        ended = child.wait() => return Err(MemberError::Helper(ended.map_or_else(|e| e.to_string(), |s| s.to_string()))),
    };
    datapath.attach(fd, offer.vnet_hdr);

    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: MEMBER.to_owned(),
        job_id: String::new(),
        node: node::hostname(),
        datapath: Some(datapath.endpoint),
        public_key: datapath.public_key.clone(),
        pod_ips: ips.clone(),
        outward: None,
        outpost: 0,
    };
    let link = ClientConfig {
        credentials: Home::at(home).member_link(),
        hello,
        supervisor: folder.join(hpk_layout::node::NO_SOCK),
    };
    let (events_in, mut events) = mpsc::channel(256);
    let mut link = std::pin::pin!(keep(link, events_in, asked, None, CancellationToken::new()));
    let mut outage = Outage::of("hpk-netns: member");
    let mut ready = Ready::default();
    let mut relays: HashMap<(Protocol, u16), (SocketAddr, AbortOnDropHandle<()>)> = HashMap::new();
    loop {
        tokio::select! {
            () = &mut link => return Err(MemberError::Left),
            ended = child.wait() => return Err(MemberError::Helper(ended.map_or_else(|e| e.to_string(), |s| s.to_string()))),
            Some(event) = events.recv() => match outage.take(event) {
                None => {}
                Some(News::Fresh) => {
                    listeners.linked();
                    datapath.fresh();
                }
                Some(News::Net(NetUpdate::Relays(wanted))) => {
                    set_relays(&mut relays, &wanted, &helper, &ips).await;
                    // An empty set may be of a kubelet that does not know its services yet.
                    if !wanted.is_empty() && wanted.iter().all(|w| relays.contains_key(&(w.protocol, w.port))) {
                        ready.say();
                    }
                }
                Some(News::Net(NetUpdate::Listeners(wanted))) => listeners.set(wanted).await,
                Some(News::Net(update)) => datapath.learn(update),
            },
            () = listeners.due() => listeners.again().await,
        }
    }
}

/// Whether the supervisor of the control plane knows that the member serves.
#[derive(Debug, Default)]
struct Ready(bool);

impl Ready {
    fn say(&mut self) {
        if !std::mem::replace(&mut self.0, true) {
            use std::io::Write;
            // Started by hand, nobody may listen.
            let _ = writeln!(io::stdout(), "{}", hpk_api::READY).and_then(|()| io::stdout().flush());
        }
    }
}

/// Starts those that are new, ends those that are no more.
async fn set_relays(
    relays: &mut HashMap<(Protocol, u16), (SocketAddr, AbortOnDropHandle<()>)>,
    wanted: &[Relay],
    helper: &Helper,
    ips: &[IpAddr],
) {
    relays.retain(|key, (target, _)| wanted.iter().any(|w| (w.protocol, w.port) == *key && w.target == *target));
    for relay in wanted {
        let key = (relay.protocol, relay.port);
        if relays.contains_key(&key) {
            continue;
        }
        match start_relay(relay, helper, ips).await {
            Ok(task) => drop(relays.insert(key, (relay.target, task))),
            Err(error) => hpk_api::say!("hpk-netns: member: no way to {} {:?}: {error}", relay.target, relay.protocol),
        }
    }
}

/// At our address of the target's family, where the kubelet sends those who mean it.
async fn start_relay(relay: &Relay, helper: &Helper, ips: &[IpAddr]) -> io::Result<AbortOnDropHandle<()>> {
    let own = ips.iter().find(|ip| ip.is_ipv4() == relay.target.is_ipv4());
    let ip = *own.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    let fd = helper.ask(Ask::Listen(relay.protocol, SocketAddr::new(ip, relay.port))).await?;
    let target = relay.target;
    let task = if relay.protocol == Protocol::Udp {
        let socket = std::net::UdpSocket::from(fd);
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        tokio::spawn(relay::udp(socket, target))
    } else {
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        tokio::spawn(relay::tcp(TcpListener::from_std(listener)?, target))
    };
    Ok(AbortOnDropHandle::new(task))
}

/// A socket in a folder of ours; what an earlier run left is replaced.
fn bind(path: &Path) -> Result<UnixListener, MemberError> {
    let what = || path.display().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io_error(what()))?;
    }
    hpk_layout::remove_stale_socket(path).and_then(|()| UnixListener::bind(path)).map_err(io_error(what()))
}

fn start_helper(folder: &Path, ips: &[IpAddr], mtu: u32, cluster: &ClusterConfig) -> io::Result<tokio::process::Child> {
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    tokio::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe()?)
        .arg("member-inside")
        .arg(folder.join(hpk_layout::node::NETNS_SOCK))
        .arg(folder.join(hpk_layout::node::INSIDE_SOCK))
        .args([ips.join(","), mtu.to_string(), cluster.pod_cidr.clone(), cluster.service_cidr.clone()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}
