//! `HPK_HOME`: one cluster's state, on the shared file system.

use std::path::{Path, PathBuf};

const CLUSTER: &str = "cluster.json";
const CONTROL_PLANE: &str = "control-plane.json";

/// `HPK_HOME` and the names below it. Makes and reads nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The folder's name in the user's home where `HPK_HOME` is not set.
    pub const DEFAULT: &str = ".hpk";
    /// The files of a cluster's choices: what is saved of the root folder itself.
    pub const CHOICES: [&str; 2] = [CLUSTER, CONTROL_PLANE];

    /// The home whose folder is `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The home that holds this `cluster.json`.
    #[must_use]
    pub fn of_cluster_file(path: &Path) -> Self {
        let root = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::at(std::path::absolute(root).unwrap_or_else(|_| root.to_owned()))
    }

    /// The home that holds this folder of a pod, a run or a gang.
    #[must_use]
    pub fn of_member(folder: &Path) -> Self {
        Self::at(folder.parent().and_then(Path::parent).unwrap_or(Path::new("/")))
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What hpk-kubelet reads: addresses, ports and choices of this cluster.
    #[must_use]
    pub fn cluster_json(&self) -> PathBuf {
        self.root.join(CLUSTER)
    }

    /// What [`Self::cluster_json`] was when it was last written.
    #[must_use]
    pub fn cluster_copy(&self) -> PathBuf {
        self.root.join("cluster.json.copy")
    }

    /// What the control plane's supervisor reads.
    #[must_use]
    pub fn control_plane_json(&self) -> PathBuf {
        self.root.join(CONTROL_PLANE)
    }

    /// The user's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The user's registry settings.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.root.join("registries.json")
    }

    /// Up to where pod addresses were given.
    #[must_use]
    pub fn addresses(&self) -> PathBuf {
        self.root.join("addresses")
    }

    /// Keys and certificates ([`crate::pki`]).
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// What [`Self::pki`] was before a backup was put in its place.
    #[must_use]
    pub fn former_pki(&self) -> PathBuf {
        self.root.join("pki.former")
    }

    /// Where a backup is unpacked.
    #[must_use]
    pub fn restore(&self) -> PathBuf {
        self.root.join("restore")
    }

    /// Generated configuration files of the control plane's programs.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// Where the controller manager looks for volume plug-ins; there are none.
    #[must_use]
    pub fn flexvolume(&self) -> PathBuf {
        self.config().join("flexvolume")
    }

    /// etcd's data.
    #[must_use]
    pub fn etcd(&self) -> PathBuf {
        self.root.join("etcd")
    }

    /// In a folder with data of etcd's: what etcd made of it.
    #[must_use]
    pub fn etcd_member(data: &Path) -> PathBuf {
        data.join("member")
    }

    /// Snapshots of etcd's data that is elsewhere.
    #[must_use]
    pub fn etcd_snapshots(&self) -> PathBuf {
        self.root.join("etcd-snapshots")
    }

    /// Which data of etcd's is the cluster's.
    #[must_use]
    pub fn etcd_record(&self) -> PathBuf {
        self.etcd_snapshots().join("record.json")
    }

    /// Logs of the control plane's programs and the kubelet.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The log of one of them.
    #[must_use]
    pub fn log_of(&self, program: &str) -> PathBuf {
        self.log().join(format!("{program}.log"))
    }

    /// The log of the control plane's supervisor.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.log_of("supervisor")
    }

    /// The user's CNI configuration lists.
    #[must_use]
    pub fn network_lists(&self) -> PathBuf {
        self.root.join("net.d")
    }

    /// The user's CNI plug-ins.
    #[must_use]
    pub fn network_plugins(&self) -> PathBuf {
        self.root.join("cni/bin")
    }

    /// The image store ([`crate::image`]).
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Applications that were installed ([`crate::app`]).
    #[must_use]
    pub fn apps(&self) -> PathBuf {
        self.root.join("apps")
    }

    /// The folder of one of them.
    #[must_use]
    pub fn app(&self, name: &str) -> PathBuf {
        self.apps().join(name)
    }

    /// Volumes of claims whose class says no other place.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Which pod has a claim that one pod at a time may have.
    #[must_use]
    pub fn one_pod(&self) -> PathBuf {
        self.volumes().join(".one-pod")
    }

    /// Folders of all pods.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of one pod ([`crate::pod`]).
    #[must_use]
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Folders of all gangs ([`crate::gang`]).
    #[must_use]
    pub fn gangs(&self) -> PathBuf {
        self.root.join("gangs")
    }

    /// Folders of all runs of the local executor ([`crate::run`]).
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Locks, sockets and records of the programs that run now.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Held by hpk-kubelet for its life.
    #[must_use]
    pub fn kubelet_lock(&self) -> PathBuf {
        self.run().join("kubelet.lock")
    }

    /// Held by the control plane's supervisor for its life.
    #[must_use]
    pub fn supervisor_lock(&self) -> PathBuf {
        self.run().join("supervisor.lock")
    }

    /// Which login node runs the control plane.
    #[must_use]
    pub fn lease(&self) -> PathBuf {
        self.run().join("lease.json")
    }

    /// Which Kubernetes the cluster ran with last.
    #[must_use]
    pub fn kubernetes_json(&self) -> PathBuf {
        self.root.join("kubernetes.json")
    }

    /// That the control plane is to be in a job.
    #[must_use]
    pub fn in_job(&self) -> PathBuf {
        self.root.join("in-job.json")
    }

    /// The job that runs the control plane.
    #[must_use]
    pub fn job(&self) -> PathBuf {
        self.run().join("job.json")
    }

    /// The job that waits to go on.
    #[must_use]
    pub fn successor(&self) -> PathBuf {
        self.run().join("successor.json")
    }

    /// Held by hpk up and hpk down while they work.
    #[must_use]
    pub fn command_lock(&self) -> PathBuf {
        self.run().join("up.lock")
    }

    /// Who supervises, and where.
    #[must_use]
    pub fn supervisor_json(&self) -> PathBuf {
        self.run().join("supervisor.json")
    }

    /// Where the control plane's supervisor is asked, unless this path is too long for a socket.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }

    /// Folder of the socket for the API server's way to pods.
    #[must_use]
    pub fn egress(&self) -> PathBuf {
        self.run().join("egress")
    }

    /// That socket, unless this path is too long for one.
    #[must_use]
    pub fn egress_socket(&self) -> PathBuf {
        self.egress().join("kubelet.sock")
    }

    /// Credentials of the control plane's member, which the kubelet writes: `hpk_api::link::LinkCredentials`.
    #[must_use]
    pub fn member_link(&self) -> PathBuf {
        self.run().join("member-link.json")
    }

    /// What `hpk shell` has bash read.
    #[must_use]
    pub fn shell(&self) -> PathBuf {
        self.run().join("shell.bash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_what_it_holds() {
        let home = Home::at("/h/.hpk");
        assert_eq!(Home::of_cluster_file(&home.cluster_json()), home);
        assert_eq!(Home::of_member(&home.pod("u-1")), home);
        assert_eq!(Home::of_member(Path::new("/")).root(), Path::new("/"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(Home::of_cluster_file(Path::new("cluster.json")).root(), here);
    }
}
