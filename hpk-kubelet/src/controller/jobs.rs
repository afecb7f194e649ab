//! Slurm's side of the pods: when squeue is asked, and what its answers mean for the entries.

use super::entry::Heard;
use super::event::Answers;
use super::{Controller, left, tasks};
use crate::api::events::Note;
use crate::executor::pace;
use crate::executor::run::Run;
use crate::pods::submission::{self, Finding, Owner, Stray};
use hpk_api::ids::PodUid;
use std::time::{Duration, Instant};

/// Between two questions passes so many times what the last answer took.
const REST: u32 = 4;

/// Jobs that no pod has are looked for this often.
const STRAYS: Duration = Duration::from_secs(180);

impl Controller {
    pub(super) fn poll_at(&self) -> Option<Instant> {
        if self.outdated {
            // Not now, which is later than the caller's.
            return Some(self.asked_at);
        }
        // However many jobs there are, Slurm is left alone for most of the time.
        let rest = (self.answer_took * REST).min(pace::QUIET);
        let jobs = self.polls.first().map(|wait| self.asked_at + wait.max(rest));
        // Only the list of all pods says which jobs have none.
        jobs.into_iter().chain(self.listed.then_some(self.strays_at)).min()
    }

    /// Asks about all pods at once, when it is time.
    pub(super) fn ask_slurm(&mut self) {
        let now = Instant::now();
        if self.asking || self.poll_at().is_none_or(|at| at > now) {
            return;
        }
        self.outdated = false;
        let (mut known, mut sought) = (Vec::new(), Vec::new());
        for (uid, entry) in self.polls.keys().filter_map(|uid| self.entries.get_key_value(uid)) {
            let record = entry.record();
            if entry.is_sought() {
                let created = entry.object().and_then(|pod| pod.metadata.creation_timestamp.as_ref()).map(|t| t.0);
                let since = created.map_or(record.seen_at, |created| created.min(record.seen_at));
                sought.push(tasks::Sought { pod: record.pod.clone(), since, failed: record.failed_jobs.clone() });
            } else if let Some(id) = &record.job_id {
                known.push((uid.clone(), id.clone()));
            }
        }
        let all = self.listed && self.strays_at <= now;
        let question = tasks::Question { asked: now, known, sought, all };
        if question.is_empty() {
            return;
        }
        self.asking = true;
        self.asked_at = now;
        tasks::ask_slurm(&self.ctx, &self.tx, question);
    }

    pub(super) fn jobs(&mut self, answers: Answers) {
        self.asking = false;
        self.asked_at = Instant::now();
        self.answer_took = self.asked_at.saturating_duration_since(answers.asked);
        for (uid, id, job) in answers.known {
            let Some(entry) = self.entries.get_mut(&uid).filter(|e| e.record().job_id.as_ref() == Some(&id)) else {
                continue;
            };
            if let Some(job) = job.or_else(|| entry.missed(&id, answers.complete)) {
                self.job(&uid, job);
            }
        }
        for (uid, finding, id) in answers.sought {
            self.looked(&uid, finding, id, answers.asked);
        }
        if let Some(all) = answers.all {
            self.strays_at = Instant::now() + STRAYS;
            self.end_strays(all);
        }
        self.pace();
    }

    pub(super) fn jobs_failed(&mut self, sought: &[PodUid], asked: Instant) {
        self.asking = false;
        // Not at once, if it was that which was asked for.
        self.strays_at = self.strays_at.max(Instant::now() + pace::QUIET);
        for uid in sought {
            self.looked(uid, Finding::Unknown, None, asked);
        }
        self.pace();
    }

    fn job(&mut self, uid: &PodUid, job: Run) {
        let needs_words = self.entries.get(uid).is_some_and(|entry| entry.needs_words(&job));
        let words = needs_words.then(|| Box::new(left::read_words(&self.ctx, uid)));
        self.hear(uid, Heard::Job { job: Box::new(job), words });
    }

    /// The longer nothing has happened, the longer the next question can wait: once for each answer, not for each event.
    fn pace(&mut self) {
        let now = Instant::now();
        for uid in self.polls.keys().cloned().collect::<Vec<_>>() {
            let wait = self.entries.get(&uid).and_then(|entry| entry.interest(now)).map(pace::of);
            self.polls.set(&uid, wait);
        }
    }

    /// Ends the jobs of ours that no pod has: of a pod that went while nobody looked, or a second one.
    fn end_strays(&mut self, all: Vec<Run>) {
        for job in all.into_iter().filter(|job| !job.phase.is_over()) {
            let Some(uid) = job.pod_in(&self.rules.pods).map(PodUid::from) else { continue };
            let entry = self.entries.get(&uid);
            let owner =
                entry.map(|e| Owner { stage: e.stage(), job: e.record().job_id.as_deref(), was_over: e.is_job_gone() });
            match submission::stray(&job.id, owner) {
                Stray::Keep => {}
                Stray::Adopt => {
                    tracing::warn!(%uid, job = %job.id, "a pod that was not begun has a job: it is the pod's");
                    let found = self.found(&uid, |_| true);
                    self.hear(&uid, Heard::Adopted { id: job.id.into(), found });
                }
                Stray::Cancel => {
                    tracing::warn!(%uid, job = %job.id, "no pod has this job: it is cancelled");
                    if let Some((pod, own)) = entry.and_then(|e| Some((e.object()?, e.record().job_id.as_ref()?))) {
                        let what = if own.as_str() == job.id {
                            "was put back into the queue after this pod had ended".to_owned()
                        } else {
                            format!("is a second one of this pod, which {own} runs")
                        };
                        let text = format!("{} {} {what}: it is cancelled", job.words().run, job.id);
                        self.ctx.recorder.pod(pod, Note::warning(job.words().reasons.duplicate, text));
                    }
                    tasks::scancel(&self.ctx, job.id.into(), true);
                }
            }
        }
    }
}
