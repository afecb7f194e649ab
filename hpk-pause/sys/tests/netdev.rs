//! Network devices in a namespace of the test's own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_sys::netdev::{self, NetError, Netlink, Route, Rule, TABLE_LOCAL};
use hpk_sys::{Errno, fdpass};
use nix::sched::{CloneFlags, unshare};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A thread of its own is what has the namespace; it ends with the thread.
fn in_a_network_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (the tests run as root)");
        body();
    });
    thread.join().expect("the body");
}

fn v4(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn loopback_comes_up() {
    in_a_network_namespace(|| {
        assert!(TcpListener::bind("127.0.0.1:0").and_then(|l| TcpStream::connect(l.local_addr()?)).is_err());
        netdev::loopback_up().expect("lo");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    });
}

#[test]
fn a_pod_without_a_network_has_its_address_all_the_same() {
    in_a_network_namespace(|| {
        netdev::loopback_up().expect("lo");
        let (device, had) = netdev::hold_addresses(&[v4("10.244.1.2"), v4("fd00::2")]).expect("addresses");
        assert_eq!(had, [v4("10.244.1.2"), v4("fd00::2")]);
        assert!(netdev::exists(device));
        assert_eq!(netdev::hold_addresses(&[v4("10.244.1.2")]), Ok((device, vec![v4("10.244.1.2")])), "again");
        let listener = TcpListener::bind("10.244.1.2:0").expect("a listener");
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        TcpListener::bind("[fd00::2]:0").expect("an IPv6 listener");
        let mut netlink = Netlink::open().expect("netlink");
        netlink.set_up(device, 1400).expect("up");
        assert_eq!(netlink.set_up("eth7", 0), Err(NetError::NoDevice("eth7".to_owned())));
        let error =
            netlink.add_route(device, Route { destination: v4("1.2.3.4"), prefix: 8, gateway: None, source: None });
        assert!(matches!(error, Err(NetError::Kernel { errno: Errno::EINVAL, .. })), "{error:?}");
    });
}

#[test]
fn packets_of_a_route_come_out_of_the_tun() {
    in_a_network_namespace(|| {
        let tun = netdev::create_tun("eth0").expect("a TUN (/dev/net/tun)");
        assert!(tun.vnet_hdr);
        let mut netlink = Netlink::open().expect("netlink");
        netlink.add_address("eth0", v4("10.244.1.2"), 32).expect("an address");
        netlink.set_up("eth0", 1400).expect("up");
        for _ in 0..2 {
            let route =
                Route { destination: v4("10.96.0.0"), prefix: 16, gateway: None, source: Some(v4("10.244.1.2")) };
            netlink.add_route("eth0", route).expect("a route");
        }
        let default = Route { destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0, gateway: None, source: None };
        netlink.add_route("eth0", default).expect("the default route");
        for target in ["10.96.0.10:53", "192.0.2.1:53"] {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"question", target).expect("a packet");
            let packet = next_udp(&tun);
            assert_eq!(&packet[12..16], [10, 244, 1, 2], "source");
            assert!(packet.ends_with(b"question"));
        }
        assert_eq!(
            netdev::create_tun("eth0").map(drop),
            Err(NetError::Kernel { operation: "create the TUN device eth0".to_owned(), errno: Errno::EBUSY })
        );
    });
}

/// The next IPv4 UDP packet; the kernel sends IPv6 router solicitations of its own.
fn next_udp(tun: &netdev::Tun) -> Vec<u8> {
    loop {
        let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&tun.fd), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 5000u16), Ok(1), "a packet within five seconds");
        let mut buffer = [0u8; 2048];
        let length = nix::unistd::read(&tun.fd, &mut buffer).expect("a packet");
        let packet = &buffer[10..length];
        if packet.first() == Some(&0x45) && packet.get(9) == Some(&17) {
            return packet.to_vec();
        }
    }
}

#[test]
fn engine_sysctls_let_anyone_bind_low_ports() {
    in_a_network_namespace(|| {
        netdev::engine_sysctls().expect("sysctls");
        assert_eq!(
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("a sysctl").trim(),
            "0"
        );
        netdev::sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
        assert!(matches!(netdev::sysctl("net.no.such", "1"), Err(NetError::Sysctl { errno: Errno::ENOENT, .. })));
    });
}

