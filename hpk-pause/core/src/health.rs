//! What the outcomes of probes and hooks mean to a container.
//!
//! Upstream: `prober.recordContainerEvent`, `worker.doProbe`, `computePodActions` (the kill of what is unhealthy),
//! `executePreStopHook`, and the postStart hook in `startContainer`.

use crate::container::kind_index;
use crate::kill::{KillReason, Stage};
use crate::policy::{self, Role};
use crate::probe::Belief;
use crate::supervisor::Supervisor;
use crate::text;
use crate::types::{Action, Hook, HookFailure, Now, ProbeOutcome};
use hpk_api::probe::ProbeKind;

impl Supervisor {
    pub(crate) fn probe_done(
        &mut self,
        i: usize,
        now: Now,
        kind: ProbeKind,
        outcome: ProbeOutcome,
        out: &mut Vec<Action>,
    ) {
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
        worker.count(now.mono, success);
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

    pub(crate) fn title(&self, i: usize) -> &'static str {
        if self.containers[i].role == Role::Sidecar { "Init container" } else { "Container" }
    }

    /// Upstream makes the intent clear for containers, not for sidecars.
    pub(crate) fn restart_intent(&self, i: usize, what: String, restart: bool) -> String {
        if restart && self.containers[i].role == Role::Main { format!("{what}, will be restarted") } else { what }
    }

    pub(crate) fn hook_done(
        &mut self,
        i: usize,
        now: Now,
        hook: Hook,
        result: Result<(), HookFailure>,
        out: &mut Vec<Action>,
    ) {
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
        if self.containers[i].kill_stage().is_some() {
            // It is being ended already, which may be why the hook failed.
            return;
        }
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
}
