//! The member's helper inside its own user and network namespace: makes the interface, and sockets on request.
//!
//! ```text
//! member (login node's network)          inside (pod network)
//!   ◀── TunOffer + descriptor ──────────  TUN eth0, routes
//!   ──── {"listen":["TCP","10.244.0.1:20001"]} ─▶  bind, listen
//!   ◀── {"ok":null} + descriptor ───────
//! ```
//! A socket belongs to the namespace in which it was made, whoever uses it afterwards. Ends when the member does.

use hpk_api::link::Protocol;
use hpk_api::net::{NetnsRequest, TunOffer};
use hpk_sys::fdpass;
use hpk_sys::netdev::{self, NetError, Netlink, Route};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const DEVICE: &str = "eth0";

/// What the helper is asked for, one JSON line on a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// A listening TCP or a bound UDP socket.
    Listen(Protocol, SocketAddr),
    /// A TCP or UDP socket towards an address: not connected, which does not depend on the namespace.
    Towards(Protocol, SocketAddr),
}

/// Its answer; with `Ok` comes the descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ok(()),
    Failed(String),
}

/// Why there is no pod network on the login node.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// Interface, address or route.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A socket of ours.
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("range {0:?}: must be an address and a prefix length")]
    Range(String),
}

/// Runs until the member is gone. `offer` is the member's socket for the TUN, `asks` where this one listens.
///
/// # Errors
/// The network could not be made.
pub fn run(offer: &Path, asks: &Path, ips: &[IpAddr], mtu: u32, ranges: &[&str]) -> Result<(), InsideError> {
    let listener = UnixListener::bind(asks)?;
    let mut member = make(offer, ips, mtu, ranges)?;
    std::thread::spawn(move || serve_all(&listener));
    // The member's end of this connection closes with the member.
    let _ = member.read_to_end(&mut Vec::new());
    Ok(())
}

/// Makes the interface with its addresses and routes in this process's network, and offers it at a socket.
pub(crate) fn make(offer: &Path, ips: &[IpAddr], mtu: u32, ranges: &[&str]) -> Result<UnixStream, InsideError> {
    let tun = netdev::create_tun(DEVICE)?;
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", 0)?;
    let ips = netlink.add_addresses(DEVICE, ips)?;
    netlink.set_up(DEVICE, mtu)?;
    for list in ranges {
        for range in hpk_api::net::ranges(list).ok_or_else(|| InsideError::Range((*list).to_owned()))? {
            let (destination, prefix) = (range.addr(), range.prefix_len());
            if let Some(source) = ips.iter().copied().find(|ip| ip.is_ipv4() == destination.is_ipv4()) {
                netlink.add_route(DEVICE, Route { destination, prefix, gateway: None, source: Some(source) })?;
            }
        }
    }
    let member = UnixStream::connect(offer)?;
    let offer = TunOffer { interface: DEVICE.to_owned(), mtu, vnet_hdr: tun.vnet_hdr, chain: None };
    let mut line = serde_json::to_vec(&NetnsRequest::Tun(Box::new(offer))).map_err(io::Error::from)?;
    line.push(b'\n');
    fdpass::send(&member, &line, &[tun.fd.as_fd()]).map_err(io::Error::from)?;
    Ok(member)
}

/// Until the listener fails.
pub(super) fn serve_all(listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        let _ = serve(stream);
    }
}

fn serve(stream: UnixStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).take(4096).read_line(&mut line)?;
    match serde_json::from_str::<Ask>(&line)? {
        Ask::Listen(Protocol::Udp, at) => answer(stream, UdpSocket::bind(at)),
        Ask::Listen(_, at) => answer(stream, TcpListener::bind(at)),
        Ask::Towards(protocol, at) => answer(stream, towards(protocol, at)),
    }
}

fn towards(protocol: Protocol, at: SocketAddr) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if protocol == Protocol::Udp { SockType::Datagram } else { SockType::Stream };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    nix::sys::socket::socket(family, kind, flags, None).map_err(io::Error::from)
}

fn answer(mut stream: UnixStream, made: io::Result<impl AsFd>) -> io::Result<()> {
    let text = |answer: &Answer| {
        serde_json::to_vec(answer).map(|mut line| {
            line.push(b'\n');
            line
        })
    };
    match made {
        Ok(socket) => {
            let fd: BorrowedFd<'_> = socket.as_fd();
            fdpass::send(&stream, &text(&Answer::Ok(()))?, &[fd]).map_err(io::Error::from)?;
        }
        Err(error) => stream.write_all(&text(&Answer::Failed(error.to_string()))?)?,
    }
    Ok(())
}
