//! What may start, and whether the pod is done: run after each event that could change it.
//!
//! Upstream: `computePodActions`, `computeInitContainerActions`, `doBackOff` (kuberuntime_manager.go).

use crate::container::Phase;
use crate::policy::Role;
use crate::supervisor::Supervisor;
use crate::text;
use crate::types::{Action, ContainerIndex, Now};
use hpk_api::state::RunState;

impl Supervisor {
    pub(crate) fn settle(&mut self, now: Now, out: &mut Vec<Action>) {
        self.unsettled = false;
        if self.ending.is_some() {
            return self.settle_ending(now, out);
        }
        if !self.sandbox_ready {
            return;
        }
        for i in self.indexes(Role::Ephemeral) {
            self.try_start(i, now, out);
        }
        if self.restart_all.is_some() {
            return self.drive_restart_all(now, out);
        }
        // Of a requeued pod they may all have been done before.
        if self.is_over() {
            let grace = u64::from(self.plan.termination_grace_period_seconds);
            return self.begin_ending(now, None, grace, out);
        }
        if !self.initialize(now, out) {
            return;
        }
        for i in self.indexes(Role::Main) {
            if self.indexes(Role::Main).take_while(|&j| j < i).any(|j| self.containers[j].holds_up()) {
                break;
            }
            self.try_start(i, now, out);
        }
        if self.is_over() {
            let grace = u64::from(self.plan.termination_grace_period_seconds);
            self.begin_ending(now, None, grace, out);
        }
    }

    /// All its containers have ended for good.
    fn is_over(&self) -> bool {
        let mut main = self.containers.iter().filter(|c| c.role == Role::Main);
        main.all(|c| matches!(c.phase, Phase::Ended))
    }

    fn indexes(&self, role: Role) -> impl Iterator<Item = usize> + use<> {
        let init = self.plan.init_containers.len();
        let main = init + self.plan.containers.len();
        match role {
            Role::Init | Role::Sidecar => 0..init,
            Role::Main => init..main,
            Role::Ephemeral => main..self.containers.len(),
        }
    }

    /// Init containers in order; true once all are initialised. Sidecars that ended are started again.
    fn initialize(&mut self, now: Now, out: &mut Vec<Action>) -> bool {
        let count = self.plan.init_containers.len();
        for i in 0..self.init_next.min(count) {
            if self.containers[i].role == Role::Sidecar {
                self.try_start(i, now, out);
            }
        }
        while self.init_next < count {
            let i = self.init_next;
            let container = &self.containers[i];
            let done = match (container.role, &container.phase) {
                (Role::Sidecar, _) => container.started() && container.kill_stage().is_none(),
                (_, Phase::Ended) if container.ready() => true,
                (_, Phase::Ended) => {
                    let grace = u64::from(self.plan.termination_grace_period_seconds);
                    self.begin_ending(now, None, grace, out);
                    return false;
                }
                _ => false,
            };
            if !done {
                self.try_start(i, now, out);
                return false;
            }
            self.init_next += 1;
        }
        true
    }

    /// Starts a container that is idle, unless it is blocked or in back-off.
    fn try_start(&mut self, i: usize, now: Now, out: &mut Vec<Action>) {
        let container = &self.containers[i];
        if !matches!(container.phase, Phase::Idle) {
            return;
        }
        if let Some(blocked) = &container.plan.blocked {
            let (reason, message) = (blocked.reason.clone(), blocked.message.clone());
            let same = matches!(&self.container_state_ref(i).state,
                RunState::Waiting { reason: r, message: m } if *r == reason && *m == message);
            if !same {
                self.wait(i, &reason, message);
            }
            return;
        }
        if let Some(ended) = container.backoff_from {
            if let Some(delay) = container.backoff.delay(container.backoff_key, ended, now.mono, self.limits) {
                let name = container.plan.name.clone();
                let own_end = container.ended_at.unwrap_or(ended);
                let container = &mut self.containers[i];
                container.backoff_from = Some(own_end);
                container.phase = Phase::Delayed { until: own_end + delay };
                self.note(now, true, "BackOff", text::back_off_event(&name, &self.plan.pod), Some(i), None);
                self.wait(i, "CrashLoopBackOff", text::crash_loop(delay, &name, &self.plan.pod));
                return self.refresh(i, now);
            }
            let (key, limits) = (container.backoff_key, self.limits);
            self.containers[i].backoff.decided(key, ended, now.mono, limits);
        }
        let container = &mut self.containers[i];
        // A retry of a start that made no instance must not count as another restart.
        container.backoff_from = None;
        container.phase = Phase::Launching;
        container.image.clone_from(&container.plan.image);
        container.instance = container.next_instance;
        container.due = None;
        out.push(Action::Start { container: ContainerIndex(i), instance: container.instance });
    }

    fn container_state_ref(&self, i: usize) -> &hpk_api::state::ContainerState {
        let container = &self.containers[i];
        match container.role {
            Role::Init | Role::Sidecar => &self.state.init_containers[container.slot],
            Role::Main => &self.state.containers[container.slot],
            Role::Ephemeral => &self.state.ephemeral_containers[container.slot],
        }
    }
}
