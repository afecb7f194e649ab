//! The record of one container, and what follows from it alone.

use crate::backoff::Backoff;
use crate::kill::{KillReason, Stage};
use crate::policy::Role;
use crate::probe::{Belief, Worker};
use hpk_api::plan::{ContainerPlan, RestartPolicy};
use hpk_api::probe::ProbeKind;
use hpk_api::state::Termination;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Where a container is in its life; the picture is in the crate's documentation.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Not running; started as soon as its turn comes.
    Idle,
    /// Not running; may be started at this time.
    Delayed { until: Duration },
    /// [`crate::Action::Start`] is under way.
    Launching,
    /// Its first process exists.
    Live(Live),
    /// Ended for good.
    Ended,
}

/// A running instance.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Monotonic start.
    pub(crate) started: Duration,
    /// Its postStart hook runs.
    pub(crate) post_start: bool,
    /// Set while it is being ended.
    pub(crate) kill: Option<Kill>,
}

/// An end under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kill {
    pub(crate) stage: Stage,
    pub(crate) reason: KillReason,
    /// It is started again whatever its exit code says.
    pub(crate) restart: bool,
    /// It waits for its turn among the sidecars.
    pub(crate) ordered: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) role: Role,
    pub(crate) plan: ContainerPlan,
    /// Index in its list of the pod's state.
    pub(crate) slot: usize,
    pub(crate) phase: Phase,
    /// Number of the current or last instance.
    pub(crate) instance: u32,
    /// Number of the next one.
    pub(crate) next_instance: u32,
    /// The image that the latest start was asked for with.
    pub(crate) image: String,
    pub(crate) backoff_key: u64,
    pub(crate) backoff: Backoff,
    /// End of the newest exited instance as the restart decision sees it; None: no back-off for this start.
    pub(crate) backoff_from: Option<Duration>,
    /// End of the newest instance.
    pub(crate) ended_at: Option<Duration>,
    pub(crate) end: Option<Termination>,
    pub(crate) prior_end: Option<Termination>,
    /// Reason and message that it waits with after its exit, instead of showing the termination.
    pub(crate) wait_after_exit: Option<(&'static str, String)>,
    /// Startup, liveness, readiness.
    pub(crate) workers: [Option<Worker>; 3],
    /// When something is due; kept by the supervisor.
    pub(crate) due: Option<Duration>,
}

pub(crate) const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

pub(crate) fn kind_index(kind: ProbeKind) -> usize {
    match kind {
        ProbeKind::Startup => 0,
        ProbeKind::Liveness => 1,
        ProbeKind::Readiness => 2,
    }
}

impl Container {
    pub(crate) fn new(role: Role, plan: ContainerPlan, slot: usize, now: Duration) -> Self {
        let mut container = Self {
            role,
            slot,
            phase: Phase::Idle,
            instance: 0,
            next_instance: 0,
            image: String::new(),
            backoff_key: key(&plan),
            backoff: Backoff::default(),
            backoff_from: None,
            ended_at: None,
            end: None,
            prior_end: None,
            wait_after_exit: None,
            workers: [None, None, None],
            due: None,
            plan,
        };
        container.make_workers(now);
        container
    }

    pub(crate) fn init_role(plan: &ContainerPlan) -> Role {
        if plan.restart_policy == Some(RestartPolicy::Always) { Role::Sidecar } else { Role::Init }
    }

    /// Tickers begin at `now`, as a kubelet's do with the pod.
    pub(crate) fn make_workers(&mut self, now: Duration) {
        let probed = matches!(self.role, Role::Main | Role::Sidecar);
        let probes = &self.plan.probes;
        let make = |kind, probe: &Option<_>| probe.as_ref().filter(|_| probed).map(|p| Worker::new(kind, p, now));
        self.workers = [
            make(ProbeKind::Startup, &probes.startup),
            make(ProbeKind::Liveness, &probes.liveness),
            make(ProbeKind::Readiness, &probes.readiness),
        ];
    }

    pub(crate) fn set_plan(&mut self, plan: ContainerPlan) {
        self.backoff_key = key(&plan);
        self.plan = plan;
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        if let Phase::Live(live) = &self.phase { Some(live) } else { None }
    }

    pub(crate) fn live_mut(&mut self) -> Option<&mut Live> {
        if let Phase::Live(live) = &mut self.phase { Some(live) } else { None }
    }

    /// Has a process, or is about to.
    pub(crate) fn occupied(&self) -> bool {
        matches!(self.phase, Phase::Live(_) | Phase::Launching)
    }

    pub(crate) fn kill_stage(&self) -> Option<Stage> {
        self.live().and_then(|live| live.kill).map(|kill| kill.stage)
    }

    /// Its postStart hook, to come or under way, holds up the containers after it, as upstream's serial start does.
    /// A launch alone does not: upstream goes on after one, made or failed, so side by side they come to the same.
    pub(crate) fn holds_up(&self) -> bool {
        match &self.phase {
            Phase::Launching => self.plan.lifecycle.post_start.is_some(),
            Phase::Live(live) => live.post_start && live.kill.is_none(),
            Phase::Idle | Phase::Delayed { .. } | Phase::Ended => false,
        }
    }

    /// Running, past its postStart hook and its startup probe.
    pub(crate) fn started(&self) -> bool {
        self.live().is_some_and(|live| !live.post_start)
            && self.workers[0].as_ref().is_none_or(|startup| startup.belief() == Belief::Success)
    }

    /// Ready, as probes say. Ordinary init containers: ended with 0.
    pub(crate) fn ready(&self) -> bool {
        match self.role {
            Role::Init => matches!(self.phase, Phase::Ended) && self.end.as_ref().is_some_and(|e| e.exit_code == 0),
            Role::Ephemeral => false,
            Role::Main | Role::Sidecar => {
                self.started() && self.workers[2].as_ref().is_none_or(|w| w.belief() == Belief::Success)
            }
        }
    }

    /// May this probe run now (apart from its own timing)?
    pub(crate) fn eligible(&self, kind: ProbeKind, pod_ending: bool) -> bool {
        if self.live().is_none_or(|live| live.post_start) {
            return false;
        }
        match kind {
            ProbeKind::Startup => !pod_ending && !self.started(),
            ProbeKind::Liveness => !pod_ending && self.started(),
            ProbeKind::Readiness => self.started(),
        }
    }

    /// When something about it is due.
    pub(crate) fn compute_due(&self, now: Duration, pod_ending: bool) -> Option<Duration> {
        match &self.phase {
            Phase::Delayed { until } => Some(*until),
            Phase::Live(live) => {
                let mut due = live.kill.and_then(|kill| kill.stage.deadline());
                for (kind, worker) in KINDS.into_iter().zip(&self.workers) {
                    if let Some(worker) = worker
                        && self.eligible(kind, pod_ending)
                        && let Some(at) = worker.due(now, live.started)
                    {
                        due = Some(due.map_or(at, |d| d.min(at)));
                    }
                }
                due
            }
            Phase::Idle | Phase::Launching | Phase::Ended => None,
        }
    }
}

/// What the back-off belongs to (upstream's GetBackoffKey: pod, container name, image, resources).
fn key(plan: &ContainerPlan) -> u64 {
    let mut hasher = DefaultHasher::new();
    plan.image.hash(&mut hasher);
    plan.resources.requests.hash(&mut hasher);
    plan.resources.limits.hash(&mut hasher);
    hasher.finish()
}
