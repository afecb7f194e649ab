//! Pods, and the policies that select them.

use super::{Push, To, World, joined};
use crate::policies::{self, Cluster, Labels, PodInfo};
use crate::services;
use crate::stand_ins::{self, DNS_SERVICE, StandIn};
use hpk_api::link::{NetUpdate, PolicyFacts, Relay, owner};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use std::net::IpAddr;

impl World {
    /// A NetworkPolicy was made or changed.
    pub fn policy(&mut self, policy: NetworkPolicy) {
        let key = services::key(policy.metadata.namespace.as_deref(), policy.metadata.name.as_deref());
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        if self.policies.get(&key).is_none_or(|old| old.spec != policy.spec) {
            self.dirty.policies_of(&namespace);
        }
        self.policies.insert(key, policy);
    }

    /// A NetworkPolicy is gone.
    pub fn policy_gone(&mut self, key: &str) {
        if let Some(old) = self.policies.remove(key) {
            self.dirty.policies_of(old.metadata.namespace.as_deref().unwrap_or_default());
        }
    }

    /// A Namespace's labels.
    pub fn namespace(&mut self, name: &str, labels: Labels) {
        if self.namespaces.get(name) != Some(&labels) {
            self.namespaces.insert(name.to_owned(), labels);
            self.dirty.labels_of_namespaces(&self.policies);
        }
    }

    /// A Namespace is gone.
    pub fn namespace_gone(&mut self, name: &str) {
        if self.namespaces.remove(name).is_some() {
            self.dirty.labels_of_namespaces(&self.policies);
        }
    }

    /// A pod was made or changed. Addresses of its link are better known than those of its status.
    pub fn pod(&mut self, uid: &str, mut info: PodInfo) {
        info.ips = joined(self.linked(uid), std::mem::take(&mut info.ips));
        self.put_pod(uid, Some(info));
    }

    /// A pod as it was last seen.
    #[must_use]
    pub fn known_pod(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid)
    }

    /// The pod is this one now; None: it is gone.
    pub(super) fn put_pod(&mut self, uid: &str, info: Option<PodInfo>) {
        let old = self.pods.get(uid);
        if old != info.as_ref() {
            self.dirty.pod(uid, [old, info.as_ref()], &self.policies, &self.namespaces);
        }
        match info {
            Some(info) => drop(self.pods.insert(uid.to_owned(), info)),
            None => drop(self.pods.remove(uid)),
        }
    }

    /// Addresses that a pod's links have said, its outposts' too.
    pub(super) fn linked(&self, uid: &str) -> Vec<IpAddr> {
        let own = self.peers.get(uid);
        let outposts = self.outposts.get(uid).into_iter().flatten().filter_map(|link| self.peers.get(link));
        own.into_iter().chain(outposts).flat_map(|peer| peer.ips.iter().copied()).collect()
    }

    /// A pod is gone: its peers forget it.
    pub fn pod_gone(&mut self, uid: &str) -> Vec<Push> {
        self.put_pod(uid, None);
        let outposts = self.outposts.remove(uid).unwrap_or_default();
        let mut pushes = Vec::new();
        for link in std::iter::once(uid.to_owned()).chain(outposts) {
            self.policy_told.remove(&link);
            let Some(peer) = self.peers.remove(&link) else { continue };
            for all in self.askers.values_mut() {
                all.remove(&link);
            }
            for ip in peer.ips {
                if self.by_ip.get(&ip) == Some(&link) {
                    self.by_ip.remove(&ip);
                    pushes.extend(self.tell_askers(ip));
                }
            }
        }
        self.askers.retain(|_, all| !all.is_empty());
        pushes
    }

    /// Policies anew for the subscribed pods that a change concerns; only what differs is pushed. To be called a moment after
    /// a burst of changes.
    pub fn policies(&mut self) -> Vec<Push> {
        let dirty = std::mem::take(&mut self.dirty);
        let concerned = |link: &&String| {
            let uid = owner(link);
            self.pods.get(uid).is_some_and(|pod| dirty.concerns(uid, pod, &self.policies))
        };
        let concerned: Vec<String> = self.subscribed.iter().filter(concerned).cloned().collect();
        concerned.into_iter().filter_map(|uid| self.policy_of(&uid, false)).collect()
    }

    /// Whether [`Self::policies`] is to be called.
    #[must_use]
    pub fn policies_due(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn stand_ins(&self) -> Vec<StandIn> {
        let dns = self.compiled.get(DNS_SERVICE);
        let stand_in = |relay: &Relay| {
            let (protocol, at) = (relay.protocol, self.relays.place(relay)?);
            let named = dns.into_iter().flat_map(|dns| stand_ins::dns_names(dns, protocol, at));
            Some(StandIn { protocol, at, targets: std::iter::once(relay.target).chain(named).collect() })
        };
        self.relays_told.iter().filter_map(stand_in).collect()
    }

    /// What the pod's policies mean now.
    pub(super) fn compile(&self, pod: &PodInfo) -> PolicyFacts {
        let cluster = Cluster { pods: &self.pods, namespaces: &self.namespaces };
        // Keys begin with the namespace; no name has a slash, and `0` comes after it.
        let (first, end) = (format!("{}/", pod.namespace), format!("{}0", pod.namespace));
        let own = self.policies.range(first..end).map(|(_, policy)| policy);
        let mut facts = policies::compile(pod, own, cluster);
        stand_ins::extend(&mut facts, &self.stand_ins());
        facts
    }

    pub(super) fn policy_of(&mut self, uid: &str, always: bool) -> Option<Push> {
        let pod = self.pods.get(owner(uid))?;
        let facts = self.compile(pod);
        let none = PolicyFacts::default();
        let told = self.policy_told.get(uid).unwrap_or(&none);
        if !always && *told == facts {
            return None;
        }
        self.policy_told.insert(uid.to_owned(), facts.clone());
        Some(Push { to: To::One(uid.to_owned()), facts: vec![NetUpdate::Policy(facts)] })
    }
}
