//! What must be there in the cluster before a user can go on, and what is said then.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use super::version;
use crate::decide::ControlPlane;
use crate::json::need_json;
use crate::progress::Progress;
use anyhow::{Context, Result};
use hpk_api::cluster::ClusterConfig;
use hpk_layout::Home;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use tokio::time::Instant;

/// Waits as `hpk up` does, until `give_up`.
///
/// # Errors
/// It takes longer.
pub(crate) async fn until(home: &Home, progress: &Progress, give_up: Instant) -> Result<()> {
    let kubelet = need_json::<ControlPlane>(&home.control_plane_json())?.kubelet.is_some();
    let waited = tokio::time::timeout_at(give_up, wait(home, kubelet, progress)).await;
    waited.context("the cluster is not ready in time: see hpk status")?
}

/// Says that all is well, and what to do next.
pub(crate) fn tell(home: &Home, progress: &Progress) {
    let config = home.kubeconfig();
    progress.done("ready");
    println!("Kubernetes is up. Next:\n  export KUBECONFIG={}\n  kubectl get nodes\n  hpk status", config.display());
}

/// Waits for the Nodes and for the default service account.
pub(super) async fn wait(home: &Home, has_kubelet: bool, progress: &Progress) -> Result<()> {
    let client = crate::bootstrap::client(home).await?;
    let control_plane: ControlPlane = need_json(&home.control_plane_json())?;
    version::remember(home, &client, &control_plane.programs).await?;
    if has_kubelet {
        node_ready(home, &client, progress).await?;
    }
    default_account(client, progress).await
}

/// Without the default service account the API server refuses every pod; the controller manager makes it some seconds
/// after the first start.
async fn default_account(client: kube::Client, progress: &Progress) -> Result<()> {
    progress.waiting("waiting for the default service account".to_owned());
    let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(client, "default");
    kube::runtime::wait::await_condition(accounts, "default", |a: Option<&ServiceAccount>| a.is_some()).await?;
    Ok(())
}

async fn node_ready(home: &Home, client: &kube::Client, progress: &Progress) -> Result<()> {
    let cluster: ClusterConfig = need_json(&home.cluster_json())?;
    let nodes: kube::Api<Node> = kube::Api::all(client.clone());
    let ready = |node: Option<&Node>| {
        node.and_then(|n| n.status.as_ref()?.conditions.as_ref())
            .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    for name in std::iter::once(&cluster.node_name).chain(cluster.partitions.nodes.iter().map(|n| &n.name)) {
        progress.waiting(format!("waiting for node {name} to be Ready"));
        kube::runtime::wait::await_condition(nodes.clone(), name, ready).await?;
        progress.done(&format!("node {name} Ready"));
    }
    Ok(())
}
