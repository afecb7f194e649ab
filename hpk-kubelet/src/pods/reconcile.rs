//! What to do about one pod next: a function of what is known, without memory of its own.
//!
//! ```text
//!            API object            no API object, or being deleted
//! no job     prepare, submit       remove
//! pending    wait                  cancel
//! running    wait                  ask the supervisor to stop ─▶ (grace + margin) ─▶ cancel
//! gone       report                remove the folder, then the API object
//! ```

use crate::executor::run::RunPhase;
use std::time::Duration;

/// How far the pod is on the kubelet's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing done.
    New,
    /// Images and references are being fetched.
    Preparing,
    /// sbatch runs, or may have run.
    Submitting,
    /// There is a job.
    Submitted,
}

/// What was done to end the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// The supervisor was asked, with this grace period.
    pub asked: Option<u32>,
    /// TERM was sent through Slurm.
    pub signalled: bool,
    /// Time since the first of both.
    pub since: Option<Duration>,
    /// Time since the last scancel.
    pub cancelled: Option<Duration>,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The API server has the object.
    pub in_api: bool,
    /// Being deleted, with this grace period, seconds.
    pub deleting: Option<u32>,
    /// Its phase at the API is Succeeded or Failed.
    pub terminal: bool,
    /// Refused for good.
    pub refused: bool,
    pub stage: Stage,
    /// The job, as far as Slurm has been asked; bool: gone from its node.
    pub job: Option<(RunPhase, bool)>,
    /// The supervisor's last word was that all is over, this long ago.
    pub finished: Option<Duration>,
    /// A link to the supervisor stands.
    pub linked: bool,
    /// How far the stop is.
    pub stopping: Stopping,
    /// The API has the newest status.
    pub posted: bool,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin to prepare and submit.
    Prepare,
    /// Give the preparation up.
    Abort,
    /// Ask the supervisor over the link.
    AskStop(u32),
    /// TERM through Slurm.
    Terminate,
    /// scancel.
    Cancel,
    /// Folder and API object go.
    Remove,
    /// Look again after this long.
    Later(Duration),
}

/// Beyond its grace period, a pod is given this long to end by itself.
pub(crate) const MARGIN: Duration = Duration::from_secs(10);
/// A job whose supervisor has finished, or that was cancelled, should be gone after this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to do now. Empty: wait for news.
#[must_use]
pub(crate) fn next(view: &View) -> Vec<Step> {
    let unwanted = !view.in_api || view.deleting.is_some();
    match (view.stage, unwanted) {
        (Stage::New, false) if view.terminal || view.refused => vec![],
        (Stage::New, false) => vec![Step::Prepare],
        (Stage::Preparing | Stage::Submitting, false) => vec![],
        (Stage::New, true) => vec![Step::Remove],
        (Stage::Preparing, true) => vec![Step::Abort, Step::Remove],
        // The id comes back any moment, then the job is cancelled.
        (Stage::Submitting, true) => vec![],
        (Stage::Submitted, false) => linger(view),
        (Stage::Submitted, true) => end(view),
    }
}

/// A finished pod whose job does not end holds resources for nothing.
fn linger(view: &View) -> Vec<Step> {
    match (view.job, view.finished) {
        (Some((state, _)), Some(since)) if !state.is_over() => {
            if since >= PATIENCE {
                cancel(view)
            } else {
                vec![Step::Later(PATIENCE - since)]
            }
        }
        _ => vec![],
    }
}

fn end(view: &View) -> Vec<Step> {
    let Some((state, gone)) = view.job else { return vec![] };
    if gone {
        return if view.posted || !view.in_api { vec![Step::Remove] } else { vec![] };
    }
    if state.is_over() {
        return vec![];
    }
    // A link proves that the job has begun, whatever the last look at the queue said.
    if state == RunPhase::Pending && !view.linked {
        return cancel(view);
    }
    if view.finished.is_some() {
        return linger(view);
    }
    // An object that vanished without a word (forced deletion) leaves no grace period: the floor is the supervisor's.
    let grace = view.deleting.unwrap_or(0);
    let mut steps = Vec::new();
    if view.linked {
        if view.stopping.asked.is_none_or(|asked| grace < asked) {
            steps.push(Step::AskStop(grace));
        }
    } else if view.stopping.asked.is_none() && !view.stopping.signalled {
        steps.push(Step::Terminate);
    }
    let limit = Duration::from_secs(u64::from(grace)).max(Duration::from_secs(2)) + MARGIN;
    let since = view.stopping.since.unwrap_or_default();
    if since >= limit {
        steps.extend(cancel(view));
    } else {
        steps.push(Step::Later(limit - since));
    }
    steps
}

