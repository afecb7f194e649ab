//! The pod's network devices, in the network namespace of the calling thread: loopback, addresses, routes, the TUN.
//!
//! Speaks rtnetlink over a socket of its own with the few messages that a pod needs; each request waits for the kernel's
//! acknowledgement, so an error names its operation. It needs CAP_NET_ADMIN in the namespace's user namespace.

mod found;
mod side;

pub use found::{Device, beside};
pub use side::{Rule, TABLE_LOCAL};

use libc::{
    IFA_ADDRESS, IFA_LOCAL, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, RT_SCOPE_HOST, RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWROUTE, RTN_UNICAST, RTPROT_STATIC,
};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use thiserror::Error;

/// Why a device could not be set up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetError {
    /// There is no such device.
    #[error("there is no network device {0:?}")]
    NoDevice(String),
    /// A device name that the kernel would not take.
    #[error("{0:?} is no name for a network device: 1 to 15 bytes without '/' or spaces")]
    BadName(String),
    /// The kernel refused.
    #[error("cannot {operation}: {}", .errno.desc())]
    Kernel {
        /// What was tried.
        operation: String,
        errno: Errno,
    },
    /// A sysctl could not be written.
    #[error("cannot set sysctl {name}={value}: {}", .errno.desc())]
    Sysctl {
        /// Name with dots.
        name: String,
        value: String,
        errno: Errno,
    },
}

/// Where packets for a destination go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network; prefix length 0: the default route.
    pub destination: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
    /// None: on the link itself.
    pub gateway: Option<IpAddr>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// A connection to the kernel's routing tables and devices.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// libc has these as int; a message's fields have 16 bits.
const fn short(number: libc::c_int) -> u16 {
    let [low, high, ..] = number.to_le_bytes();
    u16::from_le_bytes([low, high])
}

const NLMSG_ERROR: u16 = short(libc::NLMSG_ERROR);
const NLM_F_REQUEST: u16 = short(libc::NLM_F_REQUEST);
const NLM_F_ACK: u16 = short(libc::NLM_F_ACK);
const NLM_F_REPLACE: u16 = short(libc::NLM_F_REPLACE);
const NLM_F_EXCL: u16 = short(libc::NLM_F_EXCL);
const NLM_F_CREATE: u16 = short(libc::NLM_F_CREATE);
const IFF_UP: u32 = libc::IFF_UP.cast_unsigned();

/// A request under construction: header, fixed part, attributes, each padded to 4 bytes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.splice(0..4, length.to_ne_bytes());
        self.0.splice(8..12, sequence.to_ne_bytes());
        self.0
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or(0)
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(change.to_ne_bytes());
    fixed
}

fn check_name(name: &str) -> Result<(), NetError> {
    let fine = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !name.contains(['/', ' ', '\0', ':'])
        && name != "."
        && name != "..";
    if fine { Ok(()) } else { Err(NetError::BadName(name.to_owned())) }
}

