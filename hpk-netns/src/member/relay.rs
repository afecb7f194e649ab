//! Carries connections and datagrams from a port of the member's pod address to a target in the login node's network.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections of one relay at once.
const CONNECTIONS: usize = 4096;
/// Clients of one UDP relay at once.
const CLIENTS: usize = 4096;
/// A UDP client silent for so long is forgotten.
const SILENT: Duration = Duration::from_secs(60);
/// Datagrams that wait for one client's socket.
const QUEUE: usize = 64;

/// How long a target that refuses is tried again: a server that ended is back by then.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How often.
const REFUSED_AGAIN: Duration = Duration::from_millis(200);
/// Datagrams of one client that are kept until something is answered.
const UNANSWERED: usize = 8;

/// Until dropped.
pub(super) async fn tcp(listener: TcpListener, target: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this future, and the connections with it.
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut stream, _)) => {
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    carried.spawn(async move {
                        if let Ok(mut on) = dial(target).await {
                            let _ = (stream.set_nodelay(true), on.set_nodelay(true));
                            let _ = tokio::io::copy_bidirectional(&mut stream, &mut on).await;
                        }
                        drop(permit);
                    });
                }
                // Out of descriptors: those that end free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

/// Until dropped. Each client has a socket of its own towards the target, so that answers find their way.
pub(super) async fn udp(socket: UdpSocket, target: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut carried = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An ICMP error of an earlier answer is reported here; it concerns nobody else.
                let Ok((len, client)) = received else { continue };
                let datagram = buffer.get(..len).unwrap_or_default().to_vec();
                if clients.get(&client).is_none_or(mpsc::Sender::is_closed) {
                    if clients.len() >= CLIENTS {
                        continue;
                    }
                    let (queue, queued) = mpsc::channel(QUEUE);
                    clients.insert(client, queue);
                    let socket = socket.clone();
                    carried.spawn(async move {
                        let _ = udp_client(&socket, client, target, queued).await;
                        client
                    });
                }
                if let Some(queue) = clients.get(&client) {
                    let _ = queue.try_send(datagram);
                }
            }
            Some(over) = carried.join_next() => {
                if let Ok(client) = over && clients.get(&client).is_some_and(mpsc::Sender::is_closed) {
                    clients.remove(&client);
                }
            }
        }
    }
}

async fn udp_client(
    socket: &UdpSocket,
    client: SocketAddr,
    target: SocketAddr,
    mut queued: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let any: SocketAddr = if target.is_ipv4() { ([0_u8; 4], 0).into() } else { ([0_u8; 16], 0).into() };
    let out = UdpSocket::bind(any).await?;
    out.connect(target).await?;
    let mut buffer = vec![0; 65_536];
    let mut refused = Refused::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SILENT) => return Ok(()),
            () = refused.due() => for datagram in refused.again() {
                // Refused once more: told by recv.
                let _ = out.send(&datagram).await;
            },
            datagram = queued.recv() => match datagram {
                Some(datagram) => {
                    // An error is that of an earlier one, and recv tells it too.
                    let _ = out.send(&datagram).await;
                    refused.sent(datagram);
                }
                None => return Ok(()),
            },
            len = out.recv(&mut buffer) => match len {
                Ok(len) => {
                    refused.answered();
                    socket.send_to(buffer.get(..len).unwrap_or_default(), client).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused.heard(),
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

/// A connection to the target, which may be on its way back: refusals are not believed at once.
async fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let give_up = Instant::now() + REFUSED_FOR;
    loop {
        match TcpStream::connect(target).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < give_up => {
                tokio::time::sleep(REFUSED_AGAIN).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn tcp_is_carried_with_its_half_close() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, at) = (server.local_addr().unwrap(), front.local_addr().unwrap());
        let relay = tokio::spawn(tcp(front, target));
        let served = tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        });
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"all of it").await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"all of it");
        served.await.unwrap();
        relay.abort();
    }

    #[tokio::test]
    async fn who_asks_while_the_target_is_started_again_is_answered() {
        // A target that is away, and comes back when it was asked.
        let (target, front) = (held(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let at = front.local_addr().unwrap();
        let relay = tokio::spawn(udp(front, target.at));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"query", at).await.unwrap();
        // Refused at least once by then.
        tokio::time::sleep(REFUSED_AGAIN / 2).await;
        let server = target.serve();
        let mut buffer = [0; 64];
        let (len, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"query");
        server.send_to(b"answer", from).await.unwrap();
        let (len, _) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"answer");
        relay.abort();
    }

    #[tokio::test]
    async fn who_connects_while_the_target_is_started_again_is_served() {
        let (target, front) = (held(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let at = front.local_addr().unwrap();
        let relay = tokio::spawn(tcp(front, target.at));
        let mut client = TcpStream::connect(at).await.unwrap();
        tokio::time::sleep(REFUSED_AGAIN / 2).await;
        let server = TcpListener::from_std(hpk_sys::ports::listen_beside(target.at).unwrap()).unwrap();
        server.accept().await.unwrap().0.write_all(b"hello").await.unwrap();
        let mut said = [0; 5];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        relay.abort();
    }

    /// A port that nobody serves and no other test gets.
    struct Held {
        at: SocketAddr,
        _hold: hpk_sys::ports::Hold,
    }

    impl Held {
        fn serve(&self) -> UdpSocket {
            UdpSocket::from_std(hpk_sys::ports::udp_beside(self.at).unwrap()).unwrap()
        }
    }

    fn held() -> Held {
        let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Held { at, _hold: hpk_sys::ports::Hold::take(at).unwrap() }
    }

    #[tokio::test]
    async fn answers_go_to_who_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (target, at) = (server.local_addr().unwrap(), front.local_addr().unwrap());
        let relay = tokio::spawn(udp(front, target));
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = server.recv_from(&mut buffer).await {
                server.send_to(&buffer[..len], from).await.unwrap();
            }
        });
        let clients = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        for (n, client) in clients.iter().enumerate() {
            client.send_to(format!("query {n}").as_bytes(), at).await.unwrap();
        }
        for (n, client) in clients.iter().enumerate() {
            let mut buffer = [0; 64];
            let (len, from) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..len], from), (format!("query {n}").as_bytes(), at));
        }
        relay.abort();
    }
}
