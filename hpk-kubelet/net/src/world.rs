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

/// To whom.
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
    /// To whom.
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

/// The state.
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
    /// The Node's address.
    node: IpAddr,
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
    /// `pod_cidr`: endpoints within are peers, others go through the member; one range of each family. `node`: the
    /// Node's address.
    #[must_use]
    pub fn new(pod_cidr: &str, node: IpAddr) -> Self {
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
            node,
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
        let (relays, ranges, node, direct) = (&mut self.relays, &self.pod_ranges, self.node, self.direct);
        let facts = self.services.get(key).and_then(|service| {
            services::compile(service, slices.values(), node, |protocol, target| {
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
        let wanted = facts.as_ref().map(|f| services::listeners(f, node)).unwrap_or_default();
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
            NetQuestion::NotListening { .. } => return None,
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn hello(uid: &str, ip: &str, port: u16, key: &str) -> Hello {
        Hello {
            version: 1,
            pod_uid: uid.into(),
            job_id: String::new(),
            node: String::new(),
            datapath: Some(([10, 77, 0, 11], port).into()),
            public_key: Some(key.into()),
            pod_ips: ip.split(',').map(|ip| ip.parse().unwrap()).collect(),
            outward: None,
            outpost: 0,
        }
    }

    fn service(name: &str, ip: &str) -> Service {
        serde_json::from_value(
            json!({"metadata": {"namespace": "d", "name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 443}]}}),
        )
        .unwrap()
    }

    fn slice(name: &str, ip: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"port": 6443}], "endpoints": [{"addresses": [ip]}]
        }))
        .unwrap()
    }

    fn endpoints(pushes: &[Push]) -> Vec<String> {
        pushes
            .iter()
            .flat_map(|p| &p.facts)
            .filter_map(|f| match f {
                NetUpdate::Service(s) => {
                    Some(s.ports.iter().flat_map(|p| p.endpoints.iter().map(ToString::to_string)).collect::<Vec<_>>())
                }
                _ => None,
            })
            .flatten()
            .collect()
    }

    #[test]
    fn an_endpoint_outside_goes_through_the_member_which_hears_first() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        w.subscribed(MEMBER);
        assert!(w.slice(slice("api", "10.77.0.1")).is_empty(), "no service yet");
        let pushes = w.service(service("api", "10.96.0.1"));
        let NetUpdate::Relays(relays) = &pushes[0].facts[0] else { panic!("{pushes:?}") };
        assert_eq!(relays[0].target, "10.77.0.1:6443".parse().unwrap());
        assert_eq!(endpoints(&pushes), [format!("10.244.0.1:{}", relays[0].port)]);
        assert!(w.slice(slice("api", "10.77.0.1")).is_empty(), "nothing new, nothing said");
        let pushes = w.slice(slice("api", "10.244.3.3"));
        assert_eq!(endpoints(&pushes), ["10.244.3.3:6443"]);
        let gone = w.service_gone("d/api");
        assert_eq!(gone[0].facts, [NetUpdate::ServiceGone { key: "d/api".into() }]);
    }

    #[test]
    fn the_member_listens_for_node_ports() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        let with = |port: u16| -> Service {
            let mut s = service("web", "10.96.0.1");
            let spec = s.spec.as_mut().unwrap();
            spec.type_ = Some("NodePort".into());
            spec.ports.as_mut().unwrap()[0].node_port = Some(port.into());
            s
        };
        let heard = |pushes: &[Push]| {
            pushes.iter().flat_map(|p| &p.facts).find_map(|f| match f {
                NetUpdate::Listeners(all) => {
                    Some(all.iter().map(|l| (l.at.to_string(), l.endpoints.len())).collect::<Vec<_>>())
                }
                _ => None,
            })
        };
        w.service(with(30_001));
        w.slice(slice("web", "10.244.3.3"));
        let at = |n: u16| (format!("10.77.0.1:{n}"), 1);
        assert_eq!(heard(&w.subscribed(MEMBER)).unwrap(), [at(30_001)]);
        assert_eq!(heard(&w.service(with(30_001))), None, "nothing new");
        assert_eq!(heard(&w.service(with(30_002))).unwrap(), [at(30_002)]);
        assert!(heard(&w.service_gone("d/web")).unwrap().is_empty());
    }

    #[test]
    fn a_subscriber_is_told_everything_and_that_it_was_everything() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        w.service(service("a", "10.96.0.1"));
        w.service(service("b", "10.96.0.2"));
        w.pod("u", PodInfo { namespace: "d".into(), ..PodInfo::default() });
        let facts = &w.subscribed("u")[0].facts;
        assert!(
            matches!(
                facts[..],
                [NetUpdate::Policy(_), NetUpdate::Service(_), NetUpdate::Service(_), NetUpdate::ServicesSynced]
            ),
            "{facts:?}"
        );
    }

    #[test]
    fn who_asked_hears_of_changes() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        w.up(&hello("a", "10.244.1.1", 1, "ka"));
        let ip = "10.244.1.2".parse().unwrap();
        let fact = |push: Option<Push>| match push.unwrap().facts[0].clone() {
            NetUpdate::Peer { endpoint, public_key, .. } => (endpoint.map(|e| e.port()), public_key),
            other => panic!("{other:?}"),
        };
        assert!(w.asked("a", &NetQuestion::Peer { ip }).is_none(), "its link may be on its way back");
        w.settle();
        assert_eq!(fact(w.asked("a", &NetQuestion::Peer { ip })), (None, None));
        let told = w.up(&hello("b", "10.244.1.2", 2, "kb"));
        assert_eq!(told[0].to, To::One("a".into()));
        assert_eq!(fact(told.into_iter().next()), (Some(2), Some("kb".into())));
        // By key, the other way round.
        assert_eq!(
            fact(w.asked("b", &NetQuestion::PeerByKey { public_key: "ka".into() })),
            (Some(1), Some("ka".into()))
        );
        assert!(w.asked("b", &NetQuestion::PeerByKey { public_key: "?".into() }).is_none());
        // A link that goes down is not a pod that is gone.
        w.down("b");
        assert_eq!(fact(w.asked("a", &NetQuestion::Peer { ip })).0, Some(2));
        assert_eq!(fact(w.pod_gone("b").into_iter().next()), (None, None));
    }

    #[test]
    fn an_answer_holds_both_addresses_for_who_has_both() {
        let mut w = World::new("10.244.0.0/16,fd00::/64", "10.77.0.1".parse().unwrap());
        w.up(&hello("a", "10.244.1.1,fd00::101", 1, "ka"));
        w.up(&hello("b", "10.244.1.2,fd00::102", 2, "kb"));
        w.up(&hello("old", "10.244.1.3", 3, "ko"));
        let ips = |push: Option<Push>| -> Vec<String> {
            let fact = |f: &NetUpdate| match f {
                NetUpdate::Peer { ip, endpoint: Some(_), .. } => ip.to_string(),
                other => panic!("{other:?}"),
            };
            push.unwrap().facts.iter().map(fact).collect()
        };
        let both = ["10.244.1.2", "fd00::102"];
        assert_eq!(ips(w.asked("a", &NetQuestion::Peer { ip: both[1].parse().unwrap() })), both);
        assert_eq!(ips(w.asked("a", &NetQuestion::PeerByKey { public_key: "kb".into() })), both);
        assert_eq!(ips(w.asked("old", &NetQuestion::PeerByKey { public_key: "kb".into() })), both[..1]);
        assert_eq!(ips(w.asked("a", &NetQuestion::PeerByKey { public_key: "ko".into() })), ["10.244.1.3"]);
        // Both are told to be gone.
        assert_eq!(w.pod_gone("b").len(), 2);
    }

    #[test]
    fn an_ipv6_endpoint_outside_goes_through_the_members_ipv6_address() {
        let mut w = World::new("10.244.0.0/16,fd00::/64", "10.77.0.1".parse().unwrap());
        w.service(service("out", "fd01::5"));
        let mut s = slice("out", "2001:db8::7");
        s.address_type = "IPv6".into();
        let seen = endpoints(&w.slice(s));
        assert!(seen.len() == 1 && seen[0].starts_with("[fd00::1]:"), "{seen:?}");
        let mut s = slice("out", "fd00::107");
        s.address_type = "IPv6".into();
        assert_eq!(endpoints(&w.slice(s)), ["[fd00::107]:6443"]);
    }

    #[test]
    fn policies_are_pushed_when_they_change() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        w.pod("u", PodInfo { namespace: "d".into(), ..PodInfo::default() });
        w.subscribed("u");
        assert!(w.policies().is_empty());
        w.policy(
            serde_json::from_value(
                json!({"metadata": {"namespace": "d", "name": "deny"}, "spec": {"podSelector": {}}}),
            )
            .unwrap(),
        );
        assert_eq!(w.policies().len(), 1);
        assert!(w.policies().is_empty());
        w.policy_gone("d/deny");
        assert_eq!(w.policies().len(), 1);
    }

    /// A change of what pods and policies are.
    #[derive(Clone, Debug)]
    enum Change {
        Pod { uid: u8, namespace: u8, label: u8, ip: u8, port: Option<u16> },
        PodGone(u8),
        Up { uid: u8, ip: u8 },
        Namespace { name: u8, label: u8 },
        NamespaceGone(u8),
        Policy { namespace: u8, name: u8, spec: serde_json::Value },
        PolicyGone { namespace: u8, name: u8 },
        Dns(u8),
        Subscribed(u8),
        Down(u8),
        Compile,
    }

    fn apply(w: &mut World, change: Change) {
        let address = |ip: u8| format!("10.244.0.{ip}");
        let (ns, uid) = (|n: u8| format!("n{n}"), |n: u8| format!("u{n}"));
        match change {
            Change::Pod { uid: u, namespace, label, ip, port } => {
                let info = PodInfo {
                    namespace: ns(namespace),
                    labels: Labels::from([("l".to_owned(), label.to_string())]),
                    ips: vec![address(ip).parse().unwrap()],
                    ports: port
                        .map(|port| ("web".to_owned(), hpk_api::link::Protocol::Tcp, port))
                        .into_iter()
                        .collect(),
                    ..PodInfo::default()
                };
                w.pod(&uid(u), info);
            }
            Change::PodGone(u) => drop(w.pod_gone(&uid(u))),
            Change::Up { uid: u, ip } => drop(w.up(&hello(&uid(u), &address(ip), 1, "k"))),
            Change::Namespace { name, label } => {
                w.namespace(&ns(name), Labels::from([("l".to_owned(), label.to_string())]));
            }
            Change::NamespaceGone(name) => w.namespace_gone(&ns(name)),
            Change::Policy { namespace, name, spec } => {
                let policy = json!({"metadata": {"namespace": ns(namespace), "name": name.to_string()}, "spec": spec});
                w.policy(serde_json::from_value(policy).unwrap());
            }
            Change::PolicyGone { namespace, name } => w.policy_gone(&format!("{}/{name}", ns(namespace))),
            Change::Dns(ip) => {
                let meta = json!({"namespace": "kube-system", "name": "kube-dns"});
                let ports = json!([{"port": 53, "protocol": "UDP"}]);
                let spec = json!({"clusterIP": "10.96.0.10", "ports": ports});
                w.service(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap());
                let mut dns = slice("kube-dns", &format!("10.77.0.{ip}"));
                dns.metadata.namespace = Some("kube-system".to_owned());
                dns.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned());
                w.slice(dns);
            }
            Change::Subscribed(u) => drop(w.subscribed(&uid(u))),
            Change::Down(u) => w.down(&uid(u)),
            Change::Compile => drop(w.policies()),
        }
    }

    fn change() -> impl Strategy<Value = Change> {
        let labels = |label: u8| json!({"matchLabels": {"l": label.to_string()}});
        let peer = (0_u8..4, 0_u8..2, 0_u8..2).prop_map(move |(kind, a, b)| match kind {
            0 => json!({"podSelector": labels(a)}),
            1 => json!({"namespaceSelector": labels(a)}),
            2 => json!({"namespaceSelector": labels(a), "podSelector": labels(b)}),
            _ => json!({"ipBlock": {"cidr": "10.0.0.0/8"}}),
        });
        let port = prop_oneof![Just(json!({"port": "web"})), Just(json!({"port": 80}))];
        let rule = move |field: &'static str| {
            let (peers, ports) = (proptest::collection::vec(peer.clone(), 0..2), proptest::option::of(port.clone()));
            (peers, ports).prop_map(move |(peers, port)| {
                let mut rule = json!({field: peers});
                if let Some(port) = port {
                    rule["ports"] = json!([port]);
                }
                rule
            })
        };
        let spec = (proptest::option::of(0_u8..2), rule("from"), rule("to")).prop_map(move |(own, from, to)| {
            let selector = own.map_or(json!({}), labels);
            json!({"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": [from], "egress": [to]})
        });
        prop_oneof![
            6 => (0_u8..4, 0_u8..2, 0_u8..2, 1_u8..4, proptest::option::of(80_u16..82))
                .prop_map(|(uid, namespace, label, ip, port)| Change::Pod { uid, namespace, label, ip, port }),
            2 => (0_u8..4).prop_map(Change::PodGone),
            2 => (0_u8..4, 1_u8..4).prop_map(|(uid, ip)| Change::Up { uid, ip }),
            2 => (0_u8..2, 0_u8..2).prop_map(|(name, label)| Change::Namespace { name, label }),
            1 => (0_u8..2).prop_map(Change::NamespaceGone),
            4 => (0_u8..2, 0_u8..2, spec)
                .prop_map(|(namespace, name, spec)| Change::Policy { namespace, name, spec }),
            1 => (0_u8..2, 0_u8..2).prop_map(|(namespace, name)| Change::PolicyGone { namespace, name }),
            1 => (1_u8..3).prop_map(Change::Dns),
            4 => (0_u8..4).prop_map(Change::Subscribed),
            1 => (0_u8..4).prop_map(Change::Down),
            3 => Just(Change::Compile),
        ]
    }

    proptest! {
        /// However the cluster changes: what was compiled again is all that had to be.
        #[test]
        fn what_is_told_is_what_the_policies_mean(changes in proptest::collection::vec(change(), 1..60)) {
            let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
            for change in changes {
                apply(&mut w, change);
            }
            w.policies();
            prop_assert!(!w.policies_due());
            for uid in &w.subscribed {
                let Some(pod) = w.pods.get(uid) else { continue };
                let told = w.policy_told.get(uid).cloned().unwrap_or_default();
                prop_assert_eq!(told, w.compile(pod), "{}", uid);
            }
        }
    }

    #[test]
    fn an_outpost_is_its_pod() {
        let mut w = World::new("10.244.0.0/16", "10.77.0.1".parse().unwrap());
        let rule = json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]});
        let policy = json!({
            "metadata": {"namespace": "d", "name": "p"}, "spec": {"podSelector": {}, "ingress": [rule]}
        });
        w.policy(serde_json::from_value(policy).unwrap());
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        let ips = vec!["10.77.0.12".parse().unwrap()];
        w.pod("u", PodInfo { namespace: "d".into(), labels, ips, ..PodInfo::default() });
        w.up(&hello("u", "10.244.1.2", 1, "k"));
        w.subscribed("u");
        w.up(&Hello { outpost: 1, ..hello("u", "10.244.1.3", 2, "k1") });
        assert!(w.policies_due(), "others may let it in");
        // It is told what its pod is told, and with all of the pod's addresses.
        let said = format!("{:?}", w.subscribed("u/1"));
        for ip in ["10.244.1.2/32", "10.244.1.3/32", "10.77.0.12/32"] {
            assert!(said.contains(ip), "{ip} in {said}");
        }
        assert_eq!(w.policies().len(), 1, "the pod itself hears of the new address");
        assert!(w.asked("v", &NetQuestion::Peer { ip: "10.244.1.3".parse().unwrap() }).is_some());
        // The link of one is not the other's.
        w.down("u/1");
        assert!(w.subscribed.contains("u"));
        assert_eq!(w.pod_gone("u").len(), 1, "who asked is told");
        assert!(w.peers.is_empty() && w.by_ip.is_empty() && w.outposts.is_empty());
    }
}
