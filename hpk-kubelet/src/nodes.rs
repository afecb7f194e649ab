//! The Nodes of this kubelet: the first, for jobs that name no partition, and one for each further partition.

use anyhow::{Context as _, Result};
use hpk_api::cluster::ClusterConfig;
use hpk_api::nodes::{LABELLER, PARTITION};
use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Config};
use std::collections::BTreeMap;
use thiserror::Error;

/// A Node that is a part of a Slurm cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualNode {
    pub name: String,
    /// The partition that its pods' jobs are submitted to. None: jobs name none, or the one of the pod's own flags.
    pub partition: Option<String>,
    /// The partition whose size it has. None: all of them together.
    pub measured: Option<String>,
    /// It is registered with a taint that keeps other pods off.
    pub tainted: bool,
}

/// All Nodes of this kubelet, the first first. There is always one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    all: Vec<VirtualNode>,
}

impl Nodes {
    #[must_use]
    pub fn of(cluster: &ClusterConfig) -> Self {
        let partitions = &cluster.partitions;
        let first = VirtualNode {
            name: cluster.node_name.clone(),
            partition: None,
            measured: partitions.usual.clone(),
            tainted: false,
        };
        let further = partitions.nodes.iter().map(|n| VirtualNode {
            name: n.name.clone(),
            partition: Some(n.partition.clone()),
            measured: Some(n.partition.clone()),
            tainted: !partitions.untainted,
        });
        Self { all: std::iter::once(first).chain(further).collect() }
    }

    /// The first first.
    pub fn iter(&self) -> impl Iterator<Item = &VirtualNode> {
        self.all.iter()
    }

    /// The Node that a pod is bound to. None: it is not one of ours.
    #[must_use]
    pub fn of_pod(&self, pod: &Pod) -> Option<&VirtualNode> {
        let name = pod.spec.as_ref()?.node_name.as_deref()?;
        self.all.iter().find(|node| node.name == name)
    }

    /// Selects the pods of all Nodes, and perhaps some that are bound to none of them: [`Self::of_pod`] tells.
    #[must_use]
    pub fn selector(&self) -> String {
        match &self.all[..] {
            [one] => format!("spec.nodeName={}", one.name),
            _ => "spec.nodeName!=".to_owned(),
        }
    }
}

/// Clients of the API server, one for each Node. A kubelet may do for a Node and its pods what that Node's user may.
#[derive(Clone)]
pub struct Clients {
    first: Client,
    further: BTreeMap<String, Client>,
    labeller: Client,
}

impl Clients {
    /// `config`: of the first Node's user. It may impersonate the others (`hpk bootstrap` sees to that).
    ///
    /// # Errors
    /// The configuration is of no use.
    pub fn new(config: &Config, nodes: &Nodes) -> Result<Self> {
        let first = Client::try_from(config.clone())?;
        let group = Some("system:nodes");
        let as_node = |node: &VirtualNode| client_as(config, &format!("system:node:{}", node.name), group);
        let further = nodes.iter().skip(1).map(|node| Ok((node.name.clone(), as_node(node)?)));
        Ok(Self { first, further: further.collect::<Result<_>>()?, labeller: client_as(config, LABELLER, None)? })
    }

    /// For what concerns no Node.
    #[must_use]
    pub fn first(&self) -> &Client {
        &self.first
    }

    /// For labels of pods, which no Node may change.
    #[must_use]
    pub fn labeller(&self) -> &Client {
        &self.labeller
    }

    /// For what a Node may do.
    #[must_use]
    pub fn of(&self, node: &str) -> &Client {
        self.further.get(node).unwrap_or(&self.first)
    }

    /// For what the Node of a pod may do.
    #[must_use]
    pub fn of_pod(&self, pod: &Pod) -> &Client {
        self.of(pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default())
    }
}

fn client_as(config: &Config, user: &str, group: Option<&'static str>) -> Result<Client> {
    let mut config = config.clone();
    let name = HeaderValue::try_from(user).with_context(|| format!("user {user}"))?;
    config.headers.push((HeaderName::from_static("impersonate-user"), name));
    let group = group.map(|group| (HeaderName::from_static("impersonate-group"), HeaderValue::from_static(group)));
    config.headers.extend(group);
    Ok(Client::try_from(config)?)
}

/// The pod's own flags name another partition than its Node's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "--partition={given} in the pod's flags, and the pod is on node {node}, which is partition {ours}: remove the flag, and choose the partition by nodeSelector {PARTITION}: {given}"
)]
pub(crate) struct OtherPartition {
    given: String,
    node: String,
    ours: String,
}

/// The partition of a pod's job: its Node's, which the pod's own flags must not contradict.
///
/// # Errors
/// They do.
pub(crate) fn partition<'a>(
    node: Option<&'a VirtualNode>,
    given: Option<&str>,
) -> Result<Option<&'a str>, OtherPartition> {
    let Some((node, ours)) = node.and_then(|n| Some((n, n.partition.as_deref()?))) else { return Ok(None) };
    match given {
        Some(given) if given != ours => {
            Err(OtherPartition { given: given.to_owned(), node: node.name.clone(), ours: ours.to_owned() })
        }
        _ => Ok(Some(ours)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn nodes(partitions: serde_json::Value) -> Nodes {
        let mut cluster = crate::pods::plan::tests::cluster();
        cluster.partitions = serde_json::from_value(partitions).expect("partitions");
        Nodes::of(&cluster)
    }

    fn bound(node: &str) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [], "nodeName": node}})).expect("pod")
    }

    #[test]
    fn one_node_unless_partitions_are_chosen() {
        let one = nodes(json!({}));
        assert_eq!(one.selector(), "spec.nodeName=hpk-site");
        assert_eq!(one.iter().map(|n| n.measured.clone()).collect::<Vec<_>>(), [None]);
        let two = nodes(json!({"usual": "main", "nodes": [{"name": "hpk-site-debug", "partition": "debug"}]}));
        assert_eq!(two.selector(), "spec.nodeName!=");
        assert_eq!(two.of_pod(&bound("hpk-site")).and_then(|n| n.measured.as_deref()), Some("main"));
        let debug = two.of_pod(&bound("hpk-site-debug")).expect("a node");
        assert!(debug.tainted && debug.partition.as_deref() == Some("debug"));
        assert_eq!(two.of_pod(&bound("hpk-site-other")), None);
        assert_eq!(two.of_pod(&serde_json::from_value(json!({"spec": {"containers": []}})).expect("pod")), None);
    }

    #[test]
    fn the_node_says_which_partition() {
        let two = nodes(json!({"nodes": [{"name": "hpk-site-debug", "partition": "debug"}]}));
        let (first, debug) = (two.iter().next(), two.iter().nth(1));
        assert_eq!(partition(first, Some("any")), Ok(None));
        assert_eq!(partition(debug, None), Ok(Some("debug")));
        assert_eq!(partition(debug, Some("debug")), Ok(Some("debug")));
        let refused = partition(debug, Some("main")).expect_err("another partition").to_string();
        assert!(refused.contains("hpk-site-debug") && refused.contains("nodeSelector"), "{refused}");
        assert_eq!(partition(None, Some("main")), Ok(None));
    }
}
