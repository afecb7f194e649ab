//! All gangs: who waits, who has a place, which allocations there are. A state machine; [`super::keeper`] does what it wants.
//!
//! ```text
//!  Arrived ─▶ waiting ──enough are there──▶ preparing ──Ready, all are──▶ going ──Submit, all have──▶ an allocation
//!                ▲                             │ again                      │ not all came, or sbatch failed
//!                └─────────────────────────────┴────────────────────────────┘
//! ```
//! That a gang is never submitted twice is not decided here: each member's own record and search ([`crate::pods::submission`])
//! hold for its run, and [`super::seam`] finds a member in whichever allocation's `gang.json` has it. The file is on disk
//! before sbatch runs.

use super::Gate;
use super::allocation::Allocation;
use super::claim::{Key, Size};
use super::decide::{self, Gang, State, Step};
use super::heard::{Effect, Heard, Seen, Ticket, World};
use hpk_api::gang::{GangFile, Member, Wish};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the members of a gang that may begin are waited for, from the first one's sbatch on.
const GATHER: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Waiting {
    pod: Arc<Pod>,
    state: State,
    /// What its last attempt was told.
    told: Option<Gate>,
    /// What was decided when it was ready.
    step: Option<Step>,
    /// Why its gang cannot begin, until it has been told at its submission.
    refused: Option<String>,
    /// The kubelet has it. An attempt may be a moment before that.
    seen: bool,
}

#[derive(Debug, Default)]
struct Group {
    size: Option<Size>,
    /// By UID.
    waiting: BTreeMap<String, Waiting>,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    groups: BTreeMap<Key, Group>,
    allocations: BTreeMap<String, Allocation>,
}

impl Registry {
    /// With the gangs that earlier kubelets left on disk.
    pub(super) fn new(files: Vec<GangFile>) -> Self {
        let of = |file: GangFile| {
            let (key, written) = (file.group.clone(), file.generation);
            (file.id.clone(), Allocation { key, written, ..Allocation::new(file) })
        };
        Self { allocations: files.into_iter().map(of).collect(), ..Self::default() }
    }

    /// Files of all allocations, as they are wanted.
    pub(super) fn files(&self) -> impl Iterator<Item = &GangFile> {
        self.allocations.values().map(|allocation| &allocation.file)
    }

