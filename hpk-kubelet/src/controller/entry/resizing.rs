//! Another size for a pod whose job waits: Slurm is told of it. One that runs keeps its size ([`crate::pods::resize`]).

use super::heard::{Around, Effect};
use super::{Entry, State};
use crate::api::events::Note;
use crate::controller::prepared::Resized;
use crate::executor::run::RunPhase;
use crate::pods::resize::{self, Granted};

/// Of one pod.
#[derive(Debug, Default)]
pub(crate) struct Resizing {
    /// A change is under way.
    asked: bool,
    /// What was asked for last and is not to be had.
    refused: Option<Granted>,
}

impl Entry {
    /// Its job waits, so that Slurm can give it another size.
    pub(super) fn can_be_resized(&self) -> bool {
        let waits = self.job.job().is_some_and(|job| job.phase == RunPhase::Pending);
        waits && matches!(self.state, State::Submitted { .. }) && !self.is_deleted()
    }

    /// A change of its size is under way, or is to come.
    pub(super) fn is_being_resized(&self) -> bool {
        let wanted = self.object.as_deref().map(resize::asked);
        self.resizing.asked || (self.can_be_resized() && self.resizing.refused != wanted)
    }

    /// Has the job given the size that the pod asks for.
    pub(super) fn see_to_size(&mut self, fx: &mut Vec<Effect>) {
        if self.resizing.asked || !self.can_be_resized() {
            return;
        }
        let Some(pod) = &self.object else { return };
        let record = self.ledger.record();
        let Some(job) = record.job_id.clone() else { return };
        let refused = self.resizing.refused.as_ref().is_some_and(|refused| *refused == resize::asked(pod));
        if resize::infeasible(pod, &record.granted).is_some() && !refused {
            self.resizing.asked = true;
            fx.push(Effect::Resize { pod: pod.clone(), job });
        }
    }

    pub(super) fn resized(&mut self, resized: Resized, around: &Around<'_>, fx: &mut Vec<Effect>) {
        self.resizing.asked = false;
        let Resized { job, wanted, result } = resized;
        match result {
            // Of a job that ended meanwhile.
            _ if self.ledger.record().job_id.as_ref() != Some(&job) => {}
            Ok(requested) => {
                let words = around.rules.words;
                let record = self.ledger.record_mut();
                let text = format!("{} {job}, which waits, has another size now: {requested}", words.run);
                record.granted = wanted;
                record.requested = requested;
                self.resizing.refused = None;
                self.posting.annotate_again();
                self.tell(Note::normal(resize::DONE, text), fx);
                self.save(fx);
            }
            Err(why) => {
                self.tell(Note::warning(resize::EVENT, why), fx);
                self.resizing.refused = Some(wanted);
            }
        }
        self.advance(around, fx);
    }
}
