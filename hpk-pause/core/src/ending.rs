//! The end of containers: one by one, of the whole pod, and of all in order to start afresh.
//!
//! Upstream: `killContainer`, `killContainersWithSyncResult`, `terminationOrdering` (kuberuntime) and, for
//! RestartAllContainers (KEP-5532), `getContainersToReset`.

use crate::container::{Kill, Phase};
use crate::kill::{KillReason, Stage};
use crate::policy::Role;
use crate::supervisor::{Ending, RestartAll, Supervisor};
use crate::text;
use crate::types::{Action, ContainerIndex, Hook, Now};
use hpk_api::state::{RunState, StopCause, Termination};
use std::time::Duration;

pub(crate) const RESTARTING_ALL: &str = "RestartingAllContainers";
/// Upstream's reason of the condition AllContainersRestarting.
pub(crate) const RESTART_ALL_EVENT: &str = "RestartAllContainersStarted";
const RESTARTING_ALL_MESSAGE: &str = "The container is removed because RestartAllContainers in place";

impl Supervisor {
    /// Begins to end a live container. `message` is the text of the event Killing.
    #[allow(clippy::too_many_arguments, reason = "the facts of one kill, all of them scalar")]
    pub(crate) fn kill(
        &mut self,
        i: usize,
        now: Now,
        grace: u64,
        reason: KillReason,
        restart: bool,
        message: Option<String>,
        out: &mut Vec<Action>,
    ) {
        let container = &self.containers[i];
        let message = message.unwrap_or_else(|| format!("Stopping container {}", container.plan.name));
        let ordered = reason == KillReason::Pod && container.role == Role::Sidecar;
        let pre_stop = container.plan.lifecycle.pre_stop.is_some();
        self.note(now, false, "Killing", message, Some(i), None);
        let stage = Stage::begin(now.mono, grace, pre_stop, ordered);
        if let Some(live) = self.containers[i].live_mut() {
            live.kill = Some(Kill { stage, reason, restart, ordered });
        }
        self.perform_stage(i, stage, out);
        self.unsettled = true;
        self.refresh(i, now);
    }

    /// The present stage of a container's end is over.
    pub(crate) fn next_stage(&mut self, i: usize, now: Now, out: &mut Vec<Action>) {
        let Some(kill) = self.containers[i].live_mut().and_then(|live| live.kill.as_mut()) else { return };
        kill.stage = kill.stage.next(now.mono, kill.ordered);
        let stage = kill.stage;
        self.perform_stage(i, stage, out);
        self.unsettled = true;
        self.refresh(i, now);
    }

    fn perform_stage(&self, i: usize, stage: Stage, out: &mut Vec<Action>) {
        let instance = self.containers[i].instance;
        let container = ContainerIndex(i);
        out.push(match stage {
            Stage::PreStop { .. } => Action::Hook { container, instance, hook: Hook::PreStop },
            Stage::Turn { .. } => return,
            Stage::Term { .. } => Action::Signal { container, instance, signal: self.containers[i].plan.stop_signal },
            Stage::Killed => Action::Kill { container, instance },
        });
    }

    /// Ends the pod. A later call with a shorter grace shortens what is under way.
    pub(crate) fn begin_ending(&mut self, now: Now, cause: Option<StopCause>, grace: u64, out: &mut Vec<Action>) {
        if self.state.stopping.is_none() && cause.is_some() {
            self.state.stopping = cause;
            self.changed = true;
        }
        let grace = self.ending.map_or(grace, |ending| ending.grace.min(grace));
        let until = now.mono + Duration::from_secs(grace);
        let until = self.ending.map_or(until, |ending| ending.until.min(until));
        self.ending = Some(Ending { grace, until });
        self.restart_all = None;
        self.state.restarting_all = false;
        self.unsettled = true;
        for i in 0..self.containers.len() {
            let sidecar = self.containers[i].role == Role::Sidecar;
            match &mut self.containers[i].phase {
                Phase::Idle | Phase::Delayed { .. } => self.give_up_waiting(i),
                Phase::Live(live) => match &mut live.kill {
                    Some(kill) => {
                        kill.restart = false;
                        kill.reason = KillReason::Pod;
                        kill.ordered = sidecar;
                        self.shorten(i, now, grace);
                    }
                    None => self.kill(i, now, grace, KillReason::Pod, false, None, out),
                },
                Phase::Launching | Phase::Ended => {}
            }
            self.refresh(i, now);
        }
    }

    fn shorten(&mut self, i: usize, now: Now, grace: u64) {
        if let Some(kill) = self.containers[i].live_mut().and_then(|live| live.kill.as_mut()) {
            kill.stage = kill.stage.shortened(now.mono, grace);
        }
    }

