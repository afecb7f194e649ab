//! The pod's public state as a record: where each container's line is, its texts, events and ids.
//!
//! Decides nothing: every change of the state that people see goes through here, so that it is reported.

use crate::container::Phase;
use crate::policy::Role;
use crate::supervisor::Supervisor;
use crate::types::Now;
use hpk_api::probe::ProbeKind;
use hpk_api::state::{ContainerState, MAX_EVENTS, PodEvent, PodState, RunState};

impl Supervisor {
    pub(crate) fn list(state: &mut PodState, role: Role) -> &mut Vec<ContainerState> {
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
    pub(crate) fn container_id(&self, i: usize) -> String {
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

    pub(crate) fn succeeded(&self) -> bool {
        self.state.sandbox_error.is_none()
            && self
                .containers
                .iter()
                .filter(|c| c.role == Role::Main)
                .all(|c| matches!(c.phase, Phase::Ended) && c.end.as_ref().is_some_and(|end| end.exit_code == 0))
    }
}
