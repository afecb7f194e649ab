//! CoreDNS on the login node. Its port is above 1023, as an ordinary user's must be; pods ask the service
//! address kube-system/kube-dns, which the pod network translates.

use super::probe::Probe;
use super::{Component, Kind, Layout, image};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(super) fn component(l: &Layout) -> Component {
    let (program, args) = image::command(l, "coredns", vec!["-conf".into(), l.config("Corefile"), "-quiet".into()]);
    Component {
        name: "coredns",
        needs: &["bootstrap"],
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Http {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, l.control_plane.ports.dns_ready)),
            path: "/ready".into(),
        },
        grace: Duration::from_secs(5),
    }
}

pub(super) fn corefile(l: &Layout) -> String {
    let mut text = String::new();
    let ready = l.control_plane.ports.dns_ready;
    // Writing to a String does not fail.
    let _ = write!(
        text,
        ".:{port} {{\n\
         \x20   bind {ip}\n\
         \x20   errors\n\
         \x20   ready 127.0.0.1:{ready}\n\
         \x20   kubernetes {domain} in-addr.arpa ip6.arpa {{\n\
         \x20       kubeconfig {kubeconfig}\n\
         \x20       pods insecure\n\
         \x20       ttl 30\n\
         \x20       fallthrough in-addr.arpa ip6.arpa\n\
         \x20   }}\n\
         \x20   hosts /etc/hosts {{\n\
         \x20       no_reverse\n\
         \x20       fallthrough\n\
         \x20   }}\n",
        port = l.cluster.dns_addr.port(),
        ip = l.cluster.dns_addr.ip(),
        domain = l.cluster.cluster_domain,
        kubeconfig = l.pki("coredns.kubeconfig"),
    );
    if !l.control_plane.nameservers.is_empty() {
        let servers: Vec<String> =
            l.control_plane.nameservers.iter().map(|ip| SocketAddr::new(*ip, 53).to_string()).collect();
        // At most 15 are allowed.
        let _ = writeln!(text, "    forward . {}", servers[..servers.len().min(15)].join(" "));
    }
    text.push_str("    cache 30\n    loadbalance\n}\n");
    text
}
