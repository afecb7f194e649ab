//! Ports of the login node that lead to services: what NodePort and LoadBalancer become.
//!
//! ```text
//!   client ── login node's address, node port ─▶ listener ── endpoint chosen ─▶ socket made inside ═▶ pod
//! ```
//! A service without endpoints refuses: its port is held, so that nobody else gets it, but does not listen. The kubelet holds it
//! too, for the time in which this process is started again. A port that cannot be bound is told to the kubelet, which tells the
//! user, and is tried again from time to time.

use super::Helper;
use super::listener::{Backends, Told, start};
use hpk_api::link::{Listener, Listening, NetQuestion, NotListening, Protocol};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How long until a port that could not be bound is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long the task of a listener that was let go may take to close its socket.
const CLOSING: Duration = Duration::from_millis(100);

/// By protocol and place.
type Key = (Protocol, SocketAddr);

struct Running {
    /// Whose it is: another one that wants the same port does not get it.
    service: String,
    told: watch::Sender<Told>,
    _task: AbortOnDropHandle<()>,
}

pub(super) struct Listeners {
    helper: Helper,
    /// To the kubelet.
    tell: mpsc::Sender<NetQuestion>,
    running: HashMap<Key, Running>,
    wanted: Vec<Listener>,
    /// Those that do not run.
    failed: Vec<NotListening>,
    /// Ports that others of these had until now.
    freed: HashSet<Key>,
    /// What the kubelet was told last. None: nothing on this link.
    said: Option<NetQuestion>,
    /// When those that do not run are tried again.
    due: Option<Instant>,
}

impl Listeners {
    pub(super) fn new(helper: Helper, tell: mpsc::Sender<NetQuestion>) -> Self {
        Self {
            helper,
            tell,
            running: HashMap::new(),
            wanted: Vec::new(),
            failed: Vec::new(),
            freed: HashSet::new(),
            said: None,
            due: None,
        }
    }

    /// Starts those that are new, ends those that are no more.
    pub(super) async fn set(&mut self, wanted: Vec<Listener>) {
        let is_wanted =
            |key: &Key, service: &str| wanted.iter().any(|l| (l.protocol, l.at) == *key && l.service == service);
        let freed: HashSet<Key> =
            self.running.extract_if(|key, running| !is_wanted(key, &running.service)).map(|(key, _)| key).collect();
        self.wanted = wanted;
        self.freed = freed;
        self.again().await;
    }

    /// The link is a new one: who is there now may know nothing.
    pub(super) fn linked(&mut self) {
        self.said = None;
    }

    /// When something is to be tried again; never, when nothing is.
    pub(super) async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Tells those that run their endpoints, and starts those that do not run.
    pub(super) async fn again(&mut self) {
        self.due = None;
        self.failed.clear();
        for listener in std::mem::take(&mut self.wanted) {
            self.one(&listener).await;
            self.wanted.push(listener);
        }
        self.failed.sort_unstable();
        let word = self.outcome();
        if self.said.as_ref() != Some(&word) {
            let told = self.tell.try_send(word.clone());
            // Where there is no room, the next try says it.
            self.said = told.is_ok().then_some(word);
            if self.said.is_none() {
                self.due.get_or_insert(Instant::now() + AGAIN);
            }
        }
    }

    fn outcome(&self) -> NetQuestion {
        let running = self.running.iter();
        let mut has: Vec<_> = running
            .map(|((protocol, at), running)| Listening {
                service: running.service.clone(),
                protocol: *protocol,
                at: *at,
            })
            .collect();
        has.sort_unstable();
        NetQuestion::Listened { has, failed: self.failed.clone() }
    }

