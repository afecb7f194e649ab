//! Processes in one network that reach servers of another: containers of busybox, and a network namespace in the place of the
//! pods'. Needs root, for that namespace.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{World, finish};
use hpk_api::crossing::SocketAsk;
use hpk_sys::crossing::{Crossing, Desk, Post, Ranges, Sockets, plain};
use hpk_sys::join::Joiner;
use hpk_sys::launch::{JoinSpec, LaunchSpec, Launcher, Native, Security};
use hpk_sys::netdev::Netlink;
use hpk_sys::reap::ExitCause;
use std::io::{self, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

const POD: &str = "10.244.7.7";

/// What is asked of the thread in the pods' network.
type Asked = (SocketAsk, mpsc::Sender<io::Result<OwnedFd>>);

#[derive(Debug)]
struct Pods(mpsc::Sender<Asked>);

impl Sockets for Pods {
    fn socket(&mut self, ask: SocketAsk) -> io::Result<OwnedFd> {
        let (answer, answered) = mpsc::channel();
        self.0.send((ask, answer)).map_err(io::Error::other)?;
        answered.recv().map_err(io::Error::other)?
    }
}

/// A network with a server of TCP and one of UDP, which tells of the first datagram.
fn pods() -> (Pods, mpsc::Receiver<Vec<u8>>) {
    let (asks, asked) = mpsc::channel::<Asked>();
    let (ready, is_ready) = mpsc::channel();
    let (heard, hears) = mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
        let mut netlink = Netlink::open().unwrap();
        netlink.set_up("lo", 0).unwrap();
        netlink.add_addresses("lo", &[POD.parse().unwrap(), "fd00:10:244::7".parse().unwrap()]).unwrap();
        let tcp = TcpListener::bind((POD, 80)).unwrap();
        let udp = UdpSocket::bind((POD, 53)).unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let from = stream.peer_addr().unwrap();
                // In one piece: several clients write what they hear to one output.
                stream.write_all(format!("pods see {}\n", from.ip()).as_bytes()).unwrap();
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = udp.recv_from(&mut buffer) {
                heard.send(buffer[..n].to_vec()).unwrap();
                // No answer of a name server, but one.
                udp.send_to(&buffer[..n], from).unwrap();
            }
        });
        ready.send(()).unwrap();
        for (ask, answer) in asked {
            answer.send(plain(ask)).unwrap();
        }
    });
    is_ready.recv().unwrap();
    (Pods(asks), hears)
}

fn desk(sockets: impl Sockets + 'static) -> Post {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let ranges = Ranges { inside: nets(&["10.244.0.0/16", "fd00:10:244::/64"]), node: nets(&["10.244.8.0/24"]) };
    let (desk, post) = Desk::new(Crossing::new(ranges, sockets).unwrap()).unwrap();
    std::thread::spawn(move || desk.run());
    post
}

fn run(world: &World, post: &Post, script: &str) -> (String, String, ExitCause) {
    finish(Native::new().unwrap().launch(&spec(world, post, script)).expect("a container"))
}

fn spec(world: &World, post: &Post, script: &str) -> LaunchSpec {
    let mut spec = world.sh(script);
    spec.security = Security { crossing: Some(post.clone()), ..Security::default() };
    spec
}

#[test]
fn a_process_reaches_both_networks() {
    let world = World::new();
    let (sockets, hears) = pods();
    let post = desk(sockets);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            writeln!(stream.unwrap(), "node").unwrap();
        }
    });
    let script = format!(
        "busybox nc {POD} 80 </dev/null; busybox nc 127.0.0.1 {port} </dev/null; busybox nc {POD} 80 </dev/null;
         busybox nslookup name.test {POD} >/dev/null 2>&1; busybox nc {POD} 81 </dev/null || echo refused"
    );
    let (out, err, _) = run(&world, &post, &script);
    assert_eq!(out, format!("pods see {POD}\nnode\npods see {POD}\nrefused\n"), "{err}");
    let datagram = hears.recv_timeout(Duration::from_secs(20)).expect("a datagram");
    assert!(datagram.windows(4).any(|part| part == b"name"), "{datagram:?}");
}

#[test]
fn many_processes_and_those_that_join_have_it_too() {
    let world = World::new();
    let (sockets, _hears) = pods();
    let post = desk(sockets);
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4 5; do busybox nc {POD} 80 </dev/null; done) & done; wait"
    );
    let (out, err, _) = run(&world, &post, &script);
    assert_eq!(out.lines().filter(|line| *line == format!("pods see {POD}")).count(), 40, "{out} {err}");

    let holder = Native::new().unwrap().launch(&world.sh("sleep 1000")).expect("a container");
    let spec = JoinSpec {
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        security: Security { crossing: Some(post), ..Security::default() },
        ..JoinSpec::new(["busybox", "nc", POD, "80"])
    };
    let joined = Joiner::new().unwrap().start(holder.pidfd.as_fd(), &spec).unwrap().wait().expect("a process");
    let (out, err, _) = finish(joined);
    assert_eq!(out, format!("pods see {POD}\n"), "{err}");
    hpk_sys::signals::send(holder.pidfd.as_fd(), nix::libc::SIGKILL).unwrap();
    common::wait(holder.pid);
}

#[test]
fn users_without_rights_and_programs_with_a_profile_have_it_too() {
    let world = World::new();
    let (sockets, _hears) = pods();
    let post = desk(sockets);
    let mut spec = spec(
        &world,
        &post,
        &format!("grep -E '^(Seccomp_filters|NoNewPrivs)' /proc/self/status; busybox nc {POD} 80 </dev/null"),
    );
    spec.security.uid = 33;
    spec.security.gid = 33;
    spec.security.no_new_privs = true;
    spec.security.seccomp = Some(std::sync::Arc::new(hpk_sys::seccomp::runtime_default().unwrap()));
    let (out, err, _) = finish(Native::new().unwrap().launch(&spec).expect("a container"));
    assert_eq!(out, format!("NoNewPrivs:\t1\nSeccomp_filters:\t2\npods see {POD}\n"), "{err}");
}

/// Sockets that cannot be had.
#[derive(Debug)]
struct Nowhere;

impl Sockets for Nowhere {
    fn socket(&mut self, _ask: SocketAsk) -> io::Result<OwnedFd> {
        Err(io::Error::other("the pods' network is away"))
    }
}

#[test]
fn without_the_pods_network_the_caller_hears_it_at_once() {
    let world = World::new();
    let post = desk(Nowhere);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            writeln!(stream.unwrap(), "node").unwrap();
        }
    });
    let (out, err, _) =
        run(&world, &post, &format!("busybox nc {POD} 80 </dev/null; busybox nc 127.0.0.1 {port} </dev/null"));
    assert_eq!(out, "node\n");
    assert!(err.contains("unreachable"), "{err}");
}

#[test]
fn a_server_stays_where_it_is() {
    let world = World::new();
    let (sockets, _hears) = pods();
    let post = desk(sockets);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let native = Native::new().unwrap().launch(&spec(&world, &post, &format!("echo served | busybox nc -l -p {port}")));
    let launched = native.expect("a container");
    let mut heard = String::new();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while heard.is_empty() && std::time::Instant::now() < until {
        match std::net::TcpStream::connect(("127.0.0.1", port)) {
            Ok(mut stream) => drop(stream.read_to_string(&mut heard)),
            Err(_) => std::thread::yield_now(),
        }
    }
    assert_eq!(heard, "served\n");
    finish(launched);
}
