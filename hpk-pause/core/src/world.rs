//! A tiny world for tests: it performs actions as a well-behaved driver would, with time made by hand, and checks
//! what must always hold. Scripts in tables.rs and random sequences below both live in it.

use crate::container::{Container, Phase};
use crate::ending::{RESTART_ALL_EVENT, RESTARTING_ALL};
use crate::kill::MINIMUM_GRACE_SECONDS;
use crate::policy::{Role, Verdict, verdict};
use crate::testing::{container, pod};
use crate::{Action, ContainerIndex, Event, Exit, ExitCause, Hook, HookFailure, LaunchFailure, Now, ProbeOutcome};
use crate::{Identity, Supervisor};
use hpk_api::control::Update;
use hpk_api::plan::{Blocked, ContainerPlan, ExitCodeOperator, RestartAction, RestartPolicy, RestartRule, SandboxPlan};
use hpk_api::probe::{Handler, Probe, ProbeKind};
use hpk_api::state::{ContainerState, ContainerUser, PodState, RunState, StopCause};
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One process that the world runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pub(crate) signals: Vec<i32>,
    pub(crate) killed: bool,
    pub(crate) probes: Vec<ProbeKind>,
    pub(crate) hooks: Vec<Hook>,
    /// Hooks that ever ran.
    hooked: Vec<Hook>,
    /// When the grace period that it was given at the pod's end is over.
    grace_over: Option<Duration>,
    /// It was being ended for another reason when the pod's end began.
    ended_before: bool,
}

pub(crate) struct World {
    pub(crate) supervisor: Supervisor,
    plan: SandboxPlan,
    pub(crate) now: Duration,
    /// Starts under way.
    pub(crate) starting: BTreeMap<usize, u32>,
    /// Images that containers were last started with.
    images: BTreeMap<usize, String>,
    /// Processes that exist, by container and instance.
    pub(crate) live: BTreeMap<(usize, u32), Process>,
    /// Every action ever, with its time in ms.
    pub(crate) log: Vec<(u64, Action)>,
    pub(crate) finished: Option<bool>,
    terminations: BTreeSet<(usize, u32)>,
    /// Exit code that each container has to show.
    ends: BTreeMap<String, i32>,
    /// Sidecars that have once been started since all were, by name.
    initialized: BTreeSet<String>,
    /// Containers whose last end was for good.
    done: BTreeSet<usize>,
    /// Restart counts seen so far.
    counts: BTreeMap<String, u32>,
    /// When the grace period of the pod's end is over.
    grace_over: Option<Duration>,
    actions: Vec<Action>,
    last_sequence: u64,
}

impl World {
    pub(crate) fn new(plan: SandboxPlan) -> Self {
        Self::resuming(plan, None)
    }

    fn resuming(plan: SandboxPlan, previous: Option<&PodState>) -> Self {
        let now = Duration::from_secs(1_000);
        let supervisor = Supervisor::new(plan.clone(), Identity::default(), previous, at(now));
        Self {
            supervisor,
            plan,
            now,
            starting: BTreeMap::new(),
            images: BTreeMap::new(),
            live: BTreeMap::new(),
            log: Vec::new(),
            finished: None,
            terminations: BTreeSet::new(),
            ends: BTreeMap::new(),
            initialized: BTreeSet::new(),
            done: BTreeSet::new(),
            counts: BTreeMap::new(),
            grace_over: None,
            actions: Vec::new(),
            last_sequence: 0,
        }
    }

    /// The same pod in another job, of which nothing runs yet: what people see goes on.
    fn requeued(&self) -> Self {
        let before = self.supervisor.state();
        let mut world = Self::resuming(self.plan.clone(), Some(before));
        let after = world.supervisor.state();
        world.last_sequence = after.sequence;
        assert!(after.sequence > before.sequence, "the newer word counts");
        assert_eq!(after.events, before.events, "events are not told twice");
        world.counts = self.counts.clone();
        for c in before.init_containers.iter().chain(&before.containers) {
            let end = match &c.state {
                RunState::Terminated(end) => Some(end.exit_code),
                RunState::Running { .. } => Some(137),
                RunState::Waiting { .. } => c.last_termination.as_ref().map(|end| end.exit_code),
            };
            world.ends.extend(end.map(|code| (c.name.clone(), code)));
        }
        world.check();
        world.event(Event::SandboxReady { network: hpk_api::cni::CniResult::default() });
        world
    }

