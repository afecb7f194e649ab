//! Carries connections and datagrams from a port of the member's pod address to a target in the login node's network.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Connections of one relay at once.
const CONNECTIONS: usize = 4096;
/// Clients of one UDP relay at once.
const CLIENTS: usize = 4096;
/// A UDP client silent for so long is forgotten.
const SILENT: Duration = Duration::from_secs(60);
/// Datagrams that wait for one client's socket.
const QUEUE: usize = 64;

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
                        if let Ok(mut on) = TcpStream::connect(target).await {
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
    loop {
        tokio::select! {
            () = tokio::time::sleep(SILENT) => return Ok(()),
            datagram = queued.recv() => match datagram {
                Some(datagram) => { out.send(&datagram).await?; }
                None => return Ok(()),
            },
            len = out.recv(&mut buffer) => {
                socket.send_to(buffer.get(..len?).unwrap_or_default(), client).await?;
            }
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
