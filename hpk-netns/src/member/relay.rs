//! Carries connections and datagrams from a port of the member's pod address to a target in the login node's network.

use super::datagrams::{self, REFUSED_AGAIN, REFUSED_FOR, Targets};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections of one relay at once.
const CONNECTIONS: usize = 4096;

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

/// Until dropped.
pub(super) async fn udp(socket: UdpSocket, target: SocketAddr) {
    datagrams::carry(socket, One(target)).await;
}

/// The one target of all clients.
struct One(SocketAddr);

impl Targets for One {
    fn choose(&mut self, _: SocketAddr) -> Option<SocketAddr> {
        Some(self.0)
    }

    fn keeps(&self, _: SocketAddr, _: SocketAddr) -> bool {
        true
    }

    fn open(&self, target: SocketAddr) -> impl Future<Output = io::Result<UdpSocket>> + Send + 'static {
        connected(target)
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }

    fn are_waited_for(&self) -> bool {
        true
    }
}

async fn connected(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { ([0_u8; 4], 0).into() } else { ([0_u8; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(socket)
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
