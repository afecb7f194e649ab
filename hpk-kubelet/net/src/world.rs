//! All that is known, and who must be told what of it. Pure: events in, pushes out.
//!
//! A peer is remembered when its link goes down: the link is not the datapath, and a pod lives on without the kubelet.
//! It is forgotten when its pod is.

mod links;
mod pods;
mod services;

use crate::dirty::Dirty;
use crate::policies::{Labels, PodInfo};
use crate::relays::Relays;
use hpk_api::link::{Listener, NetUpdate, PolicyFacts, Relay, ServiceFacts};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Every subscribed link.
    All,
    /// One link, by pod UID.
    One(String),
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub to: To,
    /// In this order.
    pub facts: Vec<NetUpdate>,
}

/// A pod's datapath, as its link said.
#[derive(Clone, Debug)]
struct Peer {
    ips: Vec<IpAddr>,
    endpoint: Option<std::net::SocketAddr>,
    key: Option<String>,
}

#[derive(Debug)]
pub struct World {
    /// Pods are in the site's own network and reach whatever the node reaches: no relays.
    direct: bool,
    pod_ranges: Vec<IpNet>,
    services: BTreeMap<String, Service>,
    slices: HashMap<String, BTreeMap<String, EndpointSlice>>,
    compiled: BTreeMap<String, ServiceFacts>,
    relays: Relays,
    relays_told: Vec<Relay>,
    /// The login node's addresses.
    nodes: Vec<IpAddr>,
    /// By service.
    listeners: BTreeMap<String, Vec<Listener>>,
    policies: BTreeMap<String, NetworkPolicy>,
    pods: BTreeMap<String, PodInfo>,
    namespaces: BTreeMap<String, Labels>,
    policy_told: HashMap<String, PolicyFacts>,
    /// What has changed since [`World::policies`].
    dirty: Dirty,
    peers: HashMap<String, Peer>,
    by_ip: HashMap<IpAddr, String>,
    /// Names of links of outposts, by pod.
    outposts: HashMap<String, BTreeSet<String>>,
    /// Who asked for an address, and is told when its owner changes.
    askers: HashMap<IpAddr, BTreeSet<String>>,
    subscribed: HashSet<String>,
    /// Links of pods that ran before this kubelet did have had time to come back.
    settled: bool,
}

impl World {
    /// `pod_cidr`: endpoints within are peers, others go through the member; one range of each family. `nodes`: the
    /// login node's addresses.
    #[must_use]
    pub fn new(pod_cidr: &str, nodes: Vec<IpAddr>) -> Self {
        let pod_ranges = hpk_api::net::ranges(pod_cidr).unwrap_or_default();
        let member = pod_ranges.iter().map(hpk_api::net::first_host).collect();
        Self {
            direct: false,
            pod_ranges,
            services: BTreeMap::new(),
            slices: HashMap::new(),
            compiled: BTreeMap::new(),
            relays: Relays::new(member),
            relays_told: Vec::new(),
            nodes,
            listeners: BTreeMap::new(),
            policies: BTreeMap::new(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            policy_told: HashMap::new(),
            dirty: Dirty::default(),
            peers: HashMap::new(),
            by_ip: HashMap::new(),
            outposts: HashMap::new(),
            askers: HashMap::new(),
            subscribed: HashSet::new(),
            settled: false,
        }
    }

    /// As it is when the network is the site's (mode cni).
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }
}

/// All of them, each once, in this order.
fn joined(mut first: Vec<IpAddr>, then: Vec<IpAddr>) -> Vec<IpAddr> {
    for ip in then {
        if !first.contains(&ip) {
            first.push(ip);
        }
    }
    first
}

#[cfg(test)]
mod tests;
