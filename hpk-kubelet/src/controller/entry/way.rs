//! From a pod to its job: admitted, prepared, recorded, submitted, looked for.

use super::heard::{Around, Effect, Found};
use super::refresh::{self, Refresh};
use super::stop::Stop;
use super::{Entry, State};
use crate::api::events::Note;
use crate::controller::prepared::{Held, Memory, Ready};
use crate::executor::{ExecutorError, Made};
use crate::pods::admit::Refusal;
use crate::pods::folder::{self, Progress};
use crate::pods::outposts;
use crate::pods::phase;
use crate::pods::resize;
use crate::pods::status::Waiting;
use crate::pods::submission::{Failure, Finding, Recorded, Submission, Way};
use hpk_api::cluster::ClusterConfig;
use hpk_api::ids::JobId;
use hpk_api::net::NetworkMode;
use hpk_api::plan::PodRef;
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without a time the pod waits for a change of its own object.
const UNTIL_CHANGED: Duration = Duration::from_secs(24 * 3600);
/// How long a pod waits for an address.
const NO_ADDRESS: Duration = Duration::from_secs(20);

/// Who a pod is, as the API has it.
pub(crate) fn who(pod: &Pod) -> PodRef {
    let meta = &pod.metadata;
    PodRef {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}

impl Entry {
    pub(super) fn applied(
        &mut self,
        pod: Arc<Pod>,
        refusal: Option<Refusal>,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let old = self.object.replace(pod.clone());
        if let Some(trouble) = self.trouble.take() {
            self.tell(Note::warning("DamagedRecord", trouble), fx);
            self.ledger.record_mut().pod = who(&pod);
        }
        let resize = |pod: &Pod| resize::infeasible(pod, &self.record().granted);
        if let (Some(None), Some(message)) = (old.as_deref().map(resize), resize(&pod))
            && !self.can_be_resized()
        {
            self.tell(Note::warning(resize::EVENT, message), fx);
        }
        let changed = old.is_some_and(|old| {
            old.metadata.generation != pod.metadata.generation
                || old.metadata.annotations != pod.metadata.annotations
                || old.metadata.labels != pod.metadata.labels
        });
        self.posting.reopen();
        if changed {
            // A pod that is held may be fine now; a running one may have new images or containers.
            self.hold.release();
            if let State::Submitted { refresh, .. } = &mut self.state {
                refresh.news(around.now);
            }
            self.abort_preparation(fx);
        }
        self.judge_addresses(around, fx);
        let is_over = phase::is_terminal(pod.status.as_ref().and_then(|s| s.phase.as_deref()));
        if let Some(refusal) = refusal.filter(|_| matches!(self.state, State::New) && !is_over) {
            self.tell(Note::warning(refusal.reason, refusal.message.clone()), fx);
            self.hold.refuse(refusal);
        }
        self.advance(around, fx);
    }

    // ---- an attempt

    /// Whether the attempt that was begun needs an address.
    pub(crate) fn lacks_address(&self, around: &Around<'_>) -> bool {
        let mode = self.object.as_ref().map(|pod| around.rules.network_mode(pod));
        mode == Some(NetworkMode::Overlay) && self.record().pod_ips.is_empty()
    }

    pub(crate) fn give_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.ledger.record_mut().pod_ips = addresses;
    }

    /// For which nodes of its job the attempt needs outposts, and has none yet.
    pub(crate) fn lacks_outposts(&self, cluster: &ClusterConfig) -> Vec<bool> {
        let pod = self.object.as_ref().filter(|_| self.record().outposts.is_empty());
        pod.map(|pod| outposts::wanted(pod, cluster.network_mode, cluster.pod_flags)).unwrap_or_default()
    }

    pub(crate) fn give_outposts(&mut self, outposts: Vec<Vec<IpAddr>>) {
        self.ledger.record_mut().outposts = outposts;
    }

    /// What the attempt that was begun works with: the object, and what earlier ones remember.
    pub(crate) fn begin_attempt(&mut self) -> Option<(Arc<Pod>, Memory)> {
        Some((self.object.clone()?, self.hold.lend_memory()))
    }

    pub(super) fn no_address(&mut self, why: String, around: &Around<'_>, fx: &mut Vec<Effect>) {
        if matches!(self.state, State::Preparing { .. }) {
            self.state = State::New;
            self.tell(Note::warning("FailedCreatePodSandBox", why), fx);
            self.hold.wait(around.now, NO_ADDRESS);
            self.advance(around, fx);
        }
    }

    pub(super) fn prepared(
        &mut self,
        attempt: u32,
        result: Result<Ready, Held>,
        memory: Memory,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let State::Preparing { attempt: own, outdated } = self.state else { return };
        if own != attempt {
            return;
        }
        self.follow(&memory, fx);
        self.hold.take_memory_back(memory);
        match result {
            Ok(ready) => {
                self.hold.set_containers(Default::default());
                let record = self.ledger.record_mut();
                record.images = ready.images.iter().map(|(n, i)| (n.clone(), i.image_ref.clone())).collect();
                record.granted = self.object.as_deref().map(resize::asked).unwrap_or_default();
                record.requested = ready.asked;
                record.progress = Progress::Submitting;
                self.in_force.begin(Some(ready.plan), ready.images);
                self.state = State::Submitting(Submission::begin(ready.arguments));
                // sbatch runs when this is on disk.
                self.save(fx);
            }
            Err(held) => {
                self.state = State::New;
                self.hold.set_containers(held.waiting);
                if !outdated {
                    self.hold.wait(around.now, held.retry.unwrap_or(UNTIL_CHANGED));
                }
            }
        }
        self.advance(around, fx);
    }

    /// News is wanted of what was read.
    pub(super) fn follow(&mut self, memory: &Memory, fx: &mut Vec<Effect>) {
        self.follows = true;
        fx.push(Effect::Follow(memory.kept.versions.clone()));
    }

    // ---- the record, then sbatch

    pub(super) fn recorded(&mut self, result: io::Result<()>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        use super::ledger::Written;
        let written = self.ledger.written(result.is_ok(), around.now);
        match written {
            Written::Next(record) => fx.push(Effect::Write(record)),
            Written::Done => {
                let wanted = self.object.is_some() && !self.is_deleted();
                self.go_on_recorded(wanted, fx);
            }
            Written::Failed(wait) => {
                if let Err(error) = result {
                    let uid = &self.record().pod.uid;
                    tracing::warn!(%uid, %error, "record not written");
                    let file = around.rules.pods.join(uid).join(folder::RECORD);
                    let text = format!("cannot write {}, tried again in {wait:?}: {error}", file.display());
                    self.tell(Note::warning("FailedRecord", text), fx);
                }
                // Without a record the job could be submitted twice: the pod is prepared anew.
                if self.go_on_recorded(false, fx) {
                    self.ledger.give_up();
                    self.hold.wait(around.now, wait);
                }
            }
        }
        self.advance(around, fx);
    }

    /// Runs sbatch, if it waited for the record and may. Returns whether the submission is given up instead.
    fn go_on_recorded(&mut self, go_on: bool, fx: &mut Vec<Effect>) -> bool {
        let State::Submitting(submission) = &mut self.state else { return false };
        match submission.recorded(go_on) {
            Recorded::Nothing => false,
            Recorded::Sbatch(arguments) => {
                fx.push(Effect::Sbatch { arguments });
                false
            }
            Recorded::Clear => {
                self.state = State::New;
                true
            }
        }
    }

    pub(super) fn submitted(&mut self, result: Result<Made, ExecutorError>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let State::Submitting(submission) = &mut self.state else { return };
        let words = around.rules.words;
        match result {
            Ok(Made { id, said }) => {
                let asked = &self.ledger.record().requested;
                if !asked.is_empty() {
                    let text = format!("{} {id}: {} {asked}", words.run, words.command);
                    self.tell(Note::normal(words.reasons.submitted, text), fx);
                }
                if !said.is_empty() {
                    let text = format!("{} {id}: {} says: {said}", words.run, words.command);
                    self.tell(Note::warning(words.reasons.submitted, text), fx);
                }
                self.made(id.into(), None, around, fx);
            }
            Err(error) => {
                let failure = if error.is_refusal { Failure::Refused } else { Failure::Lost };
                let avoided = failure == Failure::Refused && !self.ledger.record().avoid.is_empty();
                if avoided {
                    // It may be that no node was left.
                    self.ledger.record_mut().avoid.clear();
                }
                submission.failed(failure, around.now, around.rules.message_timeout);
                let mut text = error.to_string();
                if failure == Failure::Lost {
                    text.push_str(": ");
                    text.push_str(words.lost_answer);
                }
                self.tell(Note::warning("FailedSubmit", text.clone()), fx);
                let spec = self.object.iter().filter_map(|pod| pod.spec.as_ref());
                let names = spec.flat_map(|spec| spec.containers.iter().map(|c| c.name.clone()));
                let waiting = Waiting { reason: words.reasons.submit_failed.to_owned(), message: text };
                self.hold.submission_failed(around.now, &waiting, names, error.is_transient || avoided);
            }
        }
        self.advance(around, fx);
    }

    pub(super) fn looked(
        &mut self,
        finding: Finding,
        id: Option<JobId>,
        asked: Instant,
        found: Option<Box<Found>>,
        around: &Around<'_>,
        fx: &mut Vec<Effect>,
    ) {
        let uid = self.record().pod.uid.clone();
        let State::Submitting(submission) = &mut self.state else { return };
        match (submission.looked(finding, asked, around.now), id) {
            (Some(Way::Made), Some(id)) => {
                tracing::info!(%uid, job = %id, "job found");
                self.made(id, found, around, fx);
            }
            (Some(Way::Clear), _) => {
                tracing::info!(%uid, "no job found");
                self.state = State::New;
            }
            _ => return,
        }
        self.advance(around, fx);
    }

    pub(super) fn adopted(&mut self, id: JobId, found: Option<Box<Found>>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        if matches!(self.state, State::New | State::Preparing { .. }) {
            self.made(id, found, around, fx);
            self.advance(around, fx);
        }
    }

    /// The pod's job is known.
    pub(super) fn made(&mut self, id: JobId, found: Option<Box<Found>>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let pod = &self.record().pod;
        tracing::info!(pod = %format!("{}/{}", pod.namespace, pod.name), job = %id, "has its job");
        self.abort_preparation(fx);
        self.hold.made();
        let record = self.ledger.record_mut();
        record.progress = Progress::Submitted;
        record.job_id = Some(id);
        self.job.made(around.now);
        let due = self.hold.memory().map(|memory| around.now + refresh::next(memory, None, around.clock));
        let refresh = due.map_or(Refresh::Never, Refresh::At);
        self.state = State::Submitted { stop: Stop::default(), refresh };
        if let Some(found) = found {
            self.take_up(*found, around, fx);
        }
        self.save(fx);
    }

    /// Takes what an earlier kubelet and the pod's job have left in its folder.
    pub(crate) fn take_up(&mut self, found: Found, around: &Around<'_>, fx: &mut Vec<Effect>) {
        self.in_force.begin(found.plan, found.images);
        self.job.take_launch(found.words.launch);
        if let Some(report) = found.words.report {
            self.in_force.tell(report.ephemeral_containers.iter().map(|c| c.name.clone()));
            self.take_report(report, around, fx);
        }
    }
}
