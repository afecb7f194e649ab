//! The link over loopback: two real ends, a real supervisor socket that echoes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_api::link::{Hello, LinkCredentials, MEMBER, NetQuestion, NetUpdate};
use hpk_link::client::{ClientConfig, ClientEvent, keep};
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
    task: tokio::task::JoinHandle<()>,
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
    let (server, events) = LinkServer::start(address, &folder.join("pki")).unwrap();
    server.listen(listener);
    (server, events, address)
}

/// The file with what the server has issued to a pod.
async fn issue(server: &LinkServer, folder: &Path, uid: &str, ips: &[&str]) -> PathBuf {
    let file = folder.join(format!("{uid}.json"));
    server.issue(uid, file.clone(), ips.iter().map(|ip| ip.parse().unwrap()).collect()).await.unwrap();
    file
}

fn credentials(file: &Path) -> LinkCredentials {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// A copy that leads elsewhere.
fn through(file: &Path, address: SocketAddr) -> PathBuf {
    let copy = file.with_extension("copy");
    let changed = LinkCredentials { address, ..credentials(file) };
    std::fs::write(&copy, serde_json::to_vec(&changed).unwrap()).unwrap();
    copy
}

fn pod(uid: &str, credentials: PathBuf, supervisor: PathBuf) -> Pod {
    pod_with(uid, credentials, supervisor, None)
}

fn hello(uid: &str) -> Hello {
    Hello {
        version: hpk_api::VERSION,
        pod_uid: uid.to_owned(),
        job_id: "1".to_owned(),
        node: "c1".to_owned(),
        datapath: None,
        public_key: None,
        pod_ips: Vec::new(),
        outward: None,
        outpost: 0,
    }
}

fn pod_with(uid: &str, credentials: PathBuf, supervisor: PathBuf, carriers: Option<UnixListener>) -> Pod {
    pod_as(hello(uid), credentials, supervisor, carriers)
}

fn pod_as(hello: Hello, credentials: PathBuf, supervisor: PathBuf, carriers: Option<UnixListener>) -> Pod {
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
    let credentials = issue(&server, tmp.path(), "uid-1", &[]).await;
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
    let credentials = issue(&server, tmp.path(), "uid-7", &[]).await;
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
    let credentials = through(&issue(&server, tmp.path(), "uid-8", &[]).await, closed);
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

/// A wire that falls silent when told, both ends staying open.
async fn silent_wire(to: SocketAddr) -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silence, mut silenced) = mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut on = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut stream, &mut on) => {}
            _ = silenced.recv() => std::future::pending::<()>().await,
        }
    });
    (address, silence)
}

#[tokio::test]
async fn a_cut_link_ends_its_sessions_and_comes_back() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;
    let (wired, cut) = wire(address).await;
    let credentials = through(&issue(&server, tmp.path(), "uid-2", &[]).await, wired);
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

