//! A link on the kubelet's side from the connection to its end: handshake, hello, facts.

use crate::doorway::Doorway;
use crate::events::{LinkEvent, NetEvent, Out};
use crate::line::{self, Lines};
use crate::mux::{LinkStream, Mode, Mux, Opener};
use crate::registry::{Arrival, Ask, Refusal, Taken};
use crate::transport;
use hpk_api::link::{Hello, MEMBER, NetQuestion, StreamOpen, Welcome};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// TLS and hello together.
const SET_UP: Duration = Duration::from_secs(10);
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

/// Takes connections for as long as the listener lives.
pub(crate) async fn accept(listener: TcpListener, acceptor: tokio_rustls::TlsAcceptor, out: Out) {
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
pub(crate) struct Link {
    /// Its name ([`Hello::link`]).
    uid: String,
    id: u64,
    hello: Hello,
    pub(crate) carried: bool,
    driver: AbortOnDropHandle<String>,
    inbound: mpsc::Receiver<LinkStream>,
    cut: CancellationToken,
}

/// TLS, then who is there. None: nobody whom we let in.
pub(crate) async fn greet<S>(stream: S, acceptor: tokio_rustls::TlsAcceptor, out: &Out) -> Option<Link>
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
pub(crate) async fn live(mut link: Link, out: Out) -> String {
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
