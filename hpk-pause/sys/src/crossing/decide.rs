//! Which socket belongs into which network. Pure.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// A network that sockets are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The pods'.
    Pods,
    /// The node's.
    Node,
}

/// Addresses of the pods' network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Of pods and Services.
    pub inside: Vec<IpNet>,
    /// Of the node's own interfaces. What is in one of these is the node's, should the site use the cluster's range too.
    pub node: Vec<IpNet>,
}

impl Ranges {
    /// Where an address leads.
    #[must_use]
    pub fn side(&self, ip: IpAddr) -> Side {
        let among = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if among(&self.inside) && !among(&self.node) { Side::Pods } else { Side::Node }
    }
}

/// What matters of a caller's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// TCP or UDP, of IPv4 or IPv6.
    pub(super) internet: bool,
    /// UDP.
    pub(super) datagram: bool,
    /// Whose network it is of. None: neither.
    pub(super) side: Option<Side>,
    pub(super) listening: bool,
    /// It is bound to one network device.
    pub(super) device: bool,
    /// It shares its port (SO_REUSEADDR, SO_REUSEPORT).
    pub(super) shares: bool,
    pub(super) own: Option<SocketAddr>,
    pub(super) connected: bool,
}

/// Whether a socket that is to reach `to` must be replaced by one of that side. A socket that serves stays: one that listens,
/// or is bound to an address or port of its owner's choice. A port that the kernel has chosen (of `ephemeral`, on no
/// address in particular) is no choice: resolvers bind so before they ask.
pub(super) fn must_move(socket: &Socket, to: Side, ephemeral: &RangeInclusive<u16>) -> bool {
    let Some(side) = socket.side else { return false };
    if side == to || !socket.internet || socket.listening || socket.device {
        return false;
    }
    if socket.connected && !socket.datagram {
        return false;
    }
    // A socket of the pods' network is of our making: it was nobody's choice then, and is bound by its use since.
    side == Side::Pods || socket.own.is_none_or(|own| is_free(own, socket.shares, ephemeral))
}

fn is_free(own: SocketAddr, shares: bool, ephemeral: &RangeInclusive<u16>) -> bool {
    own.port() == 0 && own.ip().is_unspecified()
        || own.ip().is_unspecified() && !shares && ephemeral.contains(&own.port())
}

