//! When sbatch may run for a pod: never while an earlier sbatch has made a job, or may still make one. Pure.
//!
//! ```text
//!   Clear ──begin──▶ Recording ──on disk──▶ Asking ──job id──▶ Made
//!    ▲ ▲                │                     │                 ▲
//!    │ └──not written───┘                     │ refused, lost   │
//!    │                                        ▼                 │
//!    └───────no job, for long enough─────── Looking ──a job─────┘
//! ```
//! sbatch may give up (`Socket timed out`) on a request that slurmctld carries out later: it had accepted the connection and
//! comes to it when it has time. So one look that finds no job proves nothing. What proves it: slurmctld answers looks, and
//! goes on answering for longer than it lets a request wait (`MessageTimeout`), and there is still no job. A look that is
//! not answered begins that time anew. After a restart of the kubelet an sbatch of the earlier one may even be at work
//! still, so the time is longer.

use super::folder::Progress;
use super::phase;
use super::reconcile::Stage;
use k8s_openapi::api::core::v1::Pod;
use std::time::{Duration, Instant};

/// Beyond MessageTimeout.
const MARGIN: Duration = Duration::from_secs(10);

/// How far a pod is on its way to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// There is no job, and none can come.
    Clear,
    /// There may be one, or one may come.
    Open(Submission),
    /// The job is known.
    Made,
}

/// A submission that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Submission {
    /// The record that an sbatch is to come is on its way to the disk.
    Recording {
        /// Of sbatch.
        arguments: Vec<String>,
    },
    /// sbatch runs.
    Asking,
    /// sbatch ran, or may have: its job is looked for.
    Looking(Search),
}

/// What the end of a record's write leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// Nothing: no submission waited for it.
    Nothing,
    /// sbatch is to run now, with these arguments.
    Sbatch(Vec<String>),
    /// sbatch does not run: there is no job, and none can come.
    Clear,
}

/// How an sbatch ended that brought no job's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// slurmctld has said no.
    Refused,
    /// Nobody knows what slurmctld does about it.
    Lost,
}

/// What squeue, sacct and the supervisor's word in the pod's folder say of a pod's job, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is one.
    Job,
    /// All have answered, and there is none.
    Nothing,
    /// Not all have answered, and those that did know of none.
    Unknown,
}

/// A search for a job of which only the pod's UID is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Search {
    /// Looks that were begun before this count for nothing.
    since: Instant,
    /// How long it must be quiet.
    window: Duration,
    /// When the first of an unbroken row of looks that found nothing was answered.
    quiet_since: Option<Instant>,
}

impl Submission {
    /// What a kubelet starts with that finds a pod's record. `job_known`: with its job's id.
    #[must_use]
    pub(crate) fn found(progress: &Progress, job_known: bool, now: Instant, message_timeout: Duration) -> Way {
        match progress {
            Progress::New => Way::Clear,
            Progress::Submitted if job_known => Way::Made,
            Progress::Submitting | Progress::Submitted => {
                Way::Open(Self::Looking(Search::new(now, message_timeout * 2 + MARGIN)))
            }
        }
    }

    /// For a pod that some kubelet has begun, as the API has it, and that has no record: it is looked for once. A record
    /// is on disk before sbatch runs, so this is for records that somebody removed.
    #[must_use]
    pub(crate) fn without_record(now: Instant) -> Self {
        Self::Looking(Search::new(now, Duration::ZERO))
    }

    /// The pod is ready for sbatch: its record is to be written.
    #[must_use]
    pub(crate) fn begin(arguments: Vec<String>) -> Self {
        Self::Recording { arguments }
    }

    /// A write of the record has ended. `go_on`: it is on disk, and the pod is still wanted.
    pub(crate) fn recorded(&mut self, go_on: bool) -> Recorded {
        let Self::Recording { arguments } = self else { return Recorded::Nothing };
        if !go_on {
            return Recorded::Clear;
        }
        let arguments = std::mem::take(arguments);
        *self = Self::Asking;
        Recorded::Sbatch(arguments)
    }

    /// sbatch has ended without a job's id.
    pub(crate) fn failed(&mut self, failure: Failure, now: Instant, message_timeout: Duration) {
        let window = match failure {
            Failure::Refused => Duration::ZERO,
            Failure::Lost => message_timeout + MARGIN,
        };
        *self = Self::Looking(Search::new(now, window));
    }

    /// A look that was begun at `asked` has ended. None: there is more to look for.
    pub(crate) fn looked(&mut self, finding: Finding, asked: Instant, now: Instant) -> Option<Way> {
        let Self::Looking(search) = self else { return None };
        match finding {
            Finding::Job => return Some(Way::Made),
            Finding::Unknown => search.quiet_since = None,
            Finding::Nothing if asked < search.since => {}
            Finding::Nothing => {
                let quiet = *search.quiet_since.get_or_insert(now);
                if search.window.is_zero() || asked.saturating_duration_since(quiet) >= search.window {
                    return Some(Way::Clear);
                }
            }
        }
        None
    }

