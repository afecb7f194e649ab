//! Processes in the node's network that reach pods and Services (ADR 25).
//!
//! A node's routes are root's, so a process in its network has no way to the pods' addresses. But a socket belongs to the
//! network that it was made in, whoever has it. So a filter has each `connect` ask first, and where the address is a pod's or a
//! Service's, the caller's socket is replaced by one of the pods' network before the call goes on:
//!
//! ```text
//!  process ── connect(7, 10.96.0.5:80) ─▶ kernel ─▶ listener ─▶ Desk: reads the address and the socket
//!                                                                 │ outside: go on
//!                                                                 └ inside: Sockets gives one, made like the old ─▶ its 7; go on
//! ```
//! What the caller says is not trusted and need not be: should it change the address or the descriptor in between, it reaches
//! what it could reach in the node's network or, by a socket of the pods', in the pods'.
//!
//! Never: it does not look into what is sent, and waits for no network.

mod caller;
mod decide;
mod desk;
mod far;
pub(crate) mod filter;
mod near;
mod notify;
mod twin;

pub use decide::{Ranges, Side};
pub use desk::{Desk, Post};
pub use far::Far;
pub use near::serve;

use hpk_api::crossing::SocketAsk;
use ipnet::IpNet;
use nix::errno::Errno;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Makes sockets of the pods' network.
pub trait Sockets: Send + std::fmt::Debug {
    /// One that is neither bound nor connected.
    ///
    /// # Errors
    /// Why there is none.
    fn socket(&mut self, ask: SocketAsk) -> io::Result<OwnedFd>;
}

/// Why processes in the node's network cannot be helped on this node.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The kernel has no user notification, or none that can replace descriptors.
    #[error("the compute node's kernel lacks what takes connections to the pods' network (seccomp's user notification): {}", .0.desc())]
    Notification(Errno),
    /// It does not let one process look at another's descriptors.
    #[error("the compute node's kernel does not show a process's sockets to another (pidfd_getfd): {}", .0.desc())]
    Descriptors(Errno),
    /// It does not say which network a socket is of.
    #[error("the compute node's kernel does not say which network a socket belongs to (Linux 5.14 does)")]
    Cookie,
    /// No socket, file or descriptor.
    #[error("connections cannot be taken to the pods' network: {0}")]
    Io(#[from] io::Error),
}

/// What decides about calls, and does what is decided.
#[derive(Debug)]
pub struct Crossing {
    ranges: Ranges,
    ephemeral: RangeInclusive<u16>,
    sockets: Box<dyn Sockets>,
    /// The network that this process is in.
    node: u64,
    /// Once the first socket of it has come.
    pods: Option<u64>,
    /// What the last failure said, so that it is said once.
    said: String,
}

impl Crossing {
    /// For processes in the calling process's own network.
    ///
    /// # Errors
    /// The kernel cannot do it.
    pub fn new(ranges: Ranges, sockets: impl Sockets + 'static) -> Result<Self, Unsupported> {
        let node = check()?;
        let ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let ephemeral = decide::ephemeral(&ports);
        Ok(Self { ranges, ephemeral, sockets: Box::new(sockets), node, pods: None, said: String::new() })
    }

    /// Answers one call, which [`Desk`] has seen to wait.
    ///
    /// # Errors
    /// ENOENT: the caller has gone, which is no trouble. EBADF: the descriptor is no listener.
    fn serve(&mut self, listener: BorrowedFd<'_>) -> Result<(), Errno> {
        let call = notify::receive(listener)?;
        let failure = self.judge(listener, &call);
        notify::answer(listener, &call, failure)
    }

    /// Replaces the caller's socket if need be. The number with which the call is to fail; None: it goes on.
    fn judge(&mut self, listener: BorrowedFd<'_>, call: &notify::Call) -> Option<Errno> {
        let [fd, _, second, _, fourth, fifth] = call.arguments;
        let (at, length) = match call.number {
            libc::SYS_connect => (call.arguments.get(1).copied().unwrap_or(0), second),
            libc::SYS_sendto => (fourth, fifth),
            _ => return None,
        };
        // The kernel takes an int.
        let fd = RawFd::try_from(fd & 0xffff_ffff).ok()?;
        let to = decide::destination(&caller::address(call.tid, at, length).ok()?)?;
        let side = self.ranges.side(to.ip());
        if side == Side::Node && self.pods.is_none() {
            // Nobody has a socket of the pods' network yet.
            return None;
        }
        let old = caller::descriptor(call.tid, fd).ok()?;
        let (node, pods) = (self.node, self.pods);
        let of = |network| match network {
            n if n == node => Some(Side::Node),
            n if Some(n) == pods => Some(Side::Pods),
            _ => None,
        };
        let socket = twin::look(old.as_fd(), of)?;
        if !decide::must_move(&socket, side, &self.ephemeral) || !notify::waits(listener, call) {
            return None;
        }
        let ask = SocketAsk { ipv6: twin::is_ipv6(old.as_fd()), datagram: socket.datagram };
        let new = match side {
            Side::Node => plain(ask),
            Side::Pods => self.of_pods(ask),
        };
        let new = match new {
            Ok(new) => new,
            Err(error) => {
                self.say(&error);
                return Some(Errno::ENETUNREACH);
            }
        };
        let like = twin::make_like(new.as_fd(), old.as_fd());
        let closes = caller::closes_at_exec(call.tid, fd);
        let number = u32::try_from(fd).ok()?;
        // A caller that has gone needs no answer; for one that has no such descriptor any more the call fails by itself.
        let _ = like.and_then(|()| notify::replace(listener, call, new.as_fd(), number, closes));
        None
    }

    fn of_pods(&mut self, ask: SocketAsk) -> io::Result<OwnedFd> {
        let socket = self.sockets.socket(ask)?;
        self.pods = Some(twin::network(socket.as_fd())?);
        Ok(socket)
    }

    fn say(&mut self, error: &io::Error) {
        let text = error.to_string();
        if text != self.said {
            hpk_api::say!("hpk: no socket of the pods' network for a process in the node's: {text}");
            self.said = text;
        }
    }
}

/// Whether this node's kernel can do it; the number of the calling thread's network.
///
/// # Errors
/// What it lacks.
pub fn check() -> Result<u64, Unsupported> {
    available().map_err(Unsupported::Notification)?;
    let own = plain(SocketAsk { ipv6: false, datagram: true })?;
    caller::descriptor(nix::unistd::gettid().as_raw(), own.as_raw_fd()).map_err(Unsupported::Descriptors)?;
    twin::network(own.as_fd()).map_err(|_| Unsupported::Cookie)
}

/// The networks of this machine's own interfaces.
#[must_use]
pub fn own_networks() -> Vec<IpNet> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| {
        let ip = |address: nix::sys::socket::SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        IpNet::with_netmask(ip(interface.address?)?, ip(interface.netmask?)?).ok()
    })
    .filter(|net| net.prefix_len() > 0)
    .collect()
}

/// A socket in the calling thread's network: neither bound nor connected, does not block, closes at exec.
///
/// # Errors
/// As socket(2).
pub fn plain(ask: SocketAsk) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if ask.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let kind = if ask.datagram { SockType::Datagram } else { SockType::Stream };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// Whether the kernel has what is needed. That it has `SO_NETNS_COOKIE` (5.14) is asked elsewhere, and says that it can replace
/// descriptors (5.9).
fn available() -> Result<(), Errno> {
    let action: u32 = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the number lives across the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(result).map(drop)
}
