//! What `hpk up` decides for this cluster: names, addresses, ports, where programs come from.
//!
//! Decisions are kept in cluster.json (for hpk-kubelet) and control-plane.json (for the supervisor) and made
//! again from them, so that addresses stay when they still can: a port that another program has taken
//! meanwhile is replaced, all others stay.

use hpk_api::cluster::{ClusterConfig, ContainerLogs, ExecutorKind};
use hpk_api::images::ImageRules;
use hpk_api::nodes::{self, Partitions, Vendor};
use hpk_api::pod_flags::PodFlags;
use hpk_sys::ports::Hold;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The service ranges and the two well-known addresses in them. IPv4 comes first: it is the family of Services that ask
/// for none.
const SERVICE_CIDR: &str = "10.96.0.0/16";
const SERVICE_CIDR_V6: &str = "fd00:10:96::/112";
const APISERVER_SERVICE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const DNS_SERVICE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const POD_CIDR: &str = "10.244.0.0/16";
const POD_CIDR_V6: &str = "fd00:10:244::/64";
/// Ports are looked for from here; below the kernel's range for outgoing connections (32768).
const FIRST_PORT: u16 = 16443;
const LAST_PORT: u16 = 32000;
/// Where tools look for a kubelet that do not read the Node's daemonEndpoints.
const KUBELET_PORT: u16 = 10250;

/// Ports on the login node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    /// kube-apiserver, node address.
    pub apiserver: u16,
    /// hpk-kubelet's API, node address.
    pub kubelet: u16,
    /// hpk-kubelet's links from jobs, node address.
    pub link: u16,
    /// CoreDNS, UDP and TCP, node address.
    pub dns: u16,
    /// etcd for the API server, loopback.
    pub etcd: u16,
    /// etcd for its peers (there are none), loopback.
    pub etcd_peer: u16,
    /// kube-controller-manager, loopback.
    pub controller_manager: u16,
    /// kube-scheduler, loopback.
    pub scheduler: u16,
}

impl Ports {
    fn all(&self) -> Vec<u16> {
        self.places(IpAddr::V4(Ipv4Addr::LOCALHOST)).map(|at| at.port()).to_vec()
    }

    /// Where each of them is.
    fn places(&self, node_ip: IpAddr) -> [SocketAddr; 8] {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        [
            (node_ip, self.apiserver),
            (node_ip, self.kubelet),
            (node_ip, self.link),
            (node_ip, self.dns),
            (loopback, self.etcd),
            (loopback, self.etcd_peer),
            (loopback, self.controller_manager),
            (loopback, self.scheduler),
        ]
        .map(SocketAddr::from)
    }

    /// Holds all of them beside who holds them already: the supervisor takes them over from `hpk up` in this way.
    ///
    /// # Errors
    /// One is another user's.
    pub(crate) fn hold(&self, node_ip: IpAddr) -> Result<Vec<Hold>, NotHeld> {
        let share = |at| Hold::share(at).map_err(|source| NotHeld { at, source });
        self.places(node_ip).into_iter().map(share).collect()
    }
}

/// Where the control plane's programs come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub(crate) enum Programs {
    /// An Apptainer image, a SIF or a sandbox folder, that has them in /bin.
    Image {
        /// The apptainer command.
        apptainer: PathBuf,
        /// The image.
        image: PathBuf,
    },
    /// A folder that has them.
    Folder { path: PathBuf },
}

/// `HPK_HOME/control-plane.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlPlane {
    /// Ports on the login node.
    pub ports: Ports,
    /// Where programs come from.
    pub programs: Programs,
    /// hpk-kubelet; None: no kubelet is started.
    pub kubelet: Option<PathBuf>,
    /// Unix socket on which hpk-kubelet takes the API server's connections to pods; None: this file system
    /// has no sockets, and the API server reaches no pod.
    #[serde(default)]
    pub(crate) egress: Option<PathBuf>,
    /// Name servers for names outside the cluster.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// A name that our CoreDNS alone knows.
    #[serde(default)]
    pub dns_sign: DnsSign,
    /// Further flags for kube-apiserver (`--key=value`).
    #[serde(default)]
    pub apiserver_flags: Vec<String>,
    /// The folder of this machine's own disk below which etcd's data lies; None: in HPK_HOME.
    #[serde(default)]
    pub etcd_base: Option<PathBuf>,
    /// etcd's data folder.
    #[serde(default)]
    pub etcd_data: PathBuf,
}

