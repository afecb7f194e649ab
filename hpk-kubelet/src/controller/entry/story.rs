//! Stories of one pod: its real entry in a world that is played. The world's Slurm is late and loses answers, its disk fails,
//! its API server refuses; events come in any order. What must never happen is asserted at each effect.

use super::*;
use crate::controller::prepared::{Held, Ready, Refreshed, Resized};
use crate::executor::run::Run;
use crate::executor::words::{self, Kind};
use crate::executor::{ExecutorError, Made};
use crate::pods::folder::Progress;
use crate::pods::submission::Finding;
use hpk_api::plan::{PodRef, SandboxPlan};
use hpk_api::state::{LaunchReport, PodState};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

const TIMEOUT: u64 = 30;
const UID: &str = "u-1";

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rules() -> Rules {
    Rules {
        node_ip: [10, 0, 0, 1].into(),
        network_mode: NetworkMode::Overlay,
        pod_cidr: "10.244.0.0/16".to_owned(),
        service_cidr: "10.96.0.0/16".to_owned(),
        message_timeout: s(TIMEOUT),
        words: words::of(Kind::Slurm),
        pods: PathBuf::from("/pods"),
    }
}

fn plan() -> Box<SandboxPlan> {
    let plan = json!({
        "version": 1, "pod": {"namespace": "d", "name": "p", "uid": UID}, "hostname": "p", "restart_policy": "Always",
        "termination_grace_period_seconds": 30, "network": {"mode": "overlay"}, "containers": []
    });
    serde_json::from_value(plan).expect("a plan")
}

/// An operation that the entry has begun and that has not ended.
#[derive(Debug)]
enum Operation {
    Prepare(u32),
    Write(Box<Record>),
    Sbatch,
    Refresh,
    Resize,
    Post(Arc<PodStatus>),
    AskStop,
    Remove,
}

/// How an operation ends.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Well,
    /// It fails; an sbatch is refused.
    Badly,
    /// Of an sbatch: a job is made this much later, and the answer is lost.
    Late(u64),
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Time(u64),
    /// One of the operations ends.
    End(usize, Outcome),
    /// The pod's object changes.
    Change,
    Delete(i64),
    Vanish,
    LinkUp,
    LinkDown,
    /// The supervisor reports; bool: that all is over.
    Report(bool),
    /// The job comes into this phase.
    Job(RunPhase),
    /// The job ends without a sandbox.
    NoSandbox,
    /// Slurm is asked about all.
    Ask,
    /// slurmctld does not answer.
    AskInVain,
    News,
    Restart,
}

struct World {
    rules: Rules,
    now: Instant,
    entry: Option<Entry>,
    pod: Option<Pod>,
    disk: Option<Record>,
    operations: Vec<Operation>,
    /// The pod's job, and jobs that are still to come of sbatches whose answers were lost.
    job: Option<Run>,
    late: Vec<Instant>,
    /// Jobs that were ever made.
    made: u32,
    /// Those that have ended without a sandbox.
    failed: Vec<String>,
    /// Something of the pod has begun in its job.
    begun: bool,
    reports: u64,
    removing: bool,
    linked: bool,
    /// The kubelet has seen the list of pods.
    listed: bool,
}

impl World {
    fn new() -> Self {
        let pod = json!({
            "metadata": {"namespace": "d", "name": "p", "uid": UID, "generation": 1},
            "spec": {"containers": [{"name": "c", "image": "i"}]}
        });
        let mut world = Self {
            rules: rules(),
            now: Instant::now(),
            entry: None,
            pod: Some(serde_json::from_value(pod).expect("a pod")),
            disk: None,
            operations: Vec::new(),
            job: None,
            late: Vec::new(),
            made: 0,
            failed: Vec::new(),
            begun: false,
            reports: 0,
            removing: false,
            linked: false,
            listed: false,
        };
        world.begin();
        world
    }

