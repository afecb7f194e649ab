//! The pod's end of the link: dial, say who is there, serve streams, redial for ever.
//!
//! ```text
//!        ┌──────────── failed, cut: wait (back-off with jitter) ───────────┐
//!        ▼                                                                 │
//!   read link.json ─▶ dial ─▶ TLS ─▶ hello ─▶ up: streams, net facts ──────┤
//!                      ▲                └─ refused ────────────────────────┘
//!                      └─ or a carrier: a connection that the kubelet made to come here by other means
//! ```
//! Nothing that a kubelet says ends it: the next one may say otherwise.
//!
//! Asked to leave, it lets the streams that are under way come to their end first, for a while: a process's last words
//! may still be on their way when its supervisor is gone.
//!
//! A carrier comes when the kubelet has no link of this pod, so it takes the place of whatever this end believes to
//! have. The same bytes go over it, TLS included.

use crate::line::{self, LineError, Lines};
use crate::mux::{LinkStream, Mode, Mux};
use crate::relay;
use crate::tls::{self, TlsError};
use crate::transport;
use hpk_api::link::{Hello, LinkCredentials, NetQuestion, NetUpdate, StreamOpen, Welcome};
use rustls::pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// First pause between two dials.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two dials.
const PAUSE_LONGEST: Duration = Duration::from_secs(15);
/// Pause when the kubelet does not fit: it is a matter of somebody replacing it.
const PAUSE_REFUSED: Duration = Duration::from_secs(60);
/// A link that held this long starts the pauses anew.
const HELD: Duration = Duration::from_secs(30);
/// Dial, TLS and hello together.
const SET_UP: Duration = Duration::from_secs(10);

/// Longest wait for streams when asked to leave: a client that does not read holds the job up for so long.
const LEAVE: Duration = Duration::from_secs(5);

/// What the client needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `link.json`; read anew before each dial, so that a kubelet that moved is found.
    pub credentials: PathBuf,
    /// What to say first.
    pub hello: Hello,
    /// The supervisor's socket.
    pub supervisor: PathBuf,
}

/// What the link tells the pod's network.
#[derive(Debug)]
pub enum ClientEvent {
    /// The link stands; facts will follow.
    Up,
    /// The link is down; what was learnt stays valid until corrected.
    Down { reason: String },
    /// A network fact.
    Net(NetUpdate),
}

/// Why one attempt ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{}: {source}", path.display())]
    Credentials { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("dialling {address}: {source}")]
    Dial { address: std::net::SocketAddr, source: std::io::Error },
    #[error("no answer within {} s", SET_UP.as_secs())]
    Timeout,
    #[error("handshake: {0}")]
    Handshake(std::io::Error),
    #[error("hello: {0}")]
    Hello(LineError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("refused for now: {0}")]
    NotNow(String),
    #[error("the link went down: {0}")]
    Down(String),
    #[error("left")]
    Left,
}

