//! A pod's status on its way to the API server: one patch at a time, of what differs.

use crate::pods::status;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not compared with the API's since the last change.
    Open,
    /// The API has the newest status.
    Settled,
    /// A patch is under way.
    UnderWay,
    /// A patch failed. It is tried again at this time, or with the next news.
    Failed(Instant),
}

/// What a new status leads to.
#[derive(Debug, PartialEq)]
pub(crate) enum Posted {
    /// A patch is under way, or the API had the newest status before.
    Nothing,
    /// The API has the newest status now; it had not before.
    Settled,
    /// This is to be sent.
    Patch(Value),
}

#[derive(Debug)]
pub(crate) struct Posting {
    /// The status that the API took last.
    posted: Option<Arc<PodStatus>>,
    /// The status as it is now.
    current: Option<Arc<PodStatus>>,
    state: State,
    /// The API was told what was asked of Slurm.
    annotated: bool,
}

impl Default for Posting {
    fn default() -> Self {
        Self { posted: None, current: None, state: State::Open, annotated: false }
    }
}

impl Posting {
    /// The API's object is another one.
    pub(crate) fn reopen(&mut self) {
        if self.state == State::Settled {
            self.state = State::Open;
        }
    }

    /// What was asked of Slurm has changed.
    pub(crate) fn annotate_again(&mut self) {
        self.annotated = false;
        self.reopen();
    }

    /// Takes the status as it should be. `requested`: what was asked of Slurm, if anything was.
    pub(crate) fn next(&mut self, pod: &Pod, wanted: Arc<PodStatus>, requested: &str) -> Posted {
        self.current = Some(wanted.clone());
        if self.state == State::UnderWay {
            return Posted::Nothing;
        }
        // Once: an API server that drops it must not be asked for ever.
        let requested = (!self.annotated && !requested.is_empty()).then_some(requested);
        let empty = PodStatus::default();
        let base = self.base(pod).unwrap_or(&empty);
        let patch =
            if requested.is_none() && *base == *wanted { None } else { status::patch(pod, base, &wanted, requested) };
        self.annotated |= requested.is_some();
        let before = std::mem::replace(&mut self.state, if patch.is_some() { State::UnderWay } else { State::Settled });
        match patch {
            Some(patch) => Posted::Patch(patch),
            None if before == State::Settled => Posted::Nothing,
            None => Posted::Settled,
        }
    }

    /// A patch has ended. `retry`: it was not taken; it is tried again after this long.
    pub(crate) fn ended(&mut self, status: Arc<PodStatus>, retry: Option<Duration>, now: Instant) {
        match retry {
            None => {
                self.posted = Some(status);
                self.state = State::Open;
            }
            Some(wait) => {
                self.annotated = false;
                self.state = State::Failed(now + wait);
            }
        }
    }

    /// What the API is known to have.
    pub(crate) fn base<'a>(&'a self, pod: &'a Pod) -> Option<&'a PodStatus> {
        self.posted.as_deref().or(pod.status.as_ref())
    }

    /// The status as it is now; the API may not have it yet.
    pub(crate) fn current(&self) -> Option<&Arc<PodStatus>> {
        self.current.as_ref()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.state == State::Settled
    }

    /// When a failed patch is tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        if let State::Failed(at) = self.state { Some(at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str) -> PodStatus {
        PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
    }

    #[test]
    fn one_patch_at_a_time_and_the_newest_status_last() {
        let now = Instant::now();
        let pod = Pod::default();
        let mut posting = Posting::default();
        let wanted = |phase| Arc::new(status(phase));
        assert!(matches!(posting.next(&pod, wanted("Pending"), "--mem=1"), Posted::Patch(_)));
        assert_eq!(posting.next(&pod, wanted("Running"), "--mem=1"), Posted::Nothing, "one at a time");
        assert!(!posting.is_settled());
        posting.ended(wanted("Pending"), None, now);
        let Posted::Patch(patch) = posting.next(&pod, wanted("Running"), "--mem=1") else { panic!("it differs") };
        assert!(!patch.to_string().contains("--mem"), "the request is told once: {patch}");
        posting.ended(wanted("Running"), None, now);
        assert_eq!(posting.next(&pod, wanted("Running"), "--mem=1"), Posted::Settled);
        assert_eq!(posting.next(&pod, wanted("Running"), "--mem=1"), Posted::Nothing);
        posting.reopen();
        assert_eq!(posting.next(&pod, wanted("Running"), "--mem=1"), Posted::Settled);
    }

    #[test]
    fn what_was_not_taken_is_sent_again() {
        let now = Instant::now();
        let pod = Pod::default();
        let mut posting = Posting::default();
        let wanted = Arc::new(status("Running"));
        let Posted::Patch(first) = posting.next(&pod, wanted.clone(), "--mem=1") else { panic!("it differs") };
        posting.ended(wanted.clone(), Some(Duration::from_secs(2)), now);
        assert_eq!(posting.due(), Some(now + Duration::from_secs(2)));
        assert_eq!(posting.next(&pod, wanted, "--mem=1"), Posted::Patch(first));
        assert_eq!(posting.due(), None);
    }
}
