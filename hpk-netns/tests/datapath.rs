//! Datapaths with real TUNs, in network namespaces of the test's own, over this machine's loopback device.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_api::link::{
    NetQuestion, NetUpdate, PolicyFacts, PolicyPeer, PolicyPort, PolicyRule, Protocol, ServiceFacts, ServicePort,
};
use hpk_netns::datapath::{Config, Datapath, Encryption};
use hpk_sys::netdev::{self, Netlink, Route};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// As on a carrier of 1500 bytes.
const MTU: u32 = 1440;
/// How long a packet may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a packet that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

/// A network namespace with a TUN, and the datapath behind it.
struct Pod {
    net: File,
    datapath: Datapath,
    questions: tokio::sync::mpsc::Receiver<NetQuestion>,
    ip: IpAddr,
    /// Facts told and obeyed so far.
    told: AtomicU8,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Everything holds in each of these.
const ALL: [(Encryption, Family); 6] = [
    (Encryption::Fastest, Family::V4),
    (Encryption::Fastest, Family::V6),
    (Encryption::WireGuard, Family::V4),
    (Encryption::WireGuard, Family::V6),
    (Encryption::Off, Family::V4),
    (Encryption::Off, Family::V6),
];

/// A thread goes to a namespace and ends there.
fn in_namespace<T: Send>(enter: impl FnOnce() + Send, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter();
                body()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Pod {
    /// Number `n` of a test, on a node of its own.
    fn new(n: u8, (encryption, family): (Encryption, Family)) -> Self {
        let ip = match family {
            Family::V4 => IpAddr::from([10, 244, 0, n]),
            Family::V6 => format!("fd00:244::{n:x}").parse().unwrap(),
        };
        Self::with(ip, [127, 0, 0, n].into(), encryption)
    }

    fn with(ip: IpAddr, node: IpAddr, encryption: Encryption) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ask, questions) = tokio::sync::mpsc::channel(64);
        let ranges = |all: &[&str]| all.iter().filter_map(|c| c.parse().ok()).collect();
        let datapath = Datapath::start(
            Config {
                addresses: vec![ip],
                pod_range: ranges(&["10.244.0.0/16", "fd00:244::/64"]),
                service_range: ranges(&["10.96.0.0/16", "fd00:96::/112"]),
                outward: None,
                outward_ipv6: false,
                node_ip: node,
                folder: folder.path(),
                encryption,
            },
            ask,
        )
        .expect("a datapath");
        let enter = || unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (the tests run as root)");
        let (net, tun) = in_namespace(enter, || {
            netdev::loopback_up().unwrap();
            let tun = netdev::create_tun("eth0").expect("a TUN (/dev/net/tun)");
            let mut netlink = Netlink::open().unwrap();
            netlink.add_address("eth0", ip, if ip.is_ipv4() { 32 } else { 128 }).unwrap();
            netlink.set_up("eth0", MTU).unwrap();
            let all = if ip.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
            let route = Route { destination: all, prefix: 0, gateway: None, source: None };
            netlink.add_route("eth0", route).unwrap();
            (File::open("/proc/thread-self/ns/net").unwrap(), tun)
        });
        datapath.attach(tun.fd, tun.vnet_hdr);
        Self { net, datapath, questions, ip, told: AtomicU8::new(0), _folder: folder }
    }

    /// Sockets made in `body` are this pod's.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        in_namespace(|| setns(&self.net, CloneFlags::CLONE_NEWNET).unwrap(), body)
    }

    /// Tells the datapath facts, and waits until it goes by them: until a service that was told last refuses, of whose
    /// address it knew nothing before.
    fn learns(&self, facts: impl IntoIterator<Item = NetUpdate>) {
        facts.into_iter().for_each(|fact| self.datapath.learn(fact));
        let n = self.told.fetch_add(1, Ordering::Relaxed);
        let ip = if self.ip.is_ipv4() { format!("10.96.255.{n}") } else { format!("fd00:96::ff{n:02x}") };
        self.datapath.learn(service(&format!("told/{n}"), &[&ip], Protocol::Tcp, 80, &[]));
        let to = SocketAddr::new(ip.parse().unwrap(), 80);
        let end = Instant::now() + PATIENCE;
        while self.connect(to).unwrap_err().kind() != ErrorKind::ConnectionRefused {
            assert!(Instant::now() < end, "facts are not obeyed");
        }
    }

    /// As the kubelet would say it.
    fn is_told_of(&self, other: &Self) {
        self.is_told_of_at(other, other.datapath.endpoint);
    }

    fn is_told_of_at(&self, other: &Self, endpoint: SocketAddr) {
        self.learns([NetUpdate::Peer {
            ip: other.ip,
            endpoint: Some(endpoint),
            public_key: other.datapath.public_key.clone(),
        }]);
    }

    /// One of its ports.
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    fn listen(&self, at: SocketAddr) -> TcpListener {
        self.run(|| TcpListener::bind(at).unwrap())
    }

    fn udp(&self, at: SocketAddr) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn two(kind: (Encryption, Family)) -> (Pod, Pod) {
    let (a, b) = (Pod::new(1, kind), Pod::new(2, kind));
    a.is_told_of(&b);
    b.is_told_of(&a);
    (a, b)
}

