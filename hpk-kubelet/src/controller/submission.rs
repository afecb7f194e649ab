//! From a pod to its job: preparing, submitting, and when either is tried again.

use super::context::Context;
use super::entry::Entry;
use super::prepare::{Held, Memory, Ready};
use super::{Controller, refresh, tasks};
use crate::api::events::Note;
use crate::executor::ExecutorError;
use crate::pods::address::Pool;
use crate::pods::folder::Progress;
use crate::pods::plan::Image;
use crate::pods::reconcile::Stage;
use crate::pods::resize;
use crate::pods::status::Waiting;
use crate::pods::submission::{Answer, Finding, Submission};
use hpk_api::net::NetworkMode;
use std::time::{Duration, Instant};

impl Controller {
    pub(super) fn prepare(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let Some(pod) = entry.pod.clone() else { return };
        if self.ctx.network_mode(&pod) == NetworkMode::Overlay && entry.record.pod_ips.is_empty() {
            let given = self.pool.as_mut().and_then(Pool::take);
            // Before the address is used, so that no kubelet after this one gives it again too soon.
            if let Some(mark) = self.pool.as_mut().and_then(Pool::due)
                && let Err(error) =
                    hpk_layout::replace(&self.ctx.home.addresses(), format!("{mark}\n").as_bytes(), 0o600)
            {
                tracing::warn!(%error, "cannot write up to where pod addresses were given: a restart may give some again");
            }
            match given {
                Some(ips) => entry.record.pod_ips = ips,
                None => {
                    let text = format!(
                        "no free pod address in {}: it can be enlarged in cluster.json",
                        self.ctx.cluster.pod_cidr
                    );
                    self.ctx.recorder.pod(&pod, Note::warning("FailedCreatePodSandBox", text));
                    entry.retry_at = Some(Instant::now() + Duration::from_secs(20));
                    self.later(uid, Duration::from_secs(20));
                    return;
                }
            }
        }
        let memory = entry.memory.take().unwrap_or_default();
        entry.outdated = false;
        entry.preparing = Some(tasks::prepare(&self.ctx, &self.tx, pod, entry.record.clone(), memory));
    }

