//! Names in the folder of keys and certificates.

use std::path::{Path, PathBuf};

/// The cluster's authority.
pub const CA: &str = "ca";
/// etcd's authority.
pub const ETCD_CA: &str = "etcd-ca";
/// The authority of the API server's aggregation layer.
pub const FRONT_PROXY_CA: &str = "front-proxy-ca";
/// The link's authority, which hpk-kubelet makes.
pub const LINK_CA: &str = "link-ca";
/// The API server as a server.
pub const APISERVER: &str = "apiserver";
/// The API server as a client of kubelets.
pub const APISERVER_KUBELET_CLIENT: &str = "apiserver-kubelet-client";
/// The API server as a client of etcd.
pub const APISERVER_ETCD_CLIENT: &str = "apiserver-etcd-client";
/// The API server as a client of aggregated API servers.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";
/// etcd, to its clients and to itself.
pub const ETCD: &str = "etcd";
/// The controller manager as a server.
pub const CONTROLLER_MANAGER_SERVER: &str = "kube-controller-manager-server";
/// The controller manager as a client.
pub const CONTROLLER_MANAGER: &str = "controller-manager";
/// The scheduler as a server.
pub const SCHEDULER_SERVER: &str = "kube-scheduler-server";
/// The scheduler as a client.
pub const SCHEDULER: &str = "scheduler";
/// CoreDNS as a client.
pub const COREDNS: &str = "coredns";
/// The user as the cluster's administrator.
pub const ADMIN: &str = "admin";
/// The kubelet as a server.
pub const KUBELET_SERVER: &str = "kubelet-server";
/// The kubelet as a client.
pub const KUBELET: &str = "kubelet";
/// The key that signs tokens of service accounts.
pub const SERVICE_ACCOUNTS: &str = "sa";

/// PEM, of what is named so.
#[must_use]
pub fn certificate(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.crt"))
}

/// PEM, for its owner alone.
#[must_use]
pub fn key(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}

/// The public half of a key, PEM.
#[must_use]
pub fn public_key(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pub"))
}

/// How a program of the control plane reaches the API server.
#[must_use]
pub fn kubeconfig(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.kubeconfig"))
}

/// When each certificate ends.
#[must_use]
pub fn index(folder: &Path) -> PathBuf {
    folder.join("index.json")
}