    /// A pod whose sandbox is ready.
    pub(crate) fn ready(plan: SandboxPlan) -> Self {
        let mut world = Self::new(plan);
        world.event(Event::SandboxReady { network: hpk_api::cni::CniResult::default() });
        world
    }

    pub(crate) fn millis(&self) -> u64 {
        u64::try_from((self.now - Duration::from_secs(1_000)).as_millis()).unwrap()
    }

    pub(crate) fn event(&mut self, event: Event) {
        let grace = self.supervisor.ending.map(|ending| ending.grace);
        if grace.is_none() {
            for ((i, _), process) in &mut self.live {
                process.ended_before = self.supervisor.containers[*i].kill_stage().is_some();
            }
        }
        let before = self.supervisor.state();
        let (restarting, told) = (before.restarting_all, before.events.last().map_or(0, |e| e.sequence));
        let mut actions = std::mem::take(&mut self.actions);
        self.supervisor.step(at(self.now), event, &mut actions);
        if let Some(ending) = self.supervisor.ending.filter(|ending| Some(ending.grace) != grace) {
            let over = self.now + Duration::from_secs(ending.grace);
            let sooner = |before: Option<Duration>| Some(before.map_or(over, |before| before.min(over)));
            self.grace_over = sooner(self.grace_over);
            for process in self.live.values_mut() {
                process.grace_over = sooner(process.grace_over);
            }
        }
        self.note_restart_of_all(restarting, told);
        self.remember();
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
        self.check();
    }

    /// Once a restart of all in place has ended everything, containers show its mark instead of their end, as upstream's
    /// do. Even the end that set it off may never be shown so: an event tells of it.
    fn note_restart_of_all(&mut self, restarting: bool, told: u64) {
        let state = self.supervisor.state();
        let began: Vec<_> =
            state.events.iter().filter(|e| e.sequence > told && e.reason == RESTART_ALL_EVENT).collect();
        assert!(began.len() <= usize::from(!restarting), "it begins once: {began:?}");
        assert!(!state.restarting_all || restarting || !began.is_empty(), "it is told");
        for event in &began {
            let name = event.container.as_ref().unwrap();
            let text = format!("Container {name} exited with {}, all containers will be restarted", self.ends[name]);
            assert_eq!(event.message, text);
        }
        let ending = self.supervisor.ending.is_some();
        assert!(!state.restarting_all || !ending, "the pod's end is the end of it");
        if state.restarting_all || ending || (!restarting && began.is_empty()) {
            return;
        }
        self.initialized.clear();
        self.done.clear();
        for (name, code) in &mut self.ends {
            let mut all = state.init_containers.iter().chain(&state.containers);
            let last = all.find(|c| c.name == *name).and_then(|c| c.last_termination.as_ref());
            if last.is_some_and(|last| last.reason == RESTARTING_ALL) {
                *code = 137;
            }
        }
    }

