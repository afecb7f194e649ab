//! Performs what entries want done. What takes time is a task that ends in an event; what does not is done here.

use super::context::Context;
use super::entry::{Around, Effect, Entry, Heard};
use super::{Controller, tasks};
use crate::pods::address::Pool;
use hpk_api::ids::PodUid;
use jiff::Timestamp;
use std::net::IpAddr;
use std::time::Instant;

impl Controller {
    pub(super) fn perform(&mut self, uid: &PodUid, effect: Effect) {
        let (ctx, tx) = (&self.ctx, &self.tx);
        match effect {
            Effect::Tell(pod, note) => ctx.recorder.pod(&pod, note),
            Effect::Prepare { attempt } => self.prepare(uid, attempt),
            Effect::AbortPreparation => {
                let task = self.running.get_mut(uid).and_then(|running| running.preparation.take());
                task.into_iter().for_each(|task| task.abort());
            }
            Effect::Write(record) => tasks::write_record(ctx, tx, *record),
            Effect::Sbatch { arguments } => tasks::submit(ctx, tx, uid, arguments),
            Effect::Resize { pod, job } => {
                let record = self.entries.get(uid).map(|entry| entry.record().clone());
                if let Some(record) = record {
                    tasks::resize(ctx, tx, pod, record, job);
                }
            }
            Effect::Follow(versions) => {
                let pod = self.entries.get(uid).and_then(Entry::object);
                let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
                self.watches.claim(node, uid, versions);
            }
            Effect::Unfollow => self.watches.release(uid),
            Effect::Refresh(job) => tasks::refresh(ctx, tx, *job),
            Effect::AllowLink(addresses) => ctx.links.adopt(uid, ctx.folder(uid).link(), addresses),
            Effect::ForbidLink => ctx.links.withdraw(uid),
            Effect::WayOut { node, has } => {
                self.ways_out.send_if_modified(|nodes| nodes.insert(node, has) != Some(has));
            }
            Effect::Watch => {
                let task = tasks::watch(ctx, tx, uid.clone());
                let running = self.running.entry(uid.clone()).or_default();
                running.watch.replace(task).into_iter().for_each(|old| old.abort());
            }
            Effect::Unwatch => {
                let task = self.running.get_mut(uid).and_then(|running| running.watch.take());
                task.into_iter().for_each(|task| task.abort());
            }
            Effect::TellUnlinked { pod, node } => tasks::tell_unlinked(ctx, pod, uid, node),
            Effect::Carry { job } => tasks::carry(ctx, uid, job),
            Effect::AskStop { grace } => tasks::ask_stop(ctx, tx, uid, grace),
            Effect::Signal { job } => tasks::scancel(ctx, job, false),
            Effect::Cancel { job } => tasks::scancel(ctx, job, true),
            Effect::ClearUp { node } => self.clear_up(&node),
            Effect::Post { pod, status, patch } => tasks::post(ctx, tx, pod, status, patch),
            Effect::Label { pod, labels } => tasks::label(ctx, pod, labels),
            Effect::Remove { who, object } => tasks::remove(ctx, tx, who, object),
        }
    }

    /// Begins an attempt to prepare the pod. It needs an address first.
    fn prepare(&mut self, uid: &PodUid, attempt: u32) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let around = Around {
            now: Instant::now(),
            clock: Timestamp::now(),
            listed: self.listed,
            rules: &self.rules,
            taken: &|_| false,
        };
        if entry.lacks_address(&around) {
            match give_addresses(&self.ctx, self.pool.as_mut()) {
                Some(addresses) => {
                    entry.give_addresses(addresses);
                    self.addresses.set(uid, entry.addresses());
                }
                None => {
                    let range = &self.ctx.cluster.pod_cidr;
                    let text = format!("no free pod address in {range}: it can be enlarged in cluster.json");
                    return self.hear(uid, Heard::NoAddress(text));
                }
            }
        }
        let outposts = entry.lacks_outposts(&self.ctx.cluster);
        if !outposts.is_empty() {
            // Where none is left, processes in the node's network reach what the node does: no reason to wait.
            let mut give = |wanted: bool| wanted.then(|| give_addresses(&self.ctx, self.pool.as_mut())).flatten();
            entry.give_outposts(outposts.into_iter().map(|wanted| give(wanted).unwrap_or_default()).collect());
            self.addresses.set(uid, entry.addresses());
        }
        if let Some((pod, memory)) = entry.begin_attempt() {
            let task = tasks::prepare(&self.ctx, &self.tx, attempt, pod, entry.record().clone(), memory);
            self.running.entry(uid.clone()).or_default().preparation = Some(task);
        }
    }

    /// Has a pod that lives on the node remove what another one may have left there. Without one its next pod does.
    fn clear_up(&self, node: &str) {
        let lives_there = |entry: &Entry| entry.lives_on().as_deref() == Some(node);
        if let Some((neighbour, _)) = self.entries.iter().find(|(_, entry)| lives_there(entry)) {
            tasks::sweep(&self.ctx, neighbour.clone());
        }
    }
}

fn give_addresses(ctx: &Context, pool: Option<&mut Pool>) -> Option<Vec<IpAddr>> {
    let pool = pool?;
    let given = pool.take();
    // Before the address is used, so that no kubelet after this one gives it again too soon.
    if let Some(mark) = pool.due()
        && let Err(error) = hpk_layout::replace(&ctx.home.addresses(), format!("{mark}\n").as_bytes(), 0o600)
    {
        tracing::warn!(%error, "cannot write up to where pod addresses were given: a restart may give some again");
    }
    given
}
