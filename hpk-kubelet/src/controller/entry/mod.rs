//! One pod as the controller knows it: a state machine without I/O. Only the controller's task changes it.
//!
//! ```text
//!        Applied                                  record on disk      sbatch: id
//!  ──────────────▶ New ──attempt──▶ Preparing ──ready──▶ Submitting ───────────▶ Submitted
//!                   ▲ ▲                │                  │ Recording ─▶ Asking      │  stop, refresh
//!                   │ └─held, changed──┘                  │ Looking ◀── no id ┘      │
//!                   │ ◀────────no job, for long enough────┘                          │
//!                   │ ◀────────job gone, no sandbox made, nothing begun──────────────┤
//!                   │ deleted                                     deleted, job gone, status posted
//!                   └───────────────▶ Removing ◀─────────────────────────────────────┘
//! ```
//! [`Entry::on`] takes what was heard and returns the [`Effect`]s. The controller performs them; what they end in is heard
//! again. [`Entry::due`] is the one time at which the entry wants to hear that time has passed.
//!
//! | part | owns | file |
//! |---|---|---|
//! | [`State`] | how far the pod is, with what belongs to that alone | here |
//! | [`Ledger`] | the record, and its way to the disk | `ledger.rs` |
//! | [`Hold`] | what keeps the pod from its job | `hold.rs` |
//! | [`InForce`] | what the job was begun with | `in_force.rs` |
//! | [`JobView`] | what Slurm and the supervisor say | `job_view.rs` |
//! | [`Link`] | the link, and what is done without it | `link.rs` |
//! | [`Posting`] | the status on its way to the API | `posting.rs` |
//! | [`Labelling`] | labels that say where the pod runs | `labels.rs` |
//! | [`Resizing`] | another size for a job that waits | `resizing.rs` |
//!
//! The journey of a pod is in `way.rs` (to its job), `news.rs` (what is heard of it), `advance.rs` (what follows).

mod advance;
mod again;
mod heard;
mod hold;
mod in_force;
mod job_view;
mod labels;
mod ledger;
mod link;
mod news;
mod posting;
mod refresh;
mod resizing;
mod stop;
#[cfg(test)]
mod story;
mod unlinked;
mod way;

pub(crate) use heard::{Around, Effect, Found, Heard, LastWords, Rules};
pub(crate) use labels::Labels;
pub(crate) use way::who;

use crate::api::events::Note;
use crate::executor::pace::Interest;
use crate::executor::run::{Run, RunPhase};
use crate::pods::folder::Record;
use crate::pods::phase;
use crate::pods::reconcile::{Stage, View};
use crate::pods::submission::{Submission, Way};
use hold::Hold;
use hpk_api::net::NetworkMode;
use in_force::InForce;
use job_view::JobView;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use labels::Labelling;
use ledger::Ledger;
use link::{Link, SILENCE};
use posting::Posting;
use refresh::Refresh;
use resizing::Resizing;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use stop::Stop;

/// How far a pod is.
#[derive(Debug)]
enum State {
    /// It has no job, and none can come.
    New,
    /// An attempt to prepare it runs. The end of an earlier attempt counts for nothing. `outdated`: what it may have read
    /// already has changed since it began; if it does not get through, the next one begins at once.
    Preparing { attempt: u32, outdated: bool },
    /// It may have a job, or one may come.
    Submitting(Submission),
    /// It has its job.
    Submitted { stop: Stop, refresh: Refresh },
    /// Folder and object are being removed. If that fails, the pod is again as it was.
    Removing { from: Box<State> },
}

