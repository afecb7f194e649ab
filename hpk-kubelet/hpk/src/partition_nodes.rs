//! What the Nodes of partitions need beside the kubelet that registers them: its right to speak for each of them, taints
//! that follow the user's choice, and the end of Nodes that are left out.

use crate::apply::{BootstrapError, apply};
use hpk_api::cluster::ClusterConfig;
use hpk_api::nodes::{LABELLER, PARTITION};
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// Name of the role and of its binding.
const ROLE: &str = "hpk:kubelet-as";

pub(crate) async fn run(client: &Client, cluster: &ClusterConfig, labels: &Value) -> Result<(), BootstrapError> {
    apply::<ClusterRole>(&Api::all(client.clone()), role(cluster, labels)).await?;
    apply::<ClusterRoleBinding>(&Api::all(client.clone()), binding(cluster, labels)).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let failed = |source| BootstrapError::Api { name: "nodes".to_owned(), source: Box::new(source) };
    for node in nodes.list(&ListParams::default().labels(PARTITION)).await.map_err(failed)? {
        let name = node.name_any();
        if name == cluster.node_name {
            continue;
        }
        let Some(partition) = cluster.partitions.nodes.iter().find(|n| n.name == name) else {
            nodes.delete(&name, &DeleteParams::default()).await.map_err(failed)?;
            continue;
        };
        taint(&nodes, node, |now| taints(now, &partition.partition, cluster.partitions.untainted))
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// Gives a Node the taints that `wanted` makes of those that it has. Here, since a kubelet may not change its Node's taints.
/// The list is replaced as a whole: the patch holds only for the version that was read, so that a taint which somebody else
/// sets in between stays.
async fn taint(nodes: &Api<Node>, mut node: Node, wanted: impl Fn(&[Taint]) -> Vec<Taint>) -> kube::Result<()> {
    const CONFLICT: u16 = 409;
    loop {
        let now = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let wanted = wanted(&now);
        if wanted == now {
            return Ok(());
        }
        let version = node.metadata.resource_version.take();
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": wanted}});
        match nodes.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == CONFLICT => node = nodes.get(&node.name_any()).await?,
            result => return result.map(drop),
        }
    }
}

/// The Node's taints with or without ours. Those that others set stay, and so does another effect that the user gave ours.
fn taints(now: &[Taint], partition: &str, untainted: bool) -> Vec<Taint> {
    let ours = |t: &&Taint| t.key == PARTITION;
    let mut wanted: Vec<Taint> = now.iter().filter(|t| !(untainted && ours(t))).cloned().collect();
    if !untainted && !now.iter().any(|t| ours(&t)) {
        wanted.push(Taint {
            key: PARTITION.to_owned(),
            value: Some(partition.to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        });
    }
    wanted
}

fn user(node: &str) -> String {
    format!("system:node:{node}")
}

/// The kubelet has one certificate, of the first Node. For each further Node it acts as that Node's user, so that the Node
/// authorizer and NodeRestriction hold for each of them as for a kubelet of its own.
fn role(cluster: &ClusterConfig, labels: &Value) -> Value {
    let nodes = cluster.partitions.nodes.iter().map(|n| user(&n.name));
    let users: Vec<String> = std::iter::once(LABELLER.to_owned()).chain(nodes).collect();
    let mut rules =
        vec![json!({"apiGroups": [""], "resources": ["users"], "resourceNames": users, "verbs": ["impersonate"]})];
    if users.len() > 1 {
        let groups = ["system:nodes"];
        rules.push(
            json!({"apiGroups": [""], "resources": ["groups"], "resourceNames": groups, "verbs": ["impersonate"]}),
        );
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": ROLE, "labels": labels}, "rules": rules,
    })
}

fn binding(cluster: &ClusterConfig, labels: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": ROLE, "labels": labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user(&cluster.node_name)}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::nodes::PartitionNode;

    #[test]
    fn the_kubelet_may_speak_for_its_own_nodes_only() {
        let mut cluster = crate::decide::tests::layout().cluster;
        let rules = role(&cluster, &json!({}))["rules"].clone();
        assert_eq!((&rules[0]["resourceNames"], &rules[1]), (&json!([LABELLER]), &Value::Null));
        cluster.partitions.nodes =
            vec![PartitionNode { name: "hpk-site-debug".to_owned(), partition: "debug".to_owned() }];
        let role = role(&cluster, &json!({}));
        assert_eq!(role["rules"][0]["resourceNames"], json!([LABELLER, "system:node:hpk-site-debug"]));
        assert_eq!(role["rules"][1]["resourceNames"], json!(["system:nodes"]));
        assert_eq!(binding(&cluster, &json!({}))["subjects"][0]["name"], "system:node:hpk-site");
    }

    #[test]
    fn taints_of_others_stay() {
        let taint = |key: &str, effect: &str| Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            value: Some("debug".to_owned()),
            time_added: None,
        };
        let (ours, other) = (taint(PARTITION, "NoSchedule"), taint("x", "NoExecute"));
        let harder = taint(PARTITION, "NoExecute");
        assert_eq!(taints(&[], "debug", false), std::slice::from_ref(&ours));
        assert_eq!(taints(std::slice::from_ref(&harder), "debug", false), [harder]);
        assert_eq!(taints(&[other.clone(), ours], "debug", true), [other]);
    }
}
