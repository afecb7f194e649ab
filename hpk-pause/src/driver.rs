//! The one task that owns the pod's state: events go in, actions come out and are performed, the state is published.
//!
//! ```text
//!   SIGCHLD ─▶ reap ──┐                                   ┌─▶ perform: processes, logs, probes, hooks
//!   SIGTERM ──────────┤                                   │
//!   timer ────────────┼─▶ driver ─▶ hpk_core::step ───────┼─▶ state ─▶ watchers of the control socket
//!   tasks, log thread ┤       ▲                           │         └▶ status.json (its own thread)
//!   control socket ───┘       └── outcomes of performing ◀┘
//! ```
//! It never blocks: no file of the shared file system, no wait for a child. Without a probe, a back-off or a grace
//! period under way there is no timer and it does not wake.

use crate::control::request::DriverRequest;
use crate::helper::Helper;
use crate::network::Network;
use crate::paths::Paths;
use crate::perform::{Happening, Outcome, Performer, ProbeRun};
use crate::status::StatusWriter;
use crate::stops::{StopSignal, Stops};
use crate::storage::Meter;
use crate::term::TermRule;
use hpk_api::control::{ControlError, ErrorCode};
use hpk_api::plan::SandboxPlan;
use hpk_api::probe::ProbeKind;
use hpk_api::quantity;
use hpk_api::state::{PodState, RunState, StopCause};
use hpk_core::{Action, ContainerIndex, EVICTION_GRACE_SECONDS, Event, Hook, Identity, MemoryFinding, Now, Supervisor};
use hpk_sys::reap::{Poll, Reaper};
use jiff::Timestamp;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// How many events are taken in one go before the loop looks at its other sources and publishes the state.
const BATCH: usize = 64;

/// Ends of the channels that the driver reads.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// From the control socket.
    pub requests: mpsc::Receiver<DriverRequest>,
    /// From tasks and threads.
    pub happenings: mpsc::UnboundedReceiver<Happening>,
    /// Joined processes whose time is up.
    pub kills: mpsc::UnboundedReceiver<Pid>,
}

/// Where the state goes.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// To watchers.
    pub state: watch::Sender<Arc<PodState>>,
    /// To the pod's folder.
    pub status: StatusWriter,
}

/// What the driver is told of its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Job and node.
    pub identity: Identity,
    /// What a former job of this pod said last.
    pub previous: Option<PodState>,
    /// What Slurm's TERM means.
    pub term: TermRule,
}

pub(crate) struct Driver {
    supervisor: Supervisor,
    performer: Performer,
    paths: Paths,
    begun: Instant,
    term: TermRule,
    events: VecDeque<Event>,
    actions: Vec<Action>,
    changed: bool,
    finished: Option<bool>,
    reaper: Reaper,
    orphans: u64,
    meter: Meter,
    /// The start's memory has been given back.
    settled: bool,
    /// A signal from inside was told of.
    told_by_the_pod: bool,
}

impl Driver {
    /// A pod that has not begun.
    #[must_use]
    pub(crate) fn new(
        plan: SandboxPlan,
        surroundings: Surroundings,
        paths: Paths,
        performer: Performer,
        helper: Helper,
        happenings: mpsc::UnboundedSender<Happening>,
    ) -> Self {
        let meter = Meter::new(&plan, helper, happenings);
        let begun = Instant::now();
        let now = Now { mono: Duration::ZERO, wall: Timestamp::now() };
        let supervisor = Supervisor::new(plan, surroundings.identity, surroundings.previous.as_ref(), now);
        Self {
            supervisor,
            performer,
            paths,
            begun,
            term: surroundings.term,
            events: VecDeque::new(),
            actions: Vec::new(),
            changed: true,
            finished: None,
            reaper: Reaper::new(),
            orphans: 0,
            meter,
            settled: false,
            told_by_the_pod: false,
        }
    }

