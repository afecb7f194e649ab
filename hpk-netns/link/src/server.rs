//! The kubelet's end of the link: listener, registry of the links that stand, facts to them.
//!
//! ```text
//! accept ─▶ TLS (deadline, few at once) ─▶ hello: name in certificate = pod UID ─▶ registry ─▶ events
//!                                                                                    │ one task owns it
//! LinkServer::{open_supervisor, push, broadcast, refuse} ───────── asks ─────────────┘
//! ```
//! A newer connection of the same pod replaces the older one. A link whose queue of facts is full is cut: it
//! redials and is told everything again.

use crate::doorway::Doorway;
use crate::line::{self, Lines};
use crate::mux::{LinkStream, Mode, Mux, Opener};
use crate::pki::{LinkCa, PkiError};
use crate::tls::{self, TlsError};
use crate::{is_uid, pod_name, transport};
use hpk_api::link::{Hello, LinkCredentials, MEMBER, NetQuestion, NetUpdate, StreamOpen, Welcome};
use rustls::pki_types::{CertificateDer, ServerName};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// TLS and hello together.
const SET_UP: Duration = Duration::from_secs(10);
/// The same through a carrier, whose other end is started first.
const CARRIED_SET_UP: Duration = Duration::from_secs(60);
/// Handshakes at once: what strangers can occupy. Some 20 KiB each.
const HANDSHAKES: usize = 256;
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
    NoLink {
        /// Which pod.
        uid: String,
    },
    /// It went down in between.
    #[error("the link to pod {uid} went down")]
    Down {
        /// Which pod.
        uid: String,
    },
}

/// What happens to links, for the pod controller. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A link stands; replaces an earlier one of the pod.
    Up {
        /// Who.
        hello: Hello,
        /// It came over [`LinkServer::carry`]: its node may not be able to dial.
        carried: bool,
    },
    /// It is gone (not sent when it was replaced).
    Down {
        /// Pod UID.
        uid: String,
        /// Why.
        reason: String,
    },
}

/// What the pods' networks need, for the owner of the network facts. Of one pod they come in order.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// Where a pod's datapath is now.
    Up {
        /// Who.
        hello: Hello,
    },
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
    ca: Arc<LinkCa>,
    advertised: SocketAddr,
}

impl std::fmt::Debug for LinkServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkServer").field("advertised", &self.advertised).finish_non_exhaustive()
    }
}