impl Netlink {
    /// Opens the socket in the calling thread's network namespace, where it stays.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn open() -> Result<Self, NetError> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .map_err(|errno| NetError::Kernel { operation: "open a netlink socket".to_owned(), errno })?;
        Ok(Self { socket, sequence: 0 })
    }

    fn request(&mut self, operation: impl FnOnce() -> String, message: Message) -> Result<(), NetError> {
        self.sequence += 1;
        self.transact(&message.finish(self.sequence))
            .map_err(|errno| NetError::Kernel { operation: operation(), errno })
    }

    fn transact(&self, request: &[u8]) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), request, MsgFlags::empty())?;
        let mut buffer = [0u8; 4096];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if let Some(errno) = acknowledgement(buffer.get(..length).unwrap_or(&[]), self.sequence) {
                return if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) };
            }
        }
    }

    /// Sets a device up; `mtu` 0: unchanged.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn set_up(&mut self, device: &str, mtu: u32) -> Result<(), NetError> {
        let index = index(device)?;
        let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP, IFF_UP));
        if mtu > 0 {
            message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.request(|| format!("set {device} up with MTU {mtu}"), message)
    }

    /// Makes a dummy device, for a pod that has an address but no network. One that exists is fine.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel has none.
    pub fn add_dummy(&mut self, device: &str) -> Result<(), NetError> {
        check_name(device)?;
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0));
        message.attribute(IFLA_IFNAME, format!("{device}\0").as_bytes());
        let mut kind = Message(Vec::new());
        kind.attribute(IFLA_INFO_KIND, b"dummy");
        message.attribute(IFLA_LINKINFO, &kind.0);
        match self.request(|| format!("create the dummy device {device}"), message) {
            Err(NetError::Kernel { errno: Errno::EEXIST, .. }) => Ok(()),
            other => other,
        }
    }

    /// Adds an address; one that exists is fine.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn add_address(&mut self, device: &str, address: IpAddr, prefix: u8) -> Result<(), NetError> {
        let index = index(device)?;
        let scope = if address.is_loopback() { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
        // IFA_F_NODAD: a pod's IPv6 address is usable at once, nobody else can have it.
        let flags = if address.is_ipv6() { 0x02 } else { 0 };
        let mut fixed = vec![family(address), prefix, flags, scope];
        fixed.extend(index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &fixed);
        message.attribute(IFA_LOCAL, &octets(address));
        message.attribute(IFA_ADDRESS, &octets(address));
        self.request(|| format!("give {device} the address {address}/{prefix}"), message)
    }

    /// Adds a pod's addresses as hosts' and returns those that the kernel took. One without IPv6, or with it switched off,
    /// costs a pod that has both families its IPv6 address and nothing else.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn add_addresses(&mut self, device: &str, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, NetError> {
        let mut had = Vec::with_capacity(addresses.len());
        for &address in addresses {
            match self.add_address(device, address, if address.is_ipv4() { 32 } else { 128 }) {
                Ok(()) => had.push(address),
                // Not built in or ipv6.disable=1; sysctl disable_ipv6.
                Err(NetError::Kernel { errno: Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EACCES, .. })
                    if address.is_ipv6() && !had.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(had)
    }

    /// Adds or replaces a route through a device that is up.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn add_route(&mut self, device: &str, route: Route) -> Result<(), NetError> {
        self.route(RT_TABLE_MAIN, device, route)
    }

    fn route(&mut self, table: u8, device: &str, route: Route) -> Result<(), NetError> {
        let index = index(device)?;
        let scope = if route.gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        let mut fixed = vec![family(route.destination), route.prefix, 0, 0, table, RTPROT_STATIC, scope, RTN_UNICAST];
        fixed.extend(0u32.to_ne_bytes());
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &fixed);
        if route.prefix > 0 {
            message.attribute(RTA_DST, &octets(route.destination));
        }
        if let Some(gateway) = route.gateway {
            message.attribute(RTA_GATEWAY, &octets(gateway));
        }
        if let Some(source) = route.source {
            message.attribute(RTA_PREFSRC, &octets(source));
        }
        message.attribute(RTA_OIF, &index.to_ne_bytes());
        self.request(|| format!("route {}/{} through {device}", route.destination, route.prefix), message)
    }
}

/// Errno (0: done) of the acknowledgement of this request in a datagram, if it holds it.
fn acknowledgement(datagram: &[u8], sequence: u32) -> Option<i32> {
    let mut rest = datagram;
    loop {
        let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let length = usize::try_from(word(0)?).ok()?;
        let kind = rest.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
        if kind == NLMSG_ERROR && word(8)? == sequence {
            let code = rest.get(16..20)?.try_into().ok().map(i32::from_ne_bytes)?;
            return Some(code.checked_neg().unwrap_or(libc::EIO));
        }
        rest = rest.get(length.max(16).next_multiple_of(4)..)?;
    }
}

fn index(device: &str) -> Result<u32, NetError> {
    check_name(device)?;
    nix::net::if_::if_nametoindex(device).map_err(|_| NetError::NoDevice(device.to_owned()))
}

/// Whether a device exists in the calling thread's network namespace.
#[must_use]
pub fn exists(device: &str) -> bool {
    index(device).is_ok()
}

/// Sets the loopback device up.
///
/// # Errors
/// See [`NetError`].
pub fn loopback_up() -> Result<(), NetError> {
    Netlink::open()?.set_up("lo", 0)
}

/// Gives the pod its addresses without a network that carries them: on a dummy device `eth0`, or on the loopback device
/// where the kernel has no dummies. Returns the device, and the addresses that it has.
///
/// # Errors
/// See [`NetError`].
pub fn hold_addresses(addresses: &[IpAddr]) -> Result<(&'static str, Vec<IpAddr>), NetError> {
    let mut netlink = Netlink::open()?;
    let device = match netlink.add_dummy("eth0") {
        Ok(()) => {
            netlink.set_up("eth0", 0)?;
            "eth0"
        }
        Err(NetError::Kernel { errno: Errno::EOPNOTSUPP, .. }) => "lo",
        Err(error) => return Err(error),
    };
    let had = netlink.add_addresses(device, addresses)?;
    Ok((device, had))
}

