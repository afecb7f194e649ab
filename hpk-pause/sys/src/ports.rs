//! Ports that nobody else can take: held from the moment they are chosen, whoever serves them and however often.
//!
//! A port that is only looked at is free for another user of the machine until its server binds it, and again while the
//! server is restarted. A [`Hold`] is a bound socket that serves nobody; the servers bind the same port beside it. The
//! kernel lets sockets share a port when all of them say so (`SO_REUSEPORT`) and belong to one user.
//!
//! ```text
//!  Hold (bound, serves nobody) ────────────────────────────────▶ to the end
//!      server: bind, listen ──▶ ends      server ──▶ …             another user: "address in use", always
//! ```
//! Who connects while there is no server is refused, as at a port that nobody has.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket, sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// One port of an address, TCP and UDP.
#[derive(Debug)]
pub struct Hold {
    _tcp: TcpHold,
    _udp: UdpHold,
}

/// One port of an address, UDP alone.
#[derive(Debug)]
pub struct UdpHold {
    _socket: OwnedFd,
}

/// One port of an address, TCP alone.
#[derive(Debug)]
pub struct TcpHold {
    _socket: OwnedFd,
}

impl TcpHold {
    /// Takes a port that nobody has, not even another program of this user.
    ///
    /// # Errors
    /// It is in use, or the address is not of this host.
    pub fn take(at: SocketAddr) -> io::Result<Self> {
        // Bound without SO_REUSEPORT: a socket of our own user is in the way too. SO_REUSEADDR passes over connections of
        // an earlier server that the kernel still remembers.
        let alone = make(at, SockType::Stream)?;
        setsockopt(&alone, sockopt::ReuseAddr, &true)?;
        bind_to(&alone, at)?;
        setsockopt(&alone, sockopt::ReuseAddr, &false)?;
        setsockopt(&alone, sockopt::ReusePort, &true)?;
        // A socket that was bound with SO_REUSEADDR leaves a mark on the port by which others who say it may bind too. A
        // second one without it takes the mark away, and fails if somebody did.
        Self::share(at)
    }

    /// Holds a port that a [`TcpHold`] or [`Hold`] of the same user already holds.
    ///
    /// # Errors
    /// Another user has it, or a program that does not share it.
    pub fn share(at: SocketAddr) -> io::Result<Self> {
        let socket = make(at, SockType::Stream)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind_to(&socket, at)?;
        Ok(Self { _socket: socket })
    }
}

impl UdpHold {
    /// As [`TcpHold::take`].
    ///
    /// # Errors
    /// It is in use, or the address is not of this host.
    pub fn take(at: SocketAddr) -> io::Result<Self> {
        let socket = make(at, SockType::Datagram)?;
        bind_to(&socket, at)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        deaf(&socket, at)?;
        Ok(Self { _socket: socket })
    }

    /// As [`TcpHold::share`].
    ///
    /// # Errors
    /// Another user has it, or a program that does not share it.
    pub fn share(at: SocketAddr) -> io::Result<Self> {
        let socket = OwnedFd::from(udp_beside(at)?);
        deaf(&socket, at)?;
        Ok(Self { _socket: socket })
    }
}

impl Hold {
    /// Takes a port that nobody has, not even another program of this user.
    ///
    /// # Errors
    /// It is in use, or the address is not of this host.
    pub fn take(at: SocketAddr) -> io::Result<Self> {
        Ok(Self { _tcp: TcpHold::take(at)?, _udp: UdpHold::take(at)? })
    }

    /// Holds a port that a [`Hold`] of the same user already holds.
    ///
    /// # Errors
    /// Another user has it, or a program that does not share it.
    pub fn share(at: SocketAddr) -> io::Result<Self> {
        Ok(Self { _tcp: TcpHold::share(at)?, _udp: UdpHold::share(at)? })
    }
}

/// Listens beside a [`Hold`]. Does not block.
///
/// # Errors
/// Somebody else has the port.
pub fn listen_beside(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = make(at, SockType::Stream)?;
    // So that connections which the kernel remembers are in no new server's way; harmless beside a hold without it.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind_to(&socket, at)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}

/// A UDP socket beside a [`Hold`]. Does not block.
///
/// # Errors
/// Somebody else has the port.
pub fn udp_beside(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = make(at, SockType::Datagram)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind_to(&socket, at)?;
    Ok(UdpSocket::from(socket))
}

fn make(at: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

fn bind_to(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))
}

/// A bound UDP socket takes datagrams that are for a server beside it; one that has a peer takes that peer's alone. Port 1
/// of our own address is no peer: it is root's, and nobody's.
fn deaf(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(at.ip(), 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    /// A port of the loopback that was free a moment ago.
    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_held_port_refuses_callers_and_every_other_holder() {
        let at = free();
        let hold = Hold::take(at).unwrap();
        assert_eq!(TcpStream::connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // The standard library's listener says SO_REUSEADDR, as an attacker would.
        assert_eq!(TcpListener::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(UdpSocket::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse);
        let any = SocketAddr::from(([0, 0, 0, 0], at.port()));
        assert_eq!(TcpListener::bind(any).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(UdpSocket::bind(any).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(Hold::take(at).unwrap_err().kind(), ErrorKind::AddrInUse, "another of ours chooses another port");
        drop(hold);
        drop(Hold::take(at).unwrap());
        TcpListener::bind(at).unwrap();
    }

    #[test]
    fn servers_come_and_go_beside_a_hold_that_is_handed_on() {
        let at = free();
        let first = Hold::take(at).unwrap();
        let _second = Hold::share(at).unwrap();
        drop(first);
        for _ in 0..2 {
            let server = listen_beside(at).unwrap();
            let mut client = TcpStream::connect(at).unwrap();
            let (mut accepted, _) = loop {
                match server.accept() {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                    other => break other.unwrap(),
                }
            };
            // The server ends the connection first: the kernel remembers it at this port.
            accepted.write_all(b"x").unwrap();
            drop(accepted);
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 1);
        }
        assert_eq!(TcpListener::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_hold_takes_no_datagram_from_the_server() {
        let at = free();
        let _hold = Hold::take(at).unwrap();
        let server = udp_beside(at).unwrap();
        server.set_nonblocking(false).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for n in 0..64_u8 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(&[n], at).unwrap();
            let mut got = [255];
            assert_eq!((server.recv(&mut got).unwrap(), got), (1, [n]));
        }
        drop(server);
        // Nobody there: said at once.
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(at).unwrap();
        client.send(b"x").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_port_with_remembered_connections_can_be_taken_again() {
        let at = free();
        let hold = Hold::take(at).unwrap();
        let server = listen_beside(at).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        loop {
            match server.accept() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                other => break drop(other.unwrap()),
            }
        }
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        drop((client, server, hold));
        Hold::take(at).unwrap();
    }
}
