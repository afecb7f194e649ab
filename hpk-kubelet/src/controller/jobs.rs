//! Slurm's side of the pods: when squeue is asked, and what its answers mean for the entries.

use super::entry::Entry;
use super::{Controller, tasks};
use crate::api::events::Note;
use crate::pods::status;
use crate::slurm::job::{Job, JobState};
use crate::slurm::pace;
use std::collections::HashMap;
use std::time::Instant;

/// A job that neither squeue nor sacct know is given up after so many queries.
const MISSES: u32 = 4;

impl Controller {
    pub(super) fn poll_at(&self) -> Option<Instant> {
        let now = Instant::now();
        pace::wait(self.entries.values().filter_map(|e| e.interest(now))).map(|wait| self.asked_at + wait)
    }

    pub(super) fn ask_slurm(&mut self) {
        let now = Instant::now();
        if self.asking || self.poll_at().is_none_or(|at| at > now) {
            return;
        }
        let ids: Vec<String> = self
            .entries
            .values()
            .filter(|e| e.interest(now).is_some())
            .filter_map(|e| e.record.job_id.clone())
            .collect();
        if ids.is_empty() {
            return;
        }
        self.asking = true;
        self.asked_at = now;
        tasks::ask_slurm(&self.ctx, &self.tx, ids);
    }

    pub(super) fn jobs(&mut self, asked: &[String], found: Vec<Job>, complete: bool) {
        self.asking = false;
        self.asked_at = Instant::now();
        let by_id: HashMap<String, String> =
            self.entries.iter().filter_map(|(uid, e)| e.record.job_id.clone().map(|id| (id, uid.clone()))).collect();
        let mut found: HashMap<String, Job> = found.into_iter().map(|j| (j.id.clone(), j)).collect();
        for id in asked {
            let Some(uid) = by_id.get(id).cloned() else { continue };
            match found.remove(id) {
                Some(job) => self.job(&uid, job),
                None => {
                    let Some(entry) = self.entries.get_mut(&uid) else { continue };
                    entry.missed += 1;
                    if complete && entry.missed >= MISSES {
                        // Where it ran is still known.
                        let nodes = entry.job.as_ref().map(|job| job.nodes.clone()).unwrap_or_default();
                        let job = Job { nodes, ..Job::lost(id, &uid) };
                        self.job(&uid, job);
                    }
                }
            }
        }
    }

    fn job(&mut self, uid: &str, job: Job) {
        let now = Instant::now();
        let home = self.ctx.folder(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let unlinked = entry.link.is_none();
        let running = job.state == JobState::Running;
        let before = entry.job.as_ref().map(|j| j.reason.clone());
        let put_back = entry.put_back;
        let news = entry.take_job(job.clone(), now);
        // Without a link, or where something has changed, the supervisor's word on disk may be the newest there is. Where the
        // job waits, only the last word of a former run is of use.
        let waits = job.state == JobState::Pending;
        if news || (unlinked && running) {
            if let Some(report) = home.status().filter(|report| !waits || report.finished) {
                entry.take_report(report, now);
            }
            entry.launch = home.launch().filter(|_| !waits);
        }
        if news {
            if waits
                && entry.put_back == put_back
                && before.is_some_and(|reason| reason != job.reason)
                && !matches!(job.reason.as_str(), "" | "None" | "Priority")
                && let Some(pod) = &entry.pod
            {
                let text = format!("Slurm job {} waits: {}", job.id, status::pending_text(&job.reason));
                self.ctx.recorder.pod(pod, Note::normal("SlurmPending", text));
            }
            if job.is_gone() {
                entry.record.ended = Some(job.clone());
                let _ = home.write_record(&entry.record);
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
            |e: &Entry| e.link.is_some() && e.job.as_ref().and_then(Job::batch_host).as_ref() == Some(&node);
        if let Some((neighbour, _)) = self.entries.iter().find(|(_, entry)| lives_there(entry)) {
            tasks::sweep(&self.ctx, neighbour.clone());
        }
    }

    /// That Slurm has put the job back into its queue, when it was not so before.
    pub(super) fn tell_put_back(&self, uid: &str, before: bool) {
        let Some(entry) = self.entries.get(uid).filter(|e| e.put_back && !before) else { return };
        if let (Some(pod), Some(job)) = (&entry.pod, &entry.job) {
            let text = format!("Slurm has put job {} back into its queue: the pod starts again", job.id);
            self.ctx.recorder.pod(pod, Note::warning("SlurmRequeued", text));
        }
        let _ = self.ctx.folder(uid).write_record(&entry.record);
    }
}
