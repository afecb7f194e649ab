//! Links of pods: where their datapaths are, who asks for whom, and what a new link is told.

use super::{Peer, Push, To, World, joined};
use crate::policies::PodInfo;
use hpk_api::link::{Hello, MEMBER, NetQuestion, NetUpdate};
use std::net::IpAddr;

impl World {
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

    pub(super) fn tell_askers(&self, ip: IpAddr) -> Option<Push> {
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