    /// A kubelet begins, with what is on disk.
    fn begin(&mut self) {
        let who = PodRef { namespace: "d".to_owned(), name: "p".to_owned(), uid: UID.to_owned() };
        self.entry = Some(match self.disk.clone() {
            Some(record) => {
                let known = record.job_id.is_some();
                let way = Submission::found(&record.progress, known, self.now, self.rules.message_timeout);
                Entry::new(record, way, self.now)
            }
            None => Entry::new(Record::new(who, Timestamp::UNIX_EPOCH), Way::Clear, self.now),
        });
        (self.removing, self.linked, self.listed) = (false, false, false);
        self.hear(Heard::Began);
        self.listed = true;
        self.apply();
    }

    fn apply(&mut self) {
        match self.pod.clone() {
            Some(pod) => self.hear(Heard::Applied { pod: Arc::new(pod), refusal: None }),
            None => self.hear(Heard::Vanished),
        }
    }

    fn hear(&mut self, heard: Heard) {
        let Some(mut entry) = self.entry.take() else { return };
        let rules = self.rules.clone();
        let (now, listed) = (self.now, self.listed);
        let around = Around { now, clock: Timestamp::UNIX_EPOCH, listed, rules: &rules, taken: &|_| false };
        let mut effects = entry.on(heard, &around);
        effects.extend(entry.on(Heard::Time, &around));
        let again = entry.on(Heard::Time, &around);
        assert!(again.is_empty(), "it was all done: {again:?}");
        let due = entry.due(&around);
        assert!(due.is_none_or(|at| at > self.now), "the time to look again is past");
        self.entry = Some(entry);
        for effect in effects {
            self.perform(effect, &around);
        }
    }

    fn is_under_way(&self, which: impl Fn(&Operation) -> bool) -> bool {
        self.operations.iter().any(which)
    }

    fn begin_operation(&mut self, operation: Operation) {
        assert!(!self.removing, "an effect on a pod that is being removed: {operation:?}");
        self.operations.push(operation);
    }

    fn perform(&mut self, effect: Effect, around: &Around<'_>) {
        match effect {
            Effect::Prepare { attempt } => {
                let entry = self.entry.as_mut().expect("it has just spoken");
                if entry.lacks_address(around) {
                    entry.give_addresses(vec![[10, 244, 0, 7].into()]);
                }
                entry.begin_attempt().expect("it has its object");
                self.begin_operation(Operation::Prepare(attempt));
            }
            // Its end may be on its way already.
            Effect::AbortPreparation => {}
            Effect::Write(record) => {
                assert!(!self.is_under_way(|o| matches!(o, Operation::Write(_))), "two writes at once");
                self.begin_operation(Operation::Write(record));
            }
            Effect::Sbatch { .. } => {
                let disk = self.disk.as_ref().map(|record| &record.progress);
                assert_eq!(disk, Some(&Progress::Submitting), "before its record");
                assert!(!self.is_under_way(|o| matches!(o, Operation::Sbatch)), "two at once");
                assert!(!self.has_job() && self.late.is_empty(), "a second job");
                self.begin_operation(Operation::Sbatch);
            }
            Effect::Resize { .. } => {
                assert!(!self.is_under_way(|o| matches!(o, Operation::Resize)), "two at once");
                self.begin_operation(Operation::Resize);
            }
            Effect::Refresh(_) => {
                assert!(!self.is_under_way(|o| matches!(o, Operation::Refresh)), "two readings at once");
                self.begin_operation(Operation::Refresh);
            }
            Effect::Post { status, .. } => {
                assert!(!self.is_under_way(|o| matches!(o, Operation::Post(_))), "two patches at once");
                self.begin_operation(Operation::Post(status));
            }
            Effect::AskStop { .. } => {
                assert!(self.linked && self.is_unwanted(), "only who is linked can be asked, and only to end");
                self.begin_operation(Operation::AskStop);
            }
            Effect::Signal { job } | Effect::Cancel { job } => {
                assert_eq!(Some(job.as_str()), self.job.as_ref().map(|job| job.id.as_str()));
                assert!(!self.removing);
                // A pod that is wanted is ended when its supervisor has said that it is over.
                let is_over = self.entry.as_ref().is_some_and(|entry| entry.job.finished_at().is_some());
                assert!(self.is_unwanted() || is_over, "a wanted pod lives");
            }
            Effect::Remove { .. } => {
                assert!(!self.removing, "twice");
                assert!(!self.is_under_way(|o| matches!(o, Operation::Write(_) | Operation::Sbatch)));
                assert!(self.is_unwanted(), "a wanted pod stays");
                assert!(self.job.as_ref().is_none_or(Run::is_gone), "its job may run");
                assert!(self.late.is_empty(), "a job may come");
                self.begin_operation(Operation::Remove);
                self.removing = true;
            }
            Effect::WayOut { .. } => assert!(self.is_job_running(), "nobody has said where it is"),
            Effect::AllowLink(_) | Effect::Follow(_) | Effect::Watch | Effect::Label { .. } => assert!(!self.removing),
            Effect::Tell(..)
            | Effect::Unfollow
            | Effect::ForbidLink
            | Effect::Unwatch
            | Effect::TellUnlinked { .. }
            | Effect::Carry { .. }
            | Effect::ClearUp { .. } => {}
        }
    }