    /// Runs the pod to its end. True when it succeeded.
    ///
    /// # Errors
    /// When the signals cannot be listened for.
    pub(crate) async fn run(mut self, mut inputs: Inputs, outputs: Outputs) -> std::io::Result<bool> {
        let mut children = signal(SignalKind::child())?;
        let stops = Stops::listen()?;
        // Children may have ended before anybody listened.
        self.reap();
        loop {
            while let Some(event) = self.events.pop_front() {
                self.step(event);
            }
            if std::mem::take(&mut self.changed) {
                let state = self.state();
                outputs.status.put(Arc::clone(&state));
                outputs.state.send_replace(state);
            }
            if let Some(succeeded) = self.finished {
                if !outputs.status.close() {
                    hpk_api::say!(
                        "hpk-pause: the last state could not be written to {}",
                        self.paths.status().display()
                    );
                }
                return Ok(succeeded);
            }
            if !self.settled && self.all_run() {
                self.settled = true;
                hpk_sys::memory::settle();
            }
            let deadline = self.supervisor.next_deadline().map(|d| tokio::time::Instant::from_std(self.begun + d));
            let measure = self.meter.due().map(tokio::time::Instant::from_std);
            tokio::select! {
                _ = children.recv() => self.reap(),
                Some(happening) = inputs.happenings.recv() => {
                    self.happened(happening);
                    for _ in 1..BATCH {
                        let Ok(more) = inputs.happenings.try_recv() else { break };
                        self.happened(more);
                    }
                }
                Some(request) = inputs.requests.recv() => self.request(request),
                Some(pid) = inputs.kills.recv() => self.performer.kill_joined(pid),
                stop = stops.recv() => self.asked_to_stop(stop),
                () = sleep_until(deadline) => self.events.push_back(Event::Tick),
                word = self.performer.memory_word() => {
                    let findings = self.performer.look_at_memory(word);
                    self.memory_found(&findings);
                }
                () = sleep_until(measure) => self.meter.measure(self.supervisor.plan(), &self.paths),
            }
        }
    }

    /// The state as it stands.
    #[must_use]
    pub(crate) fn state(&self) -> Arc<PodState> {
        Arc::new(self.supervisor.state().clone())
    }

    /// Whether the pod has come to what it is for: from here on little happens.
    fn all_run(&self) -> bool {
        let mut containers = self.supervisor.state().containers.iter();
        containers.all(|container| matches!(container.state, RunState::Running { .. }))
    }

    fn now(&self) -> Now {
        Now { mono: self.begun.elapsed(), wall: Timestamp::now() }
    }

