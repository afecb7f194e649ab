//! The user-mode network stack of a pod: found on the node, started when the pod first speaks to the world, or at once
//! when it has host ports.
//!
//! passt is preferred: it knows IPv6 and carries host ports. slirp4netns does without either. Both are ordinary
//! programs of our user: what the pod sends leaves this node as our user's own connections, and nothing comes in but to
//! host ports. Neither gives a way to the node's loopback.

use crate::datapath::{Framing, Way};
use hpk_api::link::Protocol;
use hpk_api::net::HostPort;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Which programs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Passt,
    Slirp,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Passt => "passt",
            Self::Slirp => "slirp4netns",
        }
    }

    fn framing(self) -> Framing {
        match self {
            Self::Passt => Framing::Stream,
            Self::Slirp => Framing::Datagram,
        }
    }
}

/// A host port that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotHad {
    pub(crate) port: HostPort,
    pub(crate) at: SocketAddr,
    pub(crate) message: String,
}

/// One pod's stack.
#[derive(Debug)]
pub(crate) struct Outward {
    found: Option<(Kind, PathBuf)>,
    /// Whether it is to carry IPv6.
    ipv6: bool,
    pod_ips: Vec<IpAddr>,
    mtu: u32,
    ports: Vec<HostPort>,
    /// Ended with this.
    running: Option<Child>,
}

impl Outward {
    /// Looks for the programs.
    pub(crate) fn find(pod_ips: &[IpAddr], mtu: u32, ports: &[HostPort]) -> Self {
        // Debian has both where ordinary users' PATH leads.
        let found = [Kind::Passt, Kind::Slirp].into_iter().find_map(|k| Some((k, which::which(k.program()).ok()?)));
        let passt = matches!(found, Some((Kind::Passt, _)));
        let ipv6 = passt && pod_ips.iter().any(IpAddr::is_ipv6) && node_has_ipv6();
        // Told of an address that leads nowhere, passt would take packets and drop them.
        let pod_ips = pod_ips.iter().copied().filter(|ip| ip.is_ipv4() || ipv6).collect();
        Self { found, ipv6, pod_ips, mtu, ports: ports.to_vec(), running: None }
    }

    /// Whether there is one.
    pub(crate) fn exists(&self) -> bool {
        self.found.is_some()
    }

    /// Whether it leads out by IPv6: only passt does, and only where the node itself has a way out.
    pub(crate) fn knows_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Whether it is needed before the pod speaks.
    pub(crate) fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Takes away the host ports that cannot be had, and says why.
    pub(crate) fn check_ports(&mut self, node_ip: IpAddr, login: Option<IpAddr>) -> Vec<NotHad> {
        let carried = matches!(self.found, Some((Kind::Passt, _)));
        let mut refused = Vec::new();
        self.ports = std::mem::take(&mut self.ports)
            .into_iter()
            .filter_map(|mut port| {
                port.host_ip = place(port.host_ip, node_ip, login);
                let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
                let at = SocketAddr::new(port.host_ip.unwrap_or(any), port.host_port);
                let tried = if carried {
                    try_port(port.protocol, at)
                } else {
                    Err("host ports need passt on the compute node: ask for the package passt, or use a Service"
                        .to_owned())
                };
                match tried {
                    Ok(()) => Some(port),
                    Err(message) => {
                        refused.push(NotHad { port, at, message });
                        None
                    }
                }
            })
            .collect();
        refused
    }

    /// Starts it, anew if it ended.
    pub(crate) fn start(&mut self) -> io::Result<Way> {
        let (kind, program) = self.found.clone().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (ours, theirs) = pair(kind.framing())?;
        let child = Command::new(program)
            .args(arguments(kind, &self.pod_ips, self.mtu, &self.ports))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        self.running = Some(child);
        Ok(Way { socket: ours, framing: kind.framing() })
    }
}

fn node_has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/ipv6_route").is_ok_and(|table| has_default_route(&table))
}

/// A default route in the text of `/proc/net/ipv6_route`: destination and prefix length zero, up, and no reject route
/// (flags of linux/route.h and linux/ipv6_route.h).
fn has_default_route(table: &str) -> bool {
    const UP: u32 = 0x1;
    const REJECT: u32 = 0x200;
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, _, _, _, _, flags, _] = fields[..] else { return false };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
        destination.bytes().all(|b| b == b'0') && length == "00" && flags & UP != 0 && flags & REJECT == 0
    })
}

/// A pod's hostIP is the Node's address, which is the login node's: here, this node's own is meant.
fn place(host_ip: Option<IpAddr>, node_ip: IpAddr, login: Option<IpAddr>) -> Option<IpAddr> {
    match host_ip {
        Some(ip) if Some(ip) == login => Some(node_ip),
        Some(ip) if ip.is_unspecified() => None,
        other => other,
    }
}