    fn perform(&mut self, action: Action) {
        assert!(self.finished.is_none(), "nothing after the end: {action:?}");
        self.log.push((self.millis(), action));
        match action {
            Action::Start { container, instance } => {
                let i = container.0;
                assert!(!self.live.keys().any(|&(c, _)| c == i), "container {i} already has a process");
                assert!(self.starting.insert(i, instance).is_none(), "container {i} is being started twice");
                self.images.insert(i, self.supervisor.containers[i].plan.image.clone());
                assert!(self.supervisor.state().stopping.is_none(), "no start after a stop");
                assert!(!self.done.contains(&i), "container {i} has ended for good");
                self.check_init_done_before(i);
            }
            Action::Signal { container, instance, signal } => {
                self.check_turn(container.0, instance);
                self.live.get_mut(&(container.0, instance)).expect("signal to a live process").signals.push(signal);
            }
            Action::Kill { container, instance } => {
                self.live.get_mut(&(container.0, instance)).expect("kill of a live process").killed = true;
            }
            Action::Probe { container, instance, kind } => {
                let plan = self.supervisor.container(container).unwrap();
                let (started, ending) = (self.state(&plan.name).started, self.supervisor.state().stopping.is_some());
                assert_eq!(started, kind != ProbeKind::Startup, "{}: {kind:?} waits for the start", plan.name);
                assert!(!ending || kind == ProbeKind::Readiness, "{}: {kind:?} at the end", plan.name);
                let process = self.live.get_mut(&(container.0, instance)).expect("probe of a live process");
                assert!(!process.hooks.contains(&Hook::PostStart), "{kind:?} waits for postStart");
                assert!(!process.probes.contains(&kind), "one run of a probe at a time");
                process.probes.push(kind);
            }
            Action::Hook { container, instance, hook } => {
                let process = self.live.get_mut(&(container.0, instance)).expect("hook of a live process");
                assert!(process.signals.is_empty() && !process.killed, "a hook comes before signals");
                assert!(!process.hooked.contains(&hook), "a hook runs once");
                process.hooked.push(hook);
                process.hooks.push(hook);
            }
            Action::Cancel { .. } => {}
            Action::Report => {
                let sequence = self.supervisor.state().sequence;
                assert!(sequence > self.last_sequence, "sequence grows");
                self.last_sequence = sequence;
            }
            Action::Finished { succeeded } => self.finished = Some(succeeded),
        }
    }

    /// Init containers before `i`, or all before a container, have ended with 0; sidecars among them have been started.
    fn check_init_done_before(&self, i: usize) {
        let init = self.supervisor.plan().init_containers.iter();
        if i >= self.supervisor.plan().init_containers.len() + self.supervisor.plan().containers.len() {
            return;
        }
        for before in init.take(i) {
            let sidecar = before.restart_policy == Some(RestartPolicy::Always);
            let done = if sidecar { self.initialized.contains(&before.name) } else { self.state(&before.name).ready };
            assert!(done, "container {i} waits for {}", before.name);
        }
    }

    /// Within the grace period of the pod's end a sidecar is told to end when the containers and later sidecars have; one
    /// that was being ended before (with a grace period of its own) goes on with that.
    fn check_turn(&self, i: usize, instance: u32) {
        let containers = &self.supervisor.containers;
        let over = self.grace_over.is_none_or(|over| over <= self.now);
        if over || containers[i].role != Role::Sidecar || self.live[&(i, instance)].ended_before {
            return;
        }
        let alive = self.live.keys().map(|(c, _)| *c).chain(self.starting.keys().copied());
        let mut before =
            alive.filter(|&c| containers[c].role == Role::Main || (c > i && containers[c].role == Role::Sidecar));
        assert_eq!(before.next(), None, "sidecar {i} ends before it");
    }

    /// Whatever has not ended some seconds after the grace period is killed: each stage of an end counts whole seconds, and
    /// the last has at least two.
    fn check_killed_in_time(&self) {
        let slack = Duration::from_secs(2 + MINIMUM_GRACE_SECONDS);
        for ((i, _), process) in &self.live {
            let over = process.grace_over.is_some_and(|over| over + slack <= self.now);
            assert!(process.killed || !over, "container {i} outlives the grace period: {process:?}");
        }
    }

