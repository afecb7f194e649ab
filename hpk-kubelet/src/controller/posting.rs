//! What others see of a pod: its status at the API server and in the kubelet API, up to its removal.

use super::{Controller, PodInfo, tasks};
use crate::api::events::Note;
use crate::executor::run::RunPhase;
use crate::pods::reconcile::Stage;
use crate::pods::status;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use std::sync::Arc;
use std::time::Duration;

impl Controller {
    pub(super) fn post(&mut self, uid: &str) {
        self.label(uid);
        let host_ip = self.ctx.cluster.node_ip;
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (Some(pod), Some(wanted)) = (entry.pod.clone(), entry.status(host_ip, Timestamp::now())) else {
            self.publish(uid);
            return;
        };
        if entry.stage() == Stage::New && pod.metadata.deletion_timestamp.is_some() {
            // Its folder is gone, or never was: a finalizer keeps the object, whose last status is the truth.
            self.publish(uid);
            return;
        }
        entry.current = Some(wanted.clone());
        if entry.posting {
            self.publish(uid);
            return;
        }
        let base = entry.posted.as_ref().or(pod.status.as_ref()).cloned().unwrap_or_default();
        if status::is_silent(&wanted) && !status::is_silent(&base) {
            self.ctx.recorder.pod(&pod, Note::warning(status::SILENT, "Node is not ready"));
        }
        // Once: an API server that drops it must not be asked for ever.
        let requested = (!entry.annotated).then_some(entry.record.requested.as_str()).filter(|r| !r.is_empty());
        let patch = status::patch(&pod, &base, &wanted, requested);
        entry.annotated |= requested.is_some();
        let settled = patch.is_none();
        entry.posting = !settled;
        let news = settled && !entry.settled;
        entry.settled = settled;
        // Seen by the kubelet API before it is seen at the API server, never after.
        self.publish(uid);
        if let Some(patch) = patch {
            tasks::post(&self.ctx, &self.tx, pod, wanted, patch);
        } else if news {
            self.later(uid, Duration::ZERO);
        }
    }

    pub(super) fn posted(&mut self, uid: &str, status: PodStatus, retry: Option<Duration>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match retry {
            None => {
                entry.posting = false;
                entry.posted = Some(status);
                self.advance(uid);
            }
            Some(wait) => {
                entry.posting = false;
                entry.annotated = false;
                self.later(uid, wait);
            }
        }
    }

    pub(super) fn removed(&mut self, uid: &str, done: bool) {
        if !done {
            if let Some(entry) = self.entries.get_mut(uid) {
                entry.removing = false;
            }
            self.later(uid, Duration::from_secs(5));
            return;
        }
        self.watches.release(uid);
        self.labelled.remove(uid);
        if let Some(entry) = self.entries.remove(uid) {
            if let Some(pool) = &mut self.pool {
                pool.release(&entry.record.pod_ips);
            }
            if let Some(task) = entry.link {
                task.abort();
            }
        }
        self.ctx.links.withdraw(uid);
        self.publish(uid);
    }

    /// Lets the kubelet API see the pod as it is: with the newest status, which the API server may not have yet.
    fn publish(&self, uid: &str) {
        let info = self.entries.get(uid).and_then(|entry| {
            let mut pod = (**entry.pod.as_ref()?).clone();
            if let Some(status) = entry.current.as_ref().or(entry.posted.as_ref()) {
                pod.status = Some(status.clone());
            }
            let job = entry.job.as_ref().filter(|j| j.phase == RunPhase::Running).map(|j| j.id.clone());
            Some(PodInfo { pod: Arc::new(pod), linked: entry.link.is_some(), job })
        });
        self.seen.send_modify(|pods| match info {
            Some(info) => {
                pods.insert(uid.to_owned(), info);
            }
            None => {
                pods.remove(uid);
            }
        });
    }
}
