//! `HPK_HOME/cluster.json`: what `hpk up` decided for this cluster and the other programs read.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The cluster's fixed choices: written by `hpk up`, read by hpk-kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Version of this file ([`crate::VERSION`]).
    pub version: u32,
    /// Slurm's ClusterName.
    pub cluster_name: String,
    /// Name of the one Node: `hpk-<cluster name>`.
    pub node_name: String,
    /// Address of the login node, where control plane and kubelet listen; the Node's InternalIP.
    pub node_ip: IpAddr,
    /// `https://<node_ip>:<port>`.
    pub apiserver_url: String,
    /// ClusterIP ranges: one CIDR, or one of each family with a comma between, IPv4 first.
    pub service_cidr: String,
    /// ClusterIP of service default/kubernetes.
    pub apiserver_service_ip: IpAddr,
    /// ClusterIP of service kube-system/kube-dns.
    pub dns_service_ip: IpAddr,
    /// Where CoreDNS really listens on the login node.
    pub dns_addr: SocketAddr,
    /// Pod address ranges, as those of services and of the same families.
    pub pod_cidr: String,
    /// DNS domain of the cluster, without dots at its ends: `cluster.local`.
    pub cluster_domain: String,
    /// Where hpk-kubelet accepts links from jobs.
    pub link_addr: SocketAddr,
    /// Where hpk-kubelet serves the kubelet API.
    pub kubelet_addr: SocketAddr,
    /// Default network mode of pods.
    #[serde(default)]
    pub network_mode: crate::net::NetworkMode,
    /// The site's CNI network, for mode cni: a name that Apptainer knows on the compute nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_network: Option<String>,
    /// Packets of the overlay go between nodes in the clear (`hpk up --encryption off`): only for a network that
    /// nobody else can listen on or send into. Holds for pods that start afterwards.
    #[serde(default)]
    pub plaintext: bool,
    /// Folder with the cluster's keys (`ca.crt`, `ca.key`, `kubelet.kubeconfig`, …).
    pub pki_dir: String,
}