    fn step(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        let now = self.now();
        self.supervisor.step(now, event, &mut actions);
        if self.supervisor.state().stopping.is_some() {
            self.performer.give_up_forming();
        }
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { container, instance } => {
                if let Some(plan) = self.supervisor.container(container) {
                    let outcome = self.performer.start(self.supervisor.plan(), plan, container, instance);
                    self.came(outcome);
                }
            }
            Action::Signal { container, instance, signal } => self.performer.signal(container, instance, signal),
            Action::Kill { container, instance } => self.performer.kill(container, instance),
            Action::Probe { container, instance, kind } => {
                self.probe(ProbeRun { container, instance, kind, attempt: 1 });
            }
            Action::Hook { container, instance, hook } => {
                let lifecycle = self.supervisor.container(container).map(|c| &c.lifecycle);
                let handler = lifecycle.and_then(|l| match hook {
                    Hook::PostStart => l.post_start.as_ref(),
                    Hook::PreStop => l.pre_stop.as_ref(),
                });
                if let Some(handler) = handler {
                    self.performer.hook(container, instance, hook, handler);
                }
            }
            Action::Cancel { container, instance } => self.performer.cancel(container, instance),
            Action::Report => self.changed = true,
            Action::Finished { succeeded } => self.finished = Some(succeeded),
        }
    }

    fn probe(&mut self, run: ProbeRun) {
        let probes = self.supervisor.container(run.container).map(|c| &c.probes);
        let probe = probes.and_then(|p| match run.kind {
            ProbeKind::Startup => p.startup.as_ref(),
            ProbeKind::Liveness => p.liveness.as_ref(),
            ProbeKind::Readiness => p.readiness.as_ref(),
        });
        if let Some(probe) = probe {
            self.performer.probe(run, probe);
        }
    }

    /// An outcome becomes an event, and so do ends that were waiting for it.
    fn came(&mut self, outcome: Option<Outcome>) {
        let mut next = outcome;
        while let Some(outcome) = next.take().or_else(|| self.performer.ended_without_log()) {
            self.events.push_back(match outcome {
                Outcome::Launched(container, instance, user) => Event::Launched { container, instance, user },
                Outcome::Failed(container, instance, failure) => Event::LaunchFailed { container, instance, failure },
                Outcome::Exited(container, instance, exit) => Event::Exited { container, instance, exit },
            });
        }
    }

    fn reap(&mut self) {
        loop {
            match self.reaper.poll() {
                Poll::Reaped(reaped) if self.performer.owns(reaped.pid) => {
                    self.performer.reaped(reaped);
                    self.came(None);
                }
                Poll::Reaped(_) => self.orphans += 1,
                Poll::NoneEnded | Poll::NoChildren => break,
            }
        }
        let findings = self.performer.found_of_memory();
        self.memory_found(&findings);
    }

    fn memory_found(&mut self, findings: &[MemoryFinding]) {
        for finding in findings {
            let limit = self.performer.memory_limit().map_or_else(|| "its limit".to_owned(), quantity::format);
            let of = match finding {
                MemoryFinding::Killed(container) => *container,
                MemoryFinding::Thrashing { .. } => None,
            };
            let name = of.and_then(|index| self.supervisor.container(index)).map(|c| c.name.as_str());
            let single = self.supervisor.plan().settings.single_process_oom_kill;
            let (reason, message) = finding.words(name, &limit, single);
            let reason = reason.to_owned();
            self.events.push_back(Event::Note { warning: true, reason, message, container: of });
        }
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Started { pid, result } => {
                let outcome = self.performer.started(pid, result);
                self.came(outcome);
            }
            Happening::ProbeAgain(run) => self.probe(run),
            Happening::Probed(container, instance, kind, outcome) => {
                self.events.push_back(Event::ProbeDone { container, instance, kind, outcome });
            }
            Happening::Hooked(container, instance, hook, result) => {
                self.events.push_back(Event::HookDone { container, instance, hook, result });
            }
            Happening::Log(event) => {
                let outcome = self.performer.log_event(event);
                self.came(outcome);
                let lost = self.performer.log_bytes_lost();
                if lost != self.supervisor.state().log_bytes_lost {
                    self.events.push_back(Event::LogBytesLost(lost));
                }
            }
            Happening::Stored(used, took) => {
                // Upstream's manager does not evict a pod twice.
                let exceeded = self.meter.measured(used, took).filter(|_| self.supervisor.state().stopping.is_none());
                if let Some(message) = exceeded {
                    let reason = "Evicted".to_owned();
                    self.events.push_back(Event::Note {
                        warning: true,
                        reason,
                        message: message.clone(),
                        container: None,
                    });
                    let grace_seconds = Some(EVICTION_GRACE_SECONDS);
                    self.events.push_back(Event::Stop { cause: StopCause::Evicted(message), grace_seconds });
                }
            }
            Happening::Step(container, instance, news) => {
                let outcome = self.performer.step_news(container, instance, news);
                self.came(outcome);
            }
            Happening::HookFellBack(message) => {
                let reason = "LifecycleHTTPFallback".to_owned();
                self.events.push_back(Event::Note { warning: true, reason, message, container: None });
            }
            Happening::Sandbox(Ok(made)) => {
                let (Network { result: network, warnings }, users, reach) = *made;
                self.performer.sandbox_made(&network.pod_ips(), users, reach);
                self.meter.begin();
                for (reason, message) in warnings {
                    self.events.push_back(Event::Note { warning: true, reason, message, container: None });
                }
                self.events.push_back(Event::SandboxReady { network });
            }
            Happening::Sandbox(Err(message)) => self.events.push_back(Event::SandboxFailed { message }),
        }
    }

    /// The orderly end: within the time that Slurm leaves, or all of the pod's own when nobody kills afterwards.
    fn asked_to_stop(&mut self, stop: StopSignal) {
        let own = self.supervisor.plan().termination_grace_period_seconds;
        let now = self.now().wall.as_duration();
        let (cause, grace) = match stop {
            StopSignal::Slurm => self.term.at(now.unsigned_abs(), own),
            StopSignal::Kubelet => (StopCause::Requested, own),
            StopSignal::Pod { pid, signal } => return self.told_by_the_pod(pid, signal),
        };
        if cause != StopCause::Requested && self.supervisor.state().stopping.is_none() {
            let (reason, what) = match cause {
                StopCause::DeadlineExceeded => ("SlurmTimeLimit", "is near the end of its time limit"),
                _ => ("SlurmTerminates", "is to end (scancel, preemption or a signal)"),
            };
            let message = format!("the Slurm job {what}: the pod ends in order, within {grace} s");
            self.events.push_back(Event::Note { warning: true, reason: reason.to_owned(), message, container: None });
        }
        self.events.push_back(Event::Stop { cause, grace_seconds: Some(grace) });
    }

    /// Once: a container may do it in a loop.
    fn told_by_the_pod(&mut self, pid: u32, signal: nix::sys::signal::Signal) {
        if std::mem::replace(&mut self.told_by_the_pod, true) {
            return;
        }
        let reason = "SignalIgnored".to_owned();
        let message = format!(
            "process {pid} of the pod sent {signal} to PID 1, which is the pod's supervisor, for shareProcessNamespace is true: it has no effect; signal the container's own first process"
        );
        self.events.push_back(Event::Note { warning: true, reason, message, container: None });
    }

    fn request(&mut self, request: DriverRequest) {
        match request {
            DriverRequest::Exec { options, answer } => match self.index(&options.container) {
                Ok(container) => self.performer.exec(container, &options, answer),
                Err(error) => drop(answer.send(Err(error))),
            },
            DriverRequest::Rank { container, rank, answer } => {
                let _ = answer.send(self.index(&container).and_then(|index| self.performer.rank(index, rank)));
            }
            DriverRequest::MeasureSteps { done } => self.performer.measure_steps(done),
            DriverRequest::EndExec { id, tty } => self.performer.end_exec(id, tty),
            DriverRequest::Attach { container, stdin, answer } => {
                let session = self.index(&container).and_then(|container| self.performer.attach(container, stdin));
                let _ = answer.send(session);
            }
            DriverRequest::StdinEnded { container } => {
                if let Ok(container) = self.index(&container) {
                    self.performer.stdin_ended(container);
                }
            }
            DriverRequest::Log { container, previous, answer } => {
                let source = self.index(&container).and_then(|_| {
                    let last = self.last_instance(&container);
                    self.performer.log_source(&container, previous, last)
                });
                let _ = answer.send(source);
            }
            DriverRequest::Stats { answer } => {
                let supervisor = &self.supervisor;
                let stored = self.meter.latest(supervisor.plan(), &self.paths);
                let sample = self.performer.stats(stored, |index| supervisor.container(index).map(|c| c.name.clone()));
                let _ = answer.send(Ok(sample));
            }
            DriverRequest::Probes { answer } => drop(answer.send(Ok(self.supervisor.probe_counts()))),
            DriverRequest::Stop { grace_period_seconds, answer } => {
                let cause = StopCause::Requested;
                self.events.push_back(Event::Stop { cause, grace_seconds: Some(grace_period_seconds) });
                let _ = answer.send(Ok(()));
            }
            DriverRequest::Update { update, answer } => {
                self.events.push_back(Event::Update(update));
                let _ = answer.send(Ok(()));
            }
        }
    }

    fn index(&self, name: &str) -> Result<ContainerIndex, ControlError> {
        self.supervisor.find(name).ok_or_else(|| ControlError {
            code: ErrorCode::NotFound,
            message: format!("container {name:?} not found in pod {:?}", self.supervisor.plan().pod.name),
        })
    }

    /// Number of the instance whose log is the current one, when a former job wrote it.
    fn last_instance(&self, name: &str) -> Option<u32> {
        let state = self.supervisor.state();
        state.find(name).filter(|c| !c.container_id.is_empty()).map(|c| c.restart_count)
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
