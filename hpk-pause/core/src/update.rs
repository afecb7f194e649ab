//! A changed pod: new ephemeral containers, changed containers, another deadline.
//!
//! What Kubernetes lets a user change on a running pod: images, resources, activeDeadlineSeconds, ephemeral containers; and
//! what containers are made from beside the pod, such as the ConfigMaps of their environment, which holds from their next start.

use crate::container::{Container, Phase};
use crate::kill::KillReason;
use crate::policy::Role;
use crate::supervisor::Supervisor;
use crate::text;
use crate::types::{Action, ContainerIndex, Now};
use hpk_api::control::Update;
use hpk_api::plan::ContainerPlan;
use hpk_api::state::{ContainerState, RunState};
use std::time::Duration;

impl Supervisor {
    pub(crate) fn update(&mut self, now: Now, update: Update, out: &mut Vec<Action>) {
        for plan in update.ephemeral_containers {
            if self.find(&plan.name).is_some() {
                continue;
            }
            let waiting = text::not_yet_started(&self.plan);
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
        let (key, blocked) = (container.backoff_key, container.plan.blocked.is_some());
        container.set_plan(plan);
        // What it waited for may be mended: the back-off is asked again, with the new key. Another environment or the
        // like is for the start to come, and does not bring it nearer.
        let mended = container.backoff_key != key || container.plan.blocked.is_some() != blocked;
        let crashed = container.backoff_from.is_some();
        if matches!(container.phase, Phase::Delayed { .. }) && (mended || !crashed) && self.ending.is_none() {
            container.phase = Phase::Idle;
        }
        self.kill_outdated(i, now, out);
        self.refresh(i, now);
    }

    /// Ends a container that runs with another image than its plan's, to be started again.
    pub(crate) fn kill_outdated(&mut self, i: usize, now: Now, out: &mut Vec<Action>) {
        let container = &self.containers[i];
        let outdated = container.image != container.plan.image && matches!(container.role, Role::Main | Role::Sidecar);
        let runs = container.live().is_some_and(|live| live.kill.is_none());
        if !outdated || !runs || self.ending.is_some() {
            return;
        }
        let what = format!("{} {} definition changed", self.title(i), container.plan.name);
        let message = self.restart_intent(i, what, true);
        let grace = u64::from(self.plan.termination_grace_period_seconds);
        self.kill(i, now, grace, KillReason::Definition, true, Some(message), out);
    }
}
