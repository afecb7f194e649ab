//! The pods' records on disk. Each write is a task of its own, for it waits for the shared file system; of one pod there is
//! one at a time, and the last state wins. A write that fails is told and tried again.

use super::entry::Saving;
use super::{Controller, tasks};
use crate::api::events::Note;
use crate::pods::folder;
use crate::pods::submission::Submission;
use std::io;
use std::time::{Duration, Instant};

impl Controller {
    /// Writes the record as it is now.
    pub(super) fn save(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid).filter(|e| !e.removing) else { return };
        if entry.saving != Saving::Idle {
            entry.saving = Saving::Outdated;
            return;
        }
        entry.saving = Saving::Writing;
        entry.save_at = None;
        tasks::write_record(&self.ctx, &self.tx, entry.record.clone());
    }

    /// Tries a failed write again when it is time.
    pub(super) fn save_again(&mut self, uid: &str) {
        let due = |at: Instant| at <= Instant::now();
        if self.entries.get(uid).is_some_and(|e| e.save_at.is_some_and(due)) {
            self.save(uid);
        }
    }

    /// A write has ended.
    pub(super) fn recorded(&mut self, uid: &str, result: io::Result<()>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let outdated = std::mem::take(&mut entry.saving) == Saving::Outdated;
        match result {
            Ok(()) => {
                entry.save_failures = 0;
                if outdated {
                    self.save(uid);
                } else if entry.submission == Submission::Recording {
                    self.run_sbatch(uid);
                }
            }
            Err(error) => {
                entry.save_failures = entry.save_failures.saturating_add(1);
                let wait = Duration::from_secs((10 << (entry.save_failures - 1).min(5)).min(300));
                tracing::warn!(%uid, %error, "record not written");
                if let Some(pod) = &entry.pod {
                    let file = self.ctx.home.pod(uid).join(folder::RECORD);
                    let text = format!("cannot write {}, tried again in {wait:?}: {error}", file.display());
                    self.ctx.recorder.pod(pod, Note::warning("FailedRecord", text));
                }
                if entry.submission == Submission::Recording {
                    // Without a record the job could be submitted twice: the pod is prepared anew.
                    entry.submission.recorded(false);
                    entry.retry_at = Some(Instant::now() + wait);
                } else {
                    entry.save_at = Some(Instant::now() + wait);
                    self.later(uid, wait);
                }
            }
        }
        self.advance(uid);
    }
}