/// Bytes that no two places of a stream share for long.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

/// The server's end of a connection is given back.
fn accepted(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All of `bytes` from one end to the other, and the same back at the same time.
fn exchange(mut here: TcpStream, mut there: TcpStream, bytes: &[u8]) {
    std::thread::scope(|scope| {
        for end in [&here, &there] {
            let mut end = end.try_clone().unwrap();
            scope.spawn(move || {
                end.write_all(bytes).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
        }
        for end in [&mut here, &mut there] {
            scope.spawn(move || {
                let mut got = Vec::new();
                end.read_to_end(&mut got).unwrap();
                assert!(got == bytes, "{} of {} bytes, or other ones", got.len(), bytes.len());
            });
        }
    });
}

fn service(key: &str, ips: &[&str], protocol: Protocol, port: u16, endpoints: &[SocketAddr]) -> NetUpdate {
    let port = ServicePort { protocol, port, endpoints: endpoints.to_vec(), also: Vec::new() };
    NetUpdate::Service(ServiceFacts {
        sources: vec![],
        key: key.to_owned(),
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        affinity_seconds: None,
        ports: vec![port],
    })
}

#[test]
fn streams_arrive_whole_in_both_ways() {
    let bytes = pattern(16 << 20);
    for kind in ALL {
        let (a, b) = two(kind);
        let listener = b.listen(b.at(80));
        let here = a.connect(b.at(80)).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        exchange(here, accepted(&listener), &bytes);
    }
}

#[test]
fn datagrams_of_every_size_arrive_as_they_were() {
    let bytes = pattern(60_000);
    for kind in ALL {
        let (a, b) = two(kind);
        let (from, to) = (a.udp(a.at(5000)), b.udp(b.at(5000)));
        let mut buffer = vec![0; 65_536];
        // Less than a packet, a packet, pieces of one (fragments).
        for len in [0, 1, 63, 1200, 1392, 1412, 1440, 3000, 9000, 60_000] {
            from.send_to(&bytes[..len], b.at(5000)).unwrap();
            let (got, sender) = to.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{kind:?}, {len}: {e}"));
            assert!((sender, &buffer[..got]) == (a.at(5000), &bytes[..len]), "{kind:?}, {len}: {got} from {sender}");
        }
    }
}

#[test]
fn datagrams_that_the_kernel_is_to_cut_arrive_cut() {
    let bytes = pattern(1100 * 20 + 300);
    for kind in ALL {
        let (a, b) = two(kind);
        let (from, to) = (a.udp(a.at(5000)), b.udp(b.at(5000)));
        setsockopt(&from, sockopt::UdpGsoSegment, &1100).unwrap();
        from.send_to(&bytes, b.at(5000)).unwrap();
        let mut buffer = vec![0; 65_536];
        for part in bytes.chunks(1100) {
            let got = to.recv(&mut buffer).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            assert!(&buffer[..got] == part, "{kind:?}: {got} bytes");
        }
    }
}

#[test]
fn a_segment_is_as_large_as_the_way_takes_and_no_larger() {
    for kind in ALL {
        let (a, b) = two(kind);
        let header = if kind.1 == Family::V4 { 20 } else { 40 };
        let listener = b.listen(b.at(80));
        let here = a.connect(b.at(80)).expect("a connection");
        let there = accepted(&listener);
        for end in [&here, &there] {
            // TCP's own header, with a time stamp.
            assert_eq!(getsockopt(end, sockopt::TcpMaxSeg).unwrap(), MTU - header - 32, "{kind:?}");
        }
        if kind.1 == Family::V6 {
            // IPv6 packets are cut by their sender or not at all.
            let (from, to) = (a.udp(a.at(5000)), b.udp(b.at(5000)));
            setsockopt(&from, sockopt::Ipv6DontFrag, &true).unwrap();
            let most = usize::try_from(MTU).unwrap() - 48;
            from.send_to(&vec![1; most], b.at(5000)).unwrap();
            assert_eq!(to.recv(&mut [0; 2000]).unwrap(), most, "the largest that goes uncut");
            let error = from.send_to(&vec![1; most + 1], b.at(5000)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        }
    }
}

#[test]
fn services_lead_refuse_and_come_back() {
    for kind in ALL {
        let (a, b) = two(kind);
        let ip = if kind.1 == Family::V4 { "10.96.0.7" } else { "fd00:96::7" };
        let front = |port| SocketAddr::new(ip.parse().unwrap(), port);
        a.learns([service("x/tcp", &[ip], Protocol::Tcp, 80, &[b.at(8080)])]);
        let listener = b.listen(b.at(8080));
        let here = a.connect(front(80)).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        assert_eq!(here.peer_addr().unwrap(), front(80));
        let there = accepted(&listener);
        assert_eq!(there.peer_addr().unwrap().ip(), a.ip, "the client's own address is seen");
        exchange(here, there, &pattern(4 << 20));

        // Its other ports, and itself without endpoints, refuse at once.
        let began = Instant::now();
        assert_eq!(a.connect(front(81)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        a.learns([service("x/tcp", &[ip], Protocol::Tcp, 80, &[])]);
        assert_eq!(a.connect(front(80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(began.elapsed() < PATIENCE);

        // A datagram's answer comes from the service; without endpoints its sender is told.
        a.learns([service("x/udp", &[ip], Protocol::Udp, 53, &[b.at(5353)])]);
        let (client, server) = (a.udp(a.at(0)), b.udp(b.at(5353)));
        let mut buffer = [0; 64];
        client.send_to(b"ask", front(53)).unwrap();
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, front(53)));
        a.learns([service("x/udp", &[ip], Protocol::Udp, 53, &[])]);
        client.connect(front(53)).unwrap();
        client.send(b"ask").unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        // The pod itself behind its service.
        a.learns([service("x/own", &[ip], Protocol::Tcp, 8000, &[a.at(9000)])]);
        let own = a.listen(a.at(9000));
        let here = a.connect(front(8000)).expect("by way of the service to oneself");
        let there = accepted(&own);
        assert_eq!(there.peer_addr().unwrap().ip(), front(0).ip(), "so that answers come back the same way");
        exchange(here, there, &pattern(1 << 20));
    }
}

#[test]
fn policies_hold() {
    for kind in ALL {
        let (a, b) = two(kind);
        let rules = || {
            let cidr = format!("{}/{}", a.ip, if kind.1 == Family::V4 { 32 } else { 128 });
            let peers = Some(vec![PolicyPeer { cidr, except: Vec::new() }]);
            Some(vec![PolicyRule {
                peers,
                ports: Some(vec![PolicyPort { protocol: Protocol::Tcp, first: 80, last: 80 }]),
            }])
        };
        // What takes long in vain is dropped: a refusal would come at once.
        let dropped = |from: &Pod, to| {
            let error = from.run(|| TcpStream::connect_timeout(&to, SILENCE)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{kind:?}");
        };
        let _listeners = [b.listen(b.at(80)), b.listen(b.at(81)), a.listen(a.at(80)), a.listen(a.at(82))];
        b.learns([NetUpdate::Policy(PolicyFacts { ingress: rules(), egress: None })]);
        a.connect(b.at(80)).expect("let in");
        dropped(&a, b.at(81));
        b.connect(a.at(82)).expect("what it starts itself is answered");
        b.learns([NetUpdate::Policy(PolicyFacts { ingress: None, egress: rules() })]);
        b.connect(a.at(80)).expect("let out");
        dropped(&b, a.at(82));
        a.connect(b.at(81)).expect("and answers go out");
    }
}

/// The next question that `accept` takes.
fn asked(pod: &mut Pod, accept: impl Fn(&NetQuestion) -> bool) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match pod.questions.try_recv() {
            Ok(question) if accept(&question) => return,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("it did not ask");
}

#[test]
fn a_peer_is_asked_for_by_the_first_packet_which_waits_for_the_answer() {
    for kind in ALL {
        let (mut a, b) = (Pod::new(1, kind), Pod::new(2, kind));
        let (from, to) = (a.udp(a.at(5000)), b.udp(b.at(5000)));
        from.send_to(b"first", b.at(5000)).unwrap();
        asked(&mut a, |question| matches!(question, NetQuestion::Peer { ip } if *ip == b.ip));
        b.is_told_of(&a);
        a.is_told_of(&b);
        assert_eq!(to.recv(&mut [0; 16]).unwrap(), 5, "{kind:?}");
    }
}

/// A pod whose job was started again elsewhere has its address, another node, another key.
#[test]
fn a_peer_that_moves_is_found_again_and_its_old_place_is_not_believed() {
    for kind in ALL {
        let (a, b) = two(kind);
        let moved = Pod::with(b.ip, [127, 0, 0, 3].into(), kind.0);
        moved.is_told_of(&a);
        let from = a.udp(a.at(5000));
        let (old, new) = (b.udp(b.at(5000)), moved.udp(b.at(5000)));
        let mut buffer = [0; 16];
        from.send_to(b"old", b.at(5000)).unwrap();
        assert_eq!(old.recv(&mut buffer).unwrap(), 3, "{kind:?}");
        a.is_told_of(&moved);
        from.send_to(b"newer", b.at(5000)).unwrap();
        assert_eq!(new.recv(&mut buffer).unwrap(), 5, "{kind:?}");
        new.send_to(b"answer", a.at(5000)).unwrap();
        assert_eq!(from.recv(&mut buffer).unwrap(), 6, "{kind:?}");
        // What runs on at the old place speaks for nobody.
        from.set_read_timeout(Some(SILENCE)).unwrap();
        old.send_to(b"ghost", a.at(5000)).unwrap();
        assert!(from.recv(&mut buffer).is_err(), "{kind:?}");
    }
}

/// What goes from one to the other passes somebody who counts messages by their type, and sends each again, once as it was
/// and once changed.
#[test]
fn most_packets_take_the_faster_cipher_and_each_arrives_once() {
    const COUNT: u16 = 2000;
    for kind in ALL.into_iter().filter(|(encryption, _)| *encryption != Encryption::Off) {
        let (a, b) = (Pod::new(1, kind), Pod::new(2, kind));
        let between = UdpSocket::bind("127.0.0.9:0").unwrap();
        let (way, on) = (between.local_addr().unwrap(), b.datapath.endpoint);
        let types: std::sync::Arc<[AtomicU16; 6]> = std::sync::Arc::default();
        let counted = types.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok(len) = between.recv(&mut buffer) {
                let message = &mut buffer[..len];
                counted[usize::from(message[0])].fetch_add(1, Ordering::Relaxed);
                let _ = between.send_to(message, on).and_then(|_| between.send_to(message, on));
                *message.last_mut().unwrap() ^= 1;
                let _ = between.send_to(message, on);
            }
        });
        a.is_told_of_at(&b, way);
        b.is_told_of(&a);
        let (from, to) = (a.udp(a.at(5000)), b.udp(b.at(5000)));
        let mut buffer = [0; 64];
        for n in 0..COUNT {
            from.send_to(&n.to_le_bytes(), b.at(5000)).unwrap();
            let got = to.recv(&mut buffer).unwrap_or_else(|e| panic!("{kind:?}, {n}: {e}"));
            assert_eq!(buffer[..got], n.to_le_bytes(), "{kind:?}");
            // So that keys are told: the tunnel has carried something both ways.
            to.send_to(&n.to_le_bytes(), a.at(5000)).unwrap();
            from.recv(&mut buffer).unwrap();
        }
        to.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(to.recv(&mut buffer).is_err(), "{kind:?}: nothing comes twice");
        let count = |n: usize| types[n].load(Ordering::Relaxed);
        assert!(count(4) > 0, "{kind:?}: the tunnel carries some");
        match kind.0 {
            Encryption::Fastest => assert!(count(5) > COUNT - 100, "{kind:?}: {} by the tunnel", count(4)),
            _ => assert_eq!(count(5), 0, "{kind:?}"),
        }
    }
}