    /// What the supervisor keeps about its containers agrees with what they are.
    fn check_records(&self) {
        let (supervisor, state) = (&self.supervisor, self.supervisor.state());
        if state.finished {
            return;
        }
        for c in &supervisor.containers {
            let due = c.compute_due(self.now, supervisor.ending.is_some());
            assert_eq!(c.due, due, "{}: what is due is known", c.plan.name);
        }
        if !state.sandbox_ready {
            return;
        }
        let blocked = supervisor.containers.iter().any(|c| c.plan.blocked.is_some());
        let moves =
            blocked || !self.live.is_empty() || !self.starting.is_empty() || supervisor.next_deadline().is_some();
        assert!(moves, "nothing would ever happen again: {supervisor:?}");
        if supervisor.ending.is_some() || supervisor.restart_all.is_some() {
            return;
        }
        let lasting = |c: &Container| matches!(c.role, Role::Main | Role::Sidecar) && c.kill_stage().is_none();
        for i in self.live.keys().map(|(i, _)| *i).filter(|i| lasting(&supervisor.containers[*i])) {
            assert_eq!(self.images[&i], supervisor.containers[i].plan.image, "container {i} has the image of its plan");
        }
        let init = supervisor.plan().init_containers.len();
        for (i, c) in supervisor.containers.iter().enumerate().filter(|(_, c)| matches!(c.phase, Phase::Idle)) {
            let its_turn = match c.role {
                Role::Ephemeral => true,
                Role::Sidecar | Role::Init => supervisor.init_next >= i,
                Role::Main => {
                    supervisor.init_next >= init && !supervisor.containers[init..i].iter().any(Container::holds_up)
                }
            };
            assert!(!its_turn || c.plan.blocked.is_some(), "{} waits for nothing", c.plan.name);
        }
    }

    fn remember(&mut self) {
        let state = self.supervisor.state();
        for c in state.init_containers.iter().filter(|c| c.started) {
            self.initialized.insert(c.name.clone());
        }
        for c in state.init_containers.iter().chain(&state.containers) {
            let before = self.counts.insert(c.name.clone(), c.restart_count);
            assert!(before.is_none_or(|n| n <= c.restart_count), "{}: counts only grow", c.name);
        }
    }

    /// What holds after every step.
    fn check(&self) {
        self.check_records();
        self.check_killed_in_time();
        let state = self.supervisor.state();
        for list in [&state.init_containers, &state.containers, &state.ephemeral_containers] {
            for c in list {
                let running = matches!(c.state, RunState::Running { .. });
                let i = self.supervisor.find(&c.name).unwrap();
                assert_eq!(running, self.live.keys().any(|&(l, _)| l == i.0), "{} is shown as it is", c.name);
                let init_done = matches!(&c.state, RunState::Terminated(t) if t.exit_code == 0);
                assert!(!c.ready || running || init_done, "ready implies running: {c:?}");
                assert!(!c.started || running, "started implies running");
            }
        }
        for (name, code) in &self.ends {
            let c = self.state(name);
            let shown = if let RunState::Terminated(end) = &c.state { Some(end) } else { c.last_termination.as_ref() };
            assert_eq!(shown.map(|end| end.exit_code), Some(*code), "the newest end is shown: {c:?}");
        }
        if state.finished {
            assert!(self.live.is_empty() && self.starting.is_empty(), "finished means that nothing runs");
            assert_eq!(self.supervisor.next_deadline(), None);
        } else if let Some(deadline) = self.supervisor.next_deadline() {
            assert!(deadline > self.now, "what is due has been done");
        }
    }

