//! The supervisors' side of the pods: links that come and go, reports, and the events in them.

use super::entry::SILENCE;
use super::{Controller, tasks};
use crate::api::events::Note;
use crate::pods::reconcile::Stage;
use hpk_api::state::PodState;
use hpk_link::server::LinkEvent;
use std::time::Instant;

impl Controller {
    pub(super) fn link(&mut self, event: LinkEvent) {
        match event {
            // The control plane's own place in the pod network is no pod.
            LinkEvent::Up { hello, .. } if hello.pod_uid == hpk_api::link::MEMBER => {}
            LinkEvent::Up { hello, carried } => {
                let Some(entry) = self
                    .entries
                    .get_mut(&hello.pod_uid)
                    .filter(|e| matches!(e.stage(), Stage::Submitted | Stage::Submitting))
                else {
                    if self.listed {
                        tasks::refuse(&self.ctx, hello.pod_uid);
                    }
                    return;
                };
                if let Some(old) = entry.link.replace(tasks::watch(&self.ctx, &self.tx, hello.pod_uid.clone())) {
                    old.abort();
                }
                entry.heard_at = Instant::now();
                if !carried && !std::mem::replace(&mut entry.record.linked, true) {
                    self.save(&hello.pod_uid);
                }
                // Slurm will say RUNNING at the next query: no need to wait for it to see the report.
                self.advance(&hello.pod_uid);
            }
            LinkEvent::Down { uid, reason } => {
                tracing::debug!(%uid, %reason, "link down");
                let Some(entry) = self.entries.get_mut(&uid) else { return };
                if let Some(task) = entry.link.take() {
                    task.abort();
                    entry.heard_at = Instant::now();
                    self.later(&uid, SILENCE);
                    self.advance(&uid);
                }
            }
        }
    }

    pub(super) fn report(&mut self, uid: &str, state: PodState) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let put_back = entry.put_back;
        // Nobody else could speak for a job of this pod.
        let found = state.job_id.clone().filter(|_| entry.submission.search().is_some());
        if let Some(id) = found {
            entry.submission.adopt();
            self.made(uid, id);
        }
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !entry.take_report(state, Instant::now()) {
            return;
        }
        self.tell_put_back(uid, put_back);
        self.tell_events(uid);
        self.advance(uid);
    }

    /// Posts the supervisor's events that were not posted before.
    pub(super) fn tell_events(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (Some(pod), Some(report)) = (&entry.pod, &entry.report) else { return };
        let mut last = entry.record.last_event;
        for event in report.events.iter().filter(|e| e.sequence > entry.record.last_event) {
            last = last.max(event.sequence);
            self.ctx.recorder.pod(
                pod,
                Note {
                    warning: event.warning,
                    reason: event.reason.clone(),
                    message: event.message.clone(),
                    container: event.container.clone(),
                    at: Some(event.at),
                },
            );
        }
        if last != entry.record.last_event {
            entry.record.last_event = last;
            self.save(uid);
        }
    }
}