    pub(super) fn prepared(&mut self, uid: &str, result: Result<Ready, Held>, memory: Memory) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| e.stage() == Stage::Preparing) else { return };
        entry.preparing = None;
        let node = entry.pod.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
        self.watches.claim(node.as_deref(), uid, memory.kept.versions.clone());
        entry.memory = Some(memory);
        match result {
            Ok(ready) => {
                entry.held.clear();
                entry.record.images = ready.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())).collect();
                entry.record.granted = entry.pod.as_deref().map(resize::asked).unwrap_or_default();
                entry.record.requested = ready.asked;
                entry.plan = Some(ready.plan);
                entry.images = ready.images;
                self.submit(uid, ready.arguments);
            }
            Err(held) => {
                entry.held = held.waiting;
                // Without a time the pod waits for a change of its own object.
                let wait = held.retry.unwrap_or(Duration::from_secs(24 * 3600));
                let outdated = std::mem::take(&mut entry.outdated);
                entry.retry_at = Some(Instant::now() + wait).filter(|_| !outdated);
                self.advance(uid);
            }
        }
    }

    /// Begins a submission: the record says so first.
    fn submit(&mut self, uid: &str, arguments: Vec<String>) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| e.submission == Submission::Clear) else { return };
        entry.submission.begin();
        entry.record.progress = Progress::Submitting;
        entry.arguments = arguments;
        self.save(uid);
        self.advance(uid);
    }

    /// The record is on disk: sbatch runs, if the pod is still wanted.
    pub(super) fn run_sbatch(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let wanted = entry.pod.as_ref().is_some_and(|p| p.metadata.deletion_timestamp.is_none());
        let arguments = std::mem::take(&mut entry.arguments);
        if entry.submission.recorded(wanted) {
            tasks::submit(&self.ctx, &self.tx, uid, arguments);
        }
    }

    pub(super) fn submitted(&mut self, uid: &str, result: Result<String, ExecutorError>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (now, words) = (Instant::now(), self.ctx.executor.words());
        match result {
            Ok(id) => {
                entry.submission.answered(Answer::Job, now, self.ctx.message_timeout);
                if let Some(pod) = entry.pod.as_ref().filter(|_| !entry.record.requested.is_empty()) {
                    let text = format!("{} {id}: {} {}", words.run, words.command, entry.record.requested);
                    self.ctx.recorder.pod(pod, Note::normal(words.reasons.submitted, text));
                }
                self.made(uid, id);
            }
            Err(error) => {
                let answer = if error.is_refusal { Answer::Refused } else { Answer::Lost };
                entry.submission.answered(answer, now, self.ctx.message_timeout);
                let failures = entry.memory.as_mut().map_or(1, |m| {
                    m.failures = m.failures.saturating_add(1);
                    m.failures
                });
                let base = if error.is_transient { 2 } else { 30 };
                let wait = Duration::from_secs((base << (failures - 1).min(5)).min(300));
                entry.retry_at = Some(now + wait);
                let mut text = error.to_string();
                if answer == Answer::Lost {
                    text.push_str(": ");
                    text.push_str(words.lost_answer);
                }
                if let Some(pod) = &entry.pod {
                    self.ctx.recorder.pod(pod, Note::warning("FailedSubmit", text.clone()));
                }
                let waiting = Waiting { reason: words.reasons.submit_failed.to_owned(), message: text.clone() };
                let containers = entry.pod.iter().filter_map(|p| p.spec.as_ref()).flat_map(|s| &s.containers);
                entry.held = containers.map(|c| (c.name.clone(), waiting.clone())).collect();
                entry.submit_error = Some(text);
            }
        }
        self.advance(uid);
    }

    /// A look for the pod's job has ended.
    pub(super) fn looked(&mut self, uid: &str, finding: Finding, id: Option<String>, asked: Instant) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| e.submission.search().is_some()) else { return };
        entry.submission.looked(finding, asked, Instant::now());
        match (&entry.submission, id) {
            (Submission::Made, Some(id)) => {
                tracing::info!(%uid, job = %id, "job found");
                self.made(uid, id);
            }
            (Submission::Clear, _) => tracing::info!(%uid, "no job found"),
            _ => return,
        }
        self.advance(uid);
    }

    /// The pod's job is known.
    pub(super) fn made(&mut self, uid: &str, id: String) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let now = Instant::now();
        tracing::info!(pod = %format!("{}/{}", entry.record.pod.namespace, entry.record.pod.name), job = %id, "has its job");
        if let Some(task) = entry.preparing.take() {
            task.abort();
            entry.memory = Some(Memory::default());
        }
        entry.submit_error = None;
        entry.held.clear();
        entry.record.progress = Progress::Submitted;
        entry.record.job_id = Some(id);
        entry.job_since = now;
        entry.refresh_at = entry.memory.as_ref().map(|memory| now + refresh::next(memory, None));
        if entry.plan.is_none() {
            take_up(&self.ctx, entry);
        }
        self.save(uid);
    }
}

/// Reads what an earlier kubelet and the pod's job have left in its folder.
pub(super) fn take_up(ctx: &Context, entry: &mut Entry) {
    let home = ctx.folder(&entry.record.pod.uid);
    entry.plan = home.plan().map(Box::new);
    entry.launch = home.launch();
    if let Some(report) = home.status() {
        entry.sent = report.ephemeral_containers.iter().map(|c| c.name.clone()).collect();
        entry.take_report(report, Instant::now());
    }
    // What runs needs no pull, and no word about one.
    let had = entry.record.images.iter();
    entry.images = had
        .filter_map(|(name, image_ref)| {
            let config = ctx.images.config(image_ref)?;
            Some((name.clone(), Image { image_ref: image_ref.clone(), config }))
        })
        .collect();
}