    /// Lets time pass, stopping at every deadline.
    pub(crate) fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(deadline) = self.supervisor.next_deadline().filter(|&d| d <= end) {
            self.now = deadline;
            self.event(Event::Tick);
        }
        self.now = end;
        self.event(Event::Tick);
    }

    pub(crate) fn index(&self, name: &str) -> usize {
        self.supervisor.find(name).unwrap().0
    }

    pub(crate) fn is_starting(&self, name: &str) -> bool {
        self.starting.contains_key(&self.index(name))
    }

    pub(crate) fn is_live(&self, name: &str) -> bool {
        let i = self.index(name);
        self.live.keys().any(|&(c, _)| c == i)
    }

    pub(crate) fn launch(&mut self, name: &str) {
        let i = self.index(name);
        self.launched(i);
    }

    fn launched(&mut self, i: usize) {
        let instance = self.starting.remove(&i).expect("a start is under way");
        // One that was being made when the pod's end began has no longer than the others, but for the last stage's least.
        let grace_over = self.grace_over.map(|over| over.max(self.now));
        self.live.insert((i, instance), Process { grace_over, ..Process::default() });
        self.event(Event::Launched { container: ContainerIndex(i), instance, user: ContainerUser::default() });
    }

    pub(crate) fn launch_fails(&mut self, name: &str, failure: LaunchFailure) {
        let i = self.index(name);
        let instance = self.starting.remove(&i).expect("a start is under way");
        if let LaunchFailure::Start(_) = &failure {
            self.ended(i, 128);
        }
        self.event(Event::LaunchFailed { container: ContainerIndex(i), instance, failure });
    }

    /// Launches whatever is being started, until nothing is.
    pub(crate) fn launch_all(&mut self) {
        while let Some((&i, _)) = self.starting.iter().next() {
            self.launched(i);
        }
    }

    pub(crate) fn process(&self, name: &str) -> (u32, &Process) {
        let i = self.index(name);
        let ((_, instance), process) = self.live.iter().find(|((c, _), _)| *c == i).expect("a live process");
        (*instance, process)
    }

    pub(crate) fn exit(&mut self, name: &str, code: i32) {
        self.exit_as(name, ExitCause::Code(code), false);
    }

    pub(crate) fn exit_as(&mut self, name: &str, cause: ExitCause, oom: bool) {
        let (i, instance) = (self.index(name), self.process(name).0);
        self.exited(i, instance, Exit { cause, oom, message: String::new(), at: None });
    }

    fn exited(&mut self, i: usize, instance: u32, exit: Exit) {
        self.live.remove(&(i, instance));
        assert!(self.terminations.insert((i, instance)), "one end for each run");
        self.ended(i, exit.cause.code());
        self.event(Event::Exited { container: ContainerIndex(i), instance, exit });
    }

    fn ended(&mut self, i: usize, code: i32) {
        let container = &self.supervisor.containers[i];
        self.ends.insert(container.plan.name.clone(), code);
        let comes_back = container.live().and_then(|live| live.kill).is_some_and(|kill| kill.restart);
        let policy = self.supervisor.plan().restart_policy;
        if !comes_back && verdict(container.role, &container.plan, policy, code) == Verdict::Done {
            self.done.insert(i);
        }
    }

    pub(crate) fn probe(&mut self, name: &str, kind: ProbeKind, outcome: ProbeOutcome) {
        let (i, (instance, process)) = (self.index(name), self.process(name));
        let at = process.probes.iter().position(|&k| k == kind).expect("the probe runs");
        self.live.get_mut(&(i, instance)).unwrap().probes.remove(at);
        self.event(Event::ProbeDone { container: ContainerIndex(i), instance, kind, outcome });
    }

    pub(crate) fn probing(&self, name: &str, kind: ProbeKind) -> bool {
        self.is_live(name) && self.process(name).1.probes.contains(&kind)
    }

    pub(crate) fn hook(&mut self, name: &str, hook: Hook, result: Result<(), HookFailure>) {
        let (i, (instance, process)) = (self.index(name), self.process(name));
        let at = process.hooks.iter().position(|&h| h == hook).expect("the hook runs");
        self.live.get_mut(&(i, instance)).unwrap().hooks.remove(at);
        self.event(Event::HookDone { container: ContainerIndex(i), instance, hook, result });
    }

    pub(crate) fn stop(&mut self, cause: StopCause, grace: u32) {
        self.event(Event::Stop { cause, grace_seconds: Some(grace) });
    }

    pub(crate) fn state(&self, name: &str) -> &ContainerState {
        let s = self.supervisor.state();
        let mut all = s.init_containers.iter().chain(&s.containers).chain(&s.ephemeral_containers);
        all.find(|c| c.name == name).unwrap()
    }

    /// `Running`, `Waiting(reason)`, `Terminated(code reason)`.
    pub(crate) fn shown(&self, name: &str) -> String {
        match &self.state(name).state {
            RunState::Running { .. } => "Running".to_owned(),
            RunState::Waiting { reason, .. } => format!("Waiting({reason})"),
            RunState::Terminated(t) => format!("Terminated({} {})", t.exit_code, t.reason),
        }
    }

    /// Events so far as `Reason: message`.
    pub(crate) fn events(&self) -> Vec<String> {
        self.supervisor.state().events.iter().map(|e| format!("{}: {}", e.reason, e.message)).collect()
    }

    /// Times (ms) of the signals to a container.
    pub(crate) fn signalled(&self, name: &str) -> Vec<(u64, i32)> {
        let i = self.index(name);
        let of = |(at, action): &(u64, Action)| match *action {
            Action::Signal { container, signal, .. } if container.0 == i => Some((*at, signal)),
            Action::Kill { container, .. } if container.0 == i => Some((*at, 9)),
            _ => None,
        };
        self.log.iter().filter_map(of).collect()
    }

    /// Times (ms) of the starts of a container.
    pub(crate) fn starts(&self, name: &str) -> Vec<u64> {
        let i = self.index(name);
        let of = |(at, action): &(u64, Action)| match *action {
            Action::Start { container, .. } if container.0 == i => Some(*at),
            _ => None,
        };
        self.log.iter().filter_map(of).collect()
    }
}