fn cancel(view: &View) -> Vec<Step> {
    match view.stopping.cancelled {
        Some(since) if since < PATIENCE => vec![Step::Later(PATIENCE - since)],
        _ => vec![Step::Cancel, Step::Later(PATIENCE)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view() -> View {
        View {
            in_api: true,
            deleting: None,
            terminal: false,
            refused: false,
            stage: Stage::Submitted,
            job: Some((RunPhase::Running, false)),
            finished: None,
            linked: true,
            stopping: Stopping::default(),
            posted: true,
        }
    }

    #[test]
    fn life() {
        let s = Duration::from_secs;
        let stopping = |asked, since| Stopping { asked, since: Some(s(since)), ..Stopping::default() };
        for (name, view, steps) in [
            ("new", View { stage: Stage::New, job: None, ..view() }, vec![Step::Prepare]),
            ("ended before", View { stage: Stage::New, job: None, terminal: true, ..view() }, vec![]),
            ("refused", View { stage: Stage::New, job: None, refused: true, ..view() }, vec![]),
            ("runs", view(), vec![]),
            (
                "deleted early",
                View { stage: Stage::Preparing, job: None, deleting: Some(30), ..view() },
                vec![Step::Abort, Step::Remove],
            ),
            ("deleted in sbatch", View { stage: Stage::Submitting, job: None, deleting: Some(30), ..view() }, vec![]),
            ("deleted, not seen in squeue", View { job: None, deleting: Some(30), ..view() }, vec![]),
            (
                "deleted in the queue",
                View { job: Some((RunPhase::Pending, false)), deleting: Some(30), linked: false, ..view() },
                vec![Step::Cancel, Step::Later(PATIENCE)],
            ),
            ("deleted", View { deleting: Some(30), ..view() }, vec![Step::AskStop(30), Step::Later(s(40))]),
            ("asked", View { deleting: Some(30), stopping: stopping(Some(30), 5), ..view() }, vec![Step::Later(s(35))]),
            (
                "shorter",
                View { deleting: Some(1), stopping: stopping(Some(30), 5), ..view() },
                vec![Step::AskStop(1), Step::Later(s(7))],
            ),
            (
                "begun, though the queue has not said so yet",
                View { job: Some((RunPhase::Pending, false)), deleting: Some(30), ..view() },
                vec![Step::AskStop(30), Step::Later(s(40))],
            ),
            (
                "without link",
                View { deleting: Some(30), linked: false, ..view() },
                vec![Step::Terminate, Step::Later(s(40))],
            ),
            (
                "overdue",
                View { deleting: Some(30), stopping: stopping(Some(30), 40), ..view() },
                vec![Step::Cancel, Step::Later(PATIENCE)],
            ),
            ("finished", View { deleting: Some(30), finished: Some(s(0)), ..view() }, vec![Step::Later(PATIENCE)]),
            ("completing", View { deleting: Some(30), job: Some((RunPhase::Completed, false)), ..view() }, vec![]),
            (
                "gone, not posted",
                View { deleting: Some(30), job: Some((RunPhase::Completed, true)), posted: false, ..view() },
                vec![],
            ),
            ("gone", View { deleting: Some(30), job: Some((RunPhase::Completed, true)), ..view() }, vec![Step::Remove]),
            (
                "vanished",
                View { in_api: false, posted: false, job: Some((RunPhase::Lost, true)), ..view() },
                vec![Step::Remove],
            ),
            ("stuck", View { finished: Some(s(60)), ..view() }, vec![Step::Cancel, Step::Later(PATIENCE)]),
        ] {
            assert_eq!(next(&view), steps, "{name}");
        }
    }

    fn any_view() -> impl Strategy<Value = View> {
        let stage =
            prop_oneof![Just(Stage::New), Just(Stage::Preparing), Just(Stage::Submitting), Just(Stage::Submitted)];
        let job = prop_oneof![
            Just(None),
            Just(Some((RunPhase::Pending, false))),
            Just(Some((RunPhase::Running, false))),
            Just(Some((RunPhase::Failed, false))),
            Just(Some((RunPhase::Failed, true))),
        ];
        let age = || proptest::option::of((0_u64..100).prop_map(Duration::from_secs));
        let flags = any::<(bool, bool, bool, bool, bool, bool)>();
        (stage, job, age(), age(), age(), proptest::option::of(0_u32..60), proptest::option::of(0_u32..60), flags)
            .prop_map(
                |(
                    stage,
                    job,
                    finished,
                    since,
                    cancelled,
                    deleting,
                    asked,
                    (in_api, terminal, refused, linked, signalled, posted),
                )| View {
                    in_api,
                    deleting,
                    terminal,
                    refused,
                    stage,
                    job,
                    finished,
                    linked,
                    stopping: Stopping { asked, signalled, since, cancelled },
                    posted,
                },
            )
    }

    proptest! {
        /// An object is removed only when no job can be left, and never while it is wanted.
        #[test]
        fn removal_is_safe(view in any_view()) {
            if next(&view).contains(&Step::Remove) {
                prop_assert!(!view.in_api || view.deleting.is_some());
                match view.stage {
                    Stage::New | Stage::Preparing => {}
                    Stage::Submitting => prop_assert!(false),
                    Stage::Submitted => prop_assert!(view.job.is_some_and(|(state, gone)| state.is_over() && gone)),
                }
            }
        }

        /// A wanted pod that runs is never touched; nothing is prepared twice.
        #[test]
        fn wanted_pods_live(view in any_view()) {
            let steps = next(&view);
            if view.in_api && view.deleting.is_none() && view.finished.is_none() {
                prop_assert!(!steps.iter().any(|s| matches!(s, Step::AskStop(_) | Step::Terminate | Step::Cancel | Step::Abort)));
            }
            if steps.contains(&Step::Prepare) {
                prop_assert_eq!(view.stage, Stage::New);
            }
        }

        /// A job of an unwanted pod is always on its way out: something is done or a time to look again is set.
        #[test]
        fn unwanted_jobs_end(view in any_view()) {
            let unwanted = !view.in_api || view.deleting.is_some();
            let alive = view.job.is_some_and(|(state, _)| !state.is_over());
            if unwanted && alive && view.stage == Stage::Submitted {
                prop_assert!(!next(&view).is_empty());
            }
        }
    }
}
