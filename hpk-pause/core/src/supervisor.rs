//! The supervisor's record of its pod, and what each event means to it.

use crate::backoff::Limits;
use crate::container::{Container, KINDS, Live, Phase, kind_index};
use crate::kill::{KillReason, Stage};
use crate::policy::{self, Role, Verdict};
use crate::probe::Belief;
use crate::text;
use crate::types::{Action, ContainerIndex, Event, Exit, Hook, HookFailure, LaunchFailure, Now, ProbeOutcome};
use hpk_api::control::Update;
use hpk_api::plan::{ContainerPlan, SandboxPlan};
use hpk_api::probe::ProbeKind;
use hpk_api::state::{ContainerState, ContainerUser, MAX_EVENTS, PodEvent, PodState, RunState, StopCause, Termination};
use std::net::IpAddr;
use std::time::Duration;

/// How long upstream waits before it tries again to create a container (backOffPeriod).
const CREATE_RETRY: Duration = Duration::from_secs(10);

/// Where and as what a pod runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Slurm job id.
    pub job_id: Option<String>,
    /// Host name of the compute node.
    pub node: String,
}

/// The one owner of a pod's state.
#[derive(Debug)]
pub struct Supervisor {
    pub(crate) plan: SandboxPlan,
    pub(crate) limits: Limits,
    pub(crate) containers: Vec<Container>,
    pub(crate) state: PodState,
    pub(crate) sandbox_ready: bool,
    /// Init containers below this have been initialised once; all: the containers may start.
    pub(crate) init_next: usize,
    pub(crate) ending: Option<Ending>,
    pub(crate) restart_all: Option<RestartAll>,
    begun: Duration,
    deadline: Option<Duration>,
    /// The state changed in this step.
    pub(crate) changed: bool,
    /// Something happened that may let containers start or end.
    pub(crate) unsettled: bool,
}

/// The pod is being ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// Seconds.
    pub(crate) grace: u64,
}

/// The pod is being restarted in place: containers that still have to be ended, in order.
#[derive(Clone, Debug)]
pub(crate) struct RestartAll {
    pub(crate) queue: Vec<usize>,
}

impl Supervisor {
    /// A pod that has not begun. `previous` is what a former job of the same pod (requeued by Slurm) last said:
    /// restart counts, last terminations and event numbers go on from there.
    #[must_use]
    pub fn new(plan: SandboxPlan, identity: Identity, previous: Option<&PodState>, now: Now) -> Self {
        let settings = &plan.settings;
        let limits = Limits::new(
            Duration::from_millis(settings.backoff_initial_ms),
            Duration::from_millis(settings.backoff_max_ms),
            Duration::from_millis(settings.backoff_reset_ms),
        );
        let waiting = if plan.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let fresh = |plan: &ContainerPlan| ContainerState {
            name: plan.name.clone(),
            state: RunState::Waiting { reason: waiting.to_owned(), message: String::new() },
            ..ContainerState::default()
        };
        let state = PodState {
            version: hpk_api::VERSION,
            pod: plan.pod.clone(),
            sequence: previous.map_or(0, |p| p.sequence) + 1,
            job_id: identity.job_id,
            node: identity.node,
            started_at: Some(now.wall),
            pod_ips: plan.network.pod_ips.clone(),
            init_containers: plan.init_containers.iter().map(fresh).collect(),
            containers: plan.containers.iter().map(fresh).collect(),
            events: previous.map(|p| p.events.clone()).unwrap_or_default(),
            ..PodState::default()
        };
        let init = plan.init_containers.iter().enumerate();
        let main = plan.containers.iter().enumerate();
        let containers = init
            .map(|(slot, c)| Container::new(Container::init_role(c), c.clone(), slot, now.mono))
            .chain(main.map(|(slot, c)| Container::new(Role::Main, c.clone(), slot, now.mono)))
            .collect();
        let deadline = plan.active_deadline_seconds.map(|s| now.mono + Duration::from_secs(s));
        let mut supervisor = Self {
            plan,
            limits,
            containers,
            state,
            sandbox_ready: false,
            init_next: 0,
            ending: None,
            restart_all: None,
            begun: now.mono,
            deadline,
            changed: true,
            unsettled: true,
        };
        if let Some(previous) = previous {
            supervisor.resume(previous, now);
        }
        supervisor
    }

