//! The kubelet's end of the link: listeners, the links that stand, facts to them.
//!
//! ```text
//! accept ─▶ TLS (deadline, few at once) ─▶ hello: whose certificate, what it says ─▶ registry ─▶ events
//!                                                                                      ▲  one task owns it
//! LinkServer::{open_supervisor, push, broadcast} ─────────── asks ─────────────────────┤
//! LinkServer::{issue, adopt, withdraw, advertise} ─▶ grants: who may link, its file ───┘
//! ```
//! A link whose queue of facts is full is cut: it redials and is told everything again.

use crate::doorway::Doorway;
use crate::grants::{self, Order};
use crate::line::{self, Lines};
use crate::mux::{LinkStream, Mode, Mux, Opener};
use crate::pki::{LinkCa, PkiError};
use crate::registry::{self, Arrival, Ask, Refusal, Taken};
use crate::tls::{self, Identity, TlsError};
use crate::transport;
use hpk_api::link::{Hello, MEMBER, NetQuestion, NetUpdate, StreamOpen, Welcome};
use jiff::Timestamp;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// TLS and hello together.
const SET_UP: Duration = Duration::from_secs(10);
/// The same through a carrier, whose other end is started first.
const CARRIED_SET_UP: Duration = Duration::from_secs(60);
/// Handshakes at once: what strangers can occupy. Some 20 KiB each.
const HANDSHAKES: usize = 256;
/// How long a refused client may take to read why.
const READ: Duration = Duration::from_secs(2);
/// How long a link that stands may take to show that it is alive when a second one comes.
const PROBE: Duration = Duration::from_secs(3);
/// The end of a link is known to the registry this long after it was seen.
const SETTLES: Duration = Duration::from_millis(200);
/// Chunks of facts that wait for one link.
const FACTS_QUEUE: usize = 256;

/// The listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Authority or certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS settings.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// No stream to a pod's supervisor.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No link of that pod stands now.
    #[error("no link to pod {uid}: its job has not started, has ended, or its node cannot reach this one")]
    NoLink { uid: String },
    /// It went down in between.
    #[error("the link to pod {uid} went down")]
    Down { uid: String },
}

/// What happens to links, for the pod controller. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A link stands; replaces an earlier one of the pod.
    Up {
        hello: Hello,
        /// It came over [`LinkServer::carry`]: its node may not be able to dial.
        carried: bool,
    },
    /// It is gone (not sent when it was replaced).
    Down {
        /// Pod UID.
        uid: String,
        reason: String,
    },
    /// Somebody who has the pod's certificate was refused for what he said.
    Refused {
        /// Pod UID.
        uid: String,
        /// Why, for people.
        why: String,
    },
}

/// What the pods' networks need, for the owner of the network facts. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// Where a pod's datapath is now.
    Up { hello: Hello },
    /// The pod's facts stream stands: send it everything ([`LinkServer::push`]).
    Subscribed {
        /// Pod UID.
        uid: String,
    },
    /// A question to be answered by [`LinkServer::push`].
    Asked {
        /// Pod UID.
        uid: String,
        /// What it asks.
        question: NetQuestion,
    },
    /// The link is gone.
    Down {
        /// Pod UID.
        uid: String,
    },
}

/// The two streams of events; each must be read, a full queue holds up the links.
#[derive(Debug)]
pub struct Events {
    /// For the pod controller.
    pub links: mpsc::Receiver<LinkEvent>,
    /// For the network facts.
    pub net: mpsc::Receiver<NetEvent>,
}

/// Handle on the running server; clones are one server. It ends when the runtime does.
#[derive(Clone)]
pub struct LinkServer {
    out: Out,
    acceptor: tokio_rustls::TlsAcceptor,
    orders: mpsc::UnboundedSender<Order>,
    advertised: Arc<watch::Sender<SocketAddr>>,
}

impl std::fmt::Debug for LinkServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkServer").field("advertised", &self.address()).finish_non_exhaustive()
    }
}

