//! For which pods policies may mean something else than what they were told. What is not in here need not be compiled again.

use crate::policies::{self, Labels, PodInfo};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use std::collections::{BTreeMap, HashSet};

/// What has changed since the policies were compiled last.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// What all pods are told.
    all: bool,
    /// Pods themselves, by UID.
    pods: HashSet<String>,
    /// The policies of these namespaces, or which pods they select.
    namespaces: HashSet<String>,
    /// What these policies mean by their peers, by key.
    policies: HashSet<String>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && self.pods.is_empty() && self.namespaces.is_empty() && self.policies.is_empty()
    }

    /// Something has changed of which every pod is told.
    pub(crate) fn all(&mut self) {
        self.all = true;
    }

    /// A policy of this namespace was made, changed or removed.
    pub(crate) fn policies_of(&mut self, namespace: &str) {
        self.namespaces.insert(namespace.to_owned());
    }

    /// A pod was made, changed or removed: policies of which it is a peer mean something else now.
    pub(crate) fn pod(
        &mut self,
        uid: &str,
        states: [Option<&PodInfo>; 2],
        policies: &BTreeMap<String, NetworkPolicy>,
        namespaces: &BTreeMap<String, Labels>,
    ) {
        self.pods.insert(uid.to_owned());
        let concerned = policies.iter().filter(|(_, policy)| {
            states.into_iter().flatten().any(|pod| policies::may_have_peer(policy, pod, namespaces))
        });
        self.policies.extend(concerned.map(|(key, _)| key.clone()));
    }

    /// A namespace's labels have changed.
    pub(crate) fn labels_of_namespaces(&mut self, policies: &BTreeMap<String, NetworkPolicy>) {
        let concerned = policies.iter().filter(|(_, policy)| policies::selects_namespaces(policy));
        self.policies.extend(concerned.map(|(key, _)| key.clone()));
    }

    /// Whether this pod's policies must be compiled again.
    pub(crate) fn concerns(&self, uid: &str, pod: &PodInfo, policies: &BTreeMap<String, NetworkPolicy>) -> bool {
        self.all
            || self.pods.contains(uid)
            || self.namespaces.contains(&pod.namespace)
            || self.policies.iter().filter_map(|key| policies.get(key)).any(|policy| policies::selects(policy, pod))
    }
}