fn at(mono: Duration) -> Now {
    Now { mono, wall: Timestamp::UNIX_EPOCH.checked_add(jiff::SignedDuration::try_from(mono).unwrap()).unwrap() }
}

pub(crate) fn probe(period: u32, success: u32, failure: u32) -> Probe {
    Probe {
        handler: Handler::TcpSocket { host: None, port: 1 },
        initial_delay_seconds: 0,
        timeout_seconds: 1,
        period_seconds: period,
        success_threshold: success,
        failure_threshold: failure,
        termination_grace_period_seconds: None,
    }
}

/// What may happen next in a random life.
#[derive(Clone, Debug)]
enum Chance {
    Pass(u32),
    Launch(u8),
    LaunchFails(u8, u8),
    Exit(u8, i32),
    Obey(u8),
    Probe(u8, u8),
    Hook(u8, bool),
    Stop(u32),
    Stray(u8, u32),
    Change(u8, bool),
    Debug(u8),
    Deadline(u64),
    Block(u8, bool),
    Requeue,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        4 => (0..40_000u32).prop_map(Chance::Pass),
        6 => any::<u8>().prop_map(Chance::Launch),
        1 => (any::<u8>(), 0..3u8).prop_map(|(a, b)| Chance::LaunchFails(a, b)),
        4 => (any::<u8>(), prop_oneof![Just(0), Just(1), Just(42)]).prop_map(|(a, b)| Chance::Exit(a, b)),
        2 => any::<u8>().prop_map(Chance::Obey),
        6 => (any::<u8>(), 0..8u8).prop_map(|(a, b)| Chance::Probe(a, b)),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Hook(a, b)),
        1 => (0..60u32).prop_map(Chance::Stop),
        1 => (any::<u8>(), 0..4u32).prop_map(|(a, b)| Chance::Stray(a, b)),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Change(a, b)),
        1 => any::<u8>().prop_map(Chance::Debug),
        1 => (1..2_000u64).prop_map(Chance::Deadline),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Block(a, b)),
        1 => Just(Chance::Requeue),
    ]
}

fn some_container(name: String) -> impl Strategy<Value = ContainerPlan> {
    let policy =
        prop_oneof![3 => Just(None), 1 => Just(Some(RestartPolicy::OnFailure)), 1 => Just(Some(RestartPolicy::Never))];
    let probes = (any::<[bool; 3]>(), 1..12u32, 1..4u32);
    (policy, probes, any::<[bool; 2]>(), 0..4u8).prop_map(move |(policy, (has, period, failures), hooks, rule)| {
        let mut c = container(&name);
        c.restart_policy = policy;
        let action = if rule == 1 { RestartAction::Restart } else { RestartAction::RestartAllContainers };
        if policy.is_some() && rule > 0 && rule < 3 {
            c.restart_rules = vec![RestartRule { action, operator: ExitCodeOperator::In, values: vec![42] }];
        }
        c.probes.startup = has[0].then(|| probe(period, 1, failures));
        c.probes.liveness = has[1].then(|| probe(period, 1, failures));
        c.probes.readiness = has[2].then(|| probe(period, failures, failures));
        c.lifecycle.post_start = hooks[0].then_some(Handler::Sleep { seconds: 1 });
        c.lifecycle.pre_stop = hooks[1].then_some(Handler::Sleep { seconds: 1 });
        c
    })
}