impl LinkServer {
    /// A server that tells pods to dial `advertised`, where [`Self::listen`] makes it listen. The authority is kept in
    /// `pki` (0600).
    ///
    /// # Errors
    /// The authority's files, or TLS settings.
    pub fn start(advertised: SocketAddr, pki: &Path) -> Result<(Self, Events), StartError> {
        let ca = Arc::new(LinkCa::load_or_create(pki)?);
        let (cert, key, end) = ca.server(Timestamp::now())?;
        let identity = Arc::new(Identity::new(&cert, &key)?);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server(ca.certificate(), identity.clone())?));
        let (ask, asked) = mpsc::channel(1024);
        let (link_events, links) = mpsc::channel(1024);
        let (net_events, net) = mpsc::channel(1024);
        let (orders, ordered) = mpsc::unbounded_channel();
        let (advertised, told) = watch::channel(advertised);
        crate::lasting::spawn("links", registry::run(asked));
        crate::lasting::spawn("grants of links", grants::keep(ca, identity, end, ordered, told, ask.clone()));
        let out = Out { ask, links: link_events, net: net_events };
        Ok((Self { out, acceptor, orders, advertised: Arc::new(advertised) }, Events { links, net }))
    }

    /// Serves the links that come here, too.
    pub fn listen(&self, listener: TcpListener) {
        crate::lasting::spawn("link listener", accept(listener, self.acceptor.clone(), self.out.clone()));
    }

    /// From now on pods are to dial this address: every `link.json` is written again.
    pub fn advertise(&self, address: SocketAddr) {
        self.advertised.send_if_modified(|now| std::mem::replace(now, address) != address);
    }

    /// Where pods dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.advertised.borrow()
    }

    /// Lets a pod, or the control plane's [`MEMBER`], link: puts credentials into `file` (0600), if those there are not good
    /// for long enough, and keeps them so. Its datapath may have no other addresses than these.
    ///
    /// # Errors
    /// A UID that is none, or the file system's; it is tried again until [`Self::withdraw`].
    pub async fn issue(&self, uid: &str, file: PathBuf, addresses: Vec<IpAddr>) -> Result<(), PkiError> {
        let (answer, issued) = oneshot::channel();
        let order = Order::Grant { uid: uid.to_owned(), file, addresses, answer: Some(answer) };
        self.orders.send(order).map_err(|_| PkiError::Ending)?;
        issued.await.map_err(|_| PkiError::Ending)?
    }

    /// [`Self::issue`] for a pod that has been begun: nobody waits for the outcome.
    pub fn adopt(&self, uid: &str, file: PathBuf, addresses: Vec<IpAddr>) {
        // Without a receiver the kubelet ends.
        let _ = self.orders.send(Order::Grant { uid: uid.to_owned(), file, addresses, answer: None });
    }

    /// Takes that back: what was issued is worth nothing from now on, and the pod's link is cut.
    pub fn withdraw(&self, uid: &str) {
        let _ = self.orders.send(Order::Withdraw { uid: uid.to_owned() });
    }

    /// Serves a link that came by other means than our listener, until it ends; the text says why it did.
    pub async fn carry<S>(&self, stream: S) -> String
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match tokio::time::timeout(CARRIED_SET_UP, greet(stream, self.acceptor.clone(), &self.out)).await {
            Ok(Some(link)) => Box::pin(live(Link { carried: true, ..link }, self.out.clone())).await,
            Ok(None) => "its handshake failed".to_owned(),
            Err(_) => format!("no handshake within {} s", CARRIED_SET_UP.as_secs()),
        }
    }

    /// Returns when a link of the pod stands.
    pub async fn up(&self, uid: &str) {
        let (answer, up) = oneshot::channel();
        let _ = self.out.ask.send(Ask::Await { uid: uid.to_owned(), answer }).await;
        if up.await.is_err() {
            // The registry is gone: the runtime ends.
            std::future::pending::<()>().await;
        }
    }

    /// A new connection to the pod's supervisor socket: write the greeting and request lines of
    /// [`hpk_api::control`] next. Reading ends when the supervisor closes or the link goes down (then with an error).
    ///
    /// # Errors
    /// The pod has no link now.
    pub async fn open_supervisor(&self, uid: &str) -> Result<LinkStream, OpenError> {
        let (answer, opener) = oneshot::channel();
        let down = || OpenError::Down { uid: uid.to_owned() };
        self.out.ask.send(Ask::Opener { uid: uid.to_owned(), answer }).await.map_err(|_| down())?;
        let opener = opener.await.map_err(|_| down())?.ok_or_else(|| OpenError::NoLink { uid: uid.to_owned() })?;
        let mut stream = opener.open().await.map_err(|_| down())?;
        line::write(&mut stream, &StreamOpen::Supervisor).await.map_err(|_| down())?;
        Ok(stream)
    }

    /// Sends facts to one pod, in order; nothing when it has no link or has not subscribed.
    pub async fn push(&self, uid: &str, facts: &[NetUpdate]) {
        if let Some(chunk) = chunk(facts) {
            let _ = self.out.ask.send(Ask::Push { uid: uid.to_owned(), chunk }).await;
        }
    }

    /// Sends facts to every pod that subscribed; serialised once.
    pub async fn broadcast(&self, facts: &[NetUpdate]) {
        if let Some(chunk) = chunk(facts) {
            let _ = self.out.ask.send(Ask::Broadcast { chunk }).await;
        }
    }

    /// How many links stand, for metrics.
    pub async fn count(&self) -> usize {
        let (answer, count) = oneshot::channel();
        let _ = self.out.ask.send(Ask::Count { answer }).await;
        count.await.unwrap_or(0)
    }
}

