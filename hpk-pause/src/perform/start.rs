//! Starts: from a plan to a running command with its log.

use super::step::Beginning;
use super::{Happening, Outcome, Owner, Pending, Performer, Running};
use crate::process;
use hpk_api::plan::{ContainerPlan, SandboxPlan, TerminationMessagePolicy};
use hpk_api::step::StepFile;
use hpk_core::{ContainerIndex, LaunchFailure};
use hpk_log::{LogTarget, Source};
use hpk_sys::launch::{FailureKind, Io, LaunchError, Launched, PidNamespace};
use hpk_sys::signals::MountNs;
use nix::unistd::Pid;
use std::sync::Arc;

impl Performer {
    /// Begins to start a container. Some: it has failed already.
    pub(crate) fn start(
        &mut self,
        pod: &SandboxPlan,
        plan: &ContainerPlan,
        container: ContainerIndex,
        instance: u32,
    ) -> Option<Outcome> {
        let prepared = self.pid_namespace(pod, plan).and_then(|pid| self.specs.prepare(pod, plan, instance, pid));
        let mut prepared = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return Some(Outcome::Failed(container, instance, failure)),
        };
        let keeper = match plan.step.is_some().then(|| self.keeper_input()).transpose() {
            Ok(pipe) => pipe.map(|(input, keeper)| {
                crate::ranks::keep(&mut prepared, plan, input);
                keeper
            }),
            Err(failure) => return Some(Outcome::Failed(container, instance, failure)),
        };
        let folder = self.paths.instance(&plan.name, instance);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            let failure = LaunchFailure::Create(format!("{}: {error}", folder.display()));
            return Some(Outcome::Failed(container, instance, failure));
        }
        prepared.spec.shown = self.memory.shown(&plan.resources, &folder.join("limits"));
        match self.launcher.start(&prepared.spec) {
            Ok(starting) => {
                let pid = starting.pid();
                // Now, when it is far from its command: one that ends at once cannot be asked after its start.
                let mount_ns = MountNs::of(pid).ok();
                prepared.spec.keeper = None;
                let plan = plan.clone();
                let pending = Pending { container, instance, prepared, plan, mount_ns, ended: None, keeper };
                self.processes.insert(pid, Owner::Starting(Box::new(pending)));
                let happenings = self.happenings.clone();
                tokio::spawn(async move {
                    let result = process::started(starting).await;
                    let _ = happenings.send(Happening::Started { pid, result });
                });
                None
            }
            Err(error) => Some(Outcome::Failed(container, instance, failure(&error))),
        }
    }

    /// The processes that a container is to see: those of its target, of the pod, or its own.
    fn pid_namespace(&self, pod: &SandboxPlan, plan: &ContainerPlan) -> Result<PidNamespace, LaunchFailure> {
        match &plan.target {
            _ if pod.share_process_namespace => Ok(PidNamespace::Pod),
            None => Ok(PidNamespace::Own),
            Some(target) => {
                let running = self.running.values().find(|running| running.name == *target);
                let pidfd = running.map(|running| running.pidfd.try_clone());
                match pidfd {
                    Some(Ok(pidfd)) => Ok(PidNamespace::Of(Arc::new(pidfd))),
                    Some(Err(error)) => Err(LaunchFailure::Create(format!("target container {target}: {error}"))),
                    None => Err(LaunchFailure::Config(format!(
                        "unable to find target container {target}: it is not running"
                    ))),
                }
            }
        }
    }

    /// A start came to its end.
    pub(crate) fn started(&mut self, pid: Pid, result: Result<Launched, LaunchError>) -> Option<Outcome> {
        let Some(Owner::Starting(pending)) = self.processes.remove(&pid) else { return None };
        let Pending { container, instance, prepared, plan, mount_ns, ended, keeper } = *pending;
        let launched = match result {
            Ok(launched) => launched,
            Err(error) => {
                if ended.is_none() {
                    self.processes.insert(pid, Owner::Nobody);
                }
                self.discard(prepared.spec.upper.clone());
                return Some(Outcome::Failed(container, instance, failure(&error)));
            }
        };
        let mut step = None;
        let (stdin, terminal, source) = if let Some(keeper) = keeper {
            let file = StepFile {
                container: plan.name.clone(),
                rank: crate::ranks::plan(&prepared, &plan),
                pod_ips: self.specs.pod_ips().to_vec(),
                crossing: self.specs.crossing_of_ranks().cloned(),
            };
            let beginning = Beginning { file, user: prepared.user.clone(), keeper };
            match self.begin_step(container, instance, &plan, &launched.pidfd, beginning) {
                Ok((begun, source)) => {
                    step = Some(begun);
                    (None, None, Some(source))
                }
                Err(error) => {
                    // The end of its input has ended the keeper.
                    self.processes.insert(pid, Owner::Nobody);
                    self.discard(prepared.spec.upper.clone());
                    let failure = LaunchFailure::Create(format!("descriptors for an MPI step: {error}"));
                    return Some(Outcome::Failed(container, instance, failure));
                }
            }
        } else {
            match launched.io {
                Io::Pipes { stdin, stdout, stderr } => (stdin, None, Some(Source::Pipes { stdout, stderr })),
                Io::Pty { master } => (None, Some(master), None),
            }
        };
        let source = source.or_else(|| terminal.as_ref().and_then(|t| t.try_clone().ok()).map(Source::Pty));
        let target = LogTarget { dir: self.paths.logs(&plan.name), restart_count: instance };
        let log = source.and_then(|source| match self.log.open(target, source) {
            Ok(id) => Some(id),
            Err(error) => {
                hpk_api::say!("hpk-pause: container {}: log: {error}", plan.name);
                None
            }
        });
        self.last_logs.insert(plan.name.clone(), (instance, log));
        let user = prepared.user.clone();
        let running = Running {
            name: plan.name,
            instance,
            pidfd: launched.pidfd,
            log,
            stdin,
            terminal,
            mount_ns: launched.inner.map_or(mount_ns, |inner| Some(inner.mount_ns)),
            apptainer_ns: launched.inner.and(mount_ns),
            writable: prepared.spec.upper.clone(),
            env: prepared.spec.env,
            working_dir: prepared.spec.working_dir,
            security: prepared.spec.security,
            identity: prepared.spec.identity,
            oom_score_adj: prepared.spec.oom_score_adj,
            pid_namespace: prepared.spec.pid,
            stdin_once: plan.stdin_once,
            want_tail: plan.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError,
            message_file: prepared.message_file,
            started_at: jiff::Timestamp::now(),
            tasks: Vec::new(),
            killed: false,
            out_of_memory: false,
            step,
        };
        let a_step = running.step.is_some();
        self.running.insert(container, running);
        match ended {
            None => {
                self.processes.insert(pid, Owner::Container(container));
            }
            Some(cause) => self.main_ended(container, cause),
        }
        // A step has started when its ranks have.
        (!a_step).then_some(Outcome::Launched(container, instance, user))
    }
}

fn failure(error: &LaunchError) -> LaunchFailure {
    let text = error.to_string();
    match error.kind() {
        FailureKind::Config => LaunchFailure::Config(text),
        FailureKind::Create => LaunchFailure::Create(text),
        FailureKind::Start => LaunchFailure::Start(text),
    }
}
