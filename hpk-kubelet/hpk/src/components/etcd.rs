//! etcd: one member on the loopback address; clients and peers need certificates of its own authority, so
//! that other users of the login node get nothing from its ports.

use super::probe::{Credentials, Probe};
use super::{Component, Kind, Layout, flags, image};
use hpk_layout::pki;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Makes the data folder ready before.
const DATA: &str = "etcd-data";
/// Takes snapshots beside.
pub(super) const SNAPSHOTS: &str = "etcd-snapshots";

/// This program's own step before etcd.
pub(super) fn data(l: &Layout, hpk: &Path) -> Component {
    Component {
        name: DATA,
        needs: &[],
        kind: Kind::Once,
        program: hpk.to_owned(),
        args: vec![DATA.into(), "--home".into(), l.home.root().display().to_string()],
        probe: Probe::None,
        grace: Duration::from_secs(20),
    }
}

/// Where the data is not in HPK_HOME. The API server needs it, so that it is told to stop between the two.
pub(super) fn snapshots(l: &Layout, hpk: &Path) -> Option<Component> {
    l.control_plane.etcd_base.as_ref()?;
    Some(Component {
        name: SNAPSHOTS,
        needs: &["etcd"],
        kind: Kind::Service,
        program: hpk.to_owned(),
        args: vec![SNAPSHOTS.into(), "--home".into(), l.home.root().display().to_string()],
        probe: Probe::Says,
        // A last snapshot on a slow shared file system.
        grace: Duration::from_secs(60),
    })
}

pub(super) fn component(l: &Layout) -> Component {
    let ports = &l.control_plane.ports;
    let client = format!("https://127.0.0.1:{}", ports.etcd);
    let peer = format!("https://127.0.0.1:{}", ports.etcd_peer);
    let args = flags([
        ("name", "hpk".into()),
        ("data-dir", l.etcd_data().display().to_string()),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer.clone()),
        ("initial-advertise-peer-urls", peer.clone()),
        ("initial-cluster", format!("hpk={peer}")),
        ("cert-file", l.certificate(pki::ETCD)),
        ("key-file", l.key(pki::ETCD)),
        ("client-cert-auth", "true".into()),
        ("trusted-ca-file", l.certificate(pki::ETCD_CA)),
        ("peer-cert-file", l.certificate(pki::ETCD)),
        ("peer-key-file", l.key(pki::ETCD)),
        ("peer-client-cert-auth", "true".into()),
        ("peer-trusted-ca-file", l.certificate(pki::ETCD_CA)),
        // Beside the supervisor, which holds the port so that nobody else gets it.
        ("socket-reuse-port", "true".into()),
        ("log-level", "warn".into()),
        // The API server compacts every five minutes; this is for when it is away.
        ("auto-compaction-mode", "periodic".into()),
        ("auto-compaction-retention", "1h".into()),
    ]);
    let (program, args) = image::command(l, "etcd", args, &[]);
    Component {
        name: "etcd",
        needs: &[DATA],
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Https {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, ports.etcd)),
            path: "/health".into(),
            credentials: Credentials::new(l, "etcd-ca", "apiserver-etcd-client"),
        },
        // Time to finish its write-ahead log on a slow shared file system.
        grace: Duration::from_secs(20),
    }
}
