//! Waits until everything that `hpk up` has started serves.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use crate::json::need_json;
use crate::progress::Progress;
use crate::supervise::control::{Client, Phase, Snapshot};
use anyhow::{Result, bail};
use hpk_api::cluster::ClusterConfig;
use hpk_layout::Home;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

/// Waits until everything serves and the Node is Ready, and says what to do next.
pub(super) async fn finish(
    home: &Home,
    mut client: Client,
    progress: &Progress,
    timeout: Duration,
) -> Result<ExitCode> {
    let mut last = None;
    match tokio::time::timeout(timeout, wait(home, &mut client, progress, &mut last)).await {
        Ok(done) => done?,
        Err(_) => bail!(
            "not ready after {} s{}\nit goes on in the background: see hpk status",
            timeout.as_secs(),
            why(last.as_ref())
        ),
    }
    let config = home.kubeconfig();
    progress.done("ready");
    println!("Kubernetes is up. Next:\n  export KUBECONFIG={}\n  kubectl get nodes\n  hpk status", config.display());
    Ok(ExitCode::SUCCESS)
}

async fn wait(home: &Home, client: &mut Client, progress: &Progress, last: &mut Option<Snapshot>) -> Result<()> {
    let mut said = HashSet::new();
    let has_kubelet = loop {
        let snapshot = client.must().await?;
        for c in &snapshot.components {
            if matches!(c.phase, Phase::Ready | Phase::Done) && said.insert(c.name.clone()) {
                progress.done(&format!("{} {}", c.name, c.phase));
            }
            // Once per count of restarts, not at every change.
            if c.phase == Phase::Backoff && said.insert(format!("{} {}", c.name, c.restarts)) {
                progress.done(&format!("{} ended and will be started again: {}", c.name, c.message));
            }
        }
        let missing: Vec<_> = snapshot
            .components
            .iter()
            .filter(|c| !matches!(c.phase, Phase::Ready | Phase::Done))
            .map(|c| c.name.clone())
            .collect();
        progress.waiting(format!("waiting for {}", missing.join(", ")));
        let (ready, stopping) = (snapshot.ready, snapshot.stopping);
        let has_kubelet = snapshot.components.iter().any(|c| c.name == "hpk-kubelet");
        *last = Some(snapshot);
        if stopping {
            bail!("the control plane is being stopped");
        }
        if ready {
            break has_kubelet;
        }
    };
    let client = crate::bootstrap::client(home).await?;
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

/// What the components that do not serve say.
fn why(snapshot: Option<&Snapshot>) -> String {
    let mut text = String::new();
    for c in snapshot.iter().flat_map(|s| &s.components) {
        if !matches!(c.phase, Phase::Ready | Phase::Done | Phase::Waiting) {
            text.push_str(&format!("\n  {}: {} {}", c.name, c.phase, c.message));
        }
    }
    text
}
