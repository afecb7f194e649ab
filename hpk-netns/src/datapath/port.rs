//! The datapath's sockets: UDP between nodes with segmentation offloads, a unix socket between pods of one node.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// What the names of the local sockets end in.
const SOCKET: &str = "dp";

/// Socket buffers asked for, bytes; the kernel gives what the site allows (net.core.[rw]mem_max).
const BUFFER: usize = 4 << 20;
/// Longest wait for a full send buffer, milliseconds; then the packet is dropped, as a full queue would.
const PATIENCE: u16 = 5;

/// How often a full queue of a neighbour is tried.
const FULL_TRIES: u32 = 20;
/// Between two tries.
const FULL_PAUSE: std::time::Duration = std::time::Duration::from_micros(30);

/// The datapath's UDP socket.
#[derive(Debug)]
pub(crate) struct UdpPort {
    socket: UdpSocket,
    /// Cleared for good when the kernel or the interface refuses segmentation.
    gso: bool,
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) len: usize,
    /// Size of each datagram in it (all but the last); equal to `len` for a single one.
    pub(crate) size: usize,
    pub(crate) from: Option<IpAddr>,
}

impl UdpPort {
    /// On a free port of an address of this node.
    pub(crate) fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_nonblocking(true)?;
        // Larger buffers and offloads are a matter of speed alone.
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self { socket, gso: true })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends datagrams of `size` bytes each, or one. What cannot be sent is lost, as on any wire.
    pub(crate) fn send(&mut self, bytes: &[u8], size: Option<u16>, to: SocketAddr) {
        let Some(size) = size else { return self.send_one(bytes, to) };
        if self.gso {
            let control = [ControlMessage::UdpGsoSegments(&size)];
            match self.send_with(bytes, &control, to) {
                Err(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::ENOPROTOOPT) => self.gso = false,
                _ => return,
            }
        }
        for part in bytes.chunks(usize::from(size).max(1)) {
            self.send_one(part, to);
        }
    }

    fn send_one(&self, bytes: &[u8], to: SocketAddr) {
        let _ = self.send_with(bytes, &[], to);
    }

    fn send_with(&self, bytes: &[u8], control: &[ControlMessage<'_>], to: SocketAddr) -> nix::Result<usize> {
        let address = SockaddrStorage::from(to);
        let iov = [IoSlice::new(bytes)];
        loop {
            match sendmsg(self.socket.as_raw_fd(), &iov, control, MsgFlags::empty(), Some(&address)) {
                Err(Errno::EAGAIN) if writable(self.socket.as_fd()) => {}
                Err(Errno::EINTR) => {}
                // An ICMP error of an earlier packet is reported once, to whoever calls next.
                Err(Errno::ECONNREFUSED) => {}
                other => return other,
            }
        }
    }

    /// One receive; None: nothing there.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Option<Received> {
        let mut control = cmsg_space!(i32);
        loop {
            let mut iov = [IoSliceMut::new(buffer)];
            match recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::empty()) {
                Ok(message) => {
                    let len = message.bytes;
                    let mut size = len;
                    for c in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::UdpGroSegments(n) = c {
                            size = usize::try_from(n).unwrap_or(len);
                        }
                    }
                    let from = message.address.and_then(|a| {
                        a.as_sockaddr_in()
                            .map(|v4| IpAddr::V4(v4.ip()))
                            .or_else(|| a.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                    });
                    return Some(Received { len, size: size.max(1), from });
                }
                Err(Errno::EINTR | Errno::ECONNREFUSED) => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The datapath's socket for pods of the same user on the same node. Packets go as they are: the folder is ours alone
/// (0700), so nobody else can send to it.
#[derive(Debug)]
pub(crate) struct LocalPort {
    socket: UnixDatagram,
    path: PathBuf,
}

impl LocalPort {
    /// Binds `<folder>/<ip>.dp`; what an earlier pod of that address left is replaced.
    pub(crate) fn bind(folder: &Path, ip: IpAddr) -> io::Result<Self> {
        let path = local_path(folder, ip);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
        Ok(Self { socket, path })
    }

    /// True: sent, or dropped because the other is slow; false: nobody is there.
    pub(crate) fn send(&self, frame: &[u8], to: &Path) -> bool {
        for _ in 0..FULL_TRIES {
            match self.socket.send_to(frame, to) {
                Ok(_) => return true,
                Err(e) => match e.kind() {
                    // The other's queue is full. Readiness of an unconnected socket says nothing of that, and two that
                    // wait for each other for ever would never read: a short while, then the packet is lost.
                    io::ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
                    io::ErrorKind::OutOfMemory => return true,
                    io::ErrorKind::Interrupted => {}
                    _ => return e.raw_os_error() == Some(Errno::ENOBUFS as i32),
                },
            }
        }
        true
    }

    /// One frame; None: nothing there.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        self.socket.recv(buffer).ok()
    }
}

impl Drop for LocalPort {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsFd for LocalPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where the pod with this address listens on this node.
pub(crate) fn local_path(folder: &Path, ip: IpAddr) -> PathBuf {
    folder.join(format!("{ip}.{SOCKET}"))
}

/// Removes from the folder that pods share what datapaths left that are no more: their thread does not see the end of its
/// process.
pub(crate) fn remove_dead_sockets(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dead = || {
            let tried = UnixDatagram::unbound().and_then(|socket| socket.connect(&path));
            tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        // A pod that gets this address just now and loses its new socket is reached as one of another node.
        if path.extension().is_some_and(|name| name == SOCKET) && is_dead() {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Waits a little for room to send.
fn writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    matches!(poll(&mut fds, PollTimeout::from(PATIENCE)), Ok(n) if n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_does_not_read_holds_nobody_up() {
        let tmp = tempfile::tempdir().unwrap();
        let ip = |n| IpAddr::from([10, 244, 0, n]);
        let (a, b) = (LocalPort::bind(tmp.path(), ip(1)).unwrap(), LocalPort::bind(tmp.path(), ip(2)).unwrap());
        let to = local_path(tmp.path(), ip(2));
        // Many more than its queue holds: this must end.
        for _ in 0..200 {
            assert!(a.send(b"frame", &to));
        }
        assert_eq!(b.receive(&mut [0; 16]), Some(5));
        drop(b);
        assert!(!a.send(b"frame", &to), "nobody is there");
    }
}
