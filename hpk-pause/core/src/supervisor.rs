//! The supervisor's record of its pod, and what each event means to it.

use crate::backoff::Limits;
use crate::container::{Container, KINDS};
use crate::policy::Role;
use crate::probe::Worker;
use crate::text;
use crate::types::{Action, ContainerIndex, Event, Now};
use hpk_api::cni::CniResult;
use hpk_api::plan::{ContainerPlan, SandboxPlan};
use hpk_api::probe::ProbeCounts;
use hpk_api::state::{ContainerState, PodState, RunState, StopCause};
use std::net::IpAddr;
use std::time::Duration;

/// Where and as what a pod runs.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Slurm job id.
    pub job_id: Option<String>,
    /// Host name of the compute node.
    pub node: String,
    /// Its addresses, at most one of each family.
    pub host_ips: Vec<IpAddr>,
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
    pub(crate) begun: Duration,
    pub(crate) deadline: Option<Duration>,
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
    /// When they are over.
    pub(crate) until: Duration,
}

impl Ending {
    /// Seconds that are left, one that has begun included: elapsed whole seconds are what counts (kill.rs).
    pub(crate) fn left(self, now: Now) -> u64 {
        let left = self.until.saturating_sub(now.mono);
        left.as_secs() + u64::from(left.subsec_nanos() > 0)
    }
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
        let waiting = text::not_yet_started(&plan);
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
            host_ip: identity.host_ips.first().copied(),
            host_ips: identity.host_ips,
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

    /// What has come of the probes of all containers.
    #[must_use]
    pub fn probe_counts(&self) -> Vec<ProbeCounts> {
        let of = |c: &Container, kind, worker: &Worker| {
            let counts = worker.counts();
            ProbeCounts {
                container: c.plan.name.clone(),
                kind,
                successful: counts.successful,
                failed: counts.failed,
                nanos: u64::try_from(counts.took.as_nanos()).unwrap_or(u64::MAX),
                buckets: counts.buckets.iter().map(|n| u64::from(*n)).collect(),
            }
        };
        let workers = |c: &Container| -> Vec<ProbeCounts> {
            KINDS.iter().zip(&c.workers).filter_map(|(kind, w)| Some(of(c, *kind, w.as_ref()?))).collect()
        };
        self.containers.iter().flat_map(workers).collect()
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
            Event::SandboxReady { network } => self.sandbox_is_ready(now, network),
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

    fn sandbox_is_ready(&mut self, now: Now, network: CniResult) {
        if self.sandbox_ready {
            return;
        }
        self.sandbox_ready = true;
        self.state.sandbox_ready = true;
        let pod_ips = network.pod_ips();
        if !pod_ips.is_empty() {
            self.state.pod_ips = pod_ips;
        }
        self.state.network = Some(network);
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
        // Where users look first; the reason is upstream's (kubelet/container/sync_result.go).
        for container in self.state.planned_mut() {
            let reason = "CreatePodSandboxError".to_owned();
            container.state = RunState::Waiting { reason, message: message.clone() };
        }
        self.state.sandbox_error = Some(message);
        self.note(now, true, "FailedCreatePodSandBox", text, None, None);
        self.ending = Some(Ending { grace: 0, until: now.mono });
        self.unsettled = true;
    }
}