/// A name and its address that nobody can guess, made at each `hpk up`: who answers it is the CoreDNS that was started with
/// this configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DnsSign {
    /// Outside of the cluster's domain.
    pub name: String,
    /// Its only address.
    pub address: Option<Ipv6Addr>,
}

impl DnsSign {
    /// From random bytes.
    #[must_use]
    pub(crate) fn new(random: [u8; 32]) -> Self {
        let (name, address) = random.split_at(16);
        let hex: String = name.iter().map(|b| format!("{b:02x}")).collect();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(address);
        // A unique local address (RFC 4193).
        bytes[0] = 0xfd;
        Self { name: format!("{hex}.hpk.internal"), address: Some(bytes.into()) }
    }
}

/// A port that was chosen is another program's.
#[derive(Debug, thiserror::Error)]
#[error("port {at} was taken by another program: run hpk up again, it chooses another port")]
pub(crate) struct NotHeld {
    at: SocketAddr,
    #[source]
    source: io::Error,
}

/// No port is free.
#[derive(Debug, thiserror::Error)]
#[error("no free port between {FIRST_PORT} and {LAST_PORT} on {ip}: stop programs that hold them")]
pub(crate) struct NoPort {
    ip: IpAddr,
}

/// Keeps the former ports that are still free on this node and finds others for the rest. Each is held from the moment it
/// is found, until the second value is dropped.
///
/// # Errors
/// [`NoPort`].
pub(crate) fn ports(former: Option<&Ports>, node_ip: IpAddr, uid: u32) -> Result<(Ports, Vec<Hold>), NoPort> {
    let mut held = Vec::new();
    let ports = ports_with(former, node_ip, uid, |ip, port| {
        Hold::take(SocketAddr::new(ip, port)).map(|hold| held.push(hold)).is_ok()
    })?;
    Ok((ports, held))
}

fn ports_with(
    former: Option<&Ports>,
    node_ip: IpAddr,
    uid: u32,
    mut take: impl FnMut(IpAddr, u16) -> bool,
) -> Result<Ports, NoPort> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut taken: Vec<u16> = Vec::new();
    // A new port must not be one that another program of ours has kept.
    let kept: Vec<u16> = former.map(Ports::all).unwrap_or_default();
    // Users of one login node begin their search at different places.
    let span = u32::from(LAST_PORT - FIRST_PORT);
    let start = u16::try_from(uid.wrapping_mul(97) % span).unwrap_or(0);
    let mut pick = |ip: IpAddr, first: Option<u16>| -> Result<u16, NoPort> {
        let candidates = (0..=LAST_PORT - FIRST_PORT).map(|i| FIRST_PORT + (start + i) % (LAST_PORT - FIRST_PORT));
        let port = first
            .into_iter()
            .chain(candidates.filter(|p| !kept.contains(p)))
            .find(|p| !taken.contains(p) && take(ip, *p))
            .ok_or(NoPort { ip })?;
        taken.push(port);
        Ok(port)
    };
    Ok(Ports {
        apiserver: pick(node_ip, former.map(|f| f.apiserver))?,
        kubelet: pick(node_ip, Some(former.map_or(KUBELET_PORT, |f| f.kubelet)))?,
        link: pick(node_ip, former.map(|f| f.link))?,
        dns: pick(node_ip, former.map(|f| f.dns))?,
        etcd: pick(loopback, former.map(|f| f.etcd))?,
        etcd_peer: pick(loopback, former.map(|f| f.etcd_peer))?,
        controller_manager: pick(loopback, former.map(|f| f.controller_manager))?,
        scheduler: pick(loopback, former.map(|f| f.scheduler))?,
    })
}

/// Address families of pods and Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Families {
    /// IPv4 alone
    Ipv4,
    /// IPv4 and IPv6
    Dual,
}

