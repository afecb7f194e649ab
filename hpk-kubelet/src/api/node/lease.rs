//! A Node's lease, which says that its kubelet lives.

use super::RENEW;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;

/// Lease of 40 s, renewed every 10 s.
pub(super) async fn keep(client: Client, node: String) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(client);
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = renew(&leases, &nodes, &node).await {
            tracing::warn!(%error, "lease not renewed");
        }
    }
}

async fn renew(leases: &Api<Lease>, nodes: &Api<Node>, node: &str) -> Result<(), Error> {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
    let patch = json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now}});
    match leases.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => return Ok(()),
        Err(Error::Api(answer)) if answer.code == 404 => {}
        Err(error) => return Err(error),
    }
    // Owned by the Node, so that it goes with it; before the Node exists there is nothing to renew.
    let Some(uid) = nodes.get_opt(node).await?.and_then(|n| n.metadata.uid) else { return Ok(()) };
    let lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": node, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now},
    }))
    .map_err(Error::SerdeError)?;
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}
