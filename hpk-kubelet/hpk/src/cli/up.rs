//! `hpk up`, and the values that its flags take.

use clap::{Args, ValueEnum};
use hpk_api::cluster::{ContainerLogs, ExecutorKind};
use hpk_api::images::{ImageRules, LocalChoice};
use hpk_api::net::NetworkMode;
use hpk_api::nodes::{Chosen, Vendor};
use hpk_api::pod_flags::PodFlags;
use hpk_api::quantity;
use hpk_api::time_limit::TimeLimit;
use std::net::IpAddr;
use std::path::PathBuf;

/// `hpk up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk up
  hpk up --kubernetes-bin ~/kubernetes-1.37.2     official binaries instead of the image
  hpk up --network cni:site-net                   pods in a network that the site has set up for Apptainer
  hpk up --container-log-max-size 100Mi           keep more of what containers print
  hpk up --pod-flags list                         pods of others: no flags that take more of the cluster
  hpk up --node-per-partition                     a Node for each partition of Slurm
  hpk up --feature-gates WorkloadWithJob=true     features of Kubernetes that are not on by themselves
  hpk up --priority-class 'high=--qos=high'       what a priorityClassName means to Slurm
  hpk up --local-images /scratch/me/images        image files from there only
  hpk up --in-job=--time=2-0                      the control plane in a Slurm job, not on this machine
  hpk up --etcd-data /var/tmp                     etcd on this machine's own disk, with snapshots
  hpk up --executor local                         pods on this machine, without Slurm
  hpk up --node-ip 10.1.0.5                       when the wrong address would be taken")]