impl Families {
    /// What the cluster is to have: as asked for; else as it was, so that a cluster made before there was a choice stays
    /// as it is; else both.
    #[must_use]
    pub(crate) fn decide(asked: Option<Self>, former: Option<&ClusterConfig>) -> Self {
        let was = |c: &ClusterConfig| if c.pod_cidr.contains(',') { Self::Dual } else { Self::Ipv4 };
        asked.or_else(|| former.map(was)).unwrap_or(Self::Dual)
    }

    /// One range, or both with a comma between.
    fn ranges(self, v4: &str, v6: &str) -> String {
        match self {
            Self::Ipv4 => v4.to_owned(),
            Self::Dual => format!("{v4},{v6}"),
        }
    }
}

/// cluster.json from the decisions.
#[must_use]
pub(crate) fn cluster(
    cluster_name: &str,
    (node_ip, node_ip_too): (IpAddr, Option<IpAddr>),
    families: Families,
    ports: &Ports,
    pki_dir: &std::path::Path,
) -> ClusterConfig {
    ClusterConfig {
        version: hpk_api::VERSION,
        cluster_name: cluster_name.into(),
        executor: ExecutorKind::default(),
        local_cpus: None,
        node_name: node_name(cluster_name),
        node_ip,
        node_ip_too,
        apiserver_url: format!("https://{}", SocketAddr::new(node_ip, ports.apiserver)),
        service_cidr: families.ranges(SERVICE_CIDR, SERVICE_CIDR_V6),
        apiserver_service_ip: APISERVER_SERVICE_IP,
        dns_service_ip: DNS_SERVICE_IP,
        dns_addr: SocketAddr::new(node_ip, ports.dns),
        pod_cidr: families.ranges(POD_CIDR, POD_CIDR_V6),
        cluster_domain: "cluster.local".into(),
        link_addr: SocketAddr::new(node_ip, ports.link),
        kubelet_addr: SocketAddr::new(node_ip, ports.kubelet),
        network_mode: hpk_api::net::NetworkMode::default(),
        cni_network: None,
        plaintext: false,
        container_logs: ContainerLogs::default(),
        default_memory: None,
        default_time: None,
        priority_classes: std::collections::BTreeMap::new(),
        partitions: Partitions::default(),
        gpu_vendor: Vendor::default(),
        pod_flags: PodFlags::default(),
        feature_gates: std::collections::BTreeMap::new(),
        images: ImageRules::default(),
        user_ids: hpk_api::plan::UserIds::default(),
        scratch: None,
        pki_dir: pki_dir.display().to_string(),
    }
}

/// `hpk-<cluster name>`, made a DNS label: Slurm's ClusterName may have other characters.
fn node_name(cluster_name: &str) -> String {
    format!("hpk-{}", nodes::label(cluster_name)).trim_end_matches('-').to_owned()
}

/// `path`, if a socket can be there: its name must fit, and the file system must know sockets.
#[must_use]
pub(crate) fn socket(path: PathBuf) -> Option<PathBuf> {
    let probe = path.with_extension("probe");
    let fits = std::os::unix::net::UnixListener::bind(&probe).is_ok();
    // Absent when it did not fit.
    let _ = std::fs::remove_file(&probe);
    fits.then_some(path)
}