    /// The job is being looked for.
    #[must_use]
    pub(crate) fn search(&self) -> Option<&Search> {
        if let Self::Looking(search) = self { Some(search) } else { None }
    }
}

impl Search {
    fn new(since: Instant, window: Duration) -> Self {
        Self { since, window, quiet_since: None }
    }

    /// Since when it is looked for.
    #[must_use]
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// No look has been answered since it began.
    #[must_use]
    pub(crate) fn is_fresh(&self) -> bool {
        self.quiet_since.is_none()
    }
}

/// Whether some kubelet has begun the pod, as the API has it, and has not seen its end.
#[must_use]
pub(crate) fn was_begun(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| s.start_time.is_some() && !phase::is_terminal(s.phase.as_deref()))
}

/// What to do about a living job of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stray {
    /// It is where it belongs, or that is being found out.
    Keep,
    /// It came later than any job should: it is the pod's.
    Adopt,
    /// No pod has it.
    Cancel,
}

/// How far a pod is, for [`stray`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) stage: Stage,
    /// Its job.
    pub(crate) job: Option<&'a str>,
    /// Its job was over: it lives again since somebody has put it back into Slurm's queue.
    pub(crate) was_over: bool,
}

/// Judges the living job `id`. `pod`: None: there is no such pod.
#[must_use]
pub(crate) fn stray(id: &str, pod: Option<Owner<'_>>) -> Stray {
    match pod {
        None => Stray::Cancel,
        Some(Owner { stage: Stage::Submitted, job: Some(own), was_over: false }) if own == id => Stray::Keep,
        Some(Owner { stage: Stage::Submitted, .. }) => Stray::Cancel,
        Some(Owner { stage: Stage::Submitting, .. }) => Stray::Keep,
        Some(Owner { stage: Stage::New | Stage::Preparing, .. }) => Stray::Adopt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: u64 = 30;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_refusal_takes_one_look_and_a_lost_answer_many() {
        let t = Instant::now();
        let failed = |failure| {
            let mut submission = Submission::Asking;
            submission.failed(failure, t, s(TIMEOUT));
            submission
        };
        let mut refused = failed(Failure::Refused);
        assert_eq!(refused.looked(Finding::Nothing, t - s(1), t), None, "that look was begun before");
        assert_eq!(refused.looked(Finding::Nothing, t, t + s(1)), Some(Way::Clear));
        let lost = || {
            let mut lost = failed(Failure::Lost);
            assert_eq!(lost.looked(Finding::Nothing, t + s(5), t + s(6)), None);
            assert_eq!(lost.looked(Finding::Nothing, t + s(45), t + s(45)), None, "6 + 40 s");
            lost
        };
        assert_eq!(lost().looked(Finding::Nothing, t + s(46), t + s(47)), Some(Way::Clear));
        assert_eq!(lost().looked(Finding::Job, t + s(46), t + s(47)), Some(Way::Made));
        let mut away = lost();
        assert_eq!(away.looked(Finding::Unknown, t + s(46), t + s(50)), None);
        assert_eq!(away.looked(Finding::Nothing, t + s(50), t + s(51)), None, "the time begins anew");
    }

    #[test]
    fn nothing_is_submitted_but_after_its_record() {
        let arguments = vec!["--mem=1".to_owned()];
        assert_eq!(Submission::Asking.recorded(true), Recorded::Nothing);
        let mut new = Submission::begin(arguments.clone());
        assert_eq!(new.recorded(false), Recorded::Clear, "not written");
        assert_eq!(new.recorded(true), Recorded::Sbatch(arguments));
        assert_eq!((new.recorded(true), new), (Recorded::Nothing, Submission::Asking));
        let found = |progress, known| Submission::found(&progress, known, Instant::now(), s(TIMEOUT));
        assert_eq!(found(Progress::New, false), Way::Clear);
        assert_eq!(found(Progress::Submitted, true), Way::Made);
        for progress in [Progress::Submitted, Progress::Submitting] {
            assert!(matches!(found(progress, false), Way::Open(Submission::Looking(_))));
        }
    }

    #[test]
    fn jobs_that_no_pod_has() {
        assert_eq!(stray("7", None), Stray::Cancel);
        let of = |stage, job, was_over| stray("7", Some(Owner { stage, job, was_over }));
        assert_eq!(of(Stage::Submitted, Some("7"), false), Stray::Keep);
        assert_eq!(of(Stage::Submitted, Some("7"), true), Stray::Cancel, "somebody has put it back");
        assert_eq!(of(Stage::Submitted, Some("6"), false), Stray::Cancel);
        assert_eq!(of(Stage::Submitting, None, false), Stray::Keep);
        assert_eq!(of(Stage::Preparing, None, false), Stray::Adopt);
    }

    /// What becomes of one sbatch.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Answered,
        Refused,
        /// slurmctld never had it.
        Dropped,
        /// It makes a job this long after it was sent, or after it came back; the answer is lost.
        Late(u64),
    }

    #[derive(Clone, Copy, Debug)]
    enum Happening {
        /// Seconds pass, with a look if one is wanted.
        Time(u64),
        /// slurmctld is away for as many looks.
        Away(u8),
        /// The kubelet is killed; whether the write on its way arrived, and when an sbatch at work sends its request.
        Restart { written: bool, sends_after: u64 },
        /// What the next sbatch comes to.
        Fate(Fate),
    }

    /// One pod, its record on disk, and a Slurm that is late and loses answers.
    struct World {
        now: Instant,
        up: bool,
        up_since: Instant,
        /// When each was sent, and how late it is.
        late: Vec<(Instant, Duration)>,
        /// Jobs of the pod that were ever made.
        made: u32,
        disk: Progress,
        known: bool,
        kubelet: Way,
        fate: Fate,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                now,
                up: true,
                up_since: now,
                late: Vec::new(),
                made: 0,
                disk: Progress::New,
                known: false,
                kubelet: Way::Clear,
                fate: Fate::Answered,
            }
        }

        fn pass(&mut self, seconds: u64) {
            self.now += s(seconds);
            if self.up {
                let (now, up_since) = (self.now, self.up_since);
                let before = self.late.len();
                self.late.retain(|(sent, delay)| (*sent).max(up_since) + *delay > now);
                self.made += u32::try_from(before - self.late.len()).unwrap();
            }
            self.act();
        }

        /// The kubelet does what it may, and what it has begun ends.
        fn act(&mut self) {
            let Way::Open(submission) = &mut self.kubelet else {
                if self.kubelet == Way::Clear {
                    self.kubelet = Way::Open(Submission::begin(Vec::new()));
                }
                return;
            };
            match submission {
                Submission::Recording { .. } => {
                    self.disk = Progress::Submitting;
                    submission.recorded(true);
                }
                Submission::Asking => {
                    let fate = if self.up { self.fate } else { Fate::Late(TIMEOUT) };
                    self.fate = Fate::Answered;
                    let failure = match fate {
                        Fate::Answered => {
                            self.made += 1;
                            (self.disk, self.known) = (Progress::Submitted, true);
                            self.kubelet = Way::Made;
                            return;
                        }
                        Fate::Refused => Failure::Refused,
                        Fate::Dropped => Failure::Lost,
                        Fate::Late(delay) => {
                            self.late.push((self.now, s(delay)));
                            Failure::Lost
                        }
                    };
                    submission.failed(failure, self.now, s(TIMEOUT));
                }
                Submission::Looking(_) => {
                    let finding = match (self.up, self.made) {
                        (false, _) => Finding::Unknown,
                        (true, 0) => Finding::Nothing,
                        (true, _) => Finding::Job,
                    };
                    if let Some(way) = submission.looked(finding, self.now, self.now) {
                        self.kubelet = way;
                    }
                }
            }
        }

        fn restart(&mut self, written: bool, sends_after: u64) {
            match self.kubelet {
                Way::Open(Submission::Recording { .. }) if written => self.disk = Progress::Submitting,
                // It goes on without the kubelet.
                Way::Open(Submission::Asking) if !matches!(self.fate, Fate::Dropped | Fate::Refused) => {
                    self.late.push((self.now + s(sends_after), s(TIMEOUT)));
                }
                _ => {}
            }
            self.kubelet = Submission::found(&self.disk, self.known, self.now, s(TIMEOUT));
        }

        fn happen(&mut self, happening: Happening) {
            match happening {
                Happening::Time(seconds) => self.pass(seconds),
                Happening::Away(looks) => {
                    self.up = false;
                    for _ in 0..looks {
                        self.pass(5);
                    }
                    (self.up, self.up_since) = (true, self.now);
                }
                Happening::Restart { written, sends_after } => self.restart(written, sends_after),
                Happening::Fate(fate) => self.fate = fate,
            }
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let fate = prop_oneof![
            Just(Fate::Answered),
            Just(Fate::Refused),
            Just(Fate::Dropped),
            (0..=TIMEOUT).prop_map(Fate::Late)
        ];
        prop_oneof![
            8 => (1_u64..=5).prop_map(Happening::Time),
            1 => (1_u8..10).prop_map(Happening::Away),
            2 => (any::<bool>(), 0..=TIMEOUT)
                .prop_map(|(written, sends_after)| Happening::Restart { written, sends_after }),
            2 => fate.prop_map(Happening::Fate),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// However late Slurm is, whatever answers it loses, whenever the kubelet is killed: one pod, one job.
        #[test]
        fn a_pod_never_gets_a_second_job(story in proptest::collection::vec(happening(), 0..200)) {
            let mut world = World::new();
            for happening in story {
                world.happen(happening);
                prop_assert!(world.made <= 1, "a second job");
            }
            // And it gets one in the end.
            for _ in 0..200 {
                world.pass(5);
                prop_assert!(world.made <= 1, "a second job");
            }
            prop_assert_eq!((world.made, &world.kubelet), (1, &Way::Made));
        }
    }
}