/// A kubelet that is gone with all its connections, but its files.
async fn runs_once(folder: &Path, address: SocketAddr, uid: &str, file: &Path) {
    let (server, _events) = LinkServer::start(address, &folder.join("pki")).unwrap();
    server.issue(uid, file.to_path_buf(), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_restarted_kubelet_is_found_again_wherever_it_listens() {
    let tmp = tempfile::tempdir().unwrap();
    // Another program has the port meanwhile, and whoever dials it gets nothing that he takes.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = tmp.path().join("link.json");
    runs_once(tmp.path(), taken.local_addr().unwrap(), "uid-3", &file).await;
    let issued = credentials(&file);
    let mut pod = pod("uid-3", file.clone(), echo_socket(tmp.path()));
    for _ in 0..2 {
        drop(taken.accept().await.unwrap());
        assert!(matches!(pod.event().await, ClientEvent::Down { .. }));
    }
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;
    server.adopt("uid-3", file.clone(), Vec::new());
    while !matches!(pod.event().await, ClientEvent::Up) {}
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    assert_eq!(credentials(&file), LinkCredentials { address, ..issued }, "nothing else has changed");

    // It moves while it runs: the link stands, and the next dial goes to the new place.
    let second = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let moved = second.local_addr().unwrap();
    server.listen(second);
    server.advertise(moved);
    let told = async {
        while credentials(&file).address != moved {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, told).await.expect("the file is written again");
    assert_eq!((server.address(), server.count().await), (moved, 1));
}

/// Whether a hello with these credentials is taken; else what was said.
async fn says(file: &Path, uid: &str, ips: &[&str], key: Option<&str>) -> Result<(), String> {
    let hello = Hello {
        pod_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        public_key: key.map(str::to_owned),
        ..hello(uid)
    };
    let mut pod = pod_as(hello, file.to_path_buf(), PathBuf::from("/none"), None);
    let said = match pod.event().await {
        ClientEvent::Up => Ok(()),
        ClientEvent::Down { reason } => Err(reason),
        other => panic!("{other:?}"),
    };
    pod.leave.cancel();
    pod.task.await.unwrap();
    said
}

#[tokio::test]
async fn a_leaked_credential_opens_nothing_but_its_own_pods_link() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let a = issue(&server, tmp.path(), "a", &["10.244.1.1"]).await;
    let member = issue(&server, tmp.path(), MEMBER, &["10.244.0.1"]).await;
    issue(&server, tmp.path(), "b", &["10.244.1.2"]).await;
    let refused = |said: Result<(), String>, word: &str| {
        let why = said.expect_err(word);
        assert!(why.contains(word), "{why}");
    };
    for claim in ["10.244.1.2", "10.244.0.1", "10.244.77.1", "10.96.0.1"] {
        refused(says(&a, "a", &["10.244.1.1", claim], None).await, claim);
        assert!(
            matches!(link_event(&mut events).await, LinkEvent::Refused { uid, why } if uid == "a" && why.contains(claim))
        );
    }
    for name in ["b", MEMBER] {
        refused(says(&a, name, &[], None).await, "another pod");
    }
    refused(says(&member, "a", &[], None).await, "another pod");
    assert_eq!(says(&member, MEMBER, &["10.244.0.1"], Some("K")).await, Ok(()));
    refused(says(&a, "a", &[], Some("K")).await, "key");
    assert!(matches!(link_event(&mut events).await, LinkEvent::Refused { .. }));
    assert_eq!(says(&a, "a", &["10.244.1.1"], None).await, Ok(()));

    // The pod is deleted: what it had is worth nothing, for it and for others, after a restart too.
    let leaked = tmp.path().join("leaked.json");
    std::fs::copy(&a, &leaked).unwrap();
    server.withdraw("a");
    refused(says(&leaked, "a", &["10.244.1.1"], None).await, "no running pod of that UID");
    // A pod of that name that runs again, as after a requeue, has its own credentials from then on.
    std::fs::remove_file(&a).unwrap();
    issue(&server, tmp.path(), "a", &["10.244.1.1"]).await;
    refused(says(&leaked, "a", &["10.244.1.1"], None).await, "replaced");
    assert_eq!(says(&a, "a", &["10.244.1.1"], None).await, Ok(()));
}

#[tokio::test]
async fn a_withdrawn_pod_is_cut_and_comes_back_when_it_may() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let file = issue(&server, tmp.path(), "uid-4", &[]).await;
    let mut pod = pod("uid-4", file.clone(), echo_socket(tmp.path()));
    assert!(matches!(pod.event().await, ClientEvent::Up));
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    server.withdraw("uid-4");
    assert!(matches!(link_event(&mut events).await, LinkEvent::Down { .. }));
    assert!(matches!(pod.event().await, ClientEvent::Down { .. }));
    assert!(matches!(pod.event().await, ClientEvent::Down { reason } if reason.contains("no running pod of that UID")));
    server.adopt("uid-4", file, Vec::new());
    while !matches!(pod.event().await, ClientEvent::Up) {}
}

#[tokio::test]
async fn a_second_link_cuts_off_nobody_who_is_alive() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;
    let file = issue(&server, tmp.path(), "uid-9", &[]).await;
    let (wired, silence) = silent_wire(address).await;
    let mut first = pod("uid-9", through(&file, wired), echo_socket(tmp.path()));
    assert!(matches!(first.event().await, ClientEvent::Up));
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    let why = says(&file, "uid-9", &[], None).await.unwrap_err();
    assert!(why.contains("a link of this pod stands"), "{why}");
    assert!(matches!(link_event(&mut events).await, LinkEvent::Refused { .. }));
    let mut session = server.open_supervisor("uid-9").await.unwrap();
    session.write_all(b"x").await.unwrap();
    assert_eq!(session.read_u8().await.unwrap(), b'x', "the first one serves on");

    // Its node has gone without a word: who comes then takes its place.
    silence.send(()).await.unwrap();
    let mut second = pod_with("uid-9", file, tmp.path().join("none"), None);
    assert!(matches!(second.event().await, ClientEvent::Up));
    assert!(matches!(link_event(&mut events).await, LinkEvent::Up { .. }));
    assert_eq!(server.count().await, 1);
}

/// The supervisor speaks its last words and is gone, with most of them still on their way.
#[tokio::test]
async fn last_words_arrive_before_the_pod_leaves() {
    const LENGTH: usize = 8 << 20;
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, _) = server(tmp.path(), "127.0.0.1:0").await;
    let credentials = issue(&server, tmp.path(), "uid-7", &[]).await;
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
    tokio::time::timeout(LONG, pod.task).await.expect("ends").unwrap();
}

#[tokio::test]
async fn strangers_get_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (server, mut events, address) = server(tmp.path(), "127.0.0.1:0").await;

    // A certificate of another authority, in the name of a pod that may come.
    let real = issue(&server, tmp.path(), "uid-5", &[]).await;
    let (other, _events) = LinkServer::start(address, &tmp.path().join("other")).unwrap();
    let forged = tmp.path().join("forged.json");
    other.issue("uid-5", forged.clone(), Vec::new()).await.unwrap();
    let mixed = LinkCredentials { ca: credentials(&real).ca, ..credentials(&forged) };
    std::fs::write(&forged, serde_json::to_vec(&mixed).unwrap()).unwrap();
    let mut stranger = pod("uid-5", forged, tmp.path().join("none"));
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
    let credentials = issue(&server, tmp.path(), "uid-7", &[]).await;
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
