//! One allocation of a gang, as the registry knows it.

use super::heard::{Effect, Seen, Ticket, World};
use hpk_api::gang::{Component, GangFile, Member, Wish};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// One allocation, or one to come.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) file: GangFile,
    pub(super) key: String,
    /// Generation on disk.
    pub(super) written: u64,
    pub(super) writing: bool,
    pub(super) arguments: Vec<String>,
    /// Members whose sbatch is waited for, until then, and those that have come.
    pub(super) gather: Option<(Instant, BTreeMap<String, Ticket>)>,
    /// Members that wait for their place to be written down.
    pub(super) joining: Vec<(u64, Ticket, usize)>,
    pub(super) submitting: bool,
    pub(super) over: bool,
    /// Members that were seen: of those that were not, the list of pods may not have come yet.
    pub(super) seen: BTreeSet<String>,
}

impl Allocation {
    pub(super) fn new(file: GangFile) -> Self {
        Self {
            key: file.group.clone(),
            file,
            written: 0,
            writing: false,
            arguments: Vec::new(),
            gather: None,
            joining: Vec::new(),
            submitting: false,
            over: false,
            seen: BTreeSet::new(),
        }
    }

    pub(super) fn has(&self, uid: &str) -> bool {
        self.file.members.iter().any(|m| m.uid == uid)
    }

    /// Its job is there, and not over.
    pub(super) fn is_living(&self) -> bool {
        self.file.job_id.is_some() && !self.over
    }

    /// Whether a member that has a place is one of those that are there.
    pub(super) fn counts(&self, member: &Member, world: &impl World) -> bool {
        member.wish == Wish::Run
            && match world.pod(&member.uid) {
                Seen::Alive => true,
                Seen::Nothing => !self.seen.contains(&member.uid) && !self.over,
                Seen::Ending | Seen::Over => false,
            }
    }

    /// Places that nobody has, of all components.
    pub(super) fn free(&self, world: &impl World) -> u32 {
        let parts = self.file.parts();
        parts.iter().zip(0..).map(|(part, number)| self.free_of(part, number, world)).sum()
    }

    /// Places of a component that nobody has. One that is ending has its place still.
    fn free_of(&self, part: &Component, number: u32, world: &impl World) -> u32 {
        let has = |member: &&Member| match world.pod(&member.uid) {
            Seen::Alive | Seen::Ending => true,
            Seen::Nothing => !self.seen.contains(&member.uid),
            Seen::Over => false,
        };
        let taken = self.file.members.iter().filter(|member| member.component == number).filter(has).count();
        part.slots.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// The component with the smallest free place in which this pod has room.
    pub(super) fn room_for(&self, pod: &Pod, world: &impl World) -> Option<u32> {
        let parts = self.file.parts();
        let size = |part: &Component| part.place.as_ref().map(|place| (place.cpus, place.memory_mib));
        let free = parts.iter().zip(0..).filter(|(part, number)| self.free_of(part, *number, world) > 0);
        free.filter(|(part, _)| world.fits(pod, part)).min_by_key(|(part, _)| size(part)).map(|(_, number)| number)
    }

    /// What scancel calls the part of the job that has the batch script: the first component.
    pub(super) fn with_script(&self, job: &str) -> String {
        if self.file.is_heterogeneous() { format!("{job}+0") } else { job.to_owned() }
    }

    /// The file is to be written anew.
    pub(super) fn changed(&mut self, fx: &mut Vec<Effect>) {
        self.file.generation += 1;
        if !std::mem::replace(&mut self.writing, true) {
            fx.push(Effect::Write(self.file.clone()));
        }
    }
}
