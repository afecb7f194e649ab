//! A running pod's references: when they are looked at again, and what came of it.

use super::prepare::{Held, Memory, Refreshed};
use super::{Controller, tasks};
use crate::pods::reconcile::Stage;
use std::time::{Duration, Instant};

/// References are looked at again this often (upstream's syncFrequency).
pub(super) const REFRESH: Duration = Duration::from_secs(45);

impl Controller {
    /// Looks at a running pod's references when it is time.
    pub(super) fn refresh(&mut self, uid: &str) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let alive = entry.stage == Stage::Submitted
            && !entry.refreshing
            && entry.finished_at.is_none()
            && entry.job.as_ref().is_none_or(|j| !j.state.is_over());
        if !alive {
            return;
        }
        let (Some(pod), Some(plan)) = (entry.pod.clone(), entry.plan.clone()) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let at = *entry.refresh_at.get_or_insert(now);
        if at > now {
            self.later(uid, at - now);
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
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.refreshing = false;
        entry.memory = Some(memory);
        let mut wait = REFRESH;
        match result {
            Ok(fresh) => {
                entry.held = fresh.waiting;
                entry.images = fresh.images;
                entry.record.images.extend(entry.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())));
                entry.sent.extend(fresh.update.ephemeral_containers.iter().map(|c| c.name.clone()));
                if let Some(plan) = fresh.plan {
                    if let Err(error) = self.ctx.folder(uid).write_plan(&plan) {
                        tracing::warn!(%uid, %error, "plan not updated");
                    }
                    entry.plan = Some(plan);
                }
                let _ = self.ctx.folder(uid).write_record(&entry.record);
                wait = fresh.retry.unwrap_or(REFRESH).min(REFRESH);
            }
            Err(held) => {
                if let Some(retry) = held.retry {
                    wait = retry.min(REFRESH);
                }
            }
        }
        entry.refresh_at = Some(now + wait);
        self.advance(uid);
    }
}