impl LinkServer {
    /// Serves links on `listener`. Pods are told to dial `advertised`. The authority is kept in `pki` (0600).
    ///
    /// # Errors
    /// The authority's files, or TLS settings.
    pub fn start(listener: TcpListener, advertised: SocketAddr, pki: &Path) -> Result<(Self, Events), StartError> {
        let ca = Arc::new(LinkCa::load_or_create(pki)?);
        let (cert, key) = ca.server()?;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server(ca.certificate(), &cert, &key)?));
        let (ask, asked) = mpsc::channel(1024);
        let (link_events, links) = mpsc::channel(1024);
        let (net_events, net) = mpsc::channel(1024);
        let out = Out { ask, links: link_events, net: net_events };
        crate::lasting::spawn("links", registry(asked));
        crate::lasting::spawn("link listener", accept(listener, acceptor.clone(), out.clone()));
        Ok((Self { out, acceptor, ca, advertised }, Events { links, net }))
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

    /// Where pods dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.advertised
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

    /// Credentials for a pod, to be written to its `link.json` (0600). They stay valid across kubelet restarts.
    ///
    /// # Errors
    /// A UID that is none.
    pub fn issue(&self, uid: &str) -> Result<LinkCredentials, PkiError> {
        self.ca.issue(uid, self.advertised)
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

    /// Refuses a pod for good: its link is cut, and its next dial is told not to come back. For pods that the
    /// kubelet does not know; [`Self::readmit`] takes it back.
    pub async fn refuse(&self, uid: &str, message: &str) {
        let _ = self.out.ask.send(Ask::Refuse { uid: uid.to_owned(), message: Some(message.to_owned()) }).await;
    }

    /// Takes back [`Self::refuse`], and frees its memory once the pod's job is gone.
    pub async fn readmit(&self, uid: &str) {
        let _ = self.out.ask.send(Ask::Refuse { uid: uid.to_owned(), message: None }).await;
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

/// What the registry is asked and told.
enum Ask {
    Connected { uid: String, opener: Opener, cut: CancellationToken, answer: oneshot::Sender<Result<u64, String>> },
    Subscribed { uid: String, id: u64, facts: mpsc::Sender<Arc<[u8]>>, done: oneshot::Sender<()> },
    Ended { uid: String, id: u64, answer: oneshot::Sender<bool> },
    Opener { uid: String, answer: oneshot::Sender<Option<Opener>> },
    Await { uid: String, answer: oneshot::Sender<()> },
    Push { uid: String, chunk: Arc<[u8]> },
    Broadcast { chunk: Arc<[u8]> },
    Refuse { uid: String, message: Option<String> },
    Count { answer: oneshot::Sender<usize> },
}

struct Entry {
    id: u64,
    opener: Opener,
    cut: CancellationToken,
    facts: Option<mpsc::Sender<Arc<[u8]>>>,
}

impl Entry {
    fn send(&self, chunk: &Arc<[u8]>) {
        if let Some(facts) = &self.facts
            && facts.try_send(chunk.clone()).is_err()
        {
            self.cut.cancel();
        }
    }
}

/// The one task that knows which links stand.
async fn registry(mut asked: mpsc::Receiver<Ask>) {
    let mut links: HashMap<String, Entry> = HashMap::new();
    let mut refused: HashMap<String, String> = HashMap::new();
    let mut awaited: HashMap<String, Vec<oneshot::Sender<()>>> = HashMap::new();
    let mut next_id = 0_u64;
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Connected { uid, opener, cut, answer } => {
                if let Some(message) = refused.get(&uid) {
                    let _ = answer.send(Err(message.clone()));
                    continue;
                }
                next_id += 1;
                for waiting in awaited.remove(&uid).unwrap_or_default() {
                    let _ = waiting.send(());
                }
                if let Some(old) = links.insert(uid, Entry { id: next_id, opener, cut, facts: None }) {
                    old.cut.cancel();
                }
                let _ = answer.send(Ok(next_id));
            }
            Ask::Subscribed { uid, id, facts, done } => {
                if let Some(entry) = links.get_mut(&uid).filter(|e| e.id == id) {
                    entry.facts = Some(facts);
                }
                let _ = done.send(());
            }
            Ask::Ended { uid, id, answer } => {
                let current = links.get(&uid).is_some_and(|e| e.id == id);
                if current {
                    links.remove(&uid);
                }
                let _ = answer.send(current);
            }
            Ask::Opener { uid, answer } => {
                let _ = answer.send(links.get(&uid).map(|e| e.opener.clone()));
            }
            Ask::Await { uid, answer } => {
                if links.contains_key(&uid) {
                    let _ = answer.send(());
                    continue;
                }
                // Those who gave up are not kept.
                awaited.retain(|_, waiting| {
                    waiting.retain(|w| !w.is_closed());
                    !waiting.is_empty()
                });
                awaited.entry(uid).or_default().push(answer);
            }
            Ask::Push { uid, chunk } => {
                if let Some(entry) = links.get(&uid) {
                    entry.send(&chunk);
                }
            }
            Ask::Broadcast { chunk } => links.values().for_each(|entry| entry.send(&chunk)),
            Ask::Refuse { uid, message: Some(message) } => {
                if let Some(entry) = links.get(&uid) {
                    entry.cut.cancel();
                }
                refused.insert(uid, message);
            }
            Ask::Refuse { uid, message: None } => {
                refused.remove(&uid);
            }
            Ask::Count { answer } => {
                let _ = answer.send(links.len());
            }
        }
    }
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
    let admitted = match check(&hello, &certificate) {
        Ok(()) => {
            let (answer, admitted) = oneshot::channel();
            out.ask.send(Ask::Connected { uid: hello.pod_uid.clone(), opener, cut: cut.clone(), answer }).await.ok()?;
            admitted.await.ok()?
        }
        Err(message) => Err(message),
    };
    match admitted {
        Ok(id) => {
            let link = Link { uid: hello.pod_uid.clone(), id, hello, carried: false, driver, inbound, cut };
            // A failed write is found again by whoever reads the link next.
            let _ = line::write(&mut first, &Welcome::Ok { version: hpk_api::VERSION }).await;
            Some(link)
        }
        Err(message) => {
            let _ = line::write(&mut first, &Welcome::Refused { message }).await;
            // The answer must leave before the connection does: the client closes once it has read it.
            let _ = driver.await;
            None
        }
    }
}

/// A hello must be of our version, and of the pod that the certificate was issued for.
fn check(hello: &Hello, certificate: &CertificateDer<'_>) -> Result<(), String> {
    if hello.version > hpk_api::VERSION {
        return Err(format!("hpk-netns speaks version {}, this kubelet {}", hello.version, hpk_api::VERSION));
    }
    let names_it = || {
        let name = ServerName::try_from(pod_name(&hello.pod_uid)).ok()?;
        let parsed = rustls::server::ParsedCertificate::try_from(certificate).ok()?;
        rustls::client::verify_server_name(&parsed, &name).ok()
    };
    if !is_uid(&hello.pod_uid) || names_it().is_none() {
        return Err("the certificate was issued for another pod".to_owned());
    }
    Ok(())
}

/// Serves a link to its end; says why it ended.
async fn live(mut link: Link, out: Out) -> String {
    let uid = link.uid.clone();
    // The control plane's member is no pod: the controller need not know.
    let is_pod = uid != MEMBER;
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