    /// When [`Heard::Look`] is wanted, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.allocations.values().filter_map(|a| a.gather.as_ref().map(|(at, _)| *at)).min()
    }

    /// Whether changes of pods are of interest.
    pub(super) fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.allocations.is_empty()
    }

    /// Takes what was heard.
    pub(super) fn on(&mut self, heard: Heard, world: &impl World) -> Vec<Effect> {
        let mut fx = Vec::new();
        match heard {
            Heard::Arrived { ticket, claim, pod } => self.arrived(ticket, claim, pod, world, &mut fx),
            Heard::Ready { ticket, uid } => self.ready(ticket, &uid, world, &mut fx),
            Heard::Submit { ticket, uid } => self.submit(ticket, &uid, world, &mut fx),
            Heard::Shaped { id, result } => self.shaped(&id, result, world, &mut fx),
            Heard::Written { id, generation, ok } => self.written(&id, generation, ok, &mut fx),
            Heard::Submitted { id, result } => self.submitted(&id, result, &mut fx),
            Heard::End { run, wish } => self.end(&run, wish, &mut fx),
            Heard::Found { id, job } => self.found(&id, job, &mut fx),
            Heard::Over { id } => {
                if let Some(allocation) = self.allocations.get_mut(&id) {
                    allocation.over = true;
                }
                self.look(world, &mut fx);
            }
            Heard::Look => self.look(world, &mut fx),
        }
        fx
    }

    // ---- looking around

    fn look(&mut self, world: &impl World, fx: &mut Vec<Effect>) {
        let now = world.now();
        for key in self.groups.keys().cloned().collect::<Vec<_>>() {
            if let Some(group) = self.groups.get_mut(&key) {
                group.waiting.retain(|uid, member| {
                    let seen = world.pod(uid);
                    member.seen |= seen != Seen::Nothing;
                    !(member.seen && matches!(seen, Seen::Nothing | Seen::Over))
                });
                if group.waiting.is_empty() {
                    self.groups.remove(&key);
                    continue;
                }
            }
            self.wake(&key, world, fx);
        }
        let late: Vec<(String, String)> = self
            .allocations
            .iter()
            .filter(|(_, a)| !a.submitting && a.gather.as_ref().is_some_and(|(at, _)| *at <= now))
            .map(|(id, a)| {
                let come = a.gather.as_ref().map(|(_, come)| come);
                let missing = a.file.members.iter().find(|m| come.is_none_or(|c| !c.contains_key(&m.uid)));
                let name = missing.map(|m| m.name.clone()).unwrap_or_default();
                (id.clone(), format!("the gang waits for its member {name}, which is not ready any more"))
            })
            .collect();
        for (id, why) in late {
            self.give_up(&id, true, &why, fx);
        }
        for allocation in self.allocations.values_mut() {
            let seen = allocation.file.members.iter().filter(|m| world.pod(&m.uid) != Seen::Nothing);
            let seen: Vec<String> = seen.map(|m| m.uid.clone()).collect();
            allocation.seen.extend(seen);
        }
        let done: Vec<String> = self
            .allocations
            .iter()
            .filter(|(_, a)| a.gather.is_none() && !a.submitting)
            .filter(|(_, a)| {
                let left = |m: &Member| world.pod(&m.uid) == Seen::Nothing;
                let never = a.file.job_id.is_none() && a.file.members.iter().all(|m| m.wish == Wish::Kill);
                never || (a.over && a.file.members.iter().all(left))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in done {
            self.allocations.remove(&id);
            fx.push(Effect::Remove { id });
        }
    }

    /// Has those members prepared anew whose last answer is not the present one.
    fn wake(&mut self, key: &Key, world: &impl World, fx: &mut Vec<Effect>) {
        let steps = self.steps(key, world);
        let Some(group) = self.groups.get_mut(key) else { return };
        for (uid, member) in &mut group.waiting {
            let gate = gate(key, steps.get(uid));
            if matches!(member.state, State::Held | State::Ready)
                && member.step.is_none()
                && member.told.as_ref().is_some_and(|told| *told != gate)
            {
                // Once: its attempt asks again.
                member.told = None;
                fx.push(Effect::Wake { uid: uid.clone() });
            }
        }
    }

    fn steps(&self, key: &Key, world: &impl World) -> BTreeMap<String, Step> {
        let Some(group) = self.groups.get(key) else { return BTreeMap::new() };
        let min = match group.size {
            Some(Size::Pods(pods)) => Some(pods),
            Some(Size::OfPodGroup) => world.policy(&key.namespace, &key.name).map(|p| p.min_count.unwrap_or(1)),
            None => None,
        };
        let text = key.to_string();
        let own: Vec<&Allocation> = self.allocations.values().filter(|a| a.key == text).collect();
        let mut members: Vec<(Option<_>, decide::Member)> = Vec::new();
        for (uid, waiting) in &group.waiting {
            // Those that are about to be submitted have a place.
            let state = if waiting.step == Some(Step::Begin) { State::Placed } else { waiting.state };
            let state = if matches!(world.pod(uid), Seen::Ending | Seen::Over) { State::Over } else { state };
            let age = waiting.pod.metadata.creation_timestamp.clone();
            members.push((age, decide::Member { uid: uid.clone(), state }));
        }
        for allocation in own.iter().filter(|a| a.gather.is_none()) {
            for member in allocation.file.members.iter().filter(|m| !group.waiting.contains_key(&m.uid)) {
                let state = if allocation.counts(member, world) { State::Placed } else { State::Over };
                members.push((None, decide::Member { uid: member.uid.clone(), state }));
            }
        }
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        let going = own.iter().any(|a| a.gather.is_some());
        let living = own.iter().find(|a| a.is_living() && a.file.members.iter().any(|m| a.counts(m, world)));
        let allocation = living.map(|a| a.free(world)).or_else(|| going.then_some(0));
        decide::next(&Gang { min, members: members.into_iter().map(|(_, m)| m).collect(), allocation })
            .into_iter()
            .collect()
    }

    fn key_of(&self, uid: &str) -> Option<Key> {
        self.groups.iter().find(|(_, group)| group.waiting.contains_key(uid)).map(|(key, _)| key.clone())
    }

    fn name_of(&self, key: &Key, uid: &str) -> String {
        let meta = self.groups.get(key).and_then(|g| g.waiting.get(uid)).map(|m| m.pod.metadata.clone());
        let meta = meta.unwrap_or_default();
        format!("{}/{}", meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default())
    }

    /// The member waits no more.
    fn leave(&mut self, key: &Key, uid: &str) {
        if let Some(group) = self.groups.get_mut(key) {
            group.waiting.remove(uid);
            if group.waiting.is_empty() {
                self.groups.remove(key);
            }
        }
    }
}

/// What an attempt is told.
fn gate(key: &Key, step: Option<&Step>) -> Gate {
    match step {
        Some(Step::Wait(why)) => Gate::Wait(why.text(&key.to_string())),
        _ => Gate::Open,
    }
}

fn again(ticket: Ticket, why: &str) -> Effect {
    Effect::Failed { ticket, sure: true, why: format!("{why}: it is tried again") }
}

mod places;
#[cfg(test)]
mod tests;
mod waiting;