    fn is_unwanted(&self) -> bool {
        self.pod.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            let rules = self.rules.clone();
            let (now, listed) = (self.now, self.listed);
            let around = Around { now, clock: Timestamp::UNIX_EPOCH, listed, rules: &rules, taken: &|_| false };
            let Some(at) = self.entry.as_ref().and_then(|entry| entry.due(&around)).filter(|at| *at <= end) else {
                self.now = end;
                self.make_late_jobs();
                return;
            };
            self.now = at;
            self.make_late_jobs();
            self.hear(Heard::Time);
        }
        panic!("it is never done");
    }

    fn make_late_jobs(&mut self) {
        let before = self.late.len();
        self.late.retain(|at| *at > self.now);
        for _ in self.late.len()..before {
            self.make_job();
        }
    }

    fn make_job(&mut self) {
        assert!(!self.has_job(), "a second job");
        self.made += 1;
        assert!(self.made <= 6, "tried for ever");
        self.begun = false;
        let id = self.made.to_string();
        self.job = Some(Run { phase: RunPhase::Pending, nodes: "c1".to_owned(), ..Run::lost(&id, UID) });
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        if self.operations.is_empty() {
            return;
        }
        let is_well = matches!(outcome, Outcome::Well);
        let failure = || io::Error::other("no space");
        match self.operations.remove(number % self.operations.len()) {
            Operation::Prepare(attempt) => {
                let ready = || Ready {
                    arguments: vec!["--mem=1".to_owned()],
                    asked: "--mem=1".to_owned(),
                    plan: plan(),
                    images: Default::default(),
                };
                let held = || Held { retry: Some(s(5)), ..Held::default() };
                let result = Box::new(if is_well { Ok(ready()) } else { Err(held()) });
                self.hear(Heard::Prepared { attempt, result, memory: Box::default() });
            }
            Operation::Write(record) => {
                if is_well {
                    self.disk = Some(*record);
                }
                self.hear(Heard::Recorded(if is_well { Ok(()) } else { Err(failure()) }));
            }
            Operation::Sbatch => {
                let failed = |is_refusal: bool| ExecutorError::new(failure(), !is_refusal, is_refusal);
                let result = match outcome {
                    Outcome::Well => {
                        self.make_job();
                        Ok(Made { id: self.made.to_string(), said: String::new() })
                    }
                    Outcome::Badly => Err(failed(true)),
                    Outcome::Late(delay) => {
                        self.late.push(self.now + s(delay));
                        Err(failed(false))
                    }
                };
                self.hear(Heard::Submitted(result));
            }
            Operation::Refresh => {
                let result = if is_well { Ok(Refreshed::default()) } else { Err(Held::default()) };
                self.hear(Heard::Refreshed { result: Box::new(result), memory: Box::default() });
            }
            Operation::Resize => {
                let job = self.entry.as_ref().and_then(|entry| entry.record().job_id.clone());
                let wanted = self.pod.as_ref().map(crate::pods::resize::asked);
                let (Some(job), Some(wanted)) = (job, wanted) else { return };
                let result = if is_well { Ok("--mem=2".to_owned()) } else { Err("no".to_owned()) };
                self.hear(Heard::Resized(Resized { job, wanted, result }));
            }
            Operation::Post(status) => {
                if let Some(pod) = self.pod.as_mut().filter(|_| is_well) {
                    pod.status = Some((*status).clone());
                }
                self.hear(Heard::Posted { status, retry: (!is_well).then_some(s(2)) });
            }
            Operation::AskStop if is_well => {}
            Operation::AskStop => self.hear(Heard::NotAsked),
            Operation::Remove if is_well => {
                (self.entry, self.pod, self.disk) = (None, None, None);
            }
            Operation::Remove => {
                self.removing = false;
                self.hear(Heard::NotRemoved);
            }
        }
    }

    /// Slurm is asked what the entry wants to know.
    fn ask(&mut self, answers: bool) {
        let Some(entry) = &self.entry else { return };
        if entry.is_sought() {
            // As the look has it: jobs that the record knows to have failed are none.
            let known = |job: &&Run| !entry.record().failed_jobs.iter().any(|id| id.as_str() == job.id);
            let (finding, id) = match (answers, self.job.as_ref().filter(known)) {
                (false, _) => (Finding::Unknown, None),
                (true, Some(job)) => (Finding::Job, Some(job.id.as_str().into())),
                (true, None) => (Finding::Nothing, None),
            };
            let found = Box::new(Found { plan: Some(plan()), words: self.words(), images: Default::default() });
            self.hear(Heard::Looked { finding, id, asked: self.now, found: Some(found) });
        } else if let Some(job) = self
            .job
            .clone()
            .filter(|job| answers && entry.record().job_id.as_ref().is_some_and(|id| id.as_str() == job.id))
        {
            let words = Some(Box::new(self.words()));
            self.hear(Heard::Job { job: Box::new(job), words });
        }
    }

    /// What the job has left in the pod's folder.
    fn words(&self) -> LastWords {
        let failed = self.job.as_ref().is_some_and(|job| self.failed.contains(&job.id));
        let launch = LaunchReport { step: "scratch".into(), message: "no space".into(), ..LaunchReport::default() };
        LastWords { report: None, launch: failed.then_some(launch) }
    }

    /// It has a job that is more than a failed beginning.
    fn has_job(&self) -> bool {
        self.job.as_ref().is_some_and(|job| !job.is_gone() || !self.failed.contains(&job.id))
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Time(seconds) => self.pass(s(seconds)),
            Happening::End(number, outcome) => self.end(number, outcome),
            Happening::Change => {
                if let Some(pod) = &mut self.pod {
                    pod.metadata.generation = pod.metadata.generation.map(|n| n + 1);
                    let cpus = json!({"requests": {"cpu": (pod.metadata.generation.unwrap_or(0) % 3).to_string()}});
                    let spec = pod.spec.as_mut().expect("a spec");
                    spec.containers[0].resources = serde_json::from_value(cpus).expect("resources");
                    self.apply();
                }
            }
            Happening::Delete(grace) => {
                if let Some(pod) = self.pod.as_mut().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH);
                    pod.metadata.deletion_timestamp = Some(at);
                    pod.metadata.deletion_grace_period_seconds = Some(grace);
                    self.apply();
                }
            }
            Happening::Vanish => {
                self.pod = None;
                self.apply();
            }
            // Only of a job that runs.
            Happening::LinkUp if self.is_job_running() => {
                self.linked = true;
                self.hear(Heard::LinkUp { carried: false, way_out: None });
            }
            Happening::LinkDown => {
                self.linked = false;
                self.hear(Heard::LinkDown);
            }
            Happening::Report(finished) if self.is_job_running() => {
                self.reports += 1;
                self.begun = true;
                let state = PodState {
                    job_id: self.job.as_ref().map(|job| job.id.clone()),
                    started_at: Some(Timestamp::UNIX_EPOCH),
                    sequence: self.reports,
                    finished,
                    ..PodState::default()
                };
                self.hear(Heard::Report { state: Box::new(state), found: None });
            }
            Happening::LinkUp | Happening::Report(_) => {}
            Happening::NoSandbox => {
                if self.is_job_running() && !self.begun {
                    self.failed.extend(self.job.as_ref().map(|job| job.id.clone()));
                    self.happen(Happening::Job(RunPhase::Failed));
                }
            }
            Happening::Job(phase) => {
                if let Some(job) = self.job.as_mut().filter(|job| !job.phase.is_over()) {
                    job.phase = phase;
                    if phase != RunPhase::Running && std::mem::take(&mut self.linked) {
                        self.hear(Heard::LinkDown);
                    }
                }
            }
            Happening::Ask => self.ask(true),
            Happening::AskInVain => self.ask(false),
            Happening::News => self.hear(Heard::ReferencesChanged),
            Happening::Restart => {
                if self.entry.is_some() {
                    // What runs in the kubelet ends with it. An sbatch goes on, and its answer is lost.
                    let had_sbatch = self.is_under_way(|o| matches!(o, Operation::Sbatch));
                    self.operations.clear();
                    if had_sbatch {
                        self.late.push(self.now + s(TIMEOUT));
                    }
                    self.begin();
                }
            }
        }
    }

    fn is_job_running(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.phase == RunPhase::Running)
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    let outcome = prop_oneof![
        5 => Just(Outcome::Well),
        1 => Just(Outcome::Badly),
        1 => (0..=TIMEOUT).prop_map(Outcome::Late),
    ];
    let phase = prop_oneof![
        4 => Just(RunPhase::Running),
        1 => Just(RunPhase::Pending),
        1 => Just(RunPhase::Completed),
        1 => Just(RunPhase::Cancelled),
    ];
    prop_oneof![
        6 => (1_u64..=5).prop_map(Happening::Time),
        1 => (40_u64..=100).prop_map(Happening::Time),
        12 => (0_usize..8, outcome).prop_map(|(number, outcome)| Happening::End(number, outcome)),
        2 => Just(Happening::Change),
        1 => (0_i64..40).prop_map(Happening::Delete),
        1 => Just(Happening::LinkUp),
        1 => Just(Happening::LinkDown),
        2 => proptest::bool::weighted(0.1).prop_map(Happening::Report),
        2 => phase.prop_map(Happening::Job),
        1 => Just(Happening::NoSandbox),
        4 => Just(Happening::Ask),
        1 => Just(Happening::AskInVain),
        1 => Just(Happening::News),
        1 => Just(Happening::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order, an entry does nothing twice, nothing too early and nothing after the removal:
    /// the assertions are in [`World::perform`]. And every pod that is deleted goes in the end.
    #[test]
    fn a_pod_has_one_job_and_goes_when_it_is_deleted(
        story in proptest::collection::vec(happening(), 0..150),
        vanishes in any::<bool>(),
    ) {
        let mut world = World::new();
        for happening in story {
            world.happen(happening);
        }
        world.happen(if vanishes { Happening::Vanish } else { Happening::Delete(1) });
        for _ in 0..200 {
            for _ in 0..8 {
                world.end(0, Outcome::Well);
            }
            // What was asked to end ends.
            let was_told = world.entry.as_ref().is_some_and(|entry| entry.view(world.now).stopping.cancelled.is_some());
            if was_told || world.is_job_running() {
                world.happen(Happening::Job(RunPhase::Cancelled));
            }
            world.pass(s(5));
            world.ask(true);
        }
        prop_assert!(world.entry.is_none(), "it stays: {:?}", world.entry);
    }
}

/// A full `/tmp` of its node ends a pod's job before anything of the pod has begun.
#[test]
fn a_sandbox_that_is_not_made_is_tried_elsewhere_and_not_for_ever() {
    let mut world = World::new();
    let mut waits = Vec::new();
    loop {
        while !world.operations.is_empty() {
            world.end(0, Outcome::Well);
        }
        let entry = world.entry.as_ref().expect("it is there");
        assert_eq!(
            (entry.stage(), world.pod.as_ref().and_then(|p| p.status.as_ref()?.phase.as_deref())),
            (Stage::Submitted, Some("Pending"))
        );
        world.happen(Happening::Job(RunPhase::Running));
        world.happen(Happening::Ask);
        world.happen(Happening::NoSandbox);
        // Whatever changes meanwhile, the wait is kept.
        let began = world.now;
        world.happen(Happening::Ask);
        world.happen(Happening::Change);
        let entry = world.entry.as_ref().expect("it is there");
        if entry.stage() == Stage::Submitted {
            break;
        }
        assert_eq!((entry.record().job_id.clone(), entry.record().avoid.as_slice()), (None, &["c1".to_owned()][..]));
        while world.entry.as_ref().is_some_and(|entry| entry.stage() == Stage::New) {
            world.end(0, Outcome::Well);
            world.pass(Duration::from_millis(500));
        }
        waits.push((world.now - began).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16]);
    while !world.operations.is_empty() {
        world.end(0, Outcome::Well);
    }
    let status = world.pod.as_ref().and_then(|pod| pod.status.as_ref()).expect("a status");
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SlurmJobFailed")));
    assert_eq!(world.made, 6);
}

#[test]
fn what_was_over_before_stays_as_it_was_told() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"generation": 2},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Failed", "reason": "NodePorts"},
    }))
    .expect("a pod");
    let told = pod.status.clone();
    let rules = rules();
    let now = Instant::now();
    let around = Around { now, clock: Timestamp::UNIX_EPOCH, listed: true, rules: &rules, taken: &|_| false };
    let mut entry = Entry::new(Record::new(PodRef::default(), Timestamp::UNIX_EPOCH), Way::Clear, now);
    let effects = entry.on(Heard::Applied { pod: Arc::new(pod), refusal: None }, &around);
    assert!(effects.is_empty(), "{effects:?}");
    assert_eq!(entry.status(&around), told);
}