    fn resume(&mut self, previous: &PodState, now: Now) {
        for i in 0..self.containers.len() {
            let name = &self.containers[i].plan.name;
            let Some(old) = previous.init_containers.iter().chain(&previous.containers).find(|c| c.name == *name)
            else {
                continue;
            };
            let end = match &old.state {
                RunState::Terminated(end) => Some(end.clone()),
                RunState::Waiting { .. } => old.last_termination.clone(),
                RunState::Running { started_at } => Some(Termination {
                    exit_code: 137,
                    signal: None,
                    reason: "ContainerStatusUnknown".to_owned(),
                    message: "The container could not be located when the pod was terminated".to_owned(),
                    started_at: Some(*started_at),
                    finished_at: now.wall,
                    container_id: old.container_id.clone(),
                }),
            };
            let count = old.restart_count + u32::from(!old.container_id.is_empty());
            let container = &mut self.containers[i];
            container.next_instance = count;
            container.end = end.clone();
            let state = self.container_state(i);
            state.restart_count = old.restart_count;
            state.last_termination = end;
            state.container_id.clone_from(&old.container_id);
        }
    }

    /// The pod as it stands.
    #[must_use]
    pub fn state(&self) -> &PodState {
        &self.state
    }

    /// The pod's plan. Containers may have changed since: ask [`Self::container`].
    #[must_use]
    pub fn plan(&self) -> &SandboxPlan {
        &self.plan
    }

    /// A container's plan as it is now.
    #[must_use]
    pub fn container(&self, index: ContainerIndex) -> Option<&ContainerPlan> {
        self.containers.get(index.0).map(|c| &c.plan)
    }