    async fn one(&mut self, listener: &Listener) {
        let key = (listener.protocol, listener.at);
        let told = Told::of(listener);
        if let Some(running) = self.running.get(&key) {
            if running.service != listener.service {
                // Tried again when the other one goes.
                let message = format!("the Service {} has this port already: choose another", running.service);
                return self.fail(listener, message);
            }
            running.told.send_if_modified(|old| {
                let news = *old != told;
                *old = told;
                news
            });
            return;
        }
        let (told, heard) = watch::channel(told);
        match start(listener, Backends::new(heard), self.helper.clone()).await {
            Ok(task) => {
                self.running.insert(key, Running { service: listener.service.clone(), told, _task: task });
            }
            // Nobody needs to hear of that.
            Err(_) if self.freed.remove(&key) => self.due = Some(Instant::now() + CLOSING),
            Err(error) => {
                self.due.get_or_insert(Instant::now() + AGAIN);
                self.fail(listener, crate::node::explain_bind(&error, listener.at, "login node"));
            }
        }
    }

    fn fail(&mut self, listener: &Listener, message: String) {
        let Listener { service, at, protocol, .. } = listener.clone();
        self.failed.push(NotListening { service, protocol, at, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::inside;
    use hpk_sys::ports::{TcpHold, UdpHold};
    use std::io;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UdpSocket};

    /// A helper that makes sockets in the namespace of the test.
    fn helper(dir: &std::path::Path) -> Helper {
        let socket = dir.join("inside.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || inside::serve_all(&listener));
        Helper { socket: Some(socket) }
    }

    /// A port that was free a moment ago.
    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    fn listener(protocol: Protocol, at: SocketAddr, endpoints: Vec<SocketAddr>) -> Listener {
        Listener {
            service: "d/s".into(),
            protocol,
            at,
            endpoints,
            sources: vec![],
            affinity_seconds: None,
            held: false,
        }
    }

    /// Answers each connection with its name.
    async fn server(name: &'static str) -> SocketAddr {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                stream.write_all(name.as_bytes()).await.unwrap();
            }
        });
        at
    }

