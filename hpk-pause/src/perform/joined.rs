//! Processes that join containers: probes, hooks and sessions.

use super::{Happening, Owner, Performer, ProbeRun};
use crate::control::request::ExecSession;
use crate::handlers;
use crate::probe::HookDone;
use crate::process::{self, Joined};
use hpk_api::control::{ControlError, ErrorCode, ExecOptions};
use hpk_api::probe::{Handler, Probe};
use hpk_core::{ContainerIndex, Hook, ProbeOutcome};
use hpk_sys::launch::JoinSpec;
use hpk_sys::launch::{LaunchError, PidNamespace};
use hpk_sys::signals;
use nix::sys::signal::Signal;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Time from SIGHUP to SIGKILL when the client of a terminal session is gone.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

impl Performer {
    fn join(
        &mut self,
        container: ContainerIndex,
        argv: &[String],
        stdin: bool,
        tty: bool,
    ) -> Result<Joined, LaunchError> {
        let running = self.running.get(&container).ok_or(LaunchError::NotRunning)?;
        let spec = JoinSpec {
            argv: argv.to_vec(),
            env: running.env.clone(),
            working_dir: running.working_dir.clone(),
            security: running.security.clone(),
            own_pid: !matches!(running.pid_namespace, PidNamespace::Pod),
            stdin,
            tty,
            size: (0, 0),
            oom_score_adj: running.oom_score_adj,
            inherit: Vec::new(),
            identity: running.identity,
        };
        let starting = self.joiner.start(running.pidfd.as_fd(), &spec)?;
        let (ended, exit) = oneshot::channel();
        self.processes.insert(starting.pid(), Owner::Joined(ended));
        Ok(Joined { starting, exit, kill: self.kills.clone() })
    }

    fn keep_task(&mut self, container: ContainerIndex, task: AbortHandle) {
        if let Some(running) = self.running.get_mut(&container) {
            running.tasks.retain(|t| !t.is_finished());
            running.tasks.push(task);
        }
    }

    /// Runs a probe once. One that cannot be made at all is tried again as often as upstream does.
    pub(crate) fn probe(&mut self, run: ProbeRun, probe: &Probe) {
        let ProbeRun { container, instance, kind, attempt } = run;
        if self.running.get(&container).is_none_or(|r| r.instance != instance) {
            // It ended between two tries: nobody waits for the answer.
            return;
        }
        let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        let happenings = self.happenings.clone();
        let report = move |outcome| {
            let _ = happenings.send(match handlers::tried(outcome, attempt) {
                Some(outcome) => Happening::Probed(container, instance, kind, outcome),
                None => Happening::ProbeAgain(ProbeRun { attempt: attempt + 1, ..run }),
            });
        };
        let handler = probe.handler.clone();
        let task = match handler {
            Handler::Exec { command } => {
                let joined = self.join(container, &command, false, false);
                tokio::spawn(async move {
                    let ended = handlers::run_exec(joined, Some(timeout)).await;
                    report(handlers::exec_probe(&command, timeout, ended));
                })
            }
            Handler::Invalid { message } => return report(ProbeOutcome::Error(message)),
            handler => {
                let context = self.probes.clone();
                tokio::spawn(async move { report(handlers::network_probe(&handler, timeout, &context).await) })
            }
        };
        self.keep_task(container, task.abort_handle());
    }

    /// Runs a hook.
    pub(crate) fn hook(&mut self, container: ContainerIndex, instance: u32, hook: Hook, handler: &Handler) {
        let happenings = self.happenings.clone();
        let report = move |result| {
            let _ = happenings.send(Happening::Hooked(container, instance, hook, result));
        };
        let task = match handler.clone() {
            Handler::Exec { command } => {
                let joined = self.join(container, &command, false, false);
                tokio::spawn(async move {
                    let ended = handlers::run_exec(joined, None).await;
                    report(handlers::exec_hook(&command, ended));
                })
            }
            Handler::Sleep { seconds } => tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                report(Ok(()));
            }),
            handler => {
                let context = self.probes.clone();
                let notes = self.happenings.clone();
                tokio::spawn(async move {
                    let done = handlers::network_hook(&handler, &context).await;
                    if let Ok(HookDone { http_fallback: Some(text) }) = &done {
                        let _ = notes.send(Happening::HookFellBack(text.clone()));
                    }
                    report(done.map(drop));
                })
            }
        };
        self.keep_task(container, task.abort_handle());
    }

    /// Starts an exec session; the answer is given once its process exists.
    pub(crate) fn exec(
        &mut self,
        container: ContainerIndex,
        options: &ExecOptions,
        answer: oneshot::Sender<Result<ExecSession, ControlError>>,
    ) {
        let refuse = |error: &LaunchError| ControlError {
            code: if *error == LaunchError::NotRunning { ErrorCode::Conflict } else { ErrorCode::BadRequest },
            message: error.to_string(),
        };
        if options.command.is_empty() {
            let message = "command: must not be empty".to_owned();
            let _ = answer.send(Err(ControlError { code: ErrorCode::BadRequest, message }));
            return;
        }
        let joined = match self.join(container, &options.command, options.stdin, options.tty) {
            Ok(joined) => joined,
            Err(error) => {
                let _ = answer.send(Err(refuse(&error)));
                return;
            }
        };
        self.sessions += 1;
        let id = self.sessions;
        self.exec_pids.retain(|_, pid| matches!(self.processes.get(pid), Some(Owner::Joined(_))));
        self.exec_pids.insert(id, joined.starting.pid());
        tokio::spawn(async move {
            let result = process::started(joined.starting).await;
            let session = result.map_err(|e| refuse(&e)).map(|launched| ExecSession {
                id,
                stdio: launched.io,
                exit: joined.exit,
            });
            let _ = answer.send(session);
        });
    }

    /// The client of a session is gone.
    pub(crate) fn end_exec(&mut self, id: u64, tty: bool) {
        let Some(leader) = self.exec_pids.remove(&id) else { return };
        if !tty {
            return self.kill_joined(leader);
        }
        if matches!(self.processes.get(&leader), Some(Owner::Joined(_))) {
            let _ = signals::kill_group(leader, Signal::SIGHUP);
            let kills = self.kills.clone();
            tokio::spawn(async move {
                tokio::time::sleep(HANGUP_GRACE).await;
                let _ = kills.send(leader);
            });
        }
    }
}