#[test]
fn a_link_is_believed_about_its_own_node_alone() {
    let rules = rules();
    let now = Instant::now();
    let around = Around { now, clock: Timestamp::UNIX_EPOCH, listed: true, rules: &rules, taken: &|_| false };
    for (said, believed) in [("c1", true), ("c2", false)] {
        let who = PodRef { uid: UID.to_owned(), ..PodRef::default() };
        let record = Record { job_id: Some("7".into()), ..Record::new(who, Timestamp::UNIX_EPOCH) };
        let mut entry = Entry::new(Record { progress: Progress::Submitted, ..record }, Way::Made, now);
        let is_told = |effects: Vec<Effect>| effects.iter().any(|e| matches!(e, Effect::WayOut { has: false, .. }));
        let way_out = Some((said.to_owned(), false));
        assert!(!is_told(entry.on(Heard::LinkUp { carried: false, way_out }, &around)), "not known where it is");
        let job = Run { phase: RunPhase::Running, nodes: "c1".to_owned(), ..Run::lost("7", UID) };
        let job = || Heard::Job { job: Box::new(job.clone()), words: None };
        assert_eq!(is_told(entry.on(job(), &around)), believed, "{said}");
        assert!(!is_told(entry.on(job(), &around)), "once");
    }
}

#[test]
fn silence_is_that_of_a_link_that_stood() {
    let mut world = World::new();
    while world.entry.as_ref().is_some_and(|entry| entry.stage() != Stage::Submitted) {
        world.end(0, Outcome::Well);
    }
    world.happen(Happening::Job(RunPhase::Running));
    world.happen(Happening::Ask);
    world.happen(Happening::Report(false));
    let silent = |world: &World| world.entry.as_ref().and_then(Entry::silent_since);
    assert_eq!(silent(&world), None, "its node may be one that cannot dial");
    world.happen(Happening::LinkUp);
    assert_eq!(silent(&world), None);
    world.pass(s(3));
    world.happen(Happening::LinkDown);
    assert_eq!(silent(&world), Some(world.now));
    world.pass(s(5));
    world.happen(Happening::Report(false));
    assert_eq!(silent(&world), Some(world.now), "by its file");
    world.happen(Happening::Job(RunPhase::NodeFail));
    world.happen(Happening::Ask);
    assert_eq!(silent(&world), None, "Slurm has said what became of it");
}

