//! Host ports of a pod in a network of the site's: Apptainer hands them to the network's plug-ins. Pure.

use crate::outward::NotHad;
use hpk_api::link::Protocol;
use hpk_api::net::HostPort;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Which of a pod's host ports are handed over, and why the others are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostPorts {
    pub(crate) given: Vec<HostPort>,
    pub(crate) refused: Vec<NotHad>,
}

impl HostPorts {
    /// `maps_ports`: a plug-in of the network takes them. Without one Apptainer would start no pod that names them.
    pub(crate) fn judge(ports: &[HostPort], network: &str, maps_ports: bool) -> Self {
        let mut all = Self::default();
        for port in ports {
            let place = port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let message = if !maps_ports {
                format!(
                    "the site's network {network} has no plug-in with the capability portMappings: ask the site to chain \
                     portmap to it, or use a Service"
                )
            } else if port.protocol == Protocol::Sctp {
                "SCTP host ports are not carried: use TCP or UDP".to_owned()
            } else if !place.is_unspecified() {
                // Open on more addresses than asked for is worse than not at all.
                "Apptainer hands no hostIP over: leave it out, and the port is open on all of the compute node's addresses"
                    .to_owned()
            } else {
                all.given.push(port.clone());
                continue;
            };
            all.refused.push(NotHad { port: port.clone(), at: SocketAddr::new(place, port.host_port), message });
        }
        all
    }

    /// The value of `--network-args`, if it is needed.
    pub(crate) fn argument(&self) -> Option<OsString> {
        let one = |port: &HostPort| {
            let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
            format!("portmap={}:{}/{protocol}", port.host_port, port.container_port)
        };
        let all: Vec<String> = self.given.iter().map(one).collect();
        (!all.is_empty()).then(|| all.join(";").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: Protocol, host_ip: Option<&str>) -> HostPort {
        HostPort { protocol, host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port: 53, container_port: 5353 }
    }

    #[test]
    fn those_that_can_be_told_to_the_plug_ins_are() {
        let ports = [
            port(Protocol::Udp, None),
            port(Protocol::Tcp, Some("0.0.0.0")),
            port(Protocol::Tcp, Some("127.0.0.1")),
            port(Protocol::Sctp, None),
        ];
        let all = HostPorts::judge(&ports, "site", true);
        assert_eq!(all.argument().unwrap(), "portmap=53:5353/udp;portmap=53:5353/tcp");
        let why: Vec<&str> = all.refused.iter().map(|r| r.message.as_str()).collect();
        assert!(why.len() == 2 && why[0].contains("hostIP") && why[1].contains("SCTP"), "{why:?}");
    }

    #[test]
    fn without_a_plug_in_none_is() {
        let all = HostPorts::judge(&[port(Protocol::Tcp, None)], "site", false);
        assert_eq!(all.argument(), None);
        assert!(all.refused[0].message.contains("network site has no plug-in"), "{all:?}");
        assert_eq!(HostPorts::judge(&[], "site", false), HostPorts::default());
    }
}
