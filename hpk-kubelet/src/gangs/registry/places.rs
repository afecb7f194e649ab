//! Allocations: submitted, found, changed, ended.

use super::Registry;
use crate::gangs::allocation::Allocation;
use crate::gangs::decide::State;
use crate::gangs::heard::{Effect, Ticket, World};
use crate::gangs::shape::{Request, ShapeError};
use crate::gangs::{parts, run_id};
use hpk_api::gang::Wish;
use std::collections::BTreeSet;
use std::time::Duration;

impl Registry {
    /// Submits a gang all of whose members have come to their sbatch.
    pub(super) fn gathered(&mut self, id: &str, world: &impl World, fx: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        let Some((_, come)) = &allocation.gather else { return };
        let missing = allocation.file.members.iter().any(|m| !come.contains_key(&m.uid));
        if missing || allocation.arguments.is_empty() || allocation.submitting {
            return;
        }
        allocation.submitting = true;
        allocation.gather = allocation.gather.take().map(|(_, come)| (world.now() + Duration::from_secs(3600), come));
        allocation.writing = true;
        fx.push(Effect::Write(allocation.file.clone()));
    }

    pub(super) fn shaped(
        &mut self,
        id: &str,
        result: Result<Request, ShapeError>,
        world: &impl World,
        fx: &mut Vec<Effect>,
    ) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        match result {
            Ok(request) => {
                allocation.arguments = request.arguments;
                allocation.file.step = request.components.first().map(|part| part.step.clone()).unwrap_or_default();
                allocation.file.components = request.components;
                for (member, component) in allocation.file.members.iter_mut().zip(request.of_members) {
                    member.component = component;
                }
                self.gathered(id, world, fx);
            }
            Err(error) => {
                let why = error.to_string();
                // Nobody may have come yet: each member is told when it does.
                let all: Vec<String> = allocation.file.members.iter().map(|m| m.uid.clone()).collect();
                let come = allocation.gather.iter().flat_map(|(_, come)| come.keys().cloned()).collect::<BTreeSet<_>>();
                self.give_up(id, true, &why, fx);
                for group in self.groups.values_mut() {
                    let members = group.waiting.iter_mut().filter(|(uid, _)| all.contains(uid) && !come.contains(*uid));
                    members.for_each(|(_, member)| member.refused = Some(why.clone()));
                }
            }
        }
    }

    /// The gang does not begin: its members go back to the start.
    pub(super) fn give_up(&mut self, id: &str, sure: bool, why: &str, fx: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.remove(id) else { return };
        let come = allocation.gather.map(|(_, come)| come).unwrap_or_default();
        fx.extend(come.into_values().map(|ticket| Effect::Failed { ticket, sure, why: why.to_owned() }));
        for member in &allocation.file.members {
            if let Some(key) = self.key_of(&member.uid)
                && let Some(waiting) = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(&member.uid))
            {
                // It comes again by itself, when its search for a job is over.
                (waiting.state, waiting.step) = (State::Preparing, None);
            }
        }
        if allocation.written > 0 {
            fx.push(Effect::Remove { id: id.to_owned() });
        }
    }

    pub(super) fn written(&mut self, id: &str, generation: u64, ok: bool, fx: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        allocation.writing = false;
        if !ok {
            if allocation.file.job_id.is_none() && allocation.submitting {
                return self.give_up(id, true, "the gang's folder cannot be written", fx);
            }
            // The task that writes has waited before it said so.
            allocation.writing = true;
            return fx.push(Effect::Write(allocation.file.clone()));
        }
        allocation.written = generation;
        if generation < allocation.file.generation {
            allocation.writing = true;
            fx.push(Effect::Write(allocation.file.clone()));
        }
        if allocation.submitting {
            let arguments = std::mem::take(&mut allocation.arguments);
            if !arguments.is_empty() {
                fx.push(Effect::Sbatch { id: id.to_owned(), arguments });
            }
            return;
        }
        let Some(job) = allocation.file.job_id.clone() else { return };
        let (done, rest) = std::mem::take(&mut allocation.joining).into_iter().partition(|(at, ..)| *at <= generation);
        allocation.joining = rest;
        let done: Vec<(u64, Ticket, usize)> = done;
        fx.extend(done.into_iter().map(|(_, ticket, n)| Effect::Made { ticket, run: run_id(&job, n) }));
        if generation > 2 {
            fx.push(Effect::Nudge { job: allocation.with_script(&job) });
        }
    }

    pub(super) fn submitted(&mut self, id: &str, result: Result<String, (bool, String)>, fx: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.get_mut(id) else { return };
        allocation.submitting = false;
        match result {
            Ok(job) => {
                let come = allocation.gather.take().map(|(_, come)| come).unwrap_or_default();
                allocation.file.job_id = Some(job.clone());
                allocation.changed(fx);
                let members: Vec<String> = allocation.file.members.iter().map(|m| m.uid.clone()).collect();
                allocation.seen.extend(members.iter().cloned());
                for (number, uid) in members.iter().enumerate() {
                    let run = run_id(&job, number);
                    fx.extend(come.get(uid).map(|ticket| Effect::Made { ticket: *ticket, run }));
                    if let Some(key) = self.key_of(uid) {
                        self.leave(&key, uid);
                    }
                }
            }
            Err((true, why)) => {
                let why = refusal(why, allocation.file.components.len());
                self.give_up(id, true, &why, fx);
            }
            // A job may come of it: the file stays, by which its members find themselves in it.
            Err((false, why)) => {
                let come = allocation.gather.take().map(|(_, come)| come).unwrap_or_default();
                fx.extend(come.into_values().map(|ticket| Effect::Failed { ticket, sure: false, why: why.clone() }));
                let members: Vec<String> = allocation.file.members.iter().map(|m| m.uid.clone()).collect();
                for uid in members {
                    if let Some(key) = self.key_of(&uid)
                        && let Some(waiting) = self.groups.get_mut(&key).and_then(|g| g.waiting.get_mut(&uid))
                    {
                        waiting.state = State::Preparing;
                    }
                }
            }
        }
    }

    pub(super) fn found(&mut self, id: &str, job: String, fx: &mut Vec<Effect>) {
        let Some(allocation) = self.allocations.get_mut(id).filter(|a| a.file.job_id.is_none()) else { return };
        if allocation.submitting {
            return;
        }
        allocation.file.job_id = Some(job);
        allocation.changed(fx);
        let members: Vec<String> = allocation.file.members.iter().map(|m| m.uid.clone()).collect();
        for uid in members {
            if let Some(key) = self.key_of(&uid) {
                self.leave(&key, &uid);
            }
        }
    }

    pub(super) fn end(&mut self, run: &str, wish: Wish, fx: &mut Vec<Effect>) {
        let Some((job, number)) = parts(run) else { return };
        let of_job = |a: &&mut Allocation| a.file.job_id.as_deref() == Some(job);
        let Some(allocation) = self.allocations.values_mut().find(of_job) else {
            // Nobody else is known in it.
            return fx.push(Effect::Cancel { job: job.to_owned() });
        };
        let Some(member) = allocation.file.members.get_mut(number) else { return };
        if wish > member.wish {
            member.wish = wish;
            allocation.changed(fx);
        } else if allocation.written == allocation.file.generation {
            fx.push(Effect::Nudge { job: allocation.with_script(job) });
        }
        if allocation.file.members.iter().all(|m| m.wish == Wish::Kill) {
            fx.push(Effect::Cancel { job: job.to_owned() });
        }
    }

    /// A member that is prepared anew has no place: it was looked for, and was not found in any.
    pub(super) fn take_back(&mut self, uid: &str, fx: &mut Vec<Effect>) {
        for allocation in self.allocations.values_mut().filter(|a| a.gather.is_none()) {
            let mut changed = false;
            for member in allocation.file.members.iter_mut().filter(|m| m.uid == uid && m.wish != Wish::Kill) {
                member.wish = Wish::Kill;
                changed = true;
            }
            if changed {
                allocation.changed(fx);
            }
        }
    }
}

/// Slurm's word, and what its reader should know of a job with several components.
fn refusal(why: String, components: usize) -> String {
    if components < 2 {
        return why;
    }
    format!(
        "{why} (the members are unlike, so a heterogeneous job of {components} components was asked for; with requests, flags and \
         devices that are nearer to each other it is a plain job)"
    )
}
