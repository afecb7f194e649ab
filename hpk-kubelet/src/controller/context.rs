//! What all of the controller's tasks share: clients and settings, nothing that changes.

use crate::api::events::Recorder;
use crate::api::node::{EPHEMERAL_KIB, NodeFacts};
use crate::carrier::Carriers;
use crate::executor::Executor;
use crate::executor::slurm::request::Defaults;
use crate::gangs::keeper::Gangs;
use crate::nodes::{Clients, Nodes};
use crate::pods::bandwidth;
use crate::pods::folder::{Folder, Record};
use crate::render::downward::Facts;
use crate::render::resolv::Resolv;
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::{HostPort, NetworkList, NetworkMode, NetworkPlan};
use hpk_api::plan::Settings;
use hpk_images::ImageStore;
use hpk_layout::{Home, Install};
use hpk_link::server::LinkServer;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::reflector::Store;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Shared by every task of the controller.
#[derive(Clone)]
pub struct Context {
    /// API server, as each of our Nodes.
    pub clients: Clients,
    pub nodes: Arc<Nodes>,
    /// The API's Node objects.
    pub node_objects: Store<Node>,
    pub cluster: ClusterConfig,
    pub home: Home,
    pub install: Install,
    /// What runs pods.
    pub executor: Arc<dyn Executor>,
    pub images: ImageStore,
    /// Links to pods.
    pub links: LinkServer,
    /// Links that Slurm carries.
    pub carriers: Carriers,
    pub recorder: Recorder,
    /// All services, for environment variables.
    pub services: Store<Service>,
    /// What Slurm has.
    pub node: watch::Receiver<NodeFacts>,
    /// Pods that begin together. None: this executor has none.
    pub gangs: Option<Gangs>,
    /// Slurm requests.
    pub defaults: Arc<Defaults>,
    /// Supervisors' settings.
    pub settings: Arc<Settings>,
    /// Slurm's MessageTimeout.
    pub message_timeout: Duration,
}

/// The user's CNI configuration list: the first `*.conflist` by name. It is judged where it is used; one that cannot be
/// read is as bad as an empty one.
fn network_list(home: &Home) -> Option<NetworkList> {
    let entries = std::fs::read_dir(home.network_lists()).ok()?.flatten().map(|entry| entry.path());
    let file = entries.filter(|path| path.extension().is_some_and(|e| e == "conflist")).min()?;
    let text = std::fs::read_to_string(&file).inspect_err(|error| tracing::warn!(file = %file.display(), %error));
    Some(NetworkList { file: file.display().to_string(), text: text.unwrap_or_default() })
}

/// Ports of the compute node that a pod asks for.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
        Some(HostPort {
            protocol: hpk_netfacts::services::protocol(p.protocol.as_deref())?,
            host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            host_port: p.host_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?,
            container_port: u16::try_from(p.container_port).ok()?,
        })
    });
    ports.collect()
}

impl Context {
    /// A pod's folder.
    #[must_use]
    pub fn folder(&self, uid: &str) -> Folder {
        Folder::at(self.home.pod(uid))
    }

    /// The pod's network.
    #[must_use]
    pub fn network(&self, pod: &Pod, record: &Record) -> NetworkPlan {
        let mode = self.network_mode(pod);
        NetworkPlan {
            mode,
            pod_ips: if mode == NetworkMode::Overlay { record.pod_ips.clone() } else { Vec::new() },
            outposts: record.outposts.clone(),
            pod_cidr: self.cluster.pod_cidr.clone(),
            service_cidr: self.cluster.service_cidr.clone(),
            mtu: 0,
            cni_network: self.cluster.cni_network.clone().filter(|_| mode == NetworkMode::Cni),
            plaintext: self.cluster.plaintext,
            host_ports: if mode == NetworkMode::Host { Vec::new() } else { host_ports(pod) },
            fills_host_ip: true,
            fills_host_ips: true,
            host_ip: Some(self.cluster.node_ip),
            list: if mode == NetworkMode::Overlay { network_list(&self.home) } else { None },
            bandwidth: bandwidth::asked(pod).unwrap_or_default(),
        }
    }

    /// The node's network for hostNetwork pods, else the cluster's mode.
    #[must_use]
    pub fn network_mode(&self, pod: &Pod) -> NetworkMode {
        if pod.spec.as_ref().and_then(|s| s.host_network) == Some(true) {
            NetworkMode::Host
        } else {
            self.cluster.network_mode
        }
    }

    /// Facts for the downward API.
    #[must_use]
    pub fn facts(&self, pod: &Pod, network: &NetworkPlan) -> Facts {
        let capacity = self.node.borrow().part(self.nodes.of_pod(pod)).usable;
        let host_ip = match network.mode {
            // The compute node's address is known only when the job runs.
            _ if network.fills_host_ip => hpk_api::plan::HOST_IP_PLACEHOLDER.to_owned(),
            NetworkMode::Host => hpk_api::plan::POD_IP_PLACEHOLDER.to_owned(),
            _ => self.cluster.node_ip.to_string(),
        };
        Facts {
            pod_ips: if network.pod_ips.is_empty() {
                vec![hpk_api::plan::POD_IP_PLACEHOLDER.to_owned()]
            } else {
                network.pod_ips.iter().map(ToString::to_string).collect()
            },
            host_ips: if network.fills_host_ips {
                hpk_api::plan::HOST_IPS_PLACEHOLDER.to_owned()
            } else {
                host_ip.clone()
            },
            host_ip,
            allocatable_milli_cpu: capacity.cpus * 1000,
            allocatable_memory: capacity.memory_mib << 20,
            allocatable_storage: EPHEMERAL_KIB << 10,
        }
    }

    /// The login node's resolver configuration. Loopback resolvers are of no use in a pod and are left out.
    #[must_use]
    pub fn node_resolv() -> Resolv {
        let mut resolv = Resolv::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        resolv.nameservers.retain(|s| s.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback()));
        resolv
    }
}
