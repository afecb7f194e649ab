//! The link over loopback: two real ends, a real supervisor socket that echoes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_api::link::{Hello, NetQuestion, NetUpdate};
use hpk_link::client::{ClientConfig, ClientEvent, Kept, keep};
use hpk_link::server::{Events, LinkEvent, LinkServer, NetEvent, OpenError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);

/// A pod's end with everything that it needs.
struct Pod {
    events: mpsc::Receiver<ClientEvent>,
    questions: mpsc::Sender<NetQuestion>,
    task: tokio::task::JoinHandle<Kept>,
    leave: CancellationToken,
}

impl Pod {
    async fn event(&mut self) -> ClientEvent {
        tokio::time::timeout(LONG, self.events.recv()).await.expect("in time").expect("an event")
    }
}

async fn server(folder: &Path, address: &str) -> (LinkServer, Events, SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (server, events) = LinkServer::start(listener, address, &folder.join("pki")).unwrap();
    (server, events, address)
}

fn write_credentials(folder: &Path, name: &str, credentials: &hpk_api::link::LinkCredentials) -> PathBuf {
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec(credentials).unwrap()).unwrap();
    path
}

fn pod(uid: &str, credentials: PathBuf, supervisor: PathBuf) -> Pod {
    pod_with(uid, credentials, supervisor, None)
}

fn pod_with(uid: &str, credentials: PathBuf, supervisor: PathBuf, carriers: Option<UnixListener>) -> Pod {
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: uid.to_owned(),
        job_id: "1".to_owned(),
        node: "c1".to_owned(),
        datapath: None,
        public_key: None,
        pod_ips: Vec::new(),
        outward: None,
    };
    let (events_in, events) = mpsc::channel(64);
    let (questions, asked) = mpsc::channel(64);
    let leave = CancellationToken::new();
    let config = ClientConfig { credentials, hello, supervisor };
    let task = tokio::spawn(keep(config, events_in, asked, carriers, leave.clone()));
    Pod { events, questions, task, leave }
}