/// Facts as lines, shared by all links that they go to.
fn chunk(facts: &[NetUpdate]) -> Option<Arc<[u8]>> {
    let mut bytes = Vec::new();
    for fact in facts {
        // Serialising plain data into memory cannot fail; a fact that could not would be left out.
        bytes.extend(line::encode(fact).unwrap_or_default());
    }
    if bytes.is_empty() { None } else { Some(bytes.into()) }
}

/// Where connections report to.
#[derive(Clone)]
struct Out {
    ask: mpsc::Sender<Ask>,
    links: mpsc::Sender<LinkEvent>,
    net: mpsc::Sender<NetEvent>,
}

async fn accept(listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor, out: Out) {
    let doorway = Doorway::new(HANDSHAKES);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, as a rule: links that end will free some.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, out, visitor) = (acceptor.clone(), out.clone(), doorway.enter().await);
        tokio::spawn(async move {
            let greet = async {
                transport::prepare(&stream).ok()?;
                greet(stream, acceptor, &out).await
            };
            let greeted = tokio::select! {
                greeted = greet => greeted,
                () = visitor.out().cancelled_owned() => None,
                () = tokio::time::sleep(SET_UP) => None,
            };
            drop(visitor);
            if let Some(link) = greeted {
                // Boxed: the state of a link's life is not carried through its handshake.
                Box::pin(live(link, out)).await;
            }
        });
    }
}

/// A link past its hello.
struct Link {
    /// Its name ([`Hello::link`]).
    uid: String,
    id: u64,
    hello: Hello,
    carried: bool,
    driver: AbortOnDropHandle<String>,
    inbound: mpsc::Receiver<LinkStream>,
    cut: CancellationToken,
}

async fn greet<S>(stream: S, acceptor: tokio_rustls::TlsAcceptor, out: &Out) -> Option<Link>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = acceptor.accept(stream).await.ok()?;
    let certificate = stream.get_ref().1.peer_certificates()?.first()?.clone().into_owned();
    let (mux, opener, mut inbound) = Mux::new(stream.compat(), Mode::Server);
    let driver = AbortOnDropHandle::new(tokio::spawn(mux.drive()));
    let mut first = inbound.recv().await?;
    let StreamOpen::Hello(hello) = line::read_one(&mut first).await.ok()? else { return None };
    let cut = CancellationToken::new();
    let arrival = Arrival { hello: hello.clone(), certificate, opener: opener.clone(), cut: cut.clone() };
    match admit(arrival, out).await? {
        Ok(id) => {
            let link = Link { uid: hello.link(), id, hello, carried: false, driver, inbound, cut };
            // A failed write is found again by whoever reads the link next.
            let _ = line::write(&mut first, &Welcome::Ok { version: hpk_api::VERSION }).await;
            Some(link)
        }
        Err(refusal) => {
            let message = refusal.to_string();
            tracing::debug!(uid = %hello.pod_uid, why = %message, "link refused");
            if refusal.is_a_lie() {
                let _ = out.links.send(LinkEvent::Refused { uid: hello.pod_uid, why: message.clone() }).await;
            }
            let welcome = match refusal {
                Refusal::Version { .. } => Welcome::Refused { message },
                _ => Welcome::NotNow { message },
            };
            let _ = line::write(&mut first, &welcome).await;
            // The answer must arrive before the connection ends: the client ends it once it has read that, and without an
            // opener we would.
            let _ = tokio::time::timeout(READ, driver).await;
            drop(opener);
            None
        }
    }
}

