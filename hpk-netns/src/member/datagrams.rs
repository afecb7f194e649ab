//! Carries datagrams between a port and targets. Each client has a socket of its own towards its target, so that answers find
//! their way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Clients of one port at once.
const CLIENTS: usize = 4096;
/// A client silent for so long is forgotten.
const SILENT: Duration = Duration::from_secs(60);
/// Datagrams that wait for one client's socket.
const QUEUE: usize = 64;
/// Datagrams of one client that are kept until something is answered.
const UNANSWERED: usize = 8;

/// How long a target that refuses is tried again: a server that ended is back by then.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How often.
pub(super) const REFUSED_AGAIN: Duration = Duration::from_millis(200);

/// Where datagrams go.
pub(super) trait Targets {
    /// The target of a client that has none. None: the client is not served.
    fn choose(&mut self, client: SocketAddr) -> Option<SocketAddr>;
    /// Whether a client that has this target keeps it.
    fn keeps(&self, client: SocketAddr, target: SocketAddr) -> bool;
    /// A socket that is connected to the target.
    fn open(&self, target: SocketAddr) -> impl Future<Output = io::Result<UdpSocket>> + Send + 'static;
    /// Until the answers to the questions above may be others. Safe to cancel.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
    /// Whether what a target refuses is sent to it again for a while. Else the client gets another target.
    fn are_waited_for(&self) -> bool;
}

struct Client {
    target: SocketAddr,
    queue: mpsc::Sender<Vec<u8>>,
}

/// Until dropped.
pub(super) async fn carry(socket: UdpSocket, mut targets: impl Targets) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut carried = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An ICMP error of an earlier answer is reported here; it concerns nobody else.
                let Ok((len, from)) = received else { continue };
                let goes_on = |client: &Client| !client.queue.is_closed() && targets.keeps(from, client.target);
                if !clients.get(&from).is_some_and(goes_on) {
                    clients.remove(&from);
                    if clients.len() >= CLIENTS {
                        continue;
                    }
                    let Some(target) = targets.choose(from) else { continue };
                    let (queue, queued) = mpsc::channel(QUEUE);
                    clients.insert(from, Client { target, queue });
                    let (socket, out, waits) = (socket.clone(), targets.open(target), targets.are_waited_for());
                    carried.spawn(async move {
                        // After an error the client's next datagram begins anew.
                        let _ = serve(&socket, from, out, queued, waits).await;
                        from
                    });
                }
                if let Some(client) = clients.get(&from) {
                    // UDP loses what there is no room for.
                    let _ = client.queue.try_send(buffer.get(..len).unwrap_or_default().to_vec());
                }
            }
            () = targets.changed() => {}
            Some(over) = carried.join_next() => {
                if let Ok(from) = over && clients.get(&from).is_some_and(|client| client.queue.is_closed()) {
                    clients.remove(&from);
                }
            }
        }
    }
}

async fn serve(
    socket: &UdpSocket,
    client: SocketAddr,
    out: impl Future<Output = io::Result<UdpSocket>>,
    mut queued: mpsc::Receiver<Vec<u8>>,
    waits: bool,
) -> io::Result<()> {
    let out = out.await?;
    let mut buffer = vec![0; 65_536];
    let mut refused = Refused::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SILENT) => return Ok(()),
            () = refused.due() => for datagram in refused.again() {
                // Refused once more: told by recv.
                let _ = out.send(&datagram).await;
            },
            datagram = queued.recv() => {
                let Some(datagram) = datagram else { return Ok(()) };
                let sent = out.send(&datagram).await;
                if waits {
                    // An error is that of an earlier one, and recv tells it too.
                    refused.sent(datagram);
                } else {
                    sent?;
                }
            }
            len = out.recv(&mut buffer) => match len {
                Ok(len) => {
                    refused.answered();
                    socket.send_to(buffer.get(..len).unwrap_or_default(), client).await?;
                }
                Err(error) if waits && error.kind() == io::ErrorKind::ConnectionRefused => refused.heard(),
                Err(error) => return Err(error),
            },
        }
    }
}

/// What was sent and not answered. When the target refuses it (CoreDNS is started again, say), it is sent again for a
/// while: the client cannot be told that nobody listened, and would wait for its own time-out.
#[derive(Debug, Default)]
struct Refused {
    unanswered: VecDeque<Vec<u8>>,
    since: Option<Instant>,
    due: Option<Instant>,
}

impl Refused {
    fn sent(&mut self, datagram: Vec<u8>) {
        if self.unanswered.len() >= UNANSWERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(datagram);
    }

    /// Somebody is there.
    fn answered(&mut self) {
        *self = Self::default();
    }

    /// Nobody is there.
    fn heard(&mut self) {
        let now = Instant::now();
        if now.duration_since(*self.since.get_or_insert(now)) < REFUSED_FOR {
            self.due.get_or_insert(now + REFUSED_AGAIN);
        } else {
            self.answered();
        }
    }

    /// When they are to be sent again; never, while nothing is refused.
    async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn again(&mut self) -> Vec<Vec<u8>> {
        self.due = None;
        self.unanswered.iter().cloned().collect()
    }
}