/// Echoes all it gets on every connection.
fn echo_socket(folder: &Path) -> PathBuf {
    let path = folder.join("supervisor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    path
}

async fn link_event(events: &mut Events) -> LinkEvent {
    tokio::time::timeout(LONG, events.links.recv()).await.expect("in time").expect("an event")
}

#[tokio::test]
async fn streams_facts_and_questions() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let credentials = write_credentials(tmp.path(), "link", &server.issue("uid-1").unwrap());
    let mut pod = pod("uid-1", credentials, echo_socket(tmp.path()));
    assert!(matches!(pod.event().await, ClientEvent::Up));
    assert!(
        matches!(link_event(&mut events).await, LinkEvent::Up { hello, carried: false } if hello.pod_uid == "uid-1" && hello.node == "c1")
    );

    // 32 sessions at once, each with half-close: all bytes come back, then the end.
    let mut sessions = tokio::task::JoinSet::new();
    for n in 0..32_u8 {
        let server = server.clone();
        sessions.spawn(async move {
            let mut stream = server.open_supervisor("uid-1").await.unwrap();
            let data = vec![n; 300_000];
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let mut back = Vec::new();
            let (sent, got) = tokio::join!(
                async {
                    write.write_all(&data).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut back)
            );
            sent.unwrap();
            got.unwrap();
            assert!(back == data);
        });
    }
    while let Some(done) = sessions.join_next().await {
        done.unwrap();
    }

    // Facts wait for the subscription; questions come with the pod's name.
    loop {
        match tokio::time::timeout(LONG, events.net.recv()).await.unwrap().unwrap() {
            NetEvent::Subscribed { uid } => break assert_eq!(uid, "uid-1"),
            NetEvent::Up { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    server.push("uid-1", &[NetUpdate::ServicesSynced, NetUpdate::ServiceGone { key: "a/b".into() }]).await;
    assert!(matches!(pod.event().await, ClientEvent::Net(NetUpdate::ServicesSynced)));
    assert!(matches!(pod.event().await, ClientEvent::Net(NetUpdate::ServiceGone { key }) if key == "a/b"));
    let ip = "10.244.0.9".parse().unwrap();
    pod.questions.send(NetQuestion::Peer { ip }).await.unwrap();
    let asked = tokio::time::timeout(LONG, events.net.recv()).await.unwrap().unwrap();
    assert!(
        matches!(asked, NetEvent::Asked { uid, question: NetQuestion::Peer { ip: got } } if uid == "uid-1" && got == ip)
    );

    assert!(matches!(server.open_supervisor("other").await, Err(OpenError::NoLink { .. })));
    pod.task.abort();
    assert!(matches!(link_event(&mut events).await, LinkEvent::Down { uid, .. } if uid == "uid-1"));
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_hang_up_is_seen_by_a_supervisor_that_does_not_read() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let credentials = write_credentials(tmp.path(), "link", &server.issue("uid-7").unwrap());
    let path = tmp.path().join("supervisor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let _pod = pod("uid-7", credentials, path);
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    let mut session = server.open_supervisor("uid-7").await.unwrap();
    let (supervisor, _) = listener.accept().await.unwrap();
    // Everything on the way is full: the socket, the window of the stream.
    let flood = vec![7; 64 << 10];
    let full = Duration::from_millis(500);
    while let Ok(written) = tokio::time::timeout(full, session.write_all(&flood)).await {
        written.unwrap();
    }
    drop(session);
    // The peer's close is reported whatever is unread (EPOLLRDHUP).
    let gone = async {
        loop {
            if supervisor.ready(tokio::io::Interest::READABLE).await.unwrap().is_read_closed() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("the supervisor's connection is closed");
    // Other sessions of the same link go on.
    let mut other = server.open_supervisor("uid-7").await.unwrap();
    other.write_all(b"x").await.unwrap();
    let (mut supervisor, _) = listener.accept().await.unwrap();
    assert_eq!(supervisor.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_carrier_brings_the_link_where_the_kubelet_cannot_be_dialled() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    // Nothing listens at the address that the pod knows.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut credentials = server.issue("uid-8").unwrap();
    credentials.address = closed;
    let credentials = write_credentials(tmp.path(), "link", &credentials);
    let path = tmp.path().join("link.sock");
    let carriers = UnixListener::bind(&path).unwrap();
    let mut pod = pod_with("uid-8", credentials, echo_socket(tmp.path()), Some(carriers));
    assert!(matches!(pod.event().await, ClientEvent::Down { .. }));
    for _ in 0..2 {
        let carrier = tokio::net::UnixStream::connect(&path).await.unwrap();
        let serving = server.clone();
        let carried = tokio::spawn(async move { serving.carry(carrier).await });
        tokio::time::timeout(LONG, server.up("uid-8")).await.expect("the link stands");
        assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
        let mut session = server.open_supervisor("uid-8").await.unwrap();
        session.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        session.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
        // The carrier ends: so do its sessions, and the next one is taken.
        carried.abort();
        let _ = carried.await;
        let read = tokio::time::timeout(LONG, session.read_to_end(&mut Vec::new())).await.expect("the session ends");
        drop(read);
    }
}

/// A wire that can be cut: forwards to the server until told to drop everything.
async fn wire(to: SocketAddr) -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, mut cuts) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut carried = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                Ok((mut stream, _)) = listener.accept() => {
                    carried.spawn(async move {
                        let mut on = TcpStream::connect(to).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut on).await;
                    });
                }
                Some(()) = cuts.recv() => carried.shutdown().await,
            }
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_cut_link_ends_its_sessions_and_comes_back() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;
    let (through, cut) = wire(address).await;
    let mut credentials = server.issue("uid-2").unwrap();
    credentials.address = through;
    let credentials = write_credentials(tmp.path(), "link", &credentials);
    let mut pod = pod("uid-2", credentials, echo_socket(tmp.path()));
    assert!(matches!(pod.event().await, ClientEvent::Up));
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    for _ in 0..3 {
        let mut stream = server.open_supervisor("uid-2").await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        cut.send(()).await.unwrap();
        // In mid-session: an end, not a hang.
        let read = tokio::time::timeout(LONG, stream.read_to_end(&mut Vec::new())).await.expect("the session ends");
        drop(read);
        assert!(matches!(pod.event().await, ClientEvent::Down { .. }));
        assert!(matches!(pod.event().await, ClientEvent::Up));
        // Down then up, or up at once when the new connection came before the old one's end was seen.
        while !matches!(link_event(&mut events).await, LinkEvent::Up { .. }) {}
    }
}

#[tokio::test]
async fn a_restarted_kubelet_is_found_again_with_the_same_credentials() {
    let tmp = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pki = tmp.path().join("pki");
    // Nobody listens yet: credentials come from an authority that is kept on disk.
    drop(listener);
    let ca = hpk_link::pki::LinkCa::load_or_create(&pki).unwrap();
    let credentials = write_credentials(tmp.path(), "link", &ca.issue("uid-3", address).unwrap());
    let mut pod = pod("uid-3", credentials, echo_socket(tmp.path()));
    assert!(matches!(pod.event().await, ClientEvent::Down { .. }));
    let (_server, mut events, _) = server(tmp.path(), &address.to_string()).await;
    loop {
        if matches!(pod.event().await, ClientEvent::Up) {
            break;
        }
    }
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
}

#[tokio::test]
async fn a_refused_pod_does_not_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, _events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let credentials = write_credentials(tmp.path(), "link", &server.issue("uid-4").unwrap());
    server.refuse("uid-4", "no such pod").await;
    let pod = pod("uid-4", credentials, echo_socket(tmp.path()));
    let why = tokio::time::timeout(LONG, pod.task).await.expect("ends").unwrap();
    assert_eq!(why, Kept::Refused("no such pod".to_owned()));
}

/// The supervisor speaks its last words and is gone, with most of them still on their way.
#[tokio::test]
async fn last_words_arrive_before_the_pod_leaves() {
    const LENGTH: usize = 8 << 20;
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let credentials = write_credentials(tmp.path(), "link", &server.issue("uid-7").unwrap());
    let path = tmp.path().join("speaks.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut pod = pod("uid-7", credentials, path);
    assert!(matches!(pod.event().await, ClientEvent::Up));
    link_event(&mut events).await;
    let mut stream = server.open_supervisor("uid-7").await.unwrap();
    stream.write_all(b"speak\n").await.unwrap();
    stream.flush().await.unwrap();
    let (mut supervisor, _) = listener.accept().await.unwrap();
    let (spoken, leave) = (tokio::sync::oneshot::channel::<()>(), pod.leave.clone());
    let speaker = tokio::spawn(async move {
        let mut asked = [0; 6];
        supervisor.read_exact(&mut asked).await.unwrap();
        supervisor.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        drop(supervisor);
        leave.cancel();
        let _ = spoken.0.send(());
    });
    // Read up to where the speaker has just ended: the rest is in the buffers on the way.
    let mut buffer = vec![0; 64 << 10];
    let (mut got, mut spoken) = (0, spoken.1);
    while spoken.try_recv().is_err() {
        got += stream.read(&mut buffer).await.unwrap();
    }
    speaker.await.unwrap();
    assert!(got < LENGTH, "nothing was left on the way");
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            length => got += length,
        }
    }
    assert_eq!(got, LENGTH);
    drop(stream);
    assert_eq!(tokio::time::timeout(LONG, pod.task).await.expect("ends").unwrap(), Kept::Left);
}

#[tokio::test]
async fn strangers_get_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;

    // One pod with another's certificate.
    let credentials = write_credentials(tmp.path(), "mine", &server.issue("uid-5").unwrap());
    let liar = pod("uid-6", credentials, echo_socket(tmp.path()));
    let why = tokio::time::timeout(LONG, liar.task).await.expect("ends").unwrap();
    assert!(matches!(&why, Kept::Refused(why) if why.contains("another pod")), "{why:?}");

    // A certificate of another authority.
    let other = hpk_link::pki::LinkCa::load_or_create(&tmp.path().join("other")).unwrap();
    let mut forged = other.issue("uid-5", address).unwrap();
    forged.ca = server.issue("uid-5").unwrap().ca;
    let mut stranger = pod("uid-5", write_credentials(tmp.path(), "forged", &forged), tmp.path().join("none"));
    assert!(matches!(stranger.event().await, ClientEvent::Down { .. }));
    stranger.task.abort();

    // Plain bytes, and a connection that says nothing.
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut rude = TcpStream::connect(address).await.unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(LONG, rude.read_to_end(&mut answer)).await.expect("hung up");
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"));
    let ended = tokio::time::timeout(LONG, silent.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "a silent connection is not kept for ever");

    assert_eq!(server.count().await, 0);
    assert!(events.links.try_recv().is_err());
}