/// The `nameserver` lines of resolv.conf text. Loopback ones count: CoreDNS runs on the same node.
#[must_use]
pub(crate) fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|l| {
            let mut words = l.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(|w| w.parse().ok())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::components::Layout;
    use hpk_layout::Home;

    pub(crate) fn layout() -> Layout {
        let ip = "10.77.0.1".parse().unwrap();
        let ports = ports_with(None, ip, 1000, |_, _| true).unwrap();
        let home = Home::at("/home/alice/.hpk");
        Layout {
            cluster: cluster("site", (ip, None), Families::Dual, &ports, &home.pki()),
            control_plane: ControlPlane {
                ports,
                programs: Programs::Folder { path: "/opt/kubernetes".into() },
                kubelet: Some("/home/alice/.local/bin/hpk-kubelet".into()),
                egress: Some("/home/alice/.hpk/run/egress.sock".into()),
                nameservers: vec![],
                dns_sign: DnsSign::new([7; 32]),
                apiserver_flags: vec![],
                etcd_base: None,
                etcd_data: home.etcd(),
            },
            home,
        }
    }

    #[test]
    fn ports_stay_while_they_are_free() {
        let ip: IpAddr = "10.77.0.1".parse().unwrap();
        let first = ports_with(None, ip, 1000, |_, _| true).unwrap();
        let all = first.all();
        let set: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(set.len(), all.len(), "one port each: {all:?}");
        assert_eq!(first.kubelet, KUBELET_PORT);
        let neighbour = ports_with(None, ip, 1000, |_, p| p != KUBELET_PORT).unwrap();
        assert!((FIRST_PORT..=LAST_PORT).contains(&neighbour.kubelet), "{neighbour:?}");
        assert_eq!(ports_with(Some(&first), ip, 1000, |_, _| true).unwrap(), first);

        let second = ports_with(Some(&first), ip, 1000, |_, p| p != first.etcd).unwrap();
        assert_ne!(second.etcd, first.etcd);
        assert_eq!(Ports { etcd: first.etcd, ..second }, first);

        assert!(ports_with(None, ip, 1000, |_, _| false).is_err());
    }

    #[test]
    fn families_are_both_unless_the_cluster_has_one_already() {
        let mut l = layout().cluster;
        assert_eq!(
            (l.pod_cidr.as_str(), l.service_cidr.as_str()),
            ("10.244.0.0/16,fd00:10:244::/64", "10.96.0.0/16,fd00:10:96::/112")
        );
        assert_eq!(Families::decide(None, None), Families::Dual);
        assert_eq!(Families::decide(None, Some(&l)), Families::Dual);
        l.pod_cidr = POD_CIDR.to_owned();
        assert_eq!(Families::decide(None, Some(&l)), Families::Ipv4);
        assert_eq!(Families::decide(Some(Families::Dual), Some(&l)), Families::Dual);
    }

    #[test]
    fn sockets_need_a_short_path_and_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("egress.sock");
        assert_eq!(socket(good.clone()), Some(good));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe is removed");
        assert_eq!(socket(dir.path().join("x".repeat(120))), None);
        assert_eq!(socket(dir.path().join("absent/egress.sock")), None);
    }

    #[test]
    fn ports_are_held_from_their_choice_until_the_supervisor_holds_them() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (ports, held) = ports(None, ip, 4242).unwrap();
        assert_eq!(held.len(), ports.all().len());
        let supervisors = ports.hold(ip).unwrap();
        drop(held);
        for at in ports.places(ip) {
            assert!(std::net::TcpListener::bind(at).is_err() && std::net::UdpSocket::bind(at).is_err(), "{at}");
        }
        drop(supervisors);
        // Somebody takes one while nothing runs: all others stay.
        let _bob = std::net::TcpListener::bind((ip, ports.apiserver)).unwrap();
        let refused = ports.hold(ip).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(&ports.apiserver.to_string()) && refused.contains("hpk up"), "{refused}");
        let (moved, _held) = super::ports(Some(&ports), ip, 4242).unwrap();
        assert_ne!(moved.apiserver, ports.apiserver);
        assert_eq!(Ports { apiserver: ports.apiserver, ..moved }, ports);
    }

    #[test]
    fn a_sign_is_a_name_and_an_address_of_its_own() {
        let (a, b) = (DnsSign::new([1; 32]), DnsSign::new([2; 32]));
        assert!(a.name != b.name && a.address != b.address);
        assert!(a.address.unwrap().is_unique_local());
    }

    #[test]
    fn node_names_are_labels() {
        for (cluster, node) in [("site", "hpk-site"), ("LUMI_C", "hpk-lumi-c"), ("x.", "hpk-x"), ("", "hpk")] {
            assert_eq!(node_name(cluster), node);
        }
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# x\nsearch a b\nnameserver 10.0.0.53\nnameserver fd00::1 \nnameserver\noptions ndots:2\n";
        assert_eq!(nameservers(text), ["10.0.0.53".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
