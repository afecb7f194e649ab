//! What is heard of a pod that has its job, or may have one: Slurm's word, the supervisor's, its link, its references.

use super::heard::{Around, Effect, Found, LastWords};
use super::refresh;
use super::{Entry, State};
use crate::api::events::Note;
use crate::controller::prepared::{Held, Memory, Refreshed};
use crate::executor::run::{Run, RunPhase};
use crate::pods::claim;
use hpk_api::ids::JobId;
use hpk_api::state::{HOST_PATH, PodState};
use k8s_openapi::api::core::v1::PodStatus;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long until a supervisor that was not reached is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long until a removal that failed is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(5);

impl Entry {
    // ---- Slurm

    pub(super) fn job(&mut self, job: Run, words: Option<Box<LastWords>>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let unlinked = !self.link.is_up();
        let before = self.job.job().map(|job| (job.why.clone(), job.is_suspended()));
        let put_back = self.job.put_back();
        let news = self.job.take_job(job.clone(), self.ledger.record_mut(), around.now);
        let waits = job.phase == RunPhase::Pending;
        if let Some(words) = words {
            self.take_words(*words, &job, around, fx);
        }
        if news {
            // Of a job that is back in the queue that is told; that it is held there is one thing more.
            let is_waiting_anew = waits && (self.job.put_back() == put_back || job.is_held());
            // Many wait for their turn as they come: that is told of those for which it is news.
            let is_news = match &before {
                None => job.waits_for_more_than_its_turn(),
                Some((why, _)) => *why != job.why && !matches!(job.reason.as_str(), "" | "None" | "Priority"),
            };
            if is_waiting_anew && is_news {
                let text = format!("{} {} waits: {}", job.words().run, job.id, job.why);
                self.tell(Note::normal(job.words().reasons.pending, text), fx);
            }
            self.tell_suspended(before.is_some_and(|(_, suspended)| suspended), &job, fx);
            if job.is_gone() {
                self.ledger.record_mut().ended = Some(job);
                self.save(fx);
                fx.extend(self.job.left_on().map(|node| Effect::ClearUp { node }));
            }
        }
        self.tell_put_back(put_back, fx);
        self.tell_events(fx);
        if news || unlinked {
            self.advance(around, fx);
        }
    }

    /// Where the job waits, only the last word of a former run is of use.
    fn take_words(&mut self, words: LastWords, job: &Run, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let waits = job.phase == RunPhase::Pending;
        if let Some(report) = words.report.filter(|report| !waits || report.finished) {
            self.take_report(report, around, fx);
        }
        let launch = words.launch.filter(|_| !waits);
        // The job runs and tries again; of one that has ended the pod's own message tells.
        if let Some(word) = &launch
            && job.phase == RunPhase::Running
            && word.step == HOST_PATH
            && self.job.launch().is_none_or(|told| told.message != word.message)
        {
            self.tell(Note::warning("FailedMount", format!("{} on node {}", word.message, word.node)), fx);
        }
        self.job.take_launch(launch);
    }

    /// That the job was suspended, or goes on. `before`: it was suspended when Slurm was asked last.
    fn tell_suspended(&self, before: bool, job: &Run, fx: &mut Vec<Effect>) {
        let (words, id) = (job.words(), &job.id);
        if job.is_suspended() && !before {
            let text = format!("{} {id} was suspended: nothing of the pod runs until it is resumed", words.run);
            self.tell(Note::warning(words.reasons.suspended, text), fx);
        } else if before && job.phase == RunPhase::Running && !job.suspended {
            self.tell(Note::normal(words.reasons.resumed, format!("{} {id} goes on", words.run)), fx);
        }
    }

    /// That Slurm has put the job back into its queue, when it was not so before.
    fn tell_put_back(&mut self, before: bool, fx: &mut Vec<Effect>) {
        if before || !self.job.put_back() {
            return;
        }
        if let Some(job) = self.job.job() {
            let words = job.words();
            let text = format!("{} {} is back in the queue: the pod starts again", words.run, job.id);
            self.tell(Note::warning(words.reasons.put_back, text), fx);
        }
        self.save(fx);
    }

    // ---- the supervisor

    pub(super) fn report(
        &mut self,
        state: PodState,
        found: Option<Box<Found>>,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let put_back = self.job.put_back();
        // Nobody else could speak for a job of this pod.
        let adopted = state.job_id.clone().filter(|_| self.is_sought()).map(JobId::from);
        let is_adopted = adopted.is_some();
        if let Some(id) = adopted {
            self.made(id, found, around, fx);
        }
        if !self.take_report(state, around, fx) && !is_adopted {
            return;
        }
        self.tell_put_back(put_back, fx);
        self.tell_events(fx);
        self.advance(around, fx);
    }

    /// Takes a report of the supervisor, over the link or by its file, if it is newer than what is known. Returns whether it
    /// was.
    pub(super) fn take_report(&mut self, report: PodState, around: &Around<'_>, fx: &mut Vec<Effect>) -> bool {
        let news = self.job.take_report(report, self.ledger.record_mut(), around.now);
        if news {
            self.link.heard(around.now);
            self.judge_addresses(around, fx);
        }
        news
    }