pub(crate) struct Up {
    /// Run the programs of this folder (kube-apiserver, kube-controller-manager, kube-scheduler, etcd,
    /// coredns) directly instead of the image's
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub kubernetes_bin: Option<PathBuf>,
    /// Apptainer image (SIF or sandbox folder) that has the programs in /bin [default: the installed one]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// Address of this host that compute nodes reach [default: the one on the way to them]
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<IpAddr>,
    /// What runs pods, chosen when a cluster is begun. slurm: each pod is a Slurm job. local: pods are processes of this
    /// machine, or of the one allocation that hpk up runs in, within its CPUs, memory and GPUs [default: slurm]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub executor: Option<ExecutorChoice>,
    /// CPUs that pods may ask for together with --executor local; kept until it is given again. More than there are, and pods
    /// share them [default: those that this machine gives hpk up]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub local_cpus: Option<u64>,
    /// Name of the cluster [default: Slurm's ClusterName; with --executor local this host's name]
    #[arg(long, value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// A further flag for kube-apiserver, as --key=value; may be repeated
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub apiserver_flag: Vec<String>,
    /// Encrypt what pods send each other between nodes; kept until it is given again. Off is faster, and lets whoever
    /// can listen on the nodes' network read along and send. Pods that run already keep what they started with, and do
    /// not reach those of the other setting [default: on]
    #[arg(long, value_name = "WHETHER")]
    pub encryption: Option<Encryption>,
    /// Address families of pods and Services; kept until it is given again. From one to both is a matter of a restart of
    /// the control plane, and pods that run already keep their one address; the way back is refused [default: dual; a
    /// cluster that has IPv4 alone stays so]
    #[arg(long, value_name = "WHICH")]
    pub ip_families: Option<crate::decide::Families>,
    /// The pods' network; kept until it is given again. overlay: HPK's own, needs nothing. cni:NAME: a network that the
    /// site has configured for Apptainer on the compute nodes (for root, or Apptainer with setuid). host: the compute
    /// nodes' own. Pods that run already keep what they started with [default: overlay]
    #[arg(long, value_name = "overlay|cni:NAME|host", value_parser = network)]
    pub network: Option<NetworkChoice>,
    /// Rotate a container's log before it grows beyond this, in bytes, as a Kubernetes quantity; kept until it is given
    /// again. Pods that run already keep what they started with [default: 10Mi]
    #[arg(long, value_name = "QUANTITY", value_parser = ContainerLogs::parse_max_size)]
    pub container_log_max_size: Option<u64>,
    /// Keep so many files of a container's log, the one being written included; kept until it is given again. Pods that
    /// run already keep what they started with [default: 5]
    #[arg(long, value_name = "N", value_parser = ContainerLogs::parse_max_files)]
    pub container_log_max_files: Option<u32>,
    /// Memory of a container that has neither a limit nor a request of it, as a Kubernetes quantity, or site; kept until it is
    /// given again. site: 1Gi, and in all no less than what Slurm gives a job that asks for nothing [default: site]
    #[arg(long, value_name = "QUANTITY|site", value_parser = default_memory)]
    pub default_memory: Option<DefaultMemory>,
    /// Time limit of a pod that has neither activeDeadlineSeconds nor --time among its flags, as sbatch takes it (minutes, or
    /// 1-12:00:00), or site; at most what the partition allows; kept until it is given again. site: what the partition gives
    /// [default: site]
    #[arg(long, value_name = "TIME|site", value_parser = default_time)]
    pub default_time: Option<DefaultTime>,
    /// What a pod's priorityClassName means to Slurm: flags that say where and when a job runs, such as
    /// high='--qos=high --nice=0'; may be repeated; each is kept until its class is given again, without flags to remove it
    #[arg(long, value_name = "NAME=FLAGS", value_parser = priority_class)]
    pub priority_class: Vec<(String, String)>,
    /// Make a Node of each partition beside the default one's, so that pods choose partitions by nodeSelector, affinity and
    /// tolerations; kept until --partitions is given
    #[arg(long, conflicts_with = "partitions")]
    pub node_per_partition: bool,
    /// Make a Node of each of these partitions, with commas between, or of none but the default one; kept until it, or
    /// --node-per-partition, is given again. Pods on a Node that is left out end [default: none]
    #[arg(long, value_name = "NAMES|none", value_parser = partitions)]
    pub partitions: Option<Chosen>,
    /// Whether Nodes of further partitions have the taint slurm.hpk.io/partition=NAME:NoSchedule, which keeps pods off that
    /// do not tolerate it; kept until it is given again [default: on]
    #[arg(long, value_name = "WHETHER", value_enum)]
    pub partition_taint: Option<Switch>,
    /// Who made the GPUs whose type in Slurm does not tell: they are nvidia.com/gpu, amd.com/gpu or gpu.intel.com/i915 for pods;
    /// kept until it is given again [default: nvidia]
    #[arg(long, value_name = "WHO", value_enum)]
    pub gpu_vendor: Option<VendorChoice>,
    /// Which flags of Slurm's pods may give by their annotations (slurm-job.hpk.io/flags); kept until it is given again.
    /// allow: all that docs/guide/pods.md lists. list: those that say where and when a job runs, such as --partition and
    /// --time. deny: none. For a cluster that others may create pods in. Jobs that are submitted stay as they are
    /// [default: allow]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub pod_flags: Option<PodFlagsChoice>,
    /// Which number you have in the containers of pods that do not say so by the annotation runtime.hpk.io/user-ids; kept until
    /// it is given again. root: 0, all others are your subordinate ids. keep: your own, and containers of no other user run as
    /// you. Pods that are submitted stay as they are [default: root]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub user_ids: Option<UserIdsChoice>,
    /// A folder below which pods may name images in files (`oci:/DIR/x`, `/DIR/x.sif` …); may be repeated; kept until it is
    /// given again. any: whatever a pod may reach by hostPath too; none: no files. Pods of namespaces that enforce PodSecurity
    /// restricted get none, whatever is said here [default: any]
    #[arg(long, value_name = "DIR|any|none", value_parser = ImageRules::parse_local)]
    pub local_images: Vec<LocalChoice>,
    /// Folder for volumes of the storage class hpk-scratch: a file system that all compute nodes have, other than the home;
    /// kept until it is given again. none: no such class. Volumes that are there stay where they are [default: none]
    #[arg(long, value_name = "DIR|none", value_parser = scratch)]
    pub scratch: Option<Scratch>,
    /// Run the control plane in a Slurm job with these flags of sbatch, instead of on this machine. Before its time ends, a job
    /// that was sent ahead goes on. off: on this machine. Kept until it is given again [default: off]
    #[arg(long, value_name = "FLAGS|off", value_parser = crate::in_job::submit::parse, num_args = 0..=1,
        default_missing_value = "", require_equals = true)]
    pub in_job: Option<crate::in_job::submit::Asked>,
    /// Where etcd keeps the cluster's objects: in HPK_HOME, or below a folder of this machine's own disk, with snapshots in
    /// HPK_HOME. auto: on this machine's disk if HPK_HOME is on a network file system. Kept until it is given again; the data
    /// moves along [default: auto for a new cluster]
    #[arg(long, value_name = "auto|home|DIR", value_parser = crate::state::place::parse)]
    pub etcd_data: Option<crate::state::place::Choice>,
    /// Refuse images whose files take more than this, in bytes, as a Kubernetes quantity; kept until it is given again
    /// [default: 100Gi]
    #[arg(long, value_name = "QUANTITY", value_parser = ImageRules::parse_max_size)]
    pub image_max_size: Option<u64>,
    /// Refuse images that have more files, folders and links than this; kept until it is given again [default: 2000000]
    #[arg(long, value_name = "N", value_parser = ImageRules::parse_max_files)]
    pub image_max_files: Option<u64>,
    /// How images that are pulled from now on are kept; kept until it is given again. folder: every file of an image is one of
    /// HPK_HOME's file system. squashfs: an image is one file. auto: squashfs on Lustre, GPFS, BeeGFS, NFS, CephFS and Panasas,
    /// else folder. Images that are there stay as they are, and are used [default: auto]
    #[arg(long, value_name = "LAYOUT", value_enum)]
    pub image_layout: Option<LayoutChoice>,
    /// Feature gates for all of Kubernetes' programs, as NAME=true or NAME=false with commas between; they are kept until the flag is
    /// given again, which sets all of them anew, and default takes them back. HPK itself switches GenericWorkload on, for
    /// gangs of pods [default: default]
    #[arg(long, value_name = "GATES|default", value_parser = crate::gates::parse)]
    pub feature_gates: Option<crate::gates::Choice>,
    /// Start no hpk-kubelet
    #[arg(long)]
    pub no_kubelet: bool,
    /// Give up waiting after so many seconds (what was started goes on)
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