#[test]
fn descriptors_travel_over_a_socket() {
    let (a, b) = UnixStream::pair().expect("a pair");
    let (mut inner, other) = UnixStream::pair().expect("a pair");
    assert_eq!(fdpass::send(&a, b"offer", &[std::os::fd::AsFd::as_fd(&other)]), Ok(5));
    let mut buffer = [0u8; 64];
    let (length, mut fds) = fdpass::receive(&b, &mut buffer).expect("a message");
    assert_eq!((&buffer[..length], fds.len()), (&b"offer"[..], 1));
    drop(other);
    let mut received = UnixStream::from(fds.remove(0));
    received.write_all(b"!").expect("a byte");
    let mut byte = [0];
    inner.read_exact(&mut byte).expect("the byte");
    assert_eq!(&byte, b"!");
    assert_eq!(fdpass::send(&a, b"plain", &[]), Ok(5));
    assert_eq!(fdpass::receive(&b, &mut buffer).map(|(n, fds)| (n, fds.len())), Ok((5, 0)));
    let peer = hpk_sys::peer::of(&a).expect("credentials");
    assert_eq!(peer.uid, nix::unistd::Uid::current().as_raw());
    assert_eq!(u32::try_from(peer.pid), Ok(std::process::id()));
}

#[test]
fn devices_are_listed_with_addresses_and_routes() {
    in_a_network_namespace(|| {
        let (device, _) = netdev::hold_addresses(&[v4("fd00::2"), v4("10.244.1.2")]).expect("addresses");
        let mut netlink = Netlink::open().expect("netlink");
        netlink.set_up(device, 1400).expect("up");
        let route = Route { destination: v4("0.0.0.0"), prefix: 0, gateway: None, source: None };
        netlink.add_route(device, route).expect("a route");
        let devices = netlink.devices().expect("devices");
        let found = devices.iter().find(|d| d.name == device).expect("the device");
        assert_eq!(found.addresses, [(v4("10.244.1.2"), 32), (v4("fd00::2"), 128)]);
        assert!(found.routes.contains(&(v4("0.0.0.0"), 0, None)), "{found:?}");
        assert!(device == "lo" || (found.mtu == 1400 && found.mac.len() == 17 && !found.loopback), "{found:?}");
    });
}

#[test]
fn a_rule_before_the_local_table_sends_an_own_address_on() {
    in_a_network_namespace(|| {
        netdev::loopback_up().expect("lo");
        let mut netlink = Netlink::open().expect("netlink");
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").expect("the namespace");
        netlink.add_veth("veth0", "veth1", &namespace, 1400).expect("a veth pair");
        assert_eq!(netlink.devices().expect("devices").iter().filter(|d| d.name.starts_with("veth")).count(), 2);
        for device in ["veth0", "veth1"] {
            netlink.set_up(device, 0).expect("up");
        }
        let own = v4("10.244.1.2");
        netlink.add_address("lo", own, 32).expect("an address");
        let listener = TcpListener::bind((own, 0)).expect("a listener");
        TcpStream::connect(listener.local_addr().expect("an address")).expect("it is local");
        let local = Rule { v6: false, to: None, priority: 100, table: TABLE_LOCAL };
        netlink.add_rule(local).expect("a rule");
        netlink.add_rule(local).expect("once more is fine");
        netlink.delete_rule(Rule { priority: 0, ..local }).expect("the kernel's own rule");
        netlink.add_rule(Rule { v6: false, to: Some(own), priority: 10, table: 100 }).expect("a rule");
        let route = Route { destination: own, prefix: 32, gateway: None, source: None };
        netlink.add_route_in(100, "veth0", route).expect("a route");
        // Nobody answers behind veth0; other local addresses are as before.
        let gone = TcpStream::connect_timeout(&listener.local_addr().expect("an address"), Duration::from_millis(300));
        assert!(gone.is_err(), "{gone:?}");
        let other = TcpListener::bind("127.0.0.1:0").expect("a listener");
        TcpStream::connect(other.local_addr().expect("an address")).expect("a connection");
    });
}
