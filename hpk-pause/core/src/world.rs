//! A tiny world for tests: it performs actions as a well-behaved driver would, with time made by hand, and checks
//! what must always hold. The stories of `tables` and the random lives of `lives` are
//! played in it.

use crate::container::{Container, Phase};
use crate::ending::{RESTART_ALL_EVENT, RESTARTING_ALL};
use crate::kill::MINIMUM_GRACE_SECONDS;
use crate::policy::{Role, Verdict, verdict};
use crate::{Action, ContainerIndex, Event, Exit, ExitCause, Hook, HookFailure, LaunchFailure, Now, ProbeOutcome};
use crate::{Identity, Supervisor};
use hpk_api::plan::{RestartPolicy, SandboxPlan};
use hpk_api::probe::{Handler, Probe, ProbeKind};
use hpk_api::state::{ContainerState, ContainerUser, PodState, RunState, StopCause};
use jiff::Timestamp;
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
    pub(crate) fn requeued(&self) -> Self {
        let before = self.supervisor.state();
        let mut world = Self::resuming(self.plan.clone(), Some(before));
        let after = world.supervisor.state();
        world.last_sequence = after.sequence;
        assert!(after.sequence > before.sequence, "the newer word counts");
        assert_eq!(after.events, before.events, "events are not told twice");
        world.counts = self.counts.clone();
        for c in before.planned() {
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
            let mut all = state.planned();
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
        for c in state.planned() {
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

    pub(crate) fn launched(&mut self, i: usize) {
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

    pub(crate) fn exited(&mut self, i: usize, instance: u32, exit: Exit) {
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
        s.find(name).unwrap()
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
