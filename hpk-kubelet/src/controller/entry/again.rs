//! A pod whose job has made no sandbox goes back to its beginning and gets another one ([`crate::pods::again`]).

use super::heard::{Around, Effect};
use super::in_force::InForce;
use super::job_view::JobView;
use super::labels::Labelling;
use super::{Entry, State};
use crate::api::events::Note;
use crate::executor::run::Run;
use crate::gangs::claim;
use crate::pods::folder::Progress;
use crate::pods::{again, phase};
use hpk_api::net::NetworkMode;
use std::time::Duration;

impl Entry {
    /// Why the job has made no sandbox, and how long until another one is submitted. None: it has, or no other one is.
    pub(super) fn sandbox_to_come(&self) -> Option<(String, Duration)> {
        let State::Submitted { stop, .. } = &self.state else { return None };
        let pod = self.object.as_ref().filter(|_| !self.is_deleted() && !stop.is_begun())?;
        let is_over = phase::is_terminal(pod.status.as_ref().and_then(|s| s.phase.as_deref()));
        // Places of a gang's members are in one allocation.
        if is_over || !matches!(claim::of(pod), Ok(None)) {
            return None;
        }
        let network = self.in_force.plan().map(|plan| &plan.network);
        let is_plain = network.is_some_and(|network| network.mode != NetworkMode::Cni && network.list.is_none());
        let message = again::not_made(self.job.report(), self.job.job(), self.job.launch(), is_plain)?;
        Some((message, again::wait(self.record().failed_jobs.len().try_into().unwrap_or(u32::MAX).saturating_add(1))?))
    }

    /// Takes the pod back to its beginning, once its job is gone from its node.
    pub(super) fn try_again(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let Some((message, wait)) = self.sandbox_to_come().filter(|_| self.job.is_gone()) else { return };
        let node = self.job.job().and_then(Run::batch_host);
        let place = node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
        let text = format!("Failed to create pod sandbox{place}: {message}; tried again in {} s", wait.as_secs());
        self.tell(Note::warning("FailedCreatePodSandBox", text), fx);
        let record = self.ledger.record_mut();
        record.progress = Progress::New;
        record.failed_jobs.extend(record.job_id.take());
        record.avoid.extend(node.filter(|node| !record.avoid.contains(node)));
        (record.ended, record.former_run, record.linked, record.last_event) = (None, None, false, 0);
        self.state = State::New;
        self.job = JobView::new(None, around.now);
        self.in_force = InForce::default();
        self.labelling = Labelling::default();
        self.hold.back_off(around.now, wait);
        self.save(fx);
    }
}
