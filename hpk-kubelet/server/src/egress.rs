//! The API server's way to pods: an HTTP CONNECT proxy on a unix socket.
//!
//! kube-apiserver runs on the login node, where pod addresses mean nothing. Its egress selector
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/setup-konnectivity/>) sends what is meant for the
//! cluster here: admission webhooks, aggregated APIs, `kubectl proxy` to pods and services, and also the
//! connections to the kubelet's own API.
//!
//! ```text
//!  CONNECT ip:port ─┬─ ip of a pod with a network of its own ─▶ its supervisor dials, from inside
//!                   └─ anything else ─────────────────────────▶ dialled from here
//! ```
//! The socket lies in a folder of the user's own, and callers with another uid are turned away.

use crate::backend::Backend;
use hpk_api::control::{Request, StreamEnd};
use hpk_api::frame::{CHUNK, channel};
use hpk_control::{stream, stream_end};
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest, copy_bidirectional};
use tokio::net::{TcpStream, UnixListener, UnixStream};

/// Time for a request's head, and for a connection from here.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long bytes of a client that is gone may still be on their way.
const LINGER: Duration = Duration::from_secs(2);
/// A CONNECT has two short lines.
const MAX_HEAD: usize = 8 << 10;

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
enum EgressError {
    #[error("not an HTTP CONNECT request")]
    NotConnect,
    #[error("the request's head is too long or late")]
    Head,
    #[error("dial {address}: {message}")]
    Dial { address: String, message: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves on a new socket at `path` until the runtime ends.
///
/// # Errors
/// When the socket cannot be bound.
pub fn start<B: Backend>(path: &Path, backend: Arc<B>) -> io::Result<()> {
    // Left by a kubelet that was killed; the caller holds the home's lock.
    hpk_layout::remove_stale_socket(path)?;
    let listener = UnixListener::bind(path)?;
    hpk_link::lasting::spawn("way of the API server to pods", accept(listener, backend));
    Ok(())
}

async fn accept<B: Backend>(listener: UnixListener, backend: Arc<B>) {
    // Our own end's peer is ourselves: whoever made the socket.
    let ours = std::os::unix::net::UnixStream::pair()
        .and_then(|(a, _b)| {
            a.set_nonblocking(true)?;
            UnixStream::from_std(a)?.peer_cred()
        })
        .map(|c| c.uid());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let same = matches!((&ours, stream.peer_cred()), (Ok(uid), Ok(c)) if c.uid() == *uid);
                if same {
                    let backend = backend.clone();
                    tokio::spawn(async move {
                        if let Err(e) = serve(stream, backend.as_ref()).await {
                            tracing::debug!("egress: {e}");
                        }
                    });
                }
            }
            Err(e) => {
                tracing::warn!("egress: accept: {e}");
                // Out of file descriptors, most likely: give the others time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve<B: Backend>(mut client: UnixStream, backend: &B) -> Result<(), EgressError> {
    let target = match tokio::time::timeout(PATIENCE, head(&mut client)).await {
        Ok(Ok(target)) => target,
        Ok(Err(e)) => return refuse(client, e).await,
        Err(_) => return refuse(client, EgressError::Head).await,
    };
    let pods = backend.pods().await;
    if let Ok(address) = target.parse::<SocketAddr>()
        && let Some(uid) = pods.iter().find(|p| owns(p, address)).and_then(|p| p.metadata.uid.clone())
    {
        drop(pods);
        return through(client, backend, &uid, address).await;
    }
    let dialled = match tokio::time::timeout(PATIENCE, TcpStream::connect(&target)).await {
        Ok(Ok(tcp)) => Ok(tcp),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("i/o timeout".to_owned()),
    };
    match dialled {
        Ok(mut tcp) => {
            // Failing to switch Nagle off costs time, not correctness.
            let _ = tcp.set_nodelay(true);
            client.write_all(ESTABLISHED).await?;
            let hangup = Hangup::watch(&client)?;
            tokio::select! {
                copied = copy_bidirectional(&mut client, &mut tcp) => copied.map(drop)?,
                // A reset overtakes bytes that the server does not read.
                () = hangup.seen() => tcp.set_zero_linger()?,
            }
            Ok(())
        }
        Err(message) => refuse(client, EgressError::Dial { address: target, message }).await,
    }
}

/// Whether `address` is in a network that only the pod itself is on.
fn owns(pod: &Pod, address: SocketAddr) -> bool {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let Some(status) = &pod.status else { return false };
    // An address is given to the next pod when this one has ended.
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    !host_network && !over && ips.filter_map(|ip| ip.parse().ok()).any(|ip: std::net::IpAddr| ip == address.ip())
}

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// The API server shows the reason phrase to its user.
async fn refuse(mut client: UnixStream, error: EgressError) -> Result<(), EgressError> {
    let reason: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    client.write_all(format!("HTTP/1.1 502 {reason}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
    Err(error)
}

/// Reads the request's head, byte by byte at its end: what follows belongs to the tunnel.
async fn head(client: &mut (impl AsyncRead + Unpin)) -> Result<String, EgressError> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(EgressError::Head);
        }
        head.push(client.read_u8().await?);
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| EgressError::NotConnect)?;
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["CONNECT", target, version] if version.starts_with("HTTP/1.") => Ok(target.to_owned()),
        _ => Err(EgressError::NotConnect),
    }
}