fn some_pod() -> impl Strategy<Value = SandboxPlan> {
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let many = |prefix: &'static str, n: std::ops::Range<usize>| {
        n.prop_flat_map(move |n| (0..n).map(|i| some_container(format!("{prefix}{i}"))).collect::<Vec<_>>())
    };
    let deadline = prop_oneof![5 => Just(None), 1 => (1..600u64).prop_map(Some)];
    (policy, many("i", 0..4), many("m", 1..4), any::<u8>(), 0..40u32, deadline).prop_map(
        |(policy, mut init, main, sidecars, grace, deadline)| {
            for (i, c) in init.iter_mut().enumerate() {
                if sidecars & (1 << i) != 0 {
                    c.restart_policy = Some(RestartPolicy::Always);
                } else {
                    c.probes = hpk_api::probe::Probes::default();
                    c.lifecycle = hpk_api::probe::Lifecycle::default();
                }
            }
            let mut plan = pod(policy, init, main);
            plan.termination_grace_period_seconds = grace;
            plan.active_deadline_seconds = deadline;
            plan
        },
    )
}

fn pick<T: Copy>(from: impl IntoIterator<Item = T>, n: u8) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| all[usize::from(n) % all.len()])
}

fn play(world: &mut World, chance: Chance) {
    match chance {
        Chance::Pass(ms) => world.pass(f64::from(ms) / 1000.0),
        Chance::Launch(n) => {
            if let Some(i) = pick(world.starting.keys().copied(), n) {
                world.launched(i);
            }
        }
        Chance::LaunchFails(n, kind) => {
            if let Some(i) = pick(world.starting.keys().copied(), n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                let why = "no".to_owned();
                world.launch_fails(
                    &name,
                    match kind {
                        0 => LaunchFailure::Config(why),
                        1 => LaunchFailure::Create(why),
                        _ => LaunchFailure::Start(why),
                    },
                );
            }
        }
        Chance::Exit(n, code) => {
            if let Some((i, instance)) = pick(world.live.keys().copied(), n) {
                world.exited(
                    i,
                    instance,
                    Exit { cause: ExitCause::Code(code), oom: false, message: String::new(), at: None },
                );
            }
        }
        Chance::Obey(n) => {
            let told = world.live.iter().filter(|(_, p)| p.killed || !p.signals.is_empty()).map(|(k, _)| *k);
            if let Some((i, instance)) = pick(told, n) {
                world.exited(
                    i,
                    instance,
                    Exit { cause: ExitCause::Signal(15), oom: false, message: String::new(), at: None },
                );
            }
        }
        Chance::Probe(n, outcome) => {
            let runs = world.live.iter().flat_map(|((i, _), p)| p.probes.iter().map(|&k| (*i, k)));
            if let Some((i, kind)) = pick(runs, n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                let text = "x".to_owned();
                world.probe(
                    &name,
                    kind,
                    match outcome {
                        0..3 => ProbeOutcome::Success,
                        3 => ProbeOutcome::Warning(text),
                        4..7 => ProbeOutcome::Failure(text),
                        _ => ProbeOutcome::Error(text),
                    },
                );
            }
        }
        Chance::Hook(n, good) => {
            let runs = world.live.iter().flat_map(|((i, _), p)| p.hooks.iter().map(|&h| (*i, h)));
            if let Some((i, hook)) = pick(runs, n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                world.hook(&name, hook, if good { Ok(()) } else { Err(HookFailure::default()) });
            }
        }
        Chance::Stop(grace) => world.stop(StopCause::Requested, grace),
        Chance::Stray(n, instance) => {
            let container = ContainerIndex(usize::from(n % 9));
            // An answer that nobody waits for. Where somebody does wait for just this one, it is no stray.
            if !world.starting.contains_key(&container.0) {
                world.event(Event::Launched { container, instance, user: ContainerUser::default() });
                let failure = LaunchFailure::Create(String::new());
                world.event(Event::LaunchFailed { container, instance, failure });
            }
            if !world.live.contains_key(&(container.0, instance)) {
                let exit = Exit { cause: ExitCause::Code(1), oom: false, message: String::new(), at: None };
                world.event(Event::Exited { container, instance, exit });
            }
            let instance = instance + 1_000;
            world.event(Event::HookDone { container, instance, hook: Hook::PreStop, result: Ok(()) });
            let (kind, outcome) = (ProbeKind::Liveness, ProbeOutcome::Failure(String::new()));
            world.event(Event::ProbeDone { container, instance, kind, outcome });
            world.event(Event::Tick);
        }
        Chance::Change(n, image) => {
            let index = ContainerIndex(usize::from(n) % world.supervisor.len());
            let mut plan = world.supervisor.container(index).unwrap().clone();
            if image {
                plan.image.push('x');
            } else {
                plan.resources.limits.insert("cpu".to_owned(), u64::from(n));
            }
            let update = Update { containers: vec![plan], ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
        Chance::Deadline(seconds) => {
            let update = Update { active_deadline_seconds: Some(seconds), ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
        Chance::Block(n, blocked) => {
            let index = ContainerIndex(usize::from(n) % world.supervisor.len());
            let mut plan = world.supervisor.container(index).unwrap().clone();
            let reason = "CreateContainerConfigError".to_owned();
            plan.blocked = blocked.then(|| Blocked { reason, message: "no key".to_owned() });
            world.event(Event::Update(Box::new(Update { containers: vec![plan], ..Update::default() })));
        }
        Chance::Requeue => *world = world.requeued(),
        Chance::Debug(n) => {
            let ephemeral_containers = vec![container(&format!("e{}", n % 3))];
            let update = Update { ephemeral_containers, ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
    }
}

/// Everything that runs obeys, every start succeeds: a stopped pod then ends within its grace period.
fn bring_to_an_end(world: &mut World) {
    world.stop(StopCause::Requested, 0);
    for _ in 0..64 {
        if world.finished.is_some() {
            return;
        }
        world.launch_all();
        world.pass(2.0);
        let killed: Vec<_> = world.live.iter().filter(|(_, p)| p.killed).map(|(k, _)| *k).collect();
        for (i, instance) in killed {
            world.exited(
                i,
                instance,
                Exit { cause: ExitCause::Signal(9), oom: false, message: String::new(), at: None },
            );
        }
    }
    panic!("the pod does not end: {:#?}", world.supervisor.state());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// The invariants are checked after every step by the world itself.
    #[test]
    fn any_life_is_sound_and_ends_when_asked(plan in some_pod(), life in proptest::collection::vec(chance(), 0..120)) {
        let mut world = World::ready(plan);
        for chance in life {
            if world.finished.is_some() {
                break;
            }
            play(&mut world, chance);
        }
        bring_to_an_end(&mut world);
    }

    /// Delays between an end and the next start never shrink while the time from one decision to the next end
    /// (here up to 301 s of waiting for the launch, and the run) stays below the reset.
    #[test]
    fn back_off_is_monotone(runs in proptest::collection::vec(0..290u32, 1..12)) {
        let mut world = World::ready(pod(RestartPolicy::Always, vec![], vec![container("c")]));
        let mut last = 0;
        for run in runs {
            world.launch("c");
            world.pass(f64::from(run));
            let ended = world.millis();
            world.exit("c", 1);
            world.pass(301.0);
            let started = *world.starts("c").last().unwrap();
            let delay = started.checked_sub(ended).expect("it was started again");
            prop_assert!(delay >= last && delay <= 300_000, "{delay} after {last}");
            last = delay;
        }
    }
}
