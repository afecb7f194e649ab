//! Members on their way to a place: they arrive, are ready, and come to their submission.

use super::{GATHER, Registry, Waiting, again, gate};
use crate::gangs::Gate;
use crate::gangs::allocation::Allocation;
use crate::gangs::claim::{Claim, Key, Size};
use crate::gangs::decide::{State, Step};
use crate::gangs::heard::{Effect, Seen, Ticket, World};
use hpk_api::gang::{GangFile, Member, Wish};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Registry {
    pub(super) fn arrived(
        &mut self,
        ticket: Ticket,
        claim: Claim,
        pod: Arc<Pod>,
        world: &impl World,
        fx: &mut Vec<Effect>,
    ) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = claim.key;
        let policy = world.policy(&key.namespace, &key.name);
        if claim.size == Size::OfPodGroup && policy.is_some_and(|p| p.min_count.is_none()) {
            // Of a PodGroup that is no gang.
            return fx.push(Effect::Gate { ticket, gate: Gate::Open });
        }
        self.take_back(&uid, fx);
        let group = self.groups.entry(key.clone()).or_default();
        group.size = Some(claim.size);
        let fresh =
            Waiting { pod: pod.clone(), state: State::Held, told: None, step: None, refused: None, seen: false };
        let member = group.waiting.entry(uid.clone()).or_insert(fresh);
        member.pod = pod;
        member.seen |= world.pod(&uid) != Seen::Nothing;
        if member.step == Some(Step::Begin) {
            // It was woken for that.
            return fx.push(Effect::Gate { ticket, gate: Gate::Open });
        }
        // One that was ready is so again in a moment; the others need not wait for it anew.
        if member.state != State::Ready {
            member.state = State::Held;
        }
        if member.step.take().is_some() {
            member.state = State::Preparing;
        }
        let steps = self.steps(&key, world);
        let gate = gate(&key, steps.get(&uid));
        if let Some(member) = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(&uid)) {
            if gate == Gate::Open && member.state == State::Held {
                member.state = State::Preparing;
            }
            member.told = Some(gate.clone());
        }
        fx.push(Effect::Gate { ticket, gate });
        self.wake(&key, world, fx);
    }

    pub(super) fn ready(&mut self, ticket: Ticket, uid: &str, world: &impl World, fx: &mut Vec<Effect>) {
        let Some(key) = self.key_of(uid) else {
            return fx.push(Effect::Gate { ticket, gate: Gate::Open });
        };
        if let Some(member) = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(uid)) {
            member.state = State::Ready;
            if member.step == Some(Step::Begin) || member.refused.is_some() {
                return fx.push(Effect::Gate { ticket, gate: Gate::Open });
            }
        }
        let steps = self.steps(&key, world);
        let gate = gate(&key, steps.get(uid));
        if let Some(member) = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(uid)) {
            member.told = Some(gate.clone());
            member.step = steps.get(uid).filter(|_| gate == Gate::Open).cloned();
        }
        if steps.get(uid) == Some(&Step::Begin) {
            self.begin(&key, uid, world, fx);
        }
        fx.push(Effect::Gate { ticket, gate });
        self.wake(&key, world, fx);
    }

    /// All that wait have what they need: their places are asked for when each has come to its sbatch.
    pub(super) fn begin(&mut self, key: &Key, first: &str, world: &impl World, fx: &mut Vec<Effect>) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let mut pods: Vec<_> = group.waiting.iter().filter(|(_, m)| m.state == State::Ready).collect();
        pods.sort_by_key(|(_, m)| m.pod.metadata.creation_timestamp.clone());
        let members: Vec<String> = pods.iter().map(|(uid, _)| (*uid).clone()).collect();
        let name = |m: &Waiting| {
            let meta = &m.pod.metadata;
            format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
        };
        let objects = pods.iter().map(|(_, m)| m.pod.clone()).collect();
        let list =
            pods.iter().map(|(uid, m)| Member { uid: (*uid).clone(), name: name(m), wish: Wish::Run, component: 0 });
        let list = list.collect();
        let all = match group.size {
            Some(Size::OfPodGroup) => world.policy(&key.namespace, &key.name).is_some_and(|p| p.all),
            _ => true,
        };
        for uid in &members {
            if let Some(member) = group.waiting.get_mut(uid) {
                member.step = Some(Step::Begin);
                if uid != first {
                    fx.push(Effect::Wake { uid: uid.clone() });
                }
            }
        }
        // Never one that an earlier attempt had: its job, if it has one, is found by it.
        let leader = members.first().cloned().unwrap_or_default();
        let attempt = (0..).map(|n| format!("{leader}-{n}")).find(|id| !self.allocations.contains_key(id));
        let id = attempt.unwrap_or(leader);
        let file = GangFile {
            version: hpk_api::VERSION,
            id: id.clone(),
            generation: 1,
            group: key.to_string(),
            slots: u32::try_from(members.len()).unwrap_or(u32::MAX),
            step: Vec::new(),
            components: Vec::new(),
            members: list,
            job_id: None,
        };
        let gather = Some((world.now() + GATHER, BTreeMap::new()));
        let allocation = Allocation { key: key.to_string(), gather, ..Allocation::new(file) };
        self.allocations.insert(id.clone(), allocation);
        fx.push(Effect::Shape { id, group: key.clone(), members: objects, all });
    }

    pub(super) fn submit(&mut self, ticket: Ticket, uid: &str, world: &impl World, fx: &mut Vec<Effect>) {
        let Some(key) = self.key_of(uid) else { return fx.push(Effect::Alone { ticket }) };
        let member = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(uid));
        let (step, refused) = member.map(|m| (m.step.take(), m.refused.take())).unwrap_or_default();
        match step {
            Some(Step::Begin) => {
                let mine = self.allocations.values_mut().find(|a| a.gather.is_some() && a.has(uid));
                match mine.and_then(|a| Some((a.file.id.clone(), a.gather.as_mut()?))) {
                    Some((id, (_, come))) => {
                        come.insert(uid.to_owned(), ticket);
                        self.gathered(&id, world, fx);
                    }
                    None => fx.push(again(ticket, "its gang has not begun")),
                }
            }
            Some(Step::Join) => {
                let name = self.name_of(&key, uid);
                let pod = self.groups.get(&key).and_then(|g| g.waiting.get(uid)).map(|m| m.pod.clone());
                self.leave(&key, uid);
                let text = key.to_string();
                let mut living =
                    self.allocations.values_mut().filter(|a| a.is_living() && a.key == text && !a.has(uid));
                let room = living.find_map(|a| a.room_for(pod.as_ref()?, world).map(|component| (a, component)));
                match room {
                    Some((allocation, component)) => {
                        allocation.file.members.push(Member { uid: uid.to_owned(), name, wish: Wish::Run, component });
                        let number = allocation.file.members.len() - 1;
                        allocation.seen.insert(uid.to_owned());
                        allocation.changed(fx);
                        allocation.joining.push((allocation.file.generation, ticket, number));
                    }
                    None => fx.push(Effect::Alone { ticket }),
                }
            }
            Some(_) => {
                self.leave(&key, uid);
                fx.push(Effect::Alone { ticket });
            }
            None => fx.push(match refused {
                Some(why) => Effect::Failed { ticket, sure: true, why },
                None => again(ticket, "its gang has changed meanwhile"),
            }),
        }
    }
}
