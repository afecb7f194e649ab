//! A socket's facts, and another socket made to be like it.

use super::decide::{Side, Socket, destination};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Options that are taken over where the two differ. Those whose value is the caller's time or number in plain bytes are
/// copied as they are.
const OPTIONS: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
];

/// Sizes of buffers: the kernel tells twice what it was asked for.
const BUFFERS: &[libc::c_int] = &[libc::SO_SNDBUF, libc::SO_RCVBUF];

/// Room for the largest of [`OPTIONS`] (`struct timeval`).
const ROOM: usize = 16;

/// An option's value, as bytes. None: the socket has none such.
fn get(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<Vec<u8>> {
    get_of(socket, level, name, ROOM)
}

/// As [`get`], for an option that wants to be asked with its very size.
fn get_of(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, room: usize) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; room];
    let mut length = libc::socklen_t::try_from(room).ok()?;
    // SAFETY: value and length live across the call, and the length is the value's.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    (result == 0).then(|| value.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default().to_vec())
}

fn number(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    get(socket, level, name)?.try_into().ok().map(libc::c_int::from_ne_bytes)
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &[u8]) {
    let Ok(length) = libc::socklen_t::try_from(value.len()) else { return };
    // SAFETY: the value lives across the call, and the length is its own. An option that cannot be set is left as it is: the
    // connection is worth more.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
}

/// Which network a socket was made in: a number that no other network of this machine ever has.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.14.
pub(super) fn network(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    get_of(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, size_of::<u64>())
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_ne_bytes)
        .ok_or(Errno::ENOPROTOOPT)
}

/// What is to be known of a caller's socket. None: the descriptor is no socket. `side`: of a network's number.
pub(super) fn look(socket: BorrowedFd<'_>, side: impl FnOnce(u64) -> Option<Side>) -> Option<Socket> {
    let of = |name| number(socket, libc::SOL_SOCKET, name);
    let (domain, kind, protocol) = (of(libc::SO_DOMAIN)?, of(libc::SO_TYPE)?, of(libc::SO_PROTOCOL)?);
    let datagram = kind == libc::SOCK_DGRAM;
    let family = domain == libc::AF_INET || domain == libc::AF_INET6;
    let usual = if datagram { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
    let device = get(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    Some(Socket {
        internet: family && (datagram || kind == libc::SOCK_STREAM) && protocol == usual,
        datagram,
        side: network(socket).ok().and_then(side),
        listening: of(libc::SO_ACCEPTCONN).unwrap_or(0) != 0,
        device: device.is_some_and(|name| name.iter().any(|byte| *byte != 0)),
        shares: of(libc::SO_REUSEADDR).unwrap_or(0) != 0 || of(libc::SO_REUSEPORT).unwrap_or(0) != 0,
        own: own_address(socket),
        connected: has_peer(socket),
    })
}

/// Whether it is of IPv6.
pub(super) fn is_ipv6(socket: BorrowedFd<'_>) -> bool {
    number(socket, libc::SOL_SOCKET, libc::SO_DOMAIN) == Some(libc::AF_INET6)
}

type Name = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(socket: BorrowedFd<'_>, which: Name) -> Option<Vec<u8>> {
    let mut bytes = [0_u8; size_of::<libc::sockaddr_storage>()];
    let mut length = libc::socklen_t::try_from(bytes.len()).ok()?;
    // SAFETY: the kernel writes no more than the length says; bytes and length live across the call.
    let result = unsafe { which(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut length) };
    (result == 0).then(|| bytes.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default().to_vec())
}

fn own_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    destination(&name(socket, libc::getsockname)?)
}

fn has_peer(socket: BorrowedFd<'_>) -> bool {
    name(socket, libc::getpeername).is_some()
}

/// Gives `new` what the owner of `old` has set.
pub(super) fn make_like(new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Result<(), Errno> {
    for &(level, name) in OPTIONS {
        if let (Some(had), Some(has)) = (get(old, level, name), get(new, level, name))
            && had != has
        {
            set(new, level, name, &had);
        }
    }
    for &name in BUFFERS {
        // One that is set no longer grows with the connection.
        if let (Some(had), Some(has)) = (number(old, libc::SOL_SOCKET, name), number(new, libc::SOL_SOCKET, name))
            && had != has
        {
            set(new, libc::SOL_SOCKET, name, &(had / 2).to_ne_bytes());
        }
    }
    let kept = OFlag::O_NONBLOCK | OFlag::O_ASYNC;
    let flags = OFlag::from_bits_truncate(fcntl(old.as_fd(), FcntlArg::F_GETFL)?) & kept;
    fcntl(new.as_fd(), FcntlArg::F_SETFL(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::crossing::SocketAsk;
    use nix::sys::socket::{setsockopt, sockopt};
    use nix::sys::time::TimeVal;

    fn made(ipv6: bool, datagram: bool) -> std::os::fd::OwnedFd {
        super::super::plain(SocketAsk { ipv6, datagram }).unwrap()
    }

    #[test]
    fn what_its_owner_has_set_goes_over() {
        let (old, new) = (made(false, false), made(false, false));
        setsockopt(&old, sockopt::TcpNoDelay, &true).unwrap();
        setsockopt(&old, sockopt::KeepAlive, &true).unwrap();
        setsockopt(&old, sockopt::TcpKeepIdle, &77).unwrap();
        setsockopt(&old, sockopt::ReceiveTimeout, &TimeVal::new(7, 500_000)).unwrap();
        setsockopt(&old, sockopt::SndBuf, &20_000).unwrap();
        fcntl(old.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let before = get(new.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF);
        make_like(new.as_fd(), old.as_fd()).unwrap();
        for &(level, name) in OPTIONS {
            assert_eq!(get(new.as_fd(), level, name), get(old.as_fd(), level, name), "{level} {name}");
        }
        assert_eq!(number(new.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY), Some(1));
        assert_eq!(number(new.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), Some(77));
        assert_eq!(number(new.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF), Some(40_000));
        assert_eq!(get(new.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF), before, "nobody set it");
        let blocks = |fd| !OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK);
        assert!(blocks(new.as_fd()), "as the old one");
    }

    #[test]
    fn what_a_socket_is() {
        let look = |fd: &std::os::fd::OwnedFd| look(fd.as_fd(), |_| Some(Side::Node)).unwrap();
        let fresh = look(&made(true, true));
        assert!(fresh.internet && fresh.datagram && !fresh.connected && !fresh.listening && !fresh.shares);
        assert_eq!(fresh.own, Some("[::]:0".parse().unwrap()));
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        let server = std::os::fd::OwnedFd::from(server);
        assert!(look(&client.into()).connected);
        let server = look(&server);
        assert!(server.listening && server.shares && !server.connected && server.own == Some(at));
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!look(&unix.into()).internet);
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(super::look(pipe.as_fd(), |_| None), None);
    }

    #[test]
    fn a_network_has_one_number() {
        let (one, other) = (made(false, false), made(true, true));
        assert_eq!(network(one.as_fd()), network(other.as_fd()));
        assert!(network(one.as_fd()).is_ok());
    }
}