/// `--image-layout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutChoice {
    /// By the file system of HPK_HOME.
    Auto,
    /// A folder with every file of the image.
    Folder,
    /// One SquashFS file.
    Squashfs,
}

impl From<LayoutChoice> for hpk_api::images::LayoutChoice {
    fn from(choice: LayoutChoice) -> Self {
        match choice {
            LayoutChoice::Auto => Self::Auto,
            LayoutChoice::Folder => Self::Folder,
            LayoutChoice::Squashfs => Self::Squashfs,
        }
    }
}

/// `--executor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecutorChoice {
    /// Each pod is a Slurm job.
    Slurm,
    /// Pods on this machine.
    Local,
}

impl From<ExecutorChoice> for ExecutorKind {
    fn from(choice: ExecutorChoice) -> Self {
        match choice {
            ExecutorChoice::Slurm => Self::Slurm,
            ExecutorChoice::Local => Self::Local,
        }
    }
}

/// `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkChoice {
    /// Which kind.
    pub mode: NetworkMode,
    /// Of [`NetworkMode::Cni`].
    pub name: Option<String>,
}

fn network(text: &str) -> Result<NetworkChoice, String> {
    let plain = |mode| Ok(NetworkChoice { mode, name: None });
    match (text, text.strip_prefix("cni:")) {
        ("overlay", _) => plain(NetworkMode::Overlay),
        ("host", _) => plain(NetworkMode::Host),
        (_, Some("none")) => Err("cni:none: Apptainer's network without a network".to_owned()),
        // Apptainer takes a list of them; a pod has one.
        (_, Some(name)) if !name.is_empty() && !name.contains([',', '/', ' ']) => {
            Ok(NetworkChoice { mode: NetworkMode::Cni, name: Some(name.to_owned()) })
        }
        _ => Err("must be overlay, host, or cni: and the name of one network".to_owned()),
    }
}

/// `--encryption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Encryption {
    /// WireGuard's protocol, keys per pod.
    On,
    /// In the clear.
    Off,
}

/// `--scratch`; None: no folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch(pub Option<PathBuf>);

fn scratch(text: &str) -> Result<Scratch, String> {
    match text {
        "none" => Ok(Scratch(None)),
        path if path.starts_with('/') && path != "/" => Ok(Scratch(Some(PathBuf::from(path)))),
        _ => Err("must be none, or an absolute path such as /scratch/me".to_owned()),
    }
}