    async fn said(at: SocketAddr) -> io::Result<String> {
        let mut text = String::new();
        TcpStream::connect(at).await?.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn a_port_refuses_serves_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, _told) = mpsc::channel(4);
        let mut all = Listeners::new(helper(dir.path()), tell);
        let at = free().await;
        all.set(vec![listener(Protocol::Tcp, at, vec![])]).await;
        assert_eq!(said(at).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let (a, b) = (server("a").await, server("b").await);
        all.set(vec![listener(Protocol::Tcp, at, vec![a])]).await;
        // The listener's task takes notice in its own time.
        let answer = loop {
            match said(at).await {
                Ok(text) => break text,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(answer, "a");
        all.set(vec![listener(Protocol::Tcp, at, vec![b])]).await;
        assert_eq!(said(at).await.unwrap(), "b");
        all.set(vec![]).await;
        while TcpListener::bind(at).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn clients_from_elsewhere_and_a_second_service_get_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let mut all = Listeners::new(helper(dir.path()), tell);
        let (at, mine, theirs) = (free().await, server("mine").await, server("theirs").await);
        let of = |sources: &[&str]| Listener {
            sources: sources.iter().map(|range| range.parse().unwrap()).collect(),
            ..listener(Protocol::Tcp, at, vec![mine])
        };
        let second = Listener { service: "x/s".into(), ..listener(Protocol::Tcp, at, vec![theirs]) };
        all.set(vec![of(&[])]).await;
        all.set(vec![second.clone(), of(&[])]).await;
        while said(at).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(said(at).await.unwrap(), "mine", "who came second has not taken it over");
        let has = vec![Listening { service: "d/s".into(), protocol: Protocol::Tcp, at }];
        assert_eq!(told.recv().await, Some(NetQuestion::Listened { has: has.clone(), failed: vec![] }));
        let NetQuestion::Listened { has: still, failed } = told.recv().await.unwrap() else { panic!() };
        assert_eq!(still, has);
        let [NotListening { service, message, .. }] = failed.as_slice() else { panic!("{failed:?}") };
        assert_eq!(service, "x/s");
        assert!(message.contains("the Service d/s has this port"), "{message}");
        all.set(vec![of(&["192.0.2.0/24"])]).await;
        // The listener's task takes notice in its own time.
        while said(at).await.is_ok_and(|text| !text.is_empty()) {
            tokio::task::yield_now().await;
        }
        all.set(vec![of(&["192.0.2.0/24", "127.0.0.0/8"])]).await;
        while said(at).await.unwrap_or_default() != "mine" {
            tokio::task::yield_now().await;
        }
        // The first one goes: the port is the second's, once the first one's task has let it go.
        all.set(vec![second]).await;
        while said(at).await.unwrap_or_default() != "theirs" {
            all.again().await;
        }
    }

    #[tokio::test]
    async fn datagrams_and_their_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, _told) = mpsc::channel(4);
        let mut all = Listeners::new(helper(dir.path()), tell);
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (at, target) = (free().await, server.local_addr().unwrap());
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = server.recv_from(&mut buffer).await {
                server.send_to(&buffer[..len], from).await.unwrap();
            }
        });
        all.set(vec![listener(Protocol::Udp, at, vec![target])]).await;
        let clients = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        for (n, client) in clients.iter().enumerate() {
            client.send_to(format!("query {n}").as_bytes(), at).await.unwrap();
        }
        for (n, client) in clients.iter().enumerate() {
            let mut buffer = [0; 64];
            let (len, from) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..len], from), (format!("query {n}").as_bytes(), at));
        }
    }

    /// The member is started again; meanwhile nobody else gets its ports.
    #[tokio::test]
    async fn a_port_that_the_kubelet_holds_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let helper = helper(dir.path());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (tell, mut told) = mpsc::channel(4);
            let (at, target) = (free().await, server("a").await);
            let mut first = Listeners::new(helper.clone(), tell.clone());
            first.set(vec![listener(protocol, at, vec![target])]).await;
            let udp = protocol == Protocol::Udp;
            let kubelets = (udp.then(|| UdpHold::share(at).unwrap()), (!udp).then(|| TcpHold::share(at).unwrap()));
            drop(first);
            let is_free = || match protocol {
                Protocol::Udp => std::net::UdpSocket::bind(at).is_ok(),
                _ => std::net::TcpListener::bind(at).is_ok(),
            };
            assert!(!is_free(), "{protocol:?}");
            let mut second = Listeners::new(helper.clone(), tell);
            second.set(vec![Listener { held: true, ..listener(protocol, at, vec![target]) }]).await;
            for _ in 0..2 {
                let has = vec![Listening { service: "d/s".into(), protocol, at }];
                assert_eq!(told.recv().await, Some(NetQuestion::Listened { has, failed: vec![] }));
            }
            drop(kubelets);
            assert!(!is_free(), "{protocol:?} is the second one's own");
        }
    }

    #[tokio::test]
    async fn a_port_of_somebody_else_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let mut all = Listeners::new(helper(dir.path()), tell);
        let others = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = others.local_addr().unwrap();
        for _ in 0..2 {
            all.set(vec![listener(Protocol::Tcp, at, vec![])]).await;
        }
        let NetQuestion::Listened { has, failed } = told.recv().await.unwrap() else { panic!() };
        assert!(has.is_empty() && failed[0].message.contains("in use"), "{failed:?}");
        assert!(told.try_recv().is_err());
        // A kubelet that is new knows nothing of it.
        all.linked();
        all.set(vec![listener(Protocol::Tcp, at, vec![])]).await;
        assert_eq!(told.recv().await, Some(NetQuestion::Listened { has, failed }));
        assert!(all.due.is_some());
        drop(others);
        all.again().await;
        assert!(all.due.is_none() && all.running.len() == 1);
        let NetQuestion::Listened { has, failed } = told.recv().await.unwrap() else { panic!() };
        assert!(has.len() == 1 && failed.is_empty(), "it listens now");
    }
}