/// Keeps the link until `leave` is cancelled, or the future is dropped.
///
/// Questions are taken from `questions` while the link is up; those asked while it is down wait in the queue.
/// `carriers` lies in a folder of the user's own.
pub async fn keep(
    config: ClientConfig,
    events: mpsc::Sender<ClientEvent>,
    mut questions: mpsc::Receiver<NetQuestion>,
    carriers: Option<UnixListener>,
    leave: CancellationToken,
) {
    let mut pause = PAUSE_FIRST;
    let mut carrier = None;
    loop {
        let began = tokio::time::Instant::now();
        let error = tokio::select! {
            error = attempt(&config, carrier.take(), &events, &mut questions, &leave) => error,
            stream = arrival(carriers.as_ref()) => {
                carrier = Some(stream);
                continue;
            }
        };
        if matches!(error, LinkError::Left) {
            return;
        }
        let _ = events.send(ClientEvent::Down { reason: error.to_string() }).await;
        if began.elapsed() >= HELD {
            pause = PAUSE_FIRST;
        }
        let pause_now = if matches!(error, LinkError::Refused(_)) { PAUSE_REFUSED } else { pause };
        tokio::select! {
            () = tokio::time::sleep(jittered(pause_now, crate::random())) => {}
            stream = arrival(carriers.as_ref()) => carrier = Some(stream),
            () = leave.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// The next carrier; never, when none can come.
async fn arrival(carriers: Option<&UnixListener>) -> UnixStream {
    if let Some(carriers) = carriers {
        loop {
            match carriers.accept().await {
                Ok((stream, _)) => return stream,
                // Out of descriptors, as a rule.
                Err(_) => tokio::time::sleep(PAUSE_LONGEST).await,
            }
        }
    }
    std::future::pending().await
}

/// Half of the pause to all of it: many pods that lost one kubelet do not come back at one instant.
fn jittered(pause: Duration, random: u64) -> Duration {
    let parts = u32::try_from(random % 1000).unwrap_or(0);
    pause / 2 + pause * parts / 2000
}

async fn attempt(
    config: &ClientConfig,
    carrier: Option<UnixStream>,
    events: &mpsc::Sender<ClientEvent>,
    questions: &mut mpsc::Receiver<NetQuestion>,
    leave: &CancellationToken,
) -> LinkError {
    match live(config, carrier, events, questions, leave).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn live(
    config: &ClientConfig,
    carrier: Option<UnixStream>,
    events: &mpsc::Sender<ClientEvent>,
    questions: &mut mpsc::Receiver<NetQuestion>,
    leave: &CancellationToken,
) -> Result<std::convert::Infallible, LinkError> {
    let path = || config.credentials.clone();
    let bytes = std::fs::read(&config.credentials).map_err(|source| LinkError::Credentials { path: path(), source })?;
    let credentials: LinkCredentials =
        serde_json::from_slice(&bytes).map_err(|source| LinkError::Parse { path: path(), source })?;
    let deadline = tokio::time::Instant::now() + SET_UP;
    let stream: Box<dyn Stream> = match carrier {
        Some(carrier) => Box::new(timely(deadline, secure(&credentials, carrier)).await?),
        None => tokio::select! {
            dialled = timely(deadline, dial(&credentials)) => Box::new(dialled?),
            () = leave.cancelled() => return Err(LinkError::Left),
        },
    };
    let (mux, opener, mut inbound) = Mux::new(stream.compat(), Mode::Client);
    // A task of its own: streams make progress whatever this one waits for. Dropping the handle ends it.
    let mut driver = AbortOnDropHandle::new(tokio::spawn(mux.drive()));

    let greet = async {
        let mut first = opener.open().await.map_err(|gone| LinkError::Down(gone.to_string()))?;
        line::write(&mut first, &StreamOpen::Hello(config.hello.clone())).await.map_err(LinkError::Hello)?;
        match line::read_one::<Welcome>(&mut first).await.map_err(LinkError::Hello)? {
            Welcome::Ok { .. } => {}
            Welcome::Refused { message } => return Err(LinkError::Refused(message)),
            Welcome::NotNow { message } => return Err(LinkError::NotNow(message)),
        }
        let mut net = opener.open().await.map_err(|gone| LinkError::Down(gone.to_string()))?;
        line::write(&mut net, &StreamOpen::Net).await.map_err(LinkError::Hello)?;
        Ok(net)
    };
    let net = tokio::select! {
        greeted = tokio::time::timeout_at(deadline, greet) => greeted.map_err(|_| LinkError::Timeout)??,
        end = &mut driver => return Err(LinkError::Down(end.unwrap_or_else(|e| e.to_string()))),
        () = leave.cancelled() => return Err(LinkError::Left),
    };
    let _ = events.send(ClientEvent::Up).await;

    let (read, mut write) = tokio::io::split(net);
    let mut updates = Lines::new(read);
    // Streams into the supervisor end with the link: dropped with this set.
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            end = &mut driver => return Err(LinkError::Down(end.unwrap_or_else(|e| e.to_string()))),
            Some(stream) = inbound.recv() => {
                let socket = config.supervisor.clone();
                streams.spawn(serve(stream, socket));
            }
            Some(_) = streams.join_next() => {}
            () = leave.cancelled() => {
                // New streams are refused.
                drop(inbound);
                let last = async {
                    while streams.join_next().await.is_some() {}
                    // With the last opener gone, the connection is closed in order.
                    drop((updates, write, opener));
                    let _ = (&mut driver).await;
                };
                let _ = tokio::time::timeout(LEAVE, last).await;
                return Err(LinkError::Left);
            }
            update = updates.next::<NetUpdate>() => {
                match update {
                    Ok(update) => { let _ = events.send(ClientEvent::Net(update)).await; }
                    // A newer kubelet may say what we do not know.
                    Err(LineError::Json(_)) => {}
                    Err(error) => return Err(LinkError::Down(error.to_string())),
                }
            }
            Some(question) = questions.recv() => {
                line::write(&mut write, &question).await.map_err(|e| LinkError::Down(e.to_string()))?;
            }
        }
    }
}

/// A dialled or a carried connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn timely<T>(
    deadline: tokio::time::Instant,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    tokio::time::timeout_at(deadline, work).await.map_err(|_| LinkError::Timeout)?
}

async fn dial(credentials: &LinkCredentials) -> Result<TlsStream<TcpStream>, LinkError> {
    let failed = |source| LinkError::Dial { address: credentials.address, source };
    let stream = TcpStream::connect(credentials.address).await.map_err(failed)?;
    transport::prepare(&stream).map_err(failed)?;
    secure(credentials, stream).await
}

async fn secure<S: Stream>(credentials: &LinkCredentials, stream: S) -> Result<TlsStream<S>, LinkError> {
    let config = tls::client(&credentials.ca, &credentials.cert, &credentials.key)?;
    let name = ServerName::try_from(credentials.server_name.clone()).map_err(|e| TlsError::Verifier(e.to_string()))?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(LinkError::Handshake)
}

/// One stream that the kubelet opened: its first line says what for, then bytes go both ways.
async fn serve(mut stream: LinkStream, supervisor: PathBuf) {
    // A stream that is not understood is dropped, which resets it.
    let Ok(Ok(StreamOpen::Supervisor)) = tokio::time::timeout(SET_UP, line::read_one::<StreamOpen>(&mut stream)).await
    else {
        return;
    };
    let Ok(socket) = UnixStream::connect(&supervisor).await else { return };
    relay::join(stream, socket).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_over_half_their_length() {
        let pause = Duration::from_secs(8);
        assert_eq!(jittered(pause, 0), Duration::from_secs(4));
        for random in [1, 500, 999, u64::MAX] {
            let got = jittered(pause, random);
            assert!(got >= pause / 2 && got <= pause, "{got:?}");
        }
    }
}