impl State {
    fn stage(&self) -> Stage {
        match self {
            Self::New => Stage::New,
            Self::Preparing { .. } => Stage::Preparing,
            Self::Submitting(_) => Stage::Submitting,
            Self::Submitted { .. } => Stage::Submitted,
            Self::Removing { from } => from.stage(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// The API's object; None: it has none (any more).
    object: Option<Arc<Pod>>,
    state: State,
    ledger: Ledger,
    hold: Hold,
    in_force: InForce,
    job: JobView,
    link: Link,
    posting: Posting,
    labelling: Labelling,
    resizing: Resizing,
    /// Attempts to prepare it so far.
    attempts: u32,
    /// When [`crate::pods::reconcile`] is to be asked again, whatever happens.
    look_at: Option<Instant>,
    /// News of what it refers to is wanted.
    follows: bool,
    /// What was wrong with its folder when the kubelet began, until it is told.
    trouble: Option<String>,
    /// What was told of addresses that it has not.
    claimed: Option<String>,
    /// What its link said of its node's way out ([`Heard::LinkUp`]), until it is known where its job is.
    way_out: Option<(String, bool)>,
}

impl Entry {
    /// A pod, new or found again.
    pub(crate) fn new(record: Record, way: Way, now: Instant) -> Self {
        let state = match way {
            Way::Clear => State::New,
            Way::Open(submission) => State::Submitting(submission),
            Way::Made => State::Submitted { stop: Stop::default(), refresh: Refresh::Never },
        };
        Self {
            object: None,
            state,
            job: JobView::new(record.ended.clone(), now),
            ledger: Ledger::new(record),
            hold: Hold::default(),
            in_force: InForce::default(),
            link: Link::new(now),
            posting: Posting::default(),
            labelling: Labelling::default(),
            resizing: Resizing::default(),
            attempts: 0,
            look_at: None,
            follows: false,
            trouble: None,
            claimed: None,
            way_out: None,
        }
    }

    /// One whose folder is damaged: its owner is told as soon as the API says who that is.
    pub(crate) fn in_trouble(self, trouble: String) -> Self {
        Self { trouble: Some(trouble), ..self }
    }

    // ---- what others may know

    pub(crate) fn object(&self) -> Option<&Arc<Pod>> {
        self.object.as_ref()
    }

    pub(crate) fn record(&self) -> &Record {
        self.ledger.record()
    }

    /// How far it is.
    pub(crate) fn stage(&self) -> Stage {
        self.state.stage()
    }

    /// Its status as it is now; the API may not have it yet.
    pub(crate) fn current_status(&self) -> Option<&Arc<PodStatus>> {
        self.posting.current()
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.link.is_up()
    }

    /// The job that runs it.
    pub(crate) fn running_job(&self) -> Option<&Run> {
        self.job.job().filter(|job| job.phase == RunPhase::Running)
    }

    /// Its job is over and gone from its node, as far as is known.
    pub(crate) fn is_job_gone(&self) -> bool {
        self.job.is_gone()
    }

    /// Only the pod's UID is known of its job, which is looked for.
    pub(crate) fn is_sought(&self) -> bool {
        self.search().is_some()
    }

    fn search(&self) -> Option<&crate::pods::submission::Search> {
        if let State::Submitting(submission) = &self.state { submission.search() } else { None }
    }

    fn is_removing(&self) -> bool {
        matches!(self.state, State::Removing { .. })
    }

    fn is_deleted(&self) -> bool {
        self.object.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// Whether it is still to be admitted, or refused.
    pub(crate) fn is_to_be_admitted(&self) -> bool {
        matches!(self.state, State::New | State::Preparing { .. }) && self.hold.refused().is_none()
    }

    /// The plan of its job was made by an earlier kubelet and has not been read yet.
    pub(crate) fn lacks_plan(&self) -> bool {
        self.in_force.plan().is_none()
    }

    /// Whether the supervisor's words on disk are needed to understand what Slurm says. Without a link, or where something has
    /// changed, they may be the newest there are.
    pub(crate) fn needs_words(&self, job: &Run) -> bool {
        self.job.job() != Some(job) || (!self.link.is_up() && job.phase == RunPhase::Running)
    }

    /// Whether the Node's ports that it asks for are its own: from when it was taken until it has ended.
    pub(crate) fn holds_ports(&self) -> bool {
        let known = self.posting.current().map(AsRef::as_ref).or_else(|| self.object.as_ref()?.status.as_ref());
        self.hold.refused().is_none() && !phase::is_terminal(known.and_then(|s| s.phase.as_deref()))
    }

    /// Addresses that no other pod may claim; one of the node's network is not its own.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let lives = self.stage() != Stage::New && !self.job.is_gone();
        let said = self.job.report().filter(|_| self.in_force.network_mode() != Some(NetworkMode::Host));
        let said = said.into_iter().flat_map(|report| report.pod_ips.iter().copied());
        self.record().addresses().into_iter().chain(said).filter(move |_| lives)
    }

    /// The node on which it runs and can be told things.
    pub(crate) fn lives_on(&self) -> Option<String> {
        self.job.job().filter(|_| self.link.is_up()).and_then(Run::batch_host)
    }

    /// For [`crate::executor::pace`]; None: Slurm need not be asked about it.
    pub(crate) fn interest(&self, now: Instant) -> Option<Interest> {
        if let Some(search) = self.search() {
            return Some(Interest::Sought(now.saturating_duration_since(search.since()), search.is_fresh()));
        }
        let State::Submitted { stop, .. } = &self.state else { return None };
        if self.job.is_gone() {
            return None;
        }
        let age = now.saturating_duration_since(self.job.since());
        if let Some(at) = self.job.finished_at().max(stop.last()) {
            return Some(Interest::Ending(now.saturating_duration_since(at)));
        }
        Some(match self.job.job() {
            Some(job) if job.phase.is_over() => Interest::Ending(age),
            Some(job) if job.phase == RunPhase::Running && self.link.is_up() => Interest::Linked,
            Some(job) if job.phase == RunPhase::Running => Interest::Unlinked(age),
            _ => Interest::Pending(age),
        })
    }

    /// When it wants to hear [`Heard::Time`]. None: it waits for news.
    pub(crate) fn due(&self, around: &Around<'_>) -> Option<Instant> {
        if self.is_blind(around) {
            return None;
        }
        let wanted = self.object.is_some() && !self.is_deleted();
        let state = match &self.state {
            State::New if wanted => self.hold.until(around.now),
            State::Submitted { refresh, .. } if wanted && !self.job.is_over() => refresh.due(),
            _ => None,
        };
        let silence = self.silent_since().map(|since| since + SILENCE);
        let parts = [state, self.look_at, silence, self.ledger.due(), self.link.due(), self.posting.due()];
        // What was due before has been seen to; nothing else is to be done about it now.
        parts.into_iter().flatten().filter(|at| *at > around.now).min()
    }

    /// It is not known yet whether its object is gone or only not listed.
    fn is_blind(&self, around: &Around<'_>) -> bool {
        self.object.is_none() && !around.listed
    }

    // ---- what is heard

    /// Takes what was heard. The effects are performed in their order.
    pub(crate) fn on(&mut self, heard: Heard, around: &Around<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let fx = &mut effects;
        match heard {
            Heard::Began => self.see_to_link(around, fx),
            Heard::Time => self.advance(around, fx),
            Heard::Applied { pod, refusal } => self.applied(pod, refusal, around, fx),
            Heard::Vanished => {
                self.object = None;
                self.advance(around, fx);
            }
            Heard::NoAddress(why) => self.no_address(why, around, fx),
            Heard::Prepared { attempt, result, memory } => self.prepared(attempt, *result, *memory, around, fx),
            Heard::Recorded(result) => self.recorded(result, around, fx),
            Heard::Submitted(result) => self.submitted(result, around, fx),
            Heard::Resized(resized) => self.resized(resized, around, fx),
            Heard::Looked { finding, id, asked, found } => self.looked(finding, id, asked, found, around, fx),
            Heard::Adopted { id, found } => self.adopted(id, found, around, fx),
            Heard::Job { job, words } => self.job(*job, words, around, fx),
            Heard::Report { state, found } => self.report(*state, found, around, fx),
            Heard::LinkUp { carried, way_out } => self.link_up(carried, way_out, around, fx),
            Heard::LinkDown => self.link_down(around, fx),
            Heard::LinkRefused(why) => self.link_refused(&why, fx),
            Heard::ReferencesChanged => self.references_changed(around, fx),
            Heard::Refreshed { result, memory } => self.refreshed(*result, *memory, around, fx),
            Heard::Posted { status, retry } => self.posted(status, retry, around, fx),
            Heard::NotAsked => self.not_asked(around),
            Heard::NotRemoved => self.not_removed(around),
        }
        effects
    }

    /// A query of Slurm did not find job `id`. Returns it as lost once it is given up.
    pub(crate) fn missed(&mut self, id: &str, complete: bool) -> Option<Run> {
        let uid = self.ledger.record().pod.uid.clone();
        self.job.missed(id, &uid, complete)
    }

    fn tell(&self, note: Note, fx: &mut Vec<Effect>) {
        if let Some(pod) = &self.object {
            fx.push(Effect::Tell(pod.clone(), note));
        }
    }

    /// Writes the record as it is now.
    fn save(&mut self, fx: &mut Vec<Effect>) {
        if !self.is_removing() {
            fx.extend(self.ledger.save().map(Effect::Write));
        }
    }

    /// For [`crate::pods::reconcile`].
    fn view(&self, now: Instant) -> View {
        let meta = self.object.as_ref().map(|pod| &pod.metadata);
        let status = self.object.as_ref().and_then(|pod| pod.status.as_ref());
        View {
            in_api: self.object.is_some(),
            deleting: meta
                .filter(|m| m.deletion_timestamp.is_some())
                .map(|m| m.deletion_grace_period_seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(0)),
            terminal: status.is_some_and(|s| phase::is_terminal(s.phase.as_deref())),
            refused: self.hold.refused().is_some(),
            stage: self.stage(),
            job: self.job.job().map(|j| (j.phase, j.is_gone())),
            finished: self.job.finished_at().map(|at| now.saturating_duration_since(at)),
            linked: self.link.is_up(),
            stopping: if let State::Submitted { stop, .. } = &self.state { stop.view(now) } else { Default::default() },
            posted: self.posting.is_settled(),
        }
    }

    /// Since when its supervisor, which had a link, is silent. None: it is not, or its end is known. Where a node cannot dial
    /// the kubelet there is no link to lose, and of a quiet pod no news.
    fn silent_since(&self) -> Option<Instant> {
        let runs = matches!(self.state, State::Submitted { .. })
            && self.job.job().is_none_or(|job| job.phase == RunPhase::Running);
        let lost = runs && self.record().linked && !self.link.is_up() && self.job.finished_at().is_none();
        lost.then_some(self.link.heard_at())
    }
}
