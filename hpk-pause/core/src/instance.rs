//! An instance of a container from its launch to its end, and what its end leads to.
//!
//! Upstream: `startContainer`, `toKubeContainerStatus`, `ShouldContainerBeRestarted` (kuberuntime).

use crate::container::{Live, Phase};
use crate::kill::KillReason;
use crate::policy::{self, Verdict};
use crate::supervisor::Supervisor;
use crate::types::{Action, ContainerIndex, Exit, ExitCause, Hook, LaunchFailure, Now};
use hpk_api::state::{ContainerUser, RunState, Termination};
use std::time::Duration;

/// How long upstream waits before it tries again to create a container (backOffPeriod).
const CREATE_RETRY: Duration = Duration::from_secs(10);

impl Supervisor {
    pub(crate) fn launching(&self, container: ContainerIndex, instance: u32) -> bool {
        self.containers.get(container.0).is_some_and(|c| matches!(c.phase, Phase::Launching) && c.instance == instance)
    }

    pub(crate) fn is_live(&self, container: ContainerIndex, instance: u32) -> bool {
        self.containers.get(container.0).is_some_and(|c| c.live().is_some() && c.instance == instance)
    }

    pub(crate) fn launched(&mut self, i: usize, now: Now, user: ContainerUser, out: &mut Vec<Action>) {
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
        state.told_to_end = false;
        state.last_termination = last;
        state.restart_count = instance;
        state.container_id = id;
        state.user = Some(user);
        self.note(now, false, "Created", "Container created".to_owned(), Some(i), None);
        self.note(now, false, "Started", "Container started".to_owned(), Some(i), None);
        if let Some(ending) = self.ending {
            // The stop came while it was being made: no hook, straight to its end, in what is left of the time.
            self.kill(i, now, ending.left(now), KillReason::Pod, false, None, out);
        } else if post_start {
            out.push(Action::Hook { container: ContainerIndex(i), instance, hook: Hook::PostStart });
            self.refresh(i, now);
        } else {
            self.post_start_over(i, now);
        }
        // Its image may have changed while it was being made.
        self.kill_outdated(i, now, out);
        self.unsettled = true;
    }

    pub(crate) fn launch_failed(&mut self, i: usize, now: Now, failure: LaunchFailure) {
        self.unsettled = true;
        let (reason, message) = match failure {
            LaunchFailure::Start(message) => return self.start_error(i, now, message),
            LaunchFailure::Config(message) => ("CreateContainerConfigError", message),
            LaunchFailure::Create(message) => ("CreateContainerError", message),
        };
        self.note(now, true, "Failed", format!("Error: {message}"), Some(i), None);
        self.containers[i].phase = Phase::Delayed { until: now.mono + CREATE_RETRY };
        self.wait(i, reason, message);
        if self.ending.is_some() {
            self.give_up_waiting(i);
        }
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

    pub(crate) fn exited(&mut self, i: usize, now: Now, exit: Exit, out: &mut Vec<Action>) {
        let container = &self.containers[i];
        let instance = container.instance;
        let kill = container.live().and_then(|live| live.kill);
        let restart = kill.is_some_and(|kill| kill.restart);
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
                ExitCause::Signal(signal) => Some(signal),
                ExitCause::Code(_) => None,
            },
            reason: reason.to_owned(),
            message: exit.message,
            started_at,
            finished_at: exit.at.unwrap_or(now.wall),
            container_id: self.container_state(i).container_id.clone(),
        };
        out.push(Action::Cancel { container: ContainerIndex(i), instance });
        self.container_state(i).told_to_end = kill.is_some();
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
            self.begin_restart_all(i, code, now);
        }
    }
}