/// The world as the pod's job waits.
fn submitted() -> World {
    let mut world = World::new();
    while !world.operations.is_empty() {
        world.end(0, Outcome::Well);
    }
    world.happen(Happening::Ask);
    while !world.operations.is_empty() {
        world.end(0, Outcome::Well);
    }
    world
}

fn has_condition(world: &World, kind: &str) -> bool {
    let status = world.entry.as_ref().and_then(Entry::current_status).expect("a status");
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind)
}

#[test]
fn a_waiting_job_is_given_another_size_and_a_running_one_is_not() {
    let is_asked = |world: &World| world.is_under_way(|o| matches!(o, Operation::Resize));
    let end_all = |world: &mut World, outcome| {
        for _ in 0..20 {
            let resize = world.operations.first().is_some_and(|o| matches!(o, Operation::Resize));
            world.end(0, if resize { outcome } else { Outcome::Well });
        }
    };
    let mut world = submitted();
    assert!(!is_asked(&world));
    world.happen(Happening::Change);
    assert!(is_asked(&world) && !has_condition(&world, "PodResizePending"));
    end_all(&mut world, Outcome::Well);
    let record = world.entry.as_ref().expect("it is there").record();
    assert_eq!(record.requested, "--mem=2");
    assert_eq!(Some(record.granted.clone()), world.pod.as_ref().map(crate::pods::resize::asked));
    // Slurm says no: that is told, and not asked again.
    world.happen(Happening::Change);
    end_all(&mut world, Outcome::Badly);
    assert!(!is_asked(&world) && has_condition(&world, "PodResizePending"));
    world.happen(Happening::Ask);
    assert!(!is_asked(&world));
    // Another size may be had.
    world.happen(Happening::Change);
    assert!(is_asked(&world));
    end_all(&mut world, Outcome::Well);
    world.happen(Happening::Job(RunPhase::Running));
    world.happen(Happening::Ask);
    world.happen(Happening::Change);
    assert!(!is_asked(&world) && has_condition(&world, "PodResizePending"));
}