/// Writes a sysctl of the pod's namespaces; `name` with dots or slashes, as sysctl(8) takes it. /proc/sys must be writable.
///
/// # Errors
/// ENOENT for one that this kernel or namespace does not have.
pub fn sysctl(name: &str, value: &str) -> Result<(), NetError> {
    let failed = |errno| NetError::Sysctl { name: name.to_owned(), value: value.to_owned(), errno };
    let path = name.replace('.', "/");
    if path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(failed(Errno::EINVAL));
    }
    std::fs::write(format!("/proc/sys/{path}"), value)
        .map_err(|e| failed(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))
}

/// What container engines set in a pod's network namespace: ports below 1024 and ping for every user.
///
/// # Errors
/// See [`sysctl`].
pub fn engine_sysctls() -> Result<(), NetError> {
    sysctl("net.ipv4.ip_unprivileged_port_start", "0")?;
    // The group must exist in the namespace: the first one always does.
    sysctl("net.ipv4.ping_group_range", "0 2147483647").or_else(|_| sysctl("net.ipv4.ping_group_range", "0 0"))
}

/// A TUN device as made here.
#[derive(Debug)]
pub struct Tun {
    /// One packet a read or write, each behind a `virtio_net_hdr` of 10 bytes when `vnet_hdr`. Non-blocking.
    pub fd: OwnedFd,
    /// Whether packets carry that header, and segments up to 64 KiB come and go in one piece.
    pub vnet_hdr: bool,
    /// Whether UDP segmentation (USO) is on too (Linux 6.2).
    pub uso: bool,
}

const TUN_F_OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const TUN_F_USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Makes a TUN device (layer 3, no packet information) with as many offloads as the kernel has. It is down and lives
/// as long as its descriptor.
///
/// # Errors
/// ENOENT without /dev/net/tun, EPERM without CAP_NET_ADMIN, EBUSY when the name is taken.
pub fn create_tun(device: &str) -> Result<Tun, NetError> {
    check_name(device)?;
    let failed = |operation: &str, errno| NetError::Kernel { operation: format!("{operation} {device}"), errno };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|e| failed("open /dev/net/tun for", Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))?;
    let fd = OwnedFd::from(file);
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = byte as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: the request lives across the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
        .map_err(|errno| failed("create the TUN device", errno))?;
    let offload = |flags: libc::c_uint| {
        // SAFETY: the argument is a number.
        Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    };
    let uso = offload(TUN_F_OFFLOADS | TUN_F_USO).is_ok();
    if !uso {
        offload(TUN_F_OFFLOADS).map_err(|errno| failed("set the offloads of", errno))?;
    }
    Ok(Tun { fd, vnet_hdr: true, uso })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(check_name("eth0").is_ok());
        for bad in ["", "a/b", "a b", "sixteen-bytes-xx", ".."] {
            assert_eq!(check_name(bad), Err(NetError::BadName(bad.to_owned())));
        }
    }

    #[test]
    fn acknowledgements_are_found_by_their_sequence() {
        let ack = |sequence: u32, code: i32| {
            let mut bytes = Vec::new();
            bytes.extend(36u32.to_ne_bytes());
            bytes.extend(NLMSG_ERROR.to_ne_bytes());
            bytes.extend(0u16.to_ne_bytes());
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        assert_eq!(acknowledgement(&ack(3, 0), 3), Some(0));
        assert_eq!(acknowledgement(&ack(3, -17), 3), Some(17));
        assert_eq!(acknowledgement(&ack(2, 0), 3), None);
        let two = [ack(2, 0), ack(3, -1)].concat();
        assert_eq!(acknowledgement(&two, 3), Some(1));
        for cut in 0..two.len() {
            let _ = acknowledgement(&two[..cut], 3);
        }
    }

    #[test]
    fn sysctl_names_stay_below_proc_sys() {
        assert!(matches!(sysctl("../../tmp/x", "1"), Err(NetError::Sysctl { errno: Errno::EINVAL, .. })));
        assert!(matches!(sysctl("net..x", "1"), Err(NetError::Sysctl { errno: Errno::EINVAL, .. })));
    }
}
