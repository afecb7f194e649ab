//! Services: compiled, told to every pod, and what the member relays and listens on for them.

use super::{Push, To, World};
use crate::services;
use crate::stand_ins::{self, DNS_SERVICE};
use hpk_api::link::{MEMBER, NetUpdate};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, HashSet};

impl World {
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

    pub(super) fn all_listeners(&self) -> NetUpdate {
        NetUpdate::Listeners(self.listeners.values().flatten().cloned().collect())
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
}