/// Lets the pod's supervisor dial, and copies both ways.
async fn through<B: Backend>(
    client: UnixStream,
    backend: &B,
    uid: &str,
    address: SocketAddr,
) -> Result<(), EgressError> {
    let opened: Result<_, String> = async {
        let connection = backend.open_session(uid).await.map_err(|e| e.to_string())?;
        stream::request(connection, &Request::Dial { address }).await.map_err(|e| e.to_string())
    }
    .await;
    let (mut reader, mut writer) = match opened {
        Ok((_, reader, writer)) => (reader, writer),
        Err(message) => return refuse(client, EgressError::Dial { address: address.to_string(), message }).await,
    };
    let hangup = Hangup::watch(&client)?;
    let (mut from, mut to) = client.into_split();
    to.write_all(ESTABLISHED).await?;
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = from.read(&mut buffer).await?;
            if n == 0 {
                writer.close_channel(channel::STDIN).await?;
                // The other direction may go on.
                return io::Result::Ok(());
            }
            writer.send(channel::STDIN, &buffer[..n]).await?;
        }
    };
    let down = async {
        loop {
            match reader.next().await {
                Ok(Some((channel::STDOUT, payload))) => to.write_all(&payload).await?,
                Ok(Some((channel::CLOSE, payload))) if payload.as_ref() == [channel::STDOUT] => to.shutdown().await?,
                Ok(Some((channel::ERROR, payload))) => {
                    return match stream_end(&payload) {
                        StreamEnd::Failed { message } => Err(io::Error::other(message)),
                        _ => io::Result::Ok(()),
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(e) => return Err(io::Error::other(e.to_string())),
            }
        }
    };
    // The supervisor's end of the stream is the end of both directions.
    let up = async {
        let result = up.await;
        if result.is_ok() {
            std::future::pending::<()>().await;
        }
        result
    };
    tokio::select! {
        result = down => result?,
        result = up => result?,
        () = hangup.seen() => {}
    }
    Ok(())
}

/// Tells when the API server has closed a connection altogether, also while what it sent before cannot be delivered.
struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// tokio deprecates this registration because it cannot know that a type keeps its descriptor; `OwnedFd` does.
    #[expect(deprecated)]
    fn watch(client: &UnixStream) -> io::Result<Self> {
        AsyncFd::with_interest(client.as_fd().try_clone_to_owned()?, Interest::WRITABLE).map(Self)
    }

    /// Returns some time after the close: what is deliverable has been delivered by then.
    async fn seen(&self) {
        loop {
            // An error means that the runtime ends.
            let Ok(mut guard) = self.0.ready(Interest::WRITABLE).await else { return };
            // A half-close is none: that the peer does not send any more is another event.
            if guard.ready().is_write_closed() {
                break;
            }
            // Readiness comes by edges: the next is for room or for the close.
            guard.clear_ready();
        }
        tokio::time::sleep(LINGER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{ConnectError, LoopEnded, NodeStats, SupervisorStream};
    use hpk_api::control::{Answer, Greeting, Reply};
    use hpk_api::frame;
    use hpk_link::server::OpenError;
    use std::path::PathBuf;
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};
    use tokio::net::TcpListener;
    use tokio::sync::Mutex;

    fn pod(value: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// A kubelet with one pod, whose supervisor is the other end of a pipe.
    struct One {
        pod: Arc<Pod>,
        supervisor: Mutex<Option<DuplexStream>>,
    }

    impl Backend for One {
        async fn pods(&self) -> Vec<Arc<Pod>> {
            vec![self.pod.clone()]
        }
        async fn find_pod(&self, _: &str, _: &str) -> Option<Arc<Pod>> {
            None
        }
        async fn open_supervisor(&self, uid: &str) -> Result<SupervisorStream, ConnectError> {
            match self.supervisor.lock().await.take() {
                Some(s) => Ok(Box::new(s)),
                None => Err(OpenError::Down { uid: uid.to_owned() }.into()),
            }
        }
        fn log_folder(&self) -> PathBuf {
            PathBuf::new()
        }
        fn pod_folder(&self, _: &str) -> PathBuf {
            PathBuf::new()
        }
        async fn node_stats(&self) -> NodeStats {
            NodeStats::default()
        }
        async fn metrics(&self) -> String {
            String::new()
        }
        async fn healthy(&self) -> Result<(), LoopEnded> {
            Ok(())
        }
        fn configuration(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
    }

    fn backend() -> (Arc<One>, DuplexStream) {
        let (ours, theirs) = duplex(1 << 16);
        let pod = pod(serde_json::json!({"metadata": {"uid": "u1"},
            "status": {"phase": "Running", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}]}}));
        (Arc::new(One { pod, supervisor: Mutex::new(Some(ours)) }), theirs)
    }

    async fn connect(path: &Path, target: &str) -> (UnixStream, String) {
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        (client, String::from_utf8(answer).unwrap())
    }

    #[tokio::test]
    async fn a_pods_address_is_dialled_by_its_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (one, supervisor) = backend();
        start(&path, one).unwrap();
        let supervisor = tokio::spawn(async move {
            let mut io = BufReader::new(supervisor);
            let (mut hello, mut request) = (String::new(), String::new());
            io.read_line(&mut hello).await.unwrap();
            io.read_line(&mut request).await.unwrap();
            assert!(matches!(serde_json::from_str(&hello).unwrap(), Greeting::Hello { .. }));
            let expected = Request::Dial { address: "10.244.1.2:8443".parse().unwrap() };
            assert_eq!(serde_json::from_str::<Request>(&request).unwrap(), expected);
            let mut out = serde_json::to_vec(&Reply::Ok(Answer::Streaming)).unwrap();
            out.push(b'\n');
            io.write_all(&out).await.unwrap();
            // ping comes as a frame; pong and an orderly end go back.
            let mut expected = Vec::new();
            frame::encode(channel::STDIN, b"ping", &mut expected);
            let mut got = vec![0; expected.len()];
            io.read_exact(&mut got).await.unwrap();
            assert_eq!(got, expected);
            let mut out = Vec::new();
            frame::encode(channel::STDOUT, b"pong", &mut out);
            frame::encode(channel::CLOSE, &[channel::STDOUT], &mut out);
            frame::encode(channel::ERROR, &serde_json::to_vec(&StreamEnd::Success).unwrap(), &mut out);
            io.write_all(&out).await.unwrap();
        });
        let (mut client, answer) = connect(&path, "10.244.1.2:8443").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        client.write_all(b"ping").await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "pong");
        supervisor.await.unwrap();

        // Its link is down now: the reason is told.
        let (_, answer) = connect(&path, "10.244.1.2:8443").await;
        assert!(answer.starts_with("HTTP/1.1 502 dial 10.244.1.2:8443: the link to pod u1 went down"), "{answer}");
    }

    #[tokio::test]
    async fn other_addresses_are_dialled_from_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        start(&path, backend().0).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = server.local_addr().unwrap().to_string();
        let (mut client, answer) = connect(&path, &target).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (mut tcp, _) = server.accept().await.unwrap();
        client.write_all(b"hi").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hi");

        drop((server, tcp));
        let (_, answer) = connect(&path, &target).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }

    #[tokio::test]
    async fn a_hang_up_is_seen_by_a_server_that_does_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        start(&path, backend().0).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut client, _) = connect(&path, &server.local_addr().unwrap().to_string()).await;
        let (tcp, _) = server.accept().await.unwrap();
        let flood = vec![0; 64 << 10];
        let full = Duration::from_millis(500);
        while let Ok(written) = tokio::time::timeout(full, client.write_all(&flood)).await {
            written.unwrap();
        }
        drop(client);
        let gone = async {
            while !tcp.ready(Interest::READABLE).await.unwrap().is_read_closed() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the connection is closed");
    }

    #[tokio::test]
    async fn only_connect_is_understood() {
        let mut get = &b"GET / HTTP/1.1\r\n\r\n"[..];
        assert!(matches!(head(&mut get).await, Err(EgressError::NotConnect)));
        let mut long = &[b'x'; MAX_HEAD + 1][..];
        assert!(matches!(head(&mut long).await, Err(EgressError::Head)));
        let mut good = &b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: x\r\n\r\nrest"[..];
        assert_eq!(head(&mut good).await.unwrap(), "[fd00::1]:443");
        assert_eq!(good, b"rest");
    }

    #[test]
    fn ended_and_host_network_pods_own_no_address() {
        let address = "10.244.1.2:80".parse().unwrap();
        let status = |phase: &str| serde_json::json!({"phase": phase, "podIP": "10.244.1.2"});
        assert!(owns(&pod(serde_json::json!({"metadata": {}, "status": status("Running")})), address));
        assert!(!owns(&pod(serde_json::json!({"metadata": {}, "status": status("Failed")})), address));
        let host = serde_json::json!({"metadata": {}, "spec": {"hostNetwork": true, "containers": []}, "status": status("Running")});
        assert!(!owns(&pod(host), address));
        assert!(!owns(&pod(serde_json::json!({"metadata": {}})), address));
    }
}
