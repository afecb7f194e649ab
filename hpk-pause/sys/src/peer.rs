//! Who is at the other end of a unix socket.

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::os::fd::AsFd;

/// Credentials of a peer at its connect, in our own namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id; 65534 for one that is not mapped here.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// 0: a process of a PID namespace that we do not see.
    pub pid: i32,
}

/// SO_PEERCRED.
///
/// # Errors
/// As getsockopt(2).
pub fn of(socket: &impl AsFd) -> Result<Peer, Errno> {
    getsockopt(socket, PeerCredentials).map(|cred| Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() })
}
