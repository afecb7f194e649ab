//! The kubelet's end of the link: listeners, the links that stand, facts to them.
//!
//! ```text
//! accept ─▶ TLS (deadline, few at once) ─▶ hello: whose certificate, what it says ─▶ registry ─▶ events
//!                                                                                      ▲  one task owns it
//! LinkServer::{open_supervisor, push, broadcast} ─────────── asks ─────────────────────┤
//! LinkServer::{issue, adopt, withdraw, advertise} ─▶ grants: who may link, its file ───┘
//! ```
//! A link whose queue of facts is full is cut: it redials and is told everything again.

pub use crate::events::{Events, LinkEvent, NetEvent};

use crate::arrival::{accept, greet, live};
use crate::events::Out;
use crate::grants::{self, Order};
use crate::line;
use crate::mux::LinkStream;
use crate::pki::{LinkCa, PkiError};
use crate::registry::{self, Ask};
use crate::tls::{self, Identity, TlsError};
use hpk_api::link::{NetUpdate, StreamOpen};
use jiff::Timestamp;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

/// TLS and hello together through a carrier, whose other end is started first.
const CARRIED_SET_UP: Duration = Duration::from_secs(60);

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
            Ok(Some(mut link)) => {
                link.carried = true;
                Box::pin(live(link, self.out.clone())).await
            }
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