    /// Number of containers known, of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.containers.len()
    }

    /// A pod without containers (no valid pod is).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// Finds a container by name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<ContainerIndex> {
        self.containers.iter().position(|c| c.plan.name == name).map(ContainerIndex)
    }

    /// The instance that has a process now.
    #[must_use]
    pub fn running_instance(&self, index: ContainerIndex) -> Option<u32> {
        self.containers.get(index.0).filter(|c| c.live().is_some()).map(|c| c.instance)
    }

    /// When the next [`Event::Tick`] is needed; None: only an event can change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if self.state.finished {
            return None;
        }
        let deadline = self.deadline.filter(|_| self.ending.is_none());
        self.containers.iter().filter_map(|c| c.due).chain(deadline).min()
    }

    /// Takes one event; appends what is to be done to `out`, in order.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        if self.state.finished {
            return;
        }
        self.take(now, event, out);
        loop {
            if self.deadline.is_some_and(|d| d <= now.mono) && self.ending.is_none() {
                let grace = u64::from(self.plan.termination_grace_period_seconds);
                self.begin_ending(now, Some(StopCause::DeadlineExceeded), grace, out);
            }
            let mut fired = false;
            for i in 0..self.containers.len() {
                if self.containers[i].due.is_some_and(|due| due <= now.mono) {
                    self.fire(i, now, out);
                    fired = true;
                }
            }
            if self.unsettled {
                self.settle(now, out);
            } else if !fired {
                break;
            }
        }
        if self.changed {
            self.changed = false;
            self.state.sequence += 1;
            out.push(Action::Report);
            if self.state.finished {
                out.push(Action::Finished { succeeded: self.succeeded() });
            }
        }
    }

    fn take(&mut self, now: Now, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::SandboxReady { pod_ips } => self.sandbox_is_ready(now, pod_ips),
            Event::SandboxFailed { message } => self.sandbox_failed(now, message),
            Event::Launched { container, instance, user } => {
                if self.launching(container, instance) {
                    self.launched(container.0, now, user, out);
                }
            }
            Event::LaunchFailed { container, instance, failure } => {
                if self.launching(container, instance) {
                    self.launch_failed(container.0, now, failure);
                }
            }
            Event::Exited { container, instance, exit } => {
                if self.is_live(container, instance) {
                    self.exited(container.0, now, exit, out);
                }
            }
            Event::ProbeDone { container, instance, kind, outcome } => {
                if self.is_live(container, instance) {
                    self.probe_done(container.0, now, kind, outcome, out);
                }
            }
            Event::HookDone { container, instance, hook, result } => {
                if self.is_live(container, instance) {
                    self.hook_done(container.0, now, hook, result, out);
                }
            }
            Event::Stop { cause, grace_seconds } => {
                let own = self.plan.termination_grace_period_seconds;
                let mut grace = u64::from(grace_seconds.unwrap_or(own));
                if cause == StopCause::Requested {
                    // The kubelet's pod worker raises a forced deletion's 0 to 1.
                    grace = grace.max(1);
                }
                self.begin_ending(now, Some(cause), grace, out);
            }
            Event::Update(update) => self.update(now, *update, out),
            Event::LogBytesLost(total) => {
                self.changed |= self.state.log_bytes_lost != total;
                self.state.log_bytes_lost = total;
            }
            Event::Note { warning, reason, message, container } => {
                let i = container.map(|c| c.0).filter(|&i| i < self.containers.len());
                self.note(now, warning, &reason, message, i, None);
            }
        }
    }

    fn launching(&self, container: ContainerIndex, instance: u32) -> bool {
        self.containers.get(container.0).is_some_and(|c| matches!(c.phase, Phase::Launching) && c.instance == instance)
    }

    fn is_live(&self, container: ContainerIndex, instance: u32) -> bool {
        self.containers.get(container.0).is_some_and(|c| c.live().is_some() && c.instance == instance)
    }

    fn sandbox_is_ready(&mut self, now: Now, pod_ips: Vec<IpAddr>) {
        if self.sandbox_ready {
            return;
        }
        self.sandbox_ready = true;
        self.state.sandbox_ready = true;
        if !pod_ips.is_empty() {
            self.state.pod_ips = pod_ips;
        }
        for container in &mut self.containers {
            container.make_workers(now.mono);
        }
        self.changed = true;
        self.unsettled = true;
    }

    fn sandbox_failed(&mut self, now: Now, message: String) {
        if self.sandbox_ready {
            return;
        }
        let text = format!("Failed to create pod sandbox: {message}");
        self.state.sandbox_error = Some(message);
        self.note(now, true, "FailedCreatePodSandBox", text, None, None);
        self.ending = Some(Ending { grace: 0 });
        self.unsettled = true;
    }

    fn launched(&mut self, i: usize, now: Now, user: ContainerUser, out: &mut Vec<Action>) {
        let id = self.container_id(i);
        let container = &mut self.containers[i];
        let instance = container.instance;
        container.next_instance = instance + 1;
        let post_start = container.plan.lifecycle.post_start.is_some();
        container.phase = Phase::Live(Live { started: now.mono, post_start, kill: None });
        for worker in container.workers.iter_mut().flatten() {
            worker.new_instance();
        }
        let last = container.end.clone();
        let state = self.container_state(i);
        state.state = RunState::Running { started_at: now.wall };
        state.last_termination = last;
        state.restart_count = instance;
        state.container_id = id;
        state.user = Some(user);
        self.note(now, false, "Created", "Container created".to_owned(), Some(i), None);
        self.note(now, false, "Started", "Container started".to_owned(), Some(i), None);
        if let Some(ending) = self.ending {
            // The stop came while it was being made: no hook, straight to its end.
            self.post_start_over(i, now);
            self.kill(i, now, ending.grace, KillReason::Pod, false, None, out);
        } else if post_start {
            out.push(Action::Hook { container: ContainerIndex(i), instance, hook: Hook::PostStart });
            self.refresh(i, now);
        } else {
            self.post_start_over(i, now);
        }
        self.unsettled = true;
    }

    fn launch_failed(&mut self, i: usize, now: Now, failure: LaunchFailure) {
        self.unsettled = true;
        let (reason, message) = match failure {
            LaunchFailure::Start(message) => return self.start_error(i, now, message),
            LaunchFailure::Config(message) => ("CreateContainerConfigError", message),
            LaunchFailure::Create(message) => ("CreateContainerError", message),
        };
        self.note(now, true, "Failed", format!("Error: {message}"), Some(i), None);
        self.containers[i].phase =
            if self.ending.is_some() { Phase::Ended } else { Phase::Delayed { until: now.mono + CREATE_RETRY } };
        self.wait(i, reason, message);
        self.refresh(i, now);
    }

    /// An instance that was made but could not execute its program (runtimes: 128, StartError).
    fn start_error(&mut self, i: usize, now: Now, message: String) {
        let id = self.container_id(i);
        let instance = self.containers[i].instance;
        self.containers[i].next_instance = instance + 1;
        let state = self.container_state(i);
        state.restart_count = instance;
        state.container_id.clone_from(&id);
        self.note(now, false, "Created", "Container created".to_owned(), Some(i), None);
        self.note(now, true, "Failed", format!("Error: {message}"), Some(i), None);
        self.containers[i].wait_after_exit = Some(("RunContainerError", message.clone()));
        let end = Termination {
            exit_code: 128,
            signal: None,
            reason: "StartError".to_owned(),
            message,
            started_at: None,
            finished_at: now.wall,
            container_id: id,
        };
        self.ended(i, now, end, false);
    }

    fn exited(&mut self, i: usize, now: Now, exit: Exit, out: &mut Vec<Action>) {
        let container = &self.containers[i];
        let instance = container.instance;
        let restart = container.live().and_then(|live| live.kill).is_some_and(|kill| kill.restart);
        let started_at = match &self.container_state(i).state {
            RunState::Running { started_at } => Some(*started_at),
            _ => None,
        };
        let code = exit.cause.code();
        let reason = match (exit.oom, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let end = Termination {
            exit_code: code,
            signal: match exit.cause {
                crate::ExitCause::Signal(signal) => Some(signal),
                crate::ExitCause::Code(_) => None,
            },
            reason: reason.to_owned(),
            message: exit.message,
            started_at,
            finished_at: exit.at.unwrap_or(now.wall),
            container_id: self.container_state(i).container_id.clone(),
        };
        out.push(Action::Cancel { container: ContainerIndex(i), instance });
        self.ended(i, now, end, restart);
    }

    /// An instance has ended. `restart`: it was killed in order to be started again.
    fn ended(&mut self, i: usize, now: Now, end: Termination, restart: bool) {
        let code = end.exit_code;
        let container = &mut self.containers[i];
        let before = container.ended_at.replace(now.mono);
        container.prior_end = container.end.replace(end.clone());
        let waiting = container.wait_after_exit.take();
        let verdict = policy::verdict(container.role, &container.plan, self.plan.restart_policy, code);
        let last = container.prior_end.clone();
        let stays_down = self.ending.is_some() || self.restart_all.is_some();
        container.phase = match (stays_down, restart, verdict) {
            (true, ..) | (false, false, Verdict::Done) => Phase::Ended,
            (false, false, Verdict::RestartAll) => Phase::Ended,
            (false, true, _) => {
                // Upstream decides in the very sync that killed it, which does not see this end yet.
                container.backoff_from = before;
                Phase::Idle
            }
            (false, false, Verdict::Restart) => {
                container.backoff_from = Some(now.mono);
                Phase::Idle
            }
        };
        let idle = matches!(container.phase, Phase::Idle);
        let state = self.container_state(i);
        state.state = RunState::Terminated(end);
        state.last_termination = last;
        if idle && let Some((reason, message)) = waiting {
            self.wait(i, reason, message);
        }
        self.changed = true;
        self.unsettled = true;
        self.refresh(i, now);
        if !stays_down && !restart && verdict == Verdict::RestartAll {
            self.begin_restart_all();
        }
    }

    fn probe_done(&mut self, i: usize, now: Now, kind: ProbeKind, outcome: ProbeOutcome, out: &mut Vec<Action>) {
        let title = text::probe_kind(kind);
        let success = match outcome {
            ProbeOutcome::Success => Some(true),
            ProbeOutcome::Warning(output) => {
                self.note(now, true, "ProbeWarning", format!("{title} probe warning: {output}"), Some(i), Some(kind));
                Some(true)
            }
            ProbeOutcome::Failure(output) => {
                self.note(now, true, "Unhealthy", format!("{title} probe failed: {output}"), Some(i), Some(kind));
                Some(false)
            }
            ProbeOutcome::Error(error) => {
                let message = format!("{title} probe errored and resulted in unknown state: {error}");
                self.note(now, true, "Unhealthy", message, Some(i), Some(kind));
                None
            }
        };
        let container = &mut self.containers[i];
        let Some(worker) = container.workers[kind_index(kind)].as_mut() else { return };
        let before = worker.belief();
        let decided = worker.outcome(success);
        let belief = worker.belief();
        if decided && belief == Belief::Failure && kind != ProbeKind::Readiness {
            self.unhealthy(i, now, kind, out);
        } else if before == belief {
            let due = self.containers[i].compute_due(now.mono, self.ending.is_some());
            self.containers[i].due = due;
        } else {
            self.refresh(i, now);
        }
    }

    fn unhealthy(&mut self, i: usize, now: Now, kind: ProbeKind, out: &mut Vec<Action>) {
        let container = &self.containers[i];
        if self.ending.is_some() || self.restart_all.is_some() || container.kill_stage().is_some() {
            return self.refresh(i, now);
        }
        let probe = match kind {
            ProbeKind::Startup => &container.plan.probes.startup,
            _ => &container.plan.probes.liveness,
        };
        let own = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
        let grace = own.unwrap_or(self.plan.termination_grace_period_seconds);
        let restart = policy::comes_back_after_probe(container.role, &container.plan, self.plan.restart_policy);
        let probe = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
        let what = format!("{} {} failed {probe} probe", self.title(i), container.plan.name);
        let message = self.restart_intent(i, what, restart);
        self.kill(i, now, u64::from(grace), KillReason::Probe, restart, Some(message), out);
    }

    fn title(&self, i: usize) -> &'static str {
        if self.containers[i].role == Role::Sidecar { "Init container" } else { "Container" }
    }

    /// Upstream makes the intent clear for containers, not for sidecars.
    fn restart_intent(&self, i: usize, what: String, restart: bool) -> String {
        if restart && self.containers[i].role == Role::Main { format!("{what}, will be restarted") } else { what }
    }

    fn hook_done(&mut self, i: usize, now: Now, hook: Hook, result: Result<(), HookFailure>, out: &mut Vec<Action>) {
        match hook {
            Hook::PostStart => self.post_start_done(i, now, result, out),
            Hook::PreStop => {
                if let Err(_failure) = result {
                    // No text: upstream keeps secrets of the hook's output out of events.
                    self.note(now, true, "FailedPreStopHook", "PreStopHook failed".to_owned(), Some(i), None);
                }
                if let Some(Stage::PreStop { .. }) = self.containers[i].kill_stage() {
                    self.next_stage(i, now, out);
                }
            }
        }
    }

    fn post_start_done(&mut self, i: usize, now: Now, result: Result<(), HookFailure>, out: &mut Vec<Action>) {
        if !self.containers[i].live().is_some_and(|live| live.post_start) {
            return;
        }
        self.unsettled = true;
        let Err(failure) = result else {
            return self.post_start_over(i, now);
        };
        self.note(now, true, "FailedPostStartHook", "PostStartHook failed".to_owned(), Some(i), None);
        let container = &mut self.containers[i];
        if let Some(handler) = &container.plan.lifecycle.post_start {
            let message = text::hook_failure(handler, &container.plan.name, &self.plan.pod, &failure);
            container.wait_after_exit = Some(("PostStartHookError", message));
        }
        let grace = u64::from(self.plan.termination_grace_period_seconds);
        let message = Some("FailedPostStartHook".to_owned());
        self.kill(i, now, grace, KillReason::PostStart, false, message, out);
    }

    /// The container counts as running from here on: its probes begin.
    pub(crate) fn post_start_over(&mut self, i: usize, now: Now) {
        if let Some(live) = self.containers[i].live_mut() {
            live.post_start = false;
        }
        if let Some(startup) = &mut self.containers[i].workers[0] {
            startup.forget_ticks(now.mono);
        }
        self.refresh(i, now);
        self.unsettled = true;
    }

    fn update(&mut self, now: Now, update: Update, out: &mut Vec<Action>) {
        for plan in update.ephemeral_containers {
            if self.find(&plan.name).is_some() {
                continue;
            }
            let waiting = if self.plan.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
            let slot = self.state.ephemeral_containers.len();
            self.state.ephemeral_containers.push(ContainerState {
                name: plan.name.clone(),
                state: RunState::Waiting { reason: waiting.to_owned(), message: String::new() },
                ..ContainerState::default()
            });
            self.containers.push(Container::new(Role::Ephemeral, plan, slot, now.mono));
            self.changed = true;
        }
        for plan in update.containers {
            if let Some(ContainerIndex(i)) = self.find(&plan.name) {
                self.replace(i, now, plan, out);
            }
        }
        if let Some(seconds) = update.active_deadline_seconds {
            self.deadline = Some(self.begun + Duration::from_secs(seconds));
        }
        self.unsettled = true;
    }

    fn replace(&mut self, i: usize, now: Now, plan: ContainerPlan, out: &mut Vec<Action>) {
        let container = &mut self.containers[i];
        let image_changed = container.plan.image != plan.image;
        container.set_plan(plan);
        match &container.phase {
            // Whatever it waited for may be mended: the back-off is asked again, with the new key.
            Phase::Delayed { .. } if self.ending.is_none() => container.phase = Phase::Idle,
            Phase::Live(live) if image_changed && live.kill.is_none() && self.ending.is_none() => {
                if matches!(container.role, Role::Main | Role::Sidecar) {
                    let what = format!("{} {} definition changed", self.title(i), self.containers[i].plan.name);
                    let message = self.restart_intent(i, what, true);
                    let grace = u64::from(self.plan.termination_grace_period_seconds);
                    self.kill(i, now, grace, KillReason::Definition, true, Some(message), out);
                }
            }
            _ => {}
        }
        self.refresh(i, now);
    }

    /// What is due for this container is done.
    fn fire(&mut self, i: usize, now: Now, out: &mut Vec<Action>) {
        let ending = self.ending.is_some();
        if let Phase::Delayed { .. } = self.containers[i].phase {
            self.containers[i].phase = Phase::Idle;
            self.containers[i].due = None;
            self.unsettled = true;
            return;
        }
        if self.containers[i].kill_stage().and_then(Stage::deadline).is_some_and(|d| d <= now.mono) {
            self.next_stage(i, now, out);
        }
        let container = &mut self.containers[i];
        let instance = container.instance;
        if let Some(started) = container.live().map(|live| live.started) {
            for kind in KINDS {
                if !container.eligible(kind, ending) {
                    continue;
                }
                if let Some(worker) = &mut container.workers[kind_index(kind)]
                    && worker.due(now.mono, started).is_some_and(|due| due <= now.mono)
                {
                    worker.begin(now.mono);
                    out.push(Action::Probe { container: ContainerIndex(i), instance, kind });
                }
            }
        }
        container.due = container.compute_due(now.mono, ending);
    }

    /// Brings `started`, `ready` and the deadline of a container in line with its record.
    pub(crate) fn refresh(&mut self, i: usize, now: Now) {
        let ending = self.ending.is_some();
        let container = &mut self.containers[i];
        let (started, ready) = (container.started(), container.ready());
        let (slot, role) = (container.slot, container.role);
        let state = Self::list(&mut self.state, role).get_mut(slot);
        let was_started = state.as_ref().is_some_and(|s| s.started);
        if let Some(state) = state
            && (state.started != started || state.ready != ready)
        {
            state.started = started;
            state.ready = ready;
            self.changed = true;
        }
        if started && !was_started {
            if let Some(liveness) = &mut container.workers[1] {
                liveness.forget_ticks(now.mono);
            }
            if let Some(readiness) = &mut container.workers[2] {
                readiness.restart_ticker(now.mono);
            }
            self.unsettled = true;
        }
        container.due = container.compute_due(now.mono, ending);
    }

    fn list(state: &mut PodState, role: Role) -> &mut Vec<ContainerState> {
        match role {
            Role::Init | Role::Sidecar => &mut state.init_containers,
            Role::Main => &mut state.containers,
            Role::Ephemeral => &mut state.ephemeral_containers,
        }
    }

    /// The public state of a container; its slot is made with it and never goes away.
    pub(crate) fn container_state(&mut self, i: usize) -> &mut ContainerState {
        self.changed = true;
        let (role, slot) = (self.containers[i].role, self.containers[i].slot);
        &mut Self::list(&mut self.state, role)[slot]
    }

    /// It waits, for this reason; a former end becomes its last state.
    pub(crate) fn wait(&mut self, i: usize, reason: &str, message: String) {
        let last = self.containers[i].end.clone();
        let state = self.container_state(i);
        state.state = RunState::Waiting { reason: reason.to_owned(), message };
        state.last_termination = last;
    }

    /// Adds to the pod's events.
    pub(crate) fn note(
        &mut self,
        now: Now,
        warning: bool,
        reason: &str,
        message: String,
        container: Option<usize>,
        probe: Option<ProbeKind>,
    ) {
        let events = &mut self.state.events;
        let sequence = events.last().map_or(0, |e| e.sequence) + 1;
        if events.len() >= MAX_EVENTS {
            events.remove(0);
        }
        events.push(PodEvent {
            sequence,
            at: now.wall,
            warning,
            reason: reason.to_owned(),
            message,
            container: container.map(|i| self.containers[i].plan.name.clone()),
            probe,
        });
        self.changed = true;
    }

    /// `hpk://<64 hex>`: unique to pod, container, instance and this life of the supervisor.
    fn container_id(&self, i: usize) -> String {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let container = &self.containers[i];
        let mut id = "hpk://".to_owned();
        for part in 0..4u8 {
            let mut hasher = DefaultHasher::new();
            (part, &self.plan.pod, &container.plan.name, container.instance).hash(&mut hasher);
            self.state.started_at.map(|t| t.as_nanosecond()).hash(&mut hasher);
            id.push_str(&format!("{:016x}", hasher.finish()));
        }
        id
    }

    fn succeeded(&self) -> bool {
        self.state.sandbox_error.is_none()
            && self
                .containers
                .iter()
                .filter(|c| c.role == Role::Main)
                .all(|c| matches!(c.phase, Phase::Ended) && c.end.as_ref().is_some_and(|end| end.exit_code == 0))
    }
}