/// More than the listener lets wait, each as far as a stranger comes: nothing said, or half of a ClientHello.
#[tokio::test]
async fn a_crowd_of_strangers_keeps_no_pod_out() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;
    let mut crowd = Vec::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            // A TLS record that promises more than ever comes.
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        }
        crowd.push(stream);
    }
    let began = std::time::Instant::now();
    let credentials = write_credentials(tmp.path(), "link", &server.issue("uid-7").unwrap());
    let mut pod = pod("uid-7", credentials, echo_socket(tmp.path()));
    assert!(matches!(pod.event().await, ClientEvent::Up), "the first dial is answered");
    assert!(began.elapsed() < Duration::from_secs(5), "and soon: {:?}", began.elapsed());
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    // The most that may wait are still there; all others were shown out, and these are in their turn.
    let mut left = 0;
    for stream in &mut crowd {
        let mut byte = [0];
        let ended = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
        left += usize::from(ended.is_err());
    }
    assert!(left <= 256, "{left} of them are still served");
    for stream in &mut crowd {
        let end = tokio::time::timeout(LONG, stream.read(&mut [0; 64])).await.expect("is shown out in time");
        assert!(matches!(end, Ok(0) | Err(_)) || left > 0, "{end:?}");
    }
    assert_eq!(server.count().await, 1, "and the link stands");
}
