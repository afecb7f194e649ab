//! CoreDNS on the login node. Its port is above 1023, as an ordinary user's must be; pods ask the service
//! address kube-system/kube-dns, which the pod network translates.

use super::probe::Probe;
use super::{Component, Kind, Layout, image};
use hpk_layout::pki;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// A zone without names, for where the site has no name server: file name and content.
pub(super) const NOTHING: (&str, &str) = (
    "nothing.zone",
    "$ORIGIN .\n@ 30 IN SOA localhost. nobody.localhost. 1 3600 3600 3600 30\n@ 30 IN NS localhost.\n",
);

pub(super) fn component(l: &Layout) -> Component {
    let args = vec!["-conf".into(), l.config("Corefile"), "-quiet".into()];
    let files = [l.kubeconfig(pki::COREDNS), l.config(NOTHING.0)];
    let (program, args) = image::command(l, "coredns", args, &files);
    Component {
        name: "coredns",
        needs: &["bootstrap"],
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Dns {
            addr: l.cluster.dns_addr,
            names: std::iter::once((
                format!("kubernetes.default.svc.{}", l.cluster.cluster_domain),
                l.cluster.apiserver_service_ip,
            ))
            .chain(l.control_plane.dns_sign.address.map(|ip| (l.control_plane.dns_sign.name.clone(), ip.into())))
            .collect(),
        },
        grace: Duration::from_secs(5),
    }
}

pub(super) fn corefile(l: &Layout) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        ".:{port} {{\n\
         \x20   bind {ip}\n\
         \x20   errors\n\
         \x20   kubernetes {domain} in-addr.arpa ip6.arpa {{\n\
         \x20       kubeconfig {kubeconfig}\n\
         \x20       pods insecure\n\
         \x20       ttl 30\n\
         \x20       fallthrough in-addr.arpa ip6.arpa\n\
         \x20   }}\n\
         \x20   hosts /etc/hosts {{\n\
         {sign}\
         \x20       no_reverse\n\
         \x20       fallthrough\n\
         \x20   }}\n",
        port = l.cluster.dns_addr.port(),
        ip = l.cluster.dns_addr.ip(),
        domain = l.cluster.cluster_domain,
        kubeconfig = l.kubeconfig(pki::COREDNS),
        sign = l
            .control_plane
            .dns_sign
            .address
            .map(|ip| format!("        {ip} {}\n", l.control_plane.dns_sign.name))
            .unwrap_or_default(),
    );
    if !l.control_plane.nameservers.is_empty() {
        let servers: Vec<String> =
            l.control_plane.nameservers.iter().map(|ip| SocketAddr::new(*ip, 53).to_string()).collect();
        // At most 15 are allowed.
        let _ = writeln!(text, "    forward . {}", servers[..servers.len().min(15)].join(" "));
    } else {
        // Without a server for names outside there are none, and to say so is no failure of ours.
        let _ = writeln!(text, "    file {} .", l.config(NOTHING.0));
    }
    // As kubeadm's: neither an address nor its absence is kept in the cluster's domain, where both change in a moment.
    let _ = write!(
        text,
        "    cache 30 {{\n\
         \x20       disable success {domain}\n\
         \x20       disable denial {domain}\n\
         \x20   }}\n\
         \x20   loadbalance\n\
         }}\n",
        domain = l.cluster.cluster_domain,
    );
    text
}