/// `--default-memory`: bytes, None for the site's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DefaultMemory(pub Option<u64>);

/// `--default-time`: minutes, None for the site's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DefaultTime(pub Option<u64>);

fn default_time(text: &str) -> Result<DefaultTime, String> {
    match (text, TimeLimit::parse(text)) {
        ("site", _) => Ok(DefaultTime(None)),
        (_, Some(TimeLimit::Seconds(seconds @ 1..))) => Ok(DefaultTime(Some(seconds.div_ceil(60)))),
        _ => Err("must be site, or a time as sbatch takes it, such as 90 (minutes), 2:00:00 or 1-12".to_owned()),
    }
}

fn default_memory(text: &str) -> Result<DefaultMemory, String> {
    if text == "site" {
        return Ok(DefaultMemory(None));
    }
    let bytes = quantity::value(text).filter(|bytes| *bytes >= 1 << 20);
    bytes
        .map(|b| DefaultMemory(Some(b)))
        .ok_or_else(|| "must be site, or a Kubernetes quantity of bytes, at least 1Mi, such as 512Mi or 2Gi".to_owned())
}

fn partitions(text: &str) -> Result<Chosen, String> {
    if text == "none" {
        return Ok(Chosen::None);
    }
    let names: Vec<String> = text.split(',').map(|n| n.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        return Err("must be none, or names of partitions with commas between".to_owned());
    }
    Ok(Chosen::Listed(names))
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

fn priority_class(text: &str) -> Result<(String, String), String> {
    let (name, flags) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty() && !name.starts_with('-'))
        .ok_or("must be the name of a PriorityClass, =, and flags of sbatch, such as high='--qos=high --nice=0'")?;
    Ok((name.to_owned(), flags.trim().to_owned()))
}

/// `--gpu-vendor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VendorChoice {
    /// nvidia.com/gpu
    Nvidia,
    /// amd.com/gpu
    Amd,
    /// gpu.intel.com/i915
    Intel,
}

impl From<VendorChoice> for Vendor {
    fn from(choice: VendorChoice) -> Self {
        match choice {
            VendorChoice::Nvidia => Self::Nvidia,
            VendorChoice::Amd => Self::Amd,
            VendorChoice::Intel => Self::Intel,
        }
    }
}

/// `--user-ids`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UserIdsChoice {
    /// 0.
    Root,
    /// The same as on the nodes.
    Keep,
}

impl From<UserIdsChoice> for hpk_api::plan::UserIds {
    fn from(choice: UserIdsChoice) -> Self {
        match choice {
            UserIdsChoice::Root => Self::Root,
            UserIdsChoice::Keep => Self::Keep,
        }
    }
}

/// `--pod-flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodFlagsChoice {
    /// All flags that the guide lists.
    Allow,
    /// Only flags that say where and when a job runs.
    List,
    /// No flag at all.
    Deny,
}

impl From<PodFlagsChoice> for PodFlags {
    fn from(choice: PodFlagsChoice) -> Self {
        match choice {
            PodFlagsChoice::Allow => Self::Allow,
            PodFlagsChoice::List => Self::List,
            PodFlagsChoice::Deny => Self::Deny,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let cni = NetworkChoice { mode: NetworkMode::Cni, name: Some("site-net".to_owned()) };
        assert_eq!(network("cni:site-net"), Ok(cni));
        assert_eq!(network("host").map(|n| n.mode), Ok(NetworkMode::Host));
        for bad in ["", "cni", "cni:", "cni:a,b", "cni:none", "bridge"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_of_priority_classes() {
        let pair = |name: &str, flags: &str| Ok((name.to_owned(), flags.to_owned()));
        assert_eq!(priority_class("high=--qos=high --nice=0"), pair("high", "--qos=high --nice=0"));
        assert_eq!(priority_class("high="), pair("high", ""));
        for bad in ["", "high", "=--qos=high", "--qos=high"] {
            assert!(priority_class(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_of_silent_containers() {
        assert_eq!(default_memory("site"), Ok(DefaultMemory(None)));
        assert_eq!(default_memory("2Gi"), Ok(DefaultMemory(Some(2 << 30))));
        for bad in ["", "0", "1", "2GB", "-1Gi", "512Ki"] {
            assert!(default_memory(bad).is_err(), "{bad}");
        }
    }
}
