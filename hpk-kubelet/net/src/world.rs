//! All that is known, and who must be told what of it. Pure: events in, pushes out.
//!
//! A peer is remembered when its link goes down: the link is not the datapath, and a pod lives on without the kubelet.
//! It is forgotten when its pod is.

use crate::dirty::Dirty;
use crate::policies::{self, Cluster, Labels, PodInfo};
use crate::relays::Relays;
use crate::services;
use crate::stand_ins::{self, DNS_SERVICE, StandIn};
use hpk_api::link::{Hello, Listener, MEMBER, NetQuestion, NetUpdate, PolicyFacts, Relay, ServiceFacts, owner};
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

    // ---- services

    /// A Service was made or changed.
    pub fn service(&mut self, service: Service) -> Vec<Push> {
        let key = services::key(service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        self.services.insert(key.clone(), service);
        self.recompile(&key)
    }

    /// A Service is gone.
    pub fn service_gone(&mut self, key: &str) -> Vec<Push> {
        self.services.remove(key);
        self.recompile(key)
    }

    /// An EndpointSlice was made or changed.
    pub fn slice(&mut self, slice: EndpointSlice) -> Vec<Push> {
        let Some(owner) = services::owner(&slice) else { return Vec::new() };
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.slices.entry(owner.clone()).or_default().insert(name, slice);
        self.recompile(&owner)
    }

    /// An EndpointSlice is gone.
    pub fn slice_gone(&mut self, slice: &EndpointSlice) -> Vec<Push> {
        let Some(owner) = services::owner(slice) else { return Vec::new() };
        if let Some(all) = self.slices.get_mut(&owner) {
            all.remove(slice.metadata.name.as_deref().unwrap_or_default());
            if all.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.recompile(&owner)
    }

    fn recompile(&mut self, key: &str) -> Vec<Push> {
        let none = BTreeMap::new();
        let slices = self.slices.get(key).unwrap_or(&none);
        let (relays, ranges, nodes, direct) = (&mut self.relays, &self.pod_ranges, &self.nodes, self.direct);
        let facts = self.services.get(key).and_then(|service| {
            services::compile(service, slices.values(), nodes, |protocol, target| {
                if direct || ranges.iter().any(|r| r.contains(&target.ip())) {
                    Some(target)
                } else {
                    relays.stand_in(protocol, target)
                }
            })
        });
        let mut pushes = Vec::new();
        // The member listens before anybody is sent to it.
        let all = self.relays.all();
        if all != self.relays_told {
            self.relays_told.clone_from(&all);
            self.dirty.all();
            if self.subscribed.contains(MEMBER) {
                pushes.push(Push { to: To::One(MEMBER.to_owned()), facts: vec![NetUpdate::Relays(all)] });
            }
        }
        let wanted = facts.as_ref().map(|f| services::listeners(f, nodes)).unwrap_or_default();
        if self.listeners.get(key).map_or(&[][..], Vec::as_slice) != wanted {
            if wanted.is_empty() {
                self.listeners.remove(key);
            } else {
                self.listeners.insert(key.to_owned(), wanted);
            }
            if self.subscribed.contains(MEMBER) {
                pushes.push(Push { to: To::One(MEMBER.to_owned()), facts: vec![self.all_listeners()] });
            }
        }
        if let Some(dns) = facts.as_ref().filter(|_| key == DNS_SERVICE) {
            let pod = stand_ins::dns_pod(dns);
            self.put_pod(DNS_SERVICE, Some(pod));
        }
        if key == DNS_SERVICE && facts.as_ref() != self.compiled.get(key) {
            // Every pod is told which of the member's ports stand for it.
            self.dirty.all();
        }
        match facts {
            Some(facts) if self.compiled.get(key) == Some(&facts) => {}
            Some(facts) => {
                self.compiled.insert(key.to_owned(), facts.clone());
                pushes.push(Push { to: To::All, facts: vec![NetUpdate::Service(facts)] });
            }
            None => {
                if self.compiled.remove(key).is_some() {
                    pushes.push(Push { to: To::All, facts: vec![NetUpdate::ServiceGone { key: key.to_owned() }] });
                }
            }
        }
        pushes
    }

    fn all_listeners(&self) -> NetUpdate {
        NetUpdate::Listeners(self.listeners.values().flatten().cloned().collect())
    }

    /// A pod as it was last seen.
    #[must_use]
    pub fn known_pod(&self, uid: &str) -> Option<&PodInfo> {
        self.pods.get(uid)
    }

    /// LoadBalancer services that are ours.
    pub(crate) fn balanced(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter(|service| services::is_ours(service))
    }

    /// A Service as it was last seen.
    #[must_use]
    pub fn known_service(&self, key: &str) -> Option<&Service> {
        self.services.get(key)
    }

    /// Forgets relays that no service leads to any more. Not at each change: a target that is away for a moment
    /// (a control plane that restarts) keeps its listener.
    pub fn tidy(&mut self) {
        let used: HashSet<_> = self
            .compiled
            .values()
            .flat_map(|s| s.ports.iter().flat_map(|p| p.endpoints.iter().map(|e| (p.protocol, *e))))
            .collect();
        self.relays.retain(|protocol, at| used.contains(&(protocol, at)));
    }

    // ---- policies

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

    /// The pod is this one now; None: it is gone.
    fn put_pod(&mut self, uid: &str, info: Option<PodInfo>) {
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
    fn linked(&self, uid: &str) -> Vec<IpAddr> {
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
    fn compile(&self, pod: &PodInfo) -> PolicyFacts {
        let cluster = Cluster { pods: &self.pods, namespaces: &self.namespaces };
        // Keys begin with the namespace; no name has a slash, and `0` comes after it.
        let (first, end) = (format!("{}/", pod.namespace), format!("{}0", pod.namespace));
        let own = self.policies.range(first..end).map(|(_, policy)| policy);
        let mut facts = policies::compile(pod, own, cluster);
        stand_ins::extend(&mut facts, &self.stand_ins());
        facts
    }

    fn policy_of(&mut self, uid: &str, always: bool) -> Option<Push> {
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

    // ---- links

    /// A link came up: where the pod's datapath is.
    pub fn up(&mut self, hello: &Hello) -> Vec<Push> {
        let uid = hello.link();
        self.subscribed.remove(&uid);
        let peer = Peer { ips: hello.pod_ips.clone(), endpoint: hello.datapath, key: hello.public_key.clone() };
        for ip in &peer.ips {
            self.by_ip.insert(*ip, uid.clone());
        }
        let ips = peer.ips.clone();
        self.peers.insert(uid.clone(), peer);
        if hello.outpost != 0 {
            self.outposts.entry(hello.pod_uid.clone()).or_default().insert(uid);
        }
        let linked = self.linked(&hello.pod_uid);
        if let Some(pod) = self.pods.get(&hello.pod_uid) {
            let pod = PodInfo { ips: joined(linked, pod.ips.clone()), ..pod.clone() };
            self.put_pod(&hello.pod_uid, Some(pod));
        }
        ips.into_iter().filter_map(|ip| self.tell_askers(ip)).collect()
    }

    /// A link's facts stream stands: it is told everything.
    pub fn subscribed(&mut self, uid: &str) -> Vec<Push> {
        self.subscribed.insert(uid.to_owned());
        let mut facts = Vec::with_capacity(self.compiled.len() + 3);
        if uid == MEMBER {
            facts.push(NetUpdate::Relays(self.relays_told.clone()));
            facts.push(self.all_listeners());
        }
        facts.extend(self.policy_of(uid, true).into_iter().flat_map(|p| p.facts));
        facts.extend(self.compiled.values().cloned().map(NetUpdate::Service));
        facts.push(NetUpdate::ServicesSynced);
        vec![Push { to: To::One(uid.to_owned()), facts }]
    }

    /// A link is down.
    pub fn down(&mut self, uid: &str) {
        self.subscribed.remove(uid);
    }

    /// A question. None: nobody knows; the datapath asks again. The answer holds all addresses of the pod, since they
    /// share one session, in families that the one who asks has itself: another could belong to an older datapath,
    /// which takes each address for a pod.
    pub fn asked(&mut self, uid: &str, question: &NetQuestion) -> Option<Push> {
        let ips = match question {
            NetQuestion::Peer { ip } => match self.by_ip.get(ip).and_then(|owner| self.peers.get(owner)) {
                Some(peer) => peer.ips.clone(),
                None => {
                    self.askers.entry(*ip).or_default().insert(uid.to_owned());
                    // Not known yet is not gone: a datapath that knows better keeps what it has.
                    let fact = self.settled.then(|| self.peer_fact(*ip))?;
                    return Some(Push { to: To::One(uid.to_owned()), facts: vec![fact] });
                }
            },
            NetQuestion::PeerByKey { public_key } => {
                self.peers.values().find(|p| p.key.as_ref() == Some(public_key))?.ips.clone()
            }
            NetQuestion::NotListening { .. } | NetQuestion::Listened { .. } => return None,
        };
        let own = self.peers.get(uid).map(|p| p.ips.clone()).unwrap_or_default();
        let told = |ip: &IpAddr| {
            matches!(question, NetQuestion::Peer { ip: asked } if asked == ip)
                || own.iter().any(|o| o.is_ipv4() == ip.is_ipv4())
        };
        let mut facts = Vec::with_capacity(ips.len());
        for ip in ips.into_iter().filter(told) {
            self.askers.entry(ip).or_default().insert(uid.to_owned());
            facts.push(self.peer_fact(ip));
        }
        (!facts.is_empty()).then(|| Push { to: To::One(uid.to_owned()), facts })
    }

    /// From now on an address that no link has is nobody's.
    pub fn settle(&mut self) {
        self.settled = true;
    }

    fn peer_fact(&self, ip: IpAddr) -> NetUpdate {
        let peer = self.by_ip.get(&ip).and_then(|uid| self.peers.get(uid));
        NetUpdate::Peer { ip, endpoint: peer.and_then(|p| p.endpoint), public_key: peer.and_then(|p| p.key.clone()) }
    }

    fn tell_askers(&self, ip: IpAddr) -> Option<Push> {
        // One push each would do as well; most addresses have few askers, and pushes are cheap.
        let askers = self.askers.get(&ip)?;
        let fact = self.peer_fact(ip);
        match askers.len() {
            0 => None,
            1 => Some(Push { to: To::One(askers.first()?.clone()), facts: vec![fact] }),
            _ => Some(Push { to: To::All, facts: vec![fact] }),
        }
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