/// The events of a job that Slurm's administrator suspends and lets go on.
#[test]
fn a_suspended_job_is_told_and_its_pod_is_not_ready() {
    let rules = rules();
    let now = Instant::now();
    let around = Around { now, clock: Timestamp::UNIX_EPOCH, listed: true, rules: &rules, taken: &|_| false };
    let who = PodRef { uid: UID.to_owned(), ..PodRef::default() };
    let record =
        Record { job_id: Some("7".into()), progress: Progress::Submitted, ..Record::new(who, Timestamp::UNIX_EPOCH) };
    let mut entry = Entry::new(record, Way::Made, now);
    let pod = json!({"metadata": {"uid": UID}, "spec": {"containers": [{"name": "c"}]}});
    let pod = Arc::new(serde_json::from_value(pod).expect("a pod"));
    entry.on(Heard::Applied { pod, refusal: None }, &around);
    let mut told = |suspended| {
        let job = Run { phase: RunPhase::Running, nodes: "c1".to_owned(), suspended, ..Run::lost("7", UID) };
        let effects = entry.on(Heard::Job { job: Box::new(job), words: None }, &around);
        let reasons =
            effects.into_iter().filter_map(|e| if let Effect::Tell(_, note) = e { Some(note.reason) } else { None });
        (reasons.collect::<Vec<_>>(), entry.lacks_link())
    };
    assert_eq!(told(false), (vec![], true));
    assert_eq!(told(true), (vec!["SlurmSuspended".to_owned()], false));
    assert_eq!(told(true), (vec![], false));
    assert_eq!(told(false), (vec!["SlurmResumed".to_owned()], true));
}