/// The address of a `struct sockaddr` as it lies in memory; an IPv4 address inside of an IPv6 one is an IPv4 address. None:
/// too short or of another family.
pub(super) fn destination(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip = match i32::from(family) {
        libc::AF_INET if bytes.len() >= 16 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// `ip_local_port_range` of /proc. What cannot be read is the kernel's default.
pub(super) fn ephemeral(text: &str) -> RangeInclusive<u16> {
    let mut words = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (words.next(), words.next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32768..=60999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Ranges {
            inside: nets(&["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/64"]),
            node: nets(&["10.244.9.0/24", "192.168.0.0/16", "127.0.0.0/8"]),
        }
    }

    #[test]
    fn which_side_an_address_is_on() {
        for (ip, side) in [
            ("10.244.0.1", Side::Pods),
            ("10.96.0.10", Side::Pods),
            ("10.111.255.255", Side::Pods),
            ("fd00:10:244::7", Side::Pods),
            ("10.112.0.1", Side::Node),
            ("10.244.9.3", Side::Node),
            ("127.0.0.1", Side::Node),
            ("192.168.3.4", Side::Node),
            ("::1", Side::Node),
        ] {
            assert_eq!(ranges().side(ip.parse().unwrap()), side, "{ip}");
        }
    }

    fn v4(ip: [u8; 4], port: u16) -> Vec<u8> {
        let mut bytes = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend(ip);
        bytes.resize(16, 0);
        bytes
    }

    fn v6(ip: &str, port: u16) -> Vec<u8> {
        let mut bytes = u16::try_from(libc::AF_INET6).unwrap().to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(ip.parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn addresses_in_memory() {
        let shown = |bytes: &[u8]| destination(bytes).map(|at| at.to_string());
        assert_eq!(shown(&v4([10, 96, 0, 10], 53)).as_deref(), Some("10.96.0.10:53"));
        assert_eq!(shown(&v6("fd00::7", 443)).as_deref(), Some("[fd00::7]:443"));
        assert_eq!(shown(&v6("::ffff:10.96.0.1", 443)).as_deref(), Some("10.96.0.1:443"));
        // The oldest form of an IPv6 address lacks the scope.
        assert_eq!(shown(&v6("fd00::7", 443)[..24]).as_deref(), Some("[fd00::7]:443"));
        let mut long = v4([10, 0, 0, 1], 1);
        long.resize(128, 0xff);
        assert_eq!(shown(&long).as_deref(), Some("10.0.0.1:1"));
        assert_eq!(shown(&v4([10, 0, 0, 1], 1)[..15]), None);
        assert_eq!(shown(&v6("::1", 1)[..23]), None);
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[1, 0, b'/', b't', b'm', b'p', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "AF_UNIX");
        assert_eq!(shown(&[0; 16]), None, "AF_UNSPEC");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_surprise(bytes: Vec<u8>) {
            let _ = destination(&bytes);
        }
    }

    #[test]
    fn which_sockets_move() {
        let at = |text: &str| Some(text.parse().unwrap());
        let plain = Socket {
            internet: true,
            datagram: false,
            side: Some(Side::Node),
            listening: false,
            device: false,
            shares: false,
            own: at("0.0.0.0:0"),
            connected: false,
        };
        let udp = Socket { datagram: true, ..plain };
        let made = Socket { side: Some(Side::Pods), own: at("10.244.1.2:40000"), ..plain };
        for (what, socket, to, moves) in [
            ("a fresh one", plain, Side::Pods, true),
            ("a fresh one of UDP", udp, Side::Pods, true),
            ("to the node it may stay", plain, Side::Node, false),
            ("raw, ICMP, SCTP", Socket { internet: false, ..plain }, Side::Pods, false),
            ("a server", Socket { listening: true, own: at("0.0.0.0:80"), ..plain }, Side::Pods, false),
            ("its owner's port", Socket { own: at("0.0.0.0:5000"), ..udp }, Side::Pods, false),
            ("its owner's address", Socket { own: at("192.168.0.3:0"), ..plain }, Side::Pods, false),
            ("its owner's address, any port", Socket { own: at("192.168.0.3:40000"), ..plain }, Side::Pods, false),
            ("the kernel's port, as musl's resolver", Socket { own: at("0.0.0.0:40000"), ..udp }, Side::Pods, true),
            ("the same of IPv6", Socket { own: at("[::]:40000"), ..udp }, Side::Pods, true),
            ("a shared port", Socket { own: at("0.0.0.0:40000"), shares: true, ..udp }, Side::Pods, false),
            ("unbound, though it would share", Socket { shares: true, ..plain }, Side::Pods, true),
            ("its owner's device", Socket { device: true, ..plain }, Side::Pods, false),
            ("connected", Socket { connected: true, own: at("192.168.0.3:40000"), ..plain }, Side::Pods, false),
            ("of a network that it made itself", Socket { side: None, ..plain }, Side::Pods, false),
            ("asks again how its connection goes", made, Side::Pods, false),
            ("tries the next address, of the node", made, Side::Node, true),
            ("UDP goes from peer to peer", Socket { datagram: true, connected: true, ..made }, Side::Node, true),
            ("TCP does not", Socket { connected: true, ..made }, Side::Node, false),
        ] {
            assert_eq!(must_move(&socket, to, &(32768..=60999)), moves, "{what}");
        }
    }

    #[test]
    fn ports_of_the_kernels_choice() {
        assert_eq!(ephemeral("1024\t65535\n"), 1024..=65535);
        assert_eq!(ephemeral(""), 32768..=60999);
    }
}