    /// Takes out of the newest report what is not believed of its addresses; the pod's owner is told once.
    pub(super) fn judge_addresses(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        // Without an object nothing is told of it.
        let (Some(pod), Some(report)) = (&self.object, self.job.report()) else { return };
        let had = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        let had: Vec<IpAddr> = had.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let rules = around.rules;
        let known = claim::Known {
            mode: self.in_force.network_mode().unwrap_or_else(|| rules.network_mode(pod)),
            given: &self.record().pod_ips,
            had: &had,
            pod_cidr: &rules.pod_cidr,
            service_cidr: &rules.service_cidr,
            node_ip: rules.node_ip,
        };
        let mut said = report.pod_ips.clone();
        let wrong = claim::judge(&known, &mut said, around.taken);
        self.job.believe(said);
        if let Some(text) = wrong.filter(|text| self.claimed.as_ref() != Some(text)) {
            tracing::warn!(uid = %self.record().pod.uid, text);
            self.tell(Note::warning("AddressRefused", text.clone()), fx);
            self.claimed = Some(text);
        }
    }

    /// Posts the supervisor's events that were not posted before.
    fn tell_events(&mut self, fx: &mut Vec<Effect>) {
        let Some(pod) = &self.object else { return };
        let before = self.record().last_event;
        let mut last = before;
        for event in self.job.events_after(before) {
            last = last.max(event.sequence);
            let note = Note {
                warning: event.warning,
                reason: event.reason.clone(),
                message: event.message.clone(),
                container: event.container.clone(),
                at: Some(event.at),
            };
            fx.push(Effect::Tell(pod.clone(), note));
        }
        if last != before {
            self.ledger.record_mut().last_event = last;
            self.save(fx);
        }
    }

    pub(super) fn not_asked(&mut self, around: &Around<'_>) {
        if let State::Submitted { stop, .. } = &mut self.state {
            stop.not_asked();
            self.look_at = Some(around.now + ASK_AGAIN);
        }
    }

    // ---- the link

    pub(super) fn link_up(
        &mut self,
        carried: bool,
        way_out: Option<(String, bool)>,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        // It was admitted, so it was begun; it may have ended since.
        if !self.is_to_link() {
            return;
        }
        self.link.came(around.now);
        self.way_out = way_out;
        fx.push(Effect::Watch);
        if !carried && !std::mem::replace(&mut self.ledger.record_mut().linked, true) {
            self.save(fx);
        }
        // Slurm will say RUNNING at the next query: no need to wait for it to see the report.
        self.advance(around, fx);
    }

    pub(super) fn link_down(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        if self.link.went(around.now) {
            fx.push(Effect::Unwatch);
            self.advance(around, fx);
        }
    }

    pub(super) fn link_refused(&self, why: &str, fx: &mut Vec<Effect>) {
        let text = format!(
            "somebody with this pod's credentials was refused: {why}. If nobody of yours did that, the pod's link.json has \
             leaked: delete the pod"
        );
        self.tell(Note::warning("LinkRefused", text), fx);
    }

    // ---- references

    pub(super) fn references_changed(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        self.hold.release();
        match &mut self.state {
            State::Preparing { outdated, .. } => *outdated = true,
            State::Submitted { refresh, .. } => refresh.news(around.now),
            State::New | State::Submitting(_) | State::Removing { .. } => {}
        }
        self.advance(around, fx);
    }

    pub(super) fn refreshed(
        &mut self,
        result: Result<Refreshed, Held>,
        memory: Memory,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let retry = match result {
            Ok(fresh) => {
                self.hold.set_containers(fresh.waiting);
                let images = fresh.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone()));
                self.ledger.record_mut().images.extend(images);
                self.in_force.tell(fresh.update.ephemeral_containers.iter().map(|c| c.name.clone()));
                self.in_force.change(fresh.plan, fresh.images);
                fresh.retry
            }
            Err(held) => held.retry,
        };
        if let State::Submitted { refresh, .. } = &mut self.state {
            refresh.ended(around.now, refresh::next(&memory, retry, around.clock));
        }
        if !self.is_removing() {
            self.follow(&memory, fx);
        }
        self.hold.take_memory_back(memory);
        self.save(fx);
        self.advance(around, fx);
    }

    // ---- the API

    pub(super) fn posted(
        &mut self,
        status: Arc<PodStatus>,
        retry: Option<Duration>,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        self.posting.ended(status, retry, around.now);
        if retry.is_none() {
            self.advance(around, fx);
        }
    }

    pub(super) fn not_removed(&mut self, around: &Around<'_>) {
        if let State::Removing { from } = &mut self.state {
            self.state = std::mem::replace(from, State::New);
            self.look_at = Some(around.now + REMOVE_AGAIN);
        }
    }
}
