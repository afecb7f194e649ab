//! Slurm's side of the pods: when squeue is asked, and what its answers mean for the entries.

use super::entry::Entry;
use super::event::Answers;
use super::{Controller, tasks};
use crate::api::events::Note;
use crate::executor::pace;
use crate::executor::run::{Run, RunPhase};
use crate::pods::reconcile::Stage;
use crate::pods::submission::{self, Finding, Stray};
use std::time::{Duration, Instant};

/// A job that neither squeue nor sacct know is given up after so many queries.
const MISSES: u32 = 4;

/// Jobs that no pod has are looked for this often.
const STRAYS: Duration = Duration::from_secs(180);

impl Controller {
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.outdated {
            // Not now, which is later than the caller's.
            return Some(self.asked_at);
        }
        let jobs = pace::wait(self.entries.values().filter_map(|e| e.interest(now))).map(|wait| self.asked_at + wait);
        // Only the list of all pods says which jobs have none.
        jobs.into_iter().chain(self.listed.then_some(self.strays_at)).min()
    }

    pub(super) fn ask_slurm(&mut self) {
        let now = Instant::now();
        if self.asking || self.poll_at().is_none_or(|at| at > now) {
            return;
        }
        self.outdated = false;
        let followed = self.entries.iter().filter(|(_, e)| e.stage() == Stage::Submitted && e.interest(now).is_some());
        let known = followed.filter_map(|(uid, e)| Some((uid.clone(), e.record.job_id.clone()?))).collect();
        let searched = self.entries.values().filter(|e| e.submission.search().is_some());
        let sought = searched
            .map(|e| {
                let created = e.pod.as_ref().and_then(|p| p.metadata.creation_timestamp.as_ref()).map(|t| t.0);
                let since = created.map_or(e.record.seen_at, |t| t.min(e.record.seen_at));
                tasks::Sought { pod: e.record.pod.clone(), since }
            })
            .collect();
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
        for (uid, id, job) in answers.known {
            let Some(entry) = self.entries.get_mut(&uid).filter(|e| e.record.job_id.as_ref() == Some(&id)) else {
                continue;
            };
            match job {
                Some(job) => self.job(&uid, job),
                None => {
                    entry.missed += 1;
                    if answers.complete && entry.missed >= MISSES {
                        // Where it ran is still known.
                        let nodes = entry.job.as_ref().map(|job| job.nodes.clone()).unwrap_or_default();
                        let job = Run { nodes, ..Run::lost(&id, &uid) };
                        self.job(&uid, job);
                    }
                }
            }
        }
        for (uid, finding, id) in answers.sought {
            self.looked(&uid, finding, id, answers.asked);
        }
        if let Some(all) = answers.all {
            self.strays_at = Instant::now() + STRAYS;
            self.end_strays(all);
        }
    }

    pub(super) fn jobs_failed(&mut self, sought: &[String], asked: Instant) {
        self.asking = false;
        // Not at once, if it was that which was asked for.
        self.strays_at = self.strays_at.max(Instant::now() + pace::QUIET);
        for uid in sought {
            self.looked(uid, Finding::Unknown, None, asked);
        }
    }

    /// Ends the jobs of ours that no pod has: of a pod that went while nobody looked, or a second one.
    fn end_strays(&mut self, all: Vec<Run>) {
        let pods = self.ctx.home.pods();
        for job in all.into_iter().filter(|job| !job.phase.is_over()) {
            let Some(uid) = job.pod_in(&pods).map(str::to_owned) else { continue };
            let pod = self.entries.get(&uid).map(|e| (e.stage(), e.record.job_id.as_deref()));
            match submission::stray(&job.id, pod) {
                Stray::Keep => {}
                Stray::Adopt => {
                    tracing::warn!(%uid, job = %job.id, "a pod that was not begun has a job: it is the pod's");
                    if let Some(entry) = self.entries.get_mut(&uid) {
                        entry.submission.adopt();
                    }
                    self.made(&uid, job.id);
                    self.advance(&uid);
                }
                Stray::Cancel => {
                    tracing::warn!(%uid, job = %job.id, "no pod has this job: it is cancelled");
                    let entry = self.entries.get(&uid);
                    if let Some((pod, own)) = entry.and_then(|e| Some((e.pod.as_ref()?, e.record.job_id.as_ref()?))) {
                        let text = format!(
                            "{} {} is a second one of this pod, which {own} runs: it is cancelled",
                            job.words().run,
                            job.id
                        );
                        self.ctx.recorder.pod(pod, Note::warning(job.words().reasons.duplicate, text));
                    }
                    tasks::scancel(&self.ctx, job.id, true);
                }
            }
        }
    }

    fn job(&mut self, uid: &str, job: Run) {
        let now = Instant::now();
        let home = self.ctx.folder(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let unlinked = entry.link.is_none();
        let running = job.phase == RunPhase::Running;
        let before = entry.job.as_ref().map(|j| j.reason.clone());
        let put_back = entry.put_back;
        let news = entry.take_job(job.clone(), now);
        // Without a link, or where something has changed, the supervisor's word on disk may be the newest there is. Where the
        // job waits, only the last word of a former run is of use.
        let waits = job.phase == RunPhase::Pending;
        if news || (unlinked && running) {
            if let Some(report) = home.status().filter(|report| !waits || report.finished) {
                entry.take_report(report, now);
            }
            let launch = home.launch().filter(|_| !waits);
            // The job runs and tries again; of one that has ended the pod's own message tells.
            if let (Some(word), Some(pod), true) = (&launch, &entry.pod, running)
                && word.step == hpk_api::state::HOST_PATH
                && entry.launch.as_ref().is_none_or(|told| told.message != word.message)
            {
                let text = format!("{} on node {}", word.message, word.node);
                self.ctx.recorder.pod(pod, Note::warning("FailedMount", text));
            }
            entry.launch = launch;
        }
        if news {
            if waits
                && entry.put_back == put_back
                && before.is_some_and(|reason| reason != job.reason)
                && !matches!(job.reason.as_str(), "" | "None" | "Priority")
                && let Some(pod) = &entry.pod
            {
                let text = format!("{} {} waits: {}", job.words().run, job.id, job.why);
                self.ctx.recorder.pod(pod, Note::normal(job.words().reasons.pending, text));
            }
            if job.is_gone() {
                entry.record.ended = Some(job.clone());
                self.save(uid);
                self.clear_up_after(uid);
            }
        }
        self.tell_put_back(uid, put_back);
        self.tell_events(uid);
        if news || unlinked {
            self.advance(uid);
        }
    }

    /// Has a pod that lives on the node remove what this one may have left there. Without one its next pod does.
    fn clear_up_after(&self, uid: &str) {
        let Some(node) = self.entries.get(uid).and_then(Entry::left_on) else { return };
        let lives_there =
            |e: &Entry| e.link.is_some() && e.job.as_ref().and_then(Run::batch_host).as_ref() == Some(&node);
        if let Some((neighbour, _)) = self.entries.iter().find(|(_, entry)| lives_there(entry)) {
            tasks::sweep(&self.ctx, neighbour.clone());
        }
    }

    /// That Slurm has put the job back into its queue, when it was not so before.
    pub(super) fn tell_put_back(&mut self, uid: &str, before: bool) {
        let Some(entry) = self.entries.get(uid).filter(|e| e.put_back && !before) else { return };
        if let (Some(pod), Some(job)) = (&entry.pod, &entry.job) {
            let text = format!("{} {} is back in the queue: the pod starts again", job.words().run, job.id);
            self.ctx.recorder.pod(pod, Note::warning(job.words().reasons.put_back, text));
        }
        self.save(uid);
    }
}