#[test]
fn a_job_that_waits_for_more_than_its_turn_is_told_at_once() {
    let mut world = World::new();
    while !world.operations.is_empty() {
        world.end(0, Outcome::Well);
    }
    let rules = world.rules.clone();
    let around =
        Around { now: world.now, clock: Timestamp::UNIX_EPOCH, listed: true, rules: &rules, taken: &|_| false };
    let entry = world.entry.as_mut().expect("it is there");
    let mut told = |reason: &str, why: &str| {
        let job =
            Run { phase: RunPhase::Pending, reason: reason.to_owned(), why: why.to_owned(), ..Run::lost("1", UID) };
        let effects = entry.on(Heard::Job { job: Box::new(job), words: None }, &around);
        effects.iter().filter(|e| matches!(e, Effect::Tell(_, note) if note.reason == "SlurmPending")).count()
    };
    assert_eq!(told("ReqNodeNotAvail", "until six"), 1);
    assert_eq!(told("ReqNodeNotAvail", "until six"), 0);
    assert_eq!(told("ReqNodeNotAvail", "until seven"), 1, "its end was moved");
    assert_eq!(told("Priority", "others"), 0);
    assert_eq!(told("JobHeldUser", "held"), 1);
}

#[test]
fn the_end_of_an_attempt_that_was_given_up_counts_for_nothing() {
    let mut world = World::new();
    assert!(matches!(world.operations[..], [Operation::Prepare(1), ..]), "{:?}", world.operations);
    // The pod changes while it is prepared: a new attempt begins, and the old one's end is on its way.
    world.happen(Happening::Change);
    world.end(0, Outcome::Well);
    let entry = world.entry.as_ref().expect("it is there");
    assert_eq!(entry.stage(), Stage::Preparing, "the plan of a pod that has changed");
}

#[test]
fn what_changes_during_an_attempt_is_looked_at_when_that_is_held() {
    let mut world = World::new();
    let attempts = |world: &World| -> Vec<usize> {
        let all = world.operations.iter().enumerate();
        all.filter(|(_, o)| matches!(o, Operation::Prepare(_))).map(|(number, _)| number).collect()
    };
    let fail = |world: &mut World| {
        let number = attempts(world)[0];
        world.end(number, Outcome::Badly);
    };
    world.happen(Happening::News);
    assert_eq!(attempts(&world).len(), 1, "one at a time");
    fail(&mut world);
    assert_eq!(attempts(&world).len(), 1, "at once: {:?}", world.operations);
    fail(&mut world);
    assert_eq!(attempts(&world).len(), 0, "without news it waits: {:?}", world.operations);
    world.happen(Happening::News);
    assert_eq!(attempts(&world).len(), 1, "{:?}", world.operations);
}