fn try_port(protocol: Protocol, at: SocketAddr) -> Result<(), String> {
    let tried = match protocol {
        Protocol::Tcp => TcpListener::bind(at).map(drop),
        Protocol::Udp => UdpSocket::bind(at).map(drop),
        Protocol::Sctp => return Err("SCTP host ports are not carried: use TCP or UDP".to_owned()),
    };
    tried.map_err(|error| crate::node::explain_bind(&error, at, "compute node"))
}

fn pair(framing: Framing) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(match framing {
        Framing::Stream => {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            (ours.into(), theirs.into())
        }
        Framing::Datagram => {
            let (ours, theirs) = UnixDatagram::pair()?;
            ours.set_nonblocking(true)?;
            (ours.into(), theirs.into())
        }
    })
}

/// Command line: the socket is standard input.
fn arguments(kind: Kind, pod_ips: &[IpAddr], mtu: u32, ports: &[HostPort]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut push = |words: &[&str]| all.extend(words.iter().map(|w| (*w).to_owned()));
    if kind == Kind::Slirp {
        push(&["--netns-type=tapfd", "--disable-host-loopback"]);
        push(&[&format!("--mtu={mtu}"), "0"]);
        return all;
    }
    push(&["--foreground", "--quiet", "--fd", "0", "--mtu", &mtu.to_string()]);
    // Its gateway would else be the node's loopback; and the pod is configured already.
    push(&["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]);
    let v4 = pod_ips.iter().find(|ip| ip.is_ipv4());
    let v6 = pod_ips.iter().find(|ip| ip.is_ipv6());
    if let Some(ip) = v4 {
        push(&["--address", &ip.to_string(), "--netmask", "32"]);
    }
    if let Some(ip) = v6 {
        push(&["--address", &ip.to_string()]);
    }
    match (v4, v6) {
        (Some(_), None) => push(&["--ipv4-only"]),
        (None, Some(_)) => push(&["--ipv6-only"]),
        _ => {}
    }
    for port in ports {
        let flag = if port.protocol == Protocol::Udp { "--udp-ports" } else { "--tcp-ports" };
        let place = port.host_ip.map(|ip| format!("{ip}/")).unwrap_or_default();
        push(&[flag, &format!("{place}{}:{}", port.host_port, port.container_port)]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> HostPort {
        HostPort { protocol, host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port: 8080 }
    }

    #[test]
    fn command_lines() {
        let ips = ["10.244.1.5".parse().unwrap()];
        let line = arguments(Kind::Passt, &ips, 1440, &[port(Protocol::Udp, Some("127.0.0.1"), 53)]).join(" ");
        assert!(line.contains("--fd 0 --mtu 1440 --no-map-gw"), "{line}");
        assert!(
            line.ends_with("--address 10.244.1.5 --netmask 32 --ipv4-only --udp-ports 127.0.0.1/53:8080"),
            "{line}"
        );
        let line = arguments(Kind::Passt, &ips, 1440, &[port(Protocol::Tcp, None, 80)]).join(" ");
        assert!(line.ends_with("--tcp-ports 80:8080"), "{line}");
        assert!(arguments(Kind::Slirp, &ips, 1440, &[]).join(" ").contains("--disable-host-loopback --mtu=1440 0"));
    }

    #[test]
    fn a_default_route_is_told_from_others() {
        let zero = "0".repeat(32);
        let line = |to: &str, bits: &str, flags: &str, device: &str| {
            format!("{to} {bits} {zero} 00 {zero} 00000400 00000001 00000000 {flags} {device}\n")
        };
        let unreachable = line(&zero, "00", "00200200", "lo");
        let link = line("fe800000000000000000000000000000", "40", "00000001", "eth0");
        assert!(!has_default_route(&format!("{link}{unreachable}")));
        assert!(has_default_route(&format!("{link}{}", line(&zero, "00", "00450003", "eth0"))));
        assert!(!has_default_route(""));
    }

    #[test]
    fn a_port_is_here_and_free() {
        let here: IpAddr = [127, 0, 0, 1].into();
        let login = "192.0.2.1".parse().unwrap();
        let taken = TcpListener::bind((here, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        let ports = [
            port(Protocol::Tcp, Some("192.0.2.1"), number),
            port(Protocol::Udp, Some("192.0.2.1"), number),
            port(Protocol::Sctp, None, 7),
        ];
        let mut outward = Outward::find(&[], 1440, &ports);
        outward.found = Some((Kind::Passt, PathBuf::new()));
        let refused = outward.check_ports(here, Some(login));
        let messages: Vec<_> = refused.iter().map(|r| r.message.as_str()).collect();
        assert!(messages[0].contains("in use") && messages[1].contains("SCTP"), "{messages:?}");
        assert_eq!(outward.ports, [port(Protocol::Udp, Some("127.0.0.1"), number)]);
        outward.found = None;
        assert!(outward.check_ports(here, None)[0].message.contains("passt"));
    }
}
