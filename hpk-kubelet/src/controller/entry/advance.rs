//! What follows from what is known of a pod: steps of [`crate::pods::reconcile`], who may link, references that are read
//! again, the status, labels. After each event everything is looked at, in this order.

use super::heard::{Around, Effect};
use super::link::SILENCE;
use super::posting::Posted;
use super::unlinked::Act;
use super::{Entry, State};
use crate::api::events::Note;
use crate::controller::prepared::RefreshJob;
use crate::executor::run::{Run, RunPhase};
use crate::pods::phase;
use crate::pods::reconcile::{self, Stage, Step};
use crate::pods::status;
use k8s_openapi::api::core::v1::PodStatus;
use std::sync::Arc;

impl Entry {
    pub(super) fn advance(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        if self.is_blind(around) || self.is_removing() {
            return;
        }
        fx.extend(self.ledger.retry(around.now).map(Effect::Write));
        self.try_again(around, fx);
        loop {
            self.decide(around, fx);
            self.see_to_link(around, fx);
            self.tell_way_out(fx);
            self.refresh(around, fx);
            self.see_to_size(fx);
            // Once the API has the newest status, what waited for that goes on.
            if !self.post(around, fx) {
                break;
            }
        }
        self.label(fx);
    }

    fn decide(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        self.look_at = None;
        let view = self.view(around.now);
        let wanted = view.in_api && view.deleting.is_none();
        if view.stage == Stage::New && wanted && self.hold.until(around.now).is_some() {
            return;
        }
        for step in reconcile::next(&view) {
            self.take_step(step, around, fx);
        }
    }

    fn take_step(&mut self, step: Step, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let now = around.now;
        let job = self.record().job_id.clone();
        match (step, &mut self.state) {
            (Step::Prepare, _) => {
                self.attempts = self.attempts.wrapping_add(1);
                self.state = State::Preparing { attempt: self.attempts, outdated: false };
                fx.push(Effect::Prepare { attempt: self.attempts });
            }
            (Step::Abort, _) => self.abort_preparation(fx),
            (Step::AskStop(grace), State::Submitted { stop, .. }) => {
                stop.ask(grace, now);
                fx.push(Effect::AskStop { grace });
            }
            (Step::Terminate, State::Submitted { stop, .. }) => {
                stop.signal(now);
                fx.extend(job.map(|job| Effect::Signal { job }));
            }
            (Step::Cancel, State::Submitted { stop, .. }) => {
                stop.cancel(now);
                fx.extend(job.map(|job| Effect::Cancel { job }));
            }
            // Only of a pod with a job are these asked for.
            (Step::AskStop(_) | Step::Terminate | Step::Cancel, _) => {}
            // A write that is under way would leave its file behind; its end leads here again.
            (Step::Remove, _) if self.ledger.is_writing() => {}
            (Step::Remove, state) => {
                let from = Box::new(std::mem::replace(state, State::New));
                self.state = State::Removing { from };
                fx.push(Effect::Remove { who: self.record().pod.clone(), object: self.object.clone() });
            }
            (Step::Later(wait), _) => self.look_at = Some(now + wait),
        }
    }

    /// Gives up the attempt that runs.
    pub(super) fn abort_preparation(&mut self, fx: &mut Vec<Effect>) {
        if matches!(self.state, State::Preparing { .. }) {
            self.state = State::New;
            self.hold.forget();
            fx.push(Effect::AbortPreparation);
        }
    }

    /// Keeps in step with how far the pod is who may link, and what is done while a running pod has no link.
    pub(super) fn see_to_link(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let may = self.is_to_link();
        if self.link.allow(may) {
            fx.push(if may { Effect::AllowLink(self.record().addresses()) } else { Effect::ForbidLink });
        }
        let lacks = self.lacks_link();
        for act in self.link.next(around.now, lacks) {
            match act {
                Act::Tell => {
                    let node = self.job.job().and_then(Run::batch_host);
                    fx.extend(self.object.clone().map(|pod| Effect::TellUnlinked { pod, node }));
                }
                Act::TellBack if self.link.is_up() => {
                    self.tell(Note::normal("LinkBack", "the pod has its link to the kubelet again"), fx);
                }
                Act::TellBack => {}
                Act::Carry => fx.extend(self.job.job().map(|job| Effect::Carry { job: job.id.as_str().into() })),
            }
        }
    }

    /// Believes what the pod's link said of its node once the executor has said that its job is there. Of another node nothing is
    /// believed.
    fn tell_way_out(&mut self, fx: &mut Vec<Effect>) {
        let host = self.job.job().filter(|job| job.phase == RunPhase::Running).and_then(Run::batch_host);
        let Some((host, (node, has))) = host.and_then(|host| Some((host, self.way_out.take()?))) else { return };
        if node == host {
            fx.push(Effect::WayOut { node, has });
        } else {
            tracing::warn!(uid = %self.record().pod.uid, said = node, is = host, "a link says to be on another node than its job");
        }
    }