/// The registry's decision; None: it is gone.
async fn admit(arrival: Arrival, out: &Out) -> Option<Result<u64, Refusal>> {
    let mut dead = None;
    let mut answered = None;
    loop {
        let (answer, taken) = oneshot::channel();
        out.ask.send(Ask::Connect { arrival: arrival.clone(), dead, answer }).await.ok()?;
        match taken.await.ok()? {
            Taken::Yes(id) => return Some(Ok(id)),
            Taken::No(refusal) => return Some(Err(refusal)),
            Taken::Occupied(id, _) if answered == Some(id) => return Some(Err(Refusal::Second)),
            Taken::Occupied(id, opener) => {
                if is_alive(&opener).await {
                    // Its last word may have been its end.
                    answered = Some(id);
                    tokio::time::sleep(SETTLES).await;
                } else {
                    dead = Some(id);
                }
            }
        }
    }
}

/// Whether the other end of a link that stands does anything at all with a stream.
async fn is_alive(opener: &Opener) -> bool {
    let reaction = async {
        let Ok(mut stream) = opener.open().await else { return false };
        if line::write(&mut stream, &StreamOpen::Probe).await.is_err() {
            return false;
        }
        let _ = stream.read(&mut [0]).await;
        true
    };
    tokio::time::timeout(PROBE, reaction).await.unwrap_or(false)
}

/// Serves a link to its end; says why it ended.
async fn live(mut link: Link, out: Out) -> String {
    let uid = link.uid.clone();
    // The control plane's member is no pod, and an outpost's link says nothing of its pod: the controller need not know.
    let is_pod = uid != MEMBER && link.hello.outpost == 0;
    if is_pod {
        let _ = out.links.send(LinkEvent::Up { hello: link.hello.clone(), carried: link.carried }).await;
    }
    let _ = out.net.send(NetEvent::Up { hello: link.hello.clone() }).await;
    let reason = serve(&mut link, &out).await;
    let (answer, current) = oneshot::channel();
    let _ = out.ask.send(Ask::Ended { uid: uid.clone(), id: link.id, answer }).await;
    // Replaced by a newer connection: the pod's link is up.
    if current.await.unwrap_or(true) {
        if is_pod {
            let _ = out.links.send(LinkEvent::Down { uid: uid.clone(), reason: reason.clone() }).await;
        }
        let _ = out.net.send(NetEvent::Down { uid }).await;
    }
    reason
}

/// Until the link ends; says why.
async fn serve(link: &mut Link, out: &Out) -> String {
    let mut net: Option<tokio::task::JoinHandle<()>> = None;
    let reason = loop {
        tokio::select! {
            end = &mut link.driver => break end.unwrap_or_else(|e| e.to_string()),
            () = link.cut.cancelled() => break "cut by the kubelet".to_owned(),
            Some(mut stream) = link.inbound.recv() => {
                // Only the facts stream is expected, once; anything else is dropped, which resets it.
                let opened = tokio::time::timeout(SET_UP, line::read_one::<StreamOpen>(&mut stream)).await;
                if matches!(opened, Ok(Ok(StreamOpen::Net))) && net.is_none() {
                    let (uid, id, cut, out) = (link.uid.clone(), link.id, link.cut.clone(), out.clone());
                    net = Some(tokio::spawn(async move { facts(stream, &uid, id, &out, &cut).await }));
                }
            }
        }
    };
    if let Some(net) = net {
        net.abort();
    }
    reason
}

/// The facts stream of one link: updates out, questions in.
async fn facts(stream: LinkStream, uid: &str, id: u64, out: &Out, cut: &CancellationToken) {
    use tokio::io::AsyncWriteExt;
    let (facts, mut queued) = mpsc::channel(FACTS_QUEUE);
    let (done, subscribed) = oneshot::channel();
    let _ = out.ask.send(Ask::Subscribed { uid: uid.to_owned(), id, facts, done }).await;
    let _ = subscribed.await;
    let _ = out.net.send(NetEvent::Subscribed { uid: uid.to_owned() }).await;
    let (read, mut write) = tokio::io::split(stream);
    let mut questions = Lines::new(read);
    loop {
        tokio::select! {
            chunk = queued.recv() => {
                let Some(chunk): Option<Arc<[u8]>> = chunk else { break };
                if write.write_all(&chunk).await.is_err() || write.flush().await.is_err() {
                    break;
                }
            }
            question = questions.next::<NetQuestion>() => match question {
                Ok(question) => { let _ = out.net.send(NetEvent::Asked { uid: uid.to_owned(), question }).await; }
                Err(line::LineError::Json(_)) => {}
                Err(_) => break,
            }
        }
    }
    cut.cancel();
}
