//! From a pod to its job: preparing, submitting, and when either is tried again.

use super::prepare::{Held, Memory, Ready};
use super::{Controller, refresh, tasks};
use crate::api::events::Note;
use crate::pods::address::Pool;
use crate::pods::folder::Progress;
use crate::pods::reconcile::Stage;
use crate::pods::resize;
use crate::pods::status::Waiting;
use crate::slurm::client::SlurmError;
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
        entry.stage = Stage::Preparing;
        entry.preparing = Some(tasks::prepare(&self.ctx, &self.tx, pod, entry.record.clone(), memory));
    }

    pub(super) fn prepared(&mut self, uid: &str, result: Result<Ready, Held>, memory: Memory) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| e.stage == Stage::Preparing) else { return };
        entry.preparing = None;
        self.watches.claim(uid, memory.kept.versions.clone());
        entry.memory = Some(memory);
        match result {
            Ok(ready) => {
                entry.held.clear();
                entry.record.images = ready.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())).collect();
                entry.record.granted = entry.pod.as_deref().map(resize::asked).unwrap_or_default();
                entry.record.requested = ready.asked;
                entry.plan = Some(ready.plan);
                entry.images = ready.images;
                self.submit(uid, Some(ready.arguments));
            }
            Err(held) => {
                entry.stage = Stage::New;
                entry.held = held.waiting;
                // Without a time the pod waits for a change of its own object.
                let wait = held.retry.unwrap_or(Duration::from_secs(24 * 3600));
                entry.retry_at = Some(Instant::now() + wait);
                self.advance(uid);
            }
        }
    }

    /// Begins a submission; without arguments (after a restart) it looks for the job first.
    pub(super) fn submit(&mut self, uid: &str, arguments: Option<Vec<String>>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let first = entry.record.progress == Progress::New;
        entry.record.progress = Progress::Submitting;
        if let Err(error) = self.ctx.folder(uid).write_record(&entry.record) {
            // Without a record the job could be submitted twice after a crash.
            entry.record.progress = Progress::New;
            entry.stage = Stage::New;
            entry.retry_at = Some(Instant::now() + Duration::from_secs(20));
            if let Some(pod) = &entry.pod {
                self.ctx
                    .recorder
                    .pod(pod, Note::warning("FailedSubmit", format!("cannot write the pod's folder: {error}")));
            }
            self.advance(uid);
            return;
        }
        entry.stage = Stage::Submitting;
        tasks::submit(&self.ctx, &self.tx, uid, arguments, !first);
    }

    pub(super) fn submitted(&mut self, uid: &str, result: Result<String, SlurmError>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let now = Instant::now();
        match result {
            Ok(id) => {
                tracing::info!(pod = %format!("{}/{}", entry.record.pod.namespace, entry.record.pod.name), job = %id, "job submitted");
                if let Some(pod) = entry.pod.as_ref().filter(|_| !entry.record.requested.is_empty()) {
                    let text = format!("Slurm job {id}: sbatch {}", entry.record.requested);
                    self.ctx.recorder.pod(pod, Note::normal("SlurmSubmitted", text));
                }
                entry.submit_error = None;
                entry.held.clear();
                entry.record.progress = Progress::Submitted;
                entry.record.job_id = Some(id);
                entry.stage = Stage::Submitted;
                entry.job_since = now;
                entry.refresh_at = entry.memory.as_ref().map(|memory| now + refresh::next(memory, None));
                if let Err(error) = self.ctx.folder(uid).write_record(&entry.record) {
                    // The comment of the job finds it again.
                    tracing::error!(%uid, %error, "record not written");
                }
            }
            Err(SlurmError::NoJob) => {
                entry.record.progress = Progress::New;
                entry.stage = Stage::New;
                entry.retry_at = None;
            }
            Err(error) => {
                let transient = error.is_transient();
                // A time-out leaves open whether there is a job: the record stays at Submitting, so that it is looked for.
                if !matches!(error, SlurmError::Timeout { .. }) {
                    entry.record.progress = Progress::New;
                    let _ = self.ctx.folder(uid).write_record(&entry.record);
                }
                entry.stage = Stage::New;
                let failures = entry.memory.as_mut().map_or(1, |m| {
                    m.failures = m.failures.saturating_add(1);
                    m.failures
                });
                let base = if transient { 2 } else { 30 };
                let wait = Duration::from_secs((base << (failures - 1).min(5)).min(300));
                entry.retry_at = Some(now + wait);
                let text = error.to_string();
                if let Some(pod) = &entry.pod {
                    self.ctx.recorder.pod(pod, Note::warning("FailedSubmit", text.clone()));
                }
                let waiting = Waiting { reason: "SlurmSubmitFailed".to_owned(), message: text.clone() };
                let containers = entry.pod.iter().filter_map(|p| p.spec.as_ref()).flat_map(|s| &s.containers);
                entry.held = containers.map(|c| (c.name.clone(), waiting.clone())).collect();
                entry.submit_error = Some(text);
            }
        }
        self.advance(uid);
    }
}
