//! A running pod's references: when they are read again, and what came of it.
//!
//! Changes of configMaps and secrets are told by [`crate::api::references`]; a time is kept only for tokens,
//! certificates and what failed.

use super::prepare::{Held, Memory, Refreshed};
use super::{Controller, tasks};
use crate::api::fetch;
use crate::pods::reconcile::Stage;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// Without tokens and without failures there is nothing to wait for but news.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// How long until the references must be read again: `retry`, or when a token must be renewed.
pub(super) fn next(memory: &Memory, retry: Option<Duration>) -> Duration {
    let renewal = fetch::renewal(&memory.kept, Timestamp::now());
    retry.into_iter().chain(renewal).fold(IDLE, Duration::min)
}

impl Controller {
    /// An object that the pod refers to is not what it has read.
    pub(super) fn references_changed(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.retry_at = None;
        entry.outdated = entry.preparing.is_some();
        entry.refresh_at = entry.refresh_at.map(|_| Instant::now());
        self.advance(uid);
    }

    /// Looks at a running pod's references when it is time.
    pub(super) fn refresh(&mut self, uid: &str) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if entry.stage() != Stage::Submitted || entry.refreshing {
            return;
        }
        if entry.finished_at.is_some() || entry.job.as_ref().is_some_and(|j| j.phase.is_over()) {
            self.watches.release(uid);
            return;
        }
        let (Some(pod), Some(plan)) = (entry.pod.clone(), entry.plan.clone()) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let at = *entry.refresh_at.get_or_insert(now);
        if at > now {
            // One timer for each time, however often the pod has news.
            if entry.refresh_timer.replace(at) != Some(at) {
                self.later(uid, at - now);
            }
            return;
        }
        entry.refreshing = true;
        let memory = entry.memory.take().unwrap_or_default();
        let known = entry.images.clone();
        tasks::refresh(
            &self.ctx,
            &self.tx,
            tasks::Refresh { pod, record: entry.record.clone(), plan, sent: entry.sent.clone(), known, memory },
        );
    }

    pub(super) fn refreshed(&mut self, uid: &str, result: Result<Refreshed, Held>, memory: Memory) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.refreshing = false;
        let retry = match result {
            Ok(fresh) => {
                entry.held = fresh.waiting;
                entry.images = fresh.images;
                entry.record.images.extend(entry.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())));
                entry.sent.extend(fresh.update.ephemeral_containers.iter().map(|c| c.name.clone()));
                if let Some(plan) = fresh.plan {
                    entry.plan = Some(plan);
                }
                fresh.retry
            }
            Err(held) => held.retry,
        };
        entry.refresh_at = Some(Instant::now() + next(&memory, retry));
        let node = entry.pod.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
        self.watches.claim(node.as_deref(), uid, memory.kept.versions.clone());
        entry.memory = Some(memory);
        self.save(uid);
        self.advance(uid);
    }
}
