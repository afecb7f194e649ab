//! `HPK_HOME/cluster.json`: what `hpk up` decided for this cluster and the other programs read.

use crate::images::ImageRules;
use crate::nodes::{Partitions, Vendor};
use crate::plan::UserIds;
use crate::pod_flags::PodFlags;
use crate::quantity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What runs the cluster's pods: `hpk up --executor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutorKind {
    /// Each pod is a Slurm job.
    #[default]
    Slurm,
    /// Pods are processes of this machine.
    Local,
}

impl ExecutorKind {
    /// As users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Slurm => "slurm",
            Self::Local => "local",
        }
    }
}

/// The cluster's fixed choices: written by `hpk up`, read by hpk-kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Version of this file ([`crate::VERSION`]).
    pub version: u32,
    /// Slurm's ClusterName; this machine's name where pods run without Slurm.
    pub cluster_name: String,
    /// What runs pods.
    #[serde(default)]
    pub executor: ExecutorKind,
    /// CPUs of which pods may ask for on this machine, for the local executor. None: those that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_cpus: Option<u64>,
    /// Name of the first Node, `hpk-<cluster name>`: of pods whose jobs name no partition.
    pub node_name: String,
    /// Address of the login node, where control plane and kubelet listen; the Node's InternalIP.
    pub node_ip: IpAddr,
    /// Its address of the other family, where it has one and pods have both: NodePort and LoadBalancer listen there too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ip_too: Option<IpAddr>,
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
    /// How much of the containers' output is kept. Holds for pods that start afterwards.
    #[serde(default)]
    pub container_logs: ContainerLogs,
    /// Memory of a container that says nothing of it, bytes. None: 1 GiB, or more where the site gives more by itself. Holds
    /// for pods that are submitted afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_memory: Option<u64>,
    /// Time limit of pods that have no deadline, minutes. None: the partition's own. Holds for pods that are submitted
    /// afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_time: Option<u64>,
    /// Flags of sbatch for pods of a priority class, by the class' name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub priority_classes: BTreeMap<String, String>,
    /// Who made the GPUs whose type in Slurm does not tell.
    #[serde(default)]
    pub gpu_vendor: Vendor,
    /// Further Nodes, each for one partition.
    #[serde(default)]
    pub partitions: Partitions,
    /// What pods may ask of Slurm by flags in their annotations. Holds for pods that are submitted afterwards.
    #[serde(default)]
    pub pod_flags: PodFlags,
    /// Kubernetes' feature gates, as the user has set them (`hpk up --feature-gates`): those of [`Self::gates`] that are not
    /// here stand as HPK has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// Which images pods may have.
    #[serde(default)]
    pub images: ImageRules,
    /// Which number the user has in the containers of pods that do not say so by annotation.
    #[serde(default)]
    pub user_ids: UserIds,
    /// Where volumes of the storage class hpk-scratch are. None: there is no such class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Folder with the cluster's keys (`ca.crt`, `ca.key`, `kubelet.kubeconfig`, …).
    pub pki_dir: String,
}

/// The gate of Workloads and PodGroups, and of `spec.schedulingGroup` of pods: gangs. It is on unless the user has switched
/// it off.
pub const GENERIC_WORKLOAD: &str = "GenericWorkload";

impl ClusterConfig {
    /// The login node's addresses, at most one of each family; first the one where the control plane listens.
    #[must_use]
    pub fn node_ips(&self) -> Vec<IpAddr> {
        std::iter::once(self.node_ip).chain(self.node_ip_too).collect()
    }

    /// All feature gates that differ from Kubernetes' own defaults: HPK's, and over them the user's.
    #[must_use]
    pub fn gates(&self) -> BTreeMap<String, bool> {
        let mut gates = BTreeMap::from([(GENERIC_WORKLOAD.to_owned(), true)]);
        gates.extend(self.feature_gates.iter().map(|(name, on)| (name.clone(), *on)));
        gates
    }

    /// Whether the API has PodGroups.
    #[must_use]
    pub fn has_pod_groups(&self) -> bool {
        self.gates().get(GENERIC_WORKLOAD) == Some(&true)
    }
}

/// How much of a container's output is kept (containerLogMaxSize and containerLogMaxFiles of KubeletConfiguration, whose
/// defaults these are). A container has at most their product on the shared file system; rotated files but the newest are
/// compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerLogs {
    /// A log is rotated before it grows beyond this, bytes.
    pub max_bytes: u64,
    /// Files of one container's log, the one being written included.
    pub max_files: u32,
}

impl Default for ContainerLogs {
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 5 }
    }
}

impl ContainerLogs {
    /// Smallest [`Self::max_bytes`]: four of the longest records. Ours; with less, a busy log is all renaming.
    pub const MIN_BYTES: u64 = 64 << 10;
    /// Smallest [`Self::max_files`], upstream's.
    pub const MIN_FILES: u32 = 2;

    /// Reads a containerLogMaxSize.
    ///
    /// # Errors
    /// Why it cannot be one, for people.
    pub fn parse_max_size(text: &str) -> Result<u64, String> {
        let bytes = quantity::value(text).ok_or("must be a Kubernetes quantity of bytes, such as 10Mi or 500k")?;
        Self { max_bytes: bytes, ..Self::default() }.check()?;
        Ok(bytes)
    }

    /// Reads a containerLogMaxFiles.
    ///
    /// # Errors
    /// Why it cannot be one, for people.
    pub fn parse_max_files(text: &str) -> Result<u32, String> {
        let files = text.parse().map_err(|_| "must be a number of files, such as 5".to_owned())?;
        Self { max_files: files, ..Self::default() }.check()?;
        Ok(files)
    }

    /// Whether the supervisor can live by it.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn check(self) -> Result<(), String> {
        if self.max_bytes < Self::MIN_BYTES {
            return Err(format!(
                "{} is too small: at least {}",
                quantity::format(self.max_bytes),
                quantity::format(Self::MIN_BYTES)
            ));
        }
        if self.max_files < Self::MIN_FILES {
            return Err(format!(
                "{} files are too few: at least {}, one is being written",
                self.max_files,
                Self::MIN_FILES
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_of_logs() {
        for (text, bytes) in [("10Mi", 10 << 20), ("64Ki", 64 << 10), ("100k", 100_000), ("1e6", 1_000_000)] {
            assert_eq!(ContainerLogs::parse_max_size(text), Ok(bytes), "{text}");
        }
        for (text, why) in [("", "quantity"), ("10MB", "quantity"), ("-1", "quantity"), ("0", "64Ki"), ("63Ki", "64Ki")]
        {
            let refused = ContainerLogs::parse_max_size(text).expect_err(text);
            assert!(refused.contains(why), "{text}: {refused}");
        }
        assert_eq!(ContainerLogs::parse_max_files("2"), Ok(2));
        for (text, why) in
            [("", "number"), ("many", "number"), ("-3", "number"), ("0", "at least 2"), ("1", "at least 2")]
        {
            let refused = ContainerLogs::parse_max_files(text).expect_err(text);
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