    /// Whether it may have a link: as long as there is, or may be, a job of its that runs or will.
    pub(super) fn is_to_link(&self) -> bool {
        match &self.state {
            State::New | State::Removing { .. } => false,
            // The preparation issues what the job finds.
            State::Preparing { .. } => self.link.may(),
            State::Submitting(_) | State::Submitted { .. } => !self.job.is_gone(),
        }
    }

    /// It runs, is not being ended, and has no link.
    pub(super) fn lacks_link(&self) -> bool {
        let State::Submitted { stop, .. } = &self.state else { return false };
        // A suspended job answers nobody, and Slurm starts no step in it.
        let goes_on = self.job.job().is_some_and(|job| job.phase == RunPhase::Running && !job.suspended);
        goes_on && !self.link.is_up() && self.job.finished_at().is_none() && !stop.is_begun()
    }

    /// Reads a running pod's references again when it is time.
    fn refresh(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let (is_over, is_deleted) = (self.job.is_over(), self.is_deleted());
        if is_over && matches!(self.state, State::Submitted { .. }) && std::mem::take(&mut self.follows) {
            fx.push(Effect::Unfollow);
        }
        let (Some(pod), Some(plan)) = (&self.object, self.in_force.plan()) else { return };
        let State::Submitted { refresh, .. } = &mut self.state else { return };
        if is_over || is_deleted || !refresh.begin(around.now) {
            return;
        }
        fx.push(Effect::Refresh(Box::new(RefreshJob {
            pod: pod.clone(),
            waits: self.job.job().is_some_and(|job| job.phase == RunPhase::Pending),
            record: self.ledger.record().clone(),
            plan: Box::new(plan.clone()),
            sent: self.in_force.told().to_vec(),
            known: self.in_force.images().clone(),
            memory: self.hold.lend_memory(),
        })));
    }

    /// Sees to it that the API gets the newest status. Returns whether it is found to have it.
    fn post(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) -> bool {
        let Some(pod) = self.object.clone().filter(|_| !self.is_removing()) else { return false };
        // Its folder is gone, or never was: a finalizer keeps the object, whose last status is the truth.
        if matches!(self.state, State::New) && pod.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let Some(wanted) = self.status(around).map(Arc::new) else { return false };
        let was_silent = self.posting.base(&pod).is_some_and(status::is_silent);
        match self.posting.next(&pod, wanted.clone(), &self.ledger.record().requested) {
            Posted::Nothing => false,
            Posted::Settled => true,
            Posted::Patch(patch) => {
                if status::is_silent(&wanted) && !was_silent {
                    self.tell(Note::warning(status::SILENT, "Node is not ready"), fx);
                }
                fx.push(Effect::Post { pod, status: wanted, patch });
                false
            }
        }
    }

    /// Sees to it that the pod's labels say where it runs.
    fn label(&mut self, fx: &mut Vec<Effect>) {
        if self.is_deleted() || self.is_removing() {
            return;
        }
        let Some(pod) = &self.object else { return };
        let labels = self.labelling.next(pod, self.ledger.record().job_id.as_deref(), self.job.job());
        fx.extend(labels.map(|labels| Effect::Label { pod: pod.clone(), labels }));
    }

    /// The status as it should be; None without an API object.
    pub(super) fn status(&self, around: &Around<'_>) -> Option<PodStatus> {
        let pod = self.object.as_ref()?;
        let empty = PodStatus::default();
        let previous = self.posting.base(pod).unwrap_or(&empty);
        let refused = self.hold.refused();
        // It was over before this kubelet began anything for it (an earlier one refused it, say): there is nothing to add.
        if matches!(self.state, State::New) && refused.is_none() && phase::is_terminal(previous.phase.as_deref()) {
            return Some(previous.clone());
        }
        let record = self.record();
        let is_silent = |since| around.now.saturating_duration_since(since) >= SILENCE;
        Some(status::status(status::Input {
            pod,
            previous,
            report: self.job.report(),
            job: self.job.job(),
            launch: self.job.launch(),
            held: self.hold.containers(),
            images: &record.images,
            granted: &record.granted,
            is_being_resized: self.is_being_resized(),
            refused,
            submit_error: self.hold.submit_error(),
            put_back: self.job.put_back(),
            silent: self.silent_since().is_some_and(is_silent),
            again: self.sandbox_to_come().is_some(),
            host_ip: around.rules.node_ip,
            seen_at: record.seen_at,
            now: around.clock,
        }))
    }
}