    /// It will not be started any more: what it showed before it waited for a restart is its last word.
    pub(crate) fn give_up_waiting(&mut self, i: usize) {
        let container = &mut self.containers[i];
        container.phase = Phase::Ended;
        let (end, prior) = (container.end.clone(), container.prior_end.clone());
        if let Some(end) = end
            && !matches!(self.container_state(i).state, RunState::Terminated(_))
        {
            let state = self.container_state(i);
            state.state = RunState::Terminated(end);
            state.last_termination = prior;
        }
    }

    /// While the pod ends: sidecars whose turn has come, and the end of all.
    pub(crate) fn settle_ending(&mut self, now: Now, out: &mut Vec<Action>) {
        let init = self.plan.init_containers.len();
        let main_over = !self.containers.iter().any(|c| c.role == Role::Main && c.occupied());
        let mut later_over = main_over;
        for i in (0..init).rev() {
            if self.containers[i].role != Role::Sidecar {
                continue;
            }
            if later_over && matches!(self.containers[i].kill_stage(), Some(Stage::Turn { .. })) {
                self.next_stage(i, now, out);
            }
            later_over &= !self.containers[i].occupied();
        }
        if !self.containers.iter().any(super::container::Container::occupied) {
            self.state.finished = true;
            self.changed = true;
        }
        self.unsettled = false;
    }

    /// All containers are to start afresh, because container `source` ended with `code`: first everything that runs is
    /// ended, containers before init containers; those that ended by themselves (`source` among them) have nothing to end.
    ///
    /// The event is ours: where nothing else runs, the code is overwritten before anybody has seen it.
    pub(crate) fn begin_restart_all(&mut self, source: usize, code: i32, now: Now) {
        let name = &self.containers[source].plan.name;
        let message = format!("Container {name} exited with {code}, all containers will be restarted");
        self.note(now, false, RESTART_ALL_EVENT, message, Some(source), None);
        let of = |role: fn(Role) -> bool| {
            let list = self.containers.iter().enumerate();
            list.filter(move |(_, c)| role(c.role) && c.occupied()).map(|(i, _)| i)
        };
        let queue = of(|r| r == Role::Main).chain(of(|r| matches!(r, Role::Init | Role::Sidecar))).collect();
        self.restart_all = Some(RestartAll { queue });
        self.state.restarting_all = true;
        self.changed = true;
        self.unsettled = true;
    }

    pub(crate) fn drive_restart_all(&mut self, now: Now, out: &mut Vec<Action>) {
        while let Some(&i) = self.restart_all.as_ref().and_then(|all| all.queue.first()) {
            match &self.containers[i].phase {
                Phase::Launching => return,
                Phase::Live(live) => match live.kill {
                    None => {
                        return self.kill(i, now, 0, KillReason::RestartAll, false, Some("killing".to_owned()), out);
                    }
                    Some(kill) if kill.reason != KillReason::RestartAll => {
                        if let Some(kill) = self.containers[i].live_mut().and_then(|live| live.kill.as_mut()) {
                            kill.restart = false;
                            kill.reason = KillReason::RestartAll;
                        }
                        self.shorten(i, now, 0);
                        return self.refresh(i, now);
                    }
                    Some(_) => return,
                },
                Phase::Idle | Phase::Delayed { .. } | Phase::Ended => {
                    if let Some(all) = &mut self.restart_all {
                        all.queue.remove(0);
                    }
                }
            }
        }
        self.reset_all(now);
    }

    /// Nothing runs any more: back to the first init container, without back-off.
    ///
    /// What showed its end then shows, and counts, the removal instead; what waited had no instance to remove, and keeps
    /// its count and its last end (`convertToAPIContainerStatuses`).
    fn reset_all(&mut self, now: Now) {
        self.restart_all = None;
        self.state.restarting_all = false;
        self.init_next = 0;
        for i in 0..self.containers.len() {
            if self.containers[i].role == Role::Ephemeral {
                continue;
            }
            let waits = matches!(self.container_state(i).state, RunState::Waiting { .. });
            let container = &mut self.containers[i];
            container.phase = Phase::Idle;
            container.backoff_from = None;
            container.ended_at = None;
            if waits {
                self.wait(i, text::not_yet_started(&self.plan), String::new());
            } else if let Some(end) = &container.end {
                let marker = Termination {
                    exit_code: 137,
                    signal: None,
                    reason: RESTARTING_ALL.to_owned(),
                    message: RESTARTING_ALL_MESSAGE.to_owned(),
                    started_at: None,
                    finished_at: now.wall,
                    container_id: end.container_id.clone(),
                };
                container.prior_end = container.end.replace(marker);
                let count = container.next_instance;
                self.wait(i, RESTARTING_ALL, RESTARTING_ALL_MESSAGE.to_owned());
                self.container_state(i).restart_count = count;
            }
            self.refresh(i, now);
        }
        self.changed = true;
        self.unsettled = true;
    }
}
