//! Actions become effects here: processes are started, signalled, joined and reaped, their logs opened.
//!
//! Owns every process of the pod that the supervisor started, by id. Decides nothing: restarts, time-outs and
//! order are the core's. Never waits: what takes time reports by [`Happening`].

use crate::control::request::{AttachSession, ExecSession, LogSource, StatsSample, Stdio};
use crate::handlers;
use crate::helper::Helper;
use crate::network::Network;
use crate::paths::Paths;
use crate::probe::{HookDone, ProbeContext};
use crate::process::{self, Joined};
use crate::spec::{Prepared, Specs, Users};
use hpk_api::control::{ContainerStats, ControlError, ErrorCode, ExecOptions, Usage};
use hpk_api::plan::{ContainerPlan, SandboxPlan, TerminationMessagePolicy};
use hpk_api::probe::{Handler, Probe, ProbeKind};
use hpk_api::state::ContainerUser;
use hpk_core::{ContainerIndex, Exit, ExitCause, Hook, HookFailure, LaunchFailure, ProbeOutcome};
use hpk_log::{LogEvent, LogHandle, LogId, LogTarget, Source};
use hpk_sys::join::{JoinSpec, Joiner};
use hpk_sys::launch::{FailureKind, Io, LaunchError, Launched, Launcher, Native, PidNamespace, Security};
use hpk_sys::procfs::OomWatch;
use hpk_sys::reap::Reaped;
use hpk_sys::signals::{self, MountNs};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Longest termination message from its file, bytes.
const MAX_MESSAGE: u64 = 4096;

/// Time from SIGHUP to SIGKILL when the client of a terminal session is gone.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Reported to the driver's loop by tasks and threads.
#[derive(Debug)]
pub enum Happening {
    /// A container's command is executed, or it failed.
    Started {
        /// The child.
        pid: Pid,
        /// What came of it.
        result: Result<Launched, LaunchError>,
    },
    /// An exec probe could not be made and is to be tried again.
    ProbeAgain(ProbeRun),
    /// A probe's run ended.
    Probed(ContainerIndex, u32, ProbeKind, ProbeOutcome),
    /// A hook's run ended.
    Hooked(ContainerIndex, u32, Hook, Result<(), HookFailure>),
    /// An https hook was answered by plain http: text of the event LifecycleHTTPFallback.
    HookFellBack(String),
    /// From the log's thread.
    Log(LogEvent),
    /// What the pod has on disk, and how long it took to measure.
    Stored(hpk_core::StorageUse, Duration),
    /// Network, volumes and the images' users, or why not.
    Sandbox(Result<(Network, Users), String>),
}

/// One try of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRun {
    /// Which container.
    pub container: ContainerIndex,
    /// Which instance.
    pub instance: u32,
    /// Which probe.
    pub kind: ProbeKind,
    /// From 1.
    pub attempt: usize,
}

/// What the core is to be told after an effect.
#[derive(Debug)]
pub enum Outcome {
    /// [`hpk_core::Event::Launched`]
    Launched(ContainerIndex, u32, ContainerUser),
    /// [`hpk_core::Event::LaunchFailed`]
    Failed(ContainerIndex, u32, LaunchFailure),
    /// [`hpk_core::Event::Exited`]
    Exited(ContainerIndex, u32, Exit),
}

enum Owner {
    /// A container's first process that has not yet executed its command; its end, should it come first.
    Starting(Box<Pending>),
    /// A running container's first process.
    Container(ContainerIndex),
    /// A process that joined a container.
    Joined(oneshot::Sender<i32>),
    /// Nobody asks any more.
    Nobody,
}

struct Pending {
    container: ContainerIndex,
    instance: u32,
    prepared: Prepared,
    plan: ContainerPlan,
    /// None: it was gone before anybody looked.
    mount_ns: Option<MountNs>,
    ended: Option<hpk_sys::reap::ExitCause>,
}

struct Running {
    name: String,
    instance: u32,
    pid: Pid,
    pidfd: OwnedFd,
    log: Option<LogId>,
    /// Writing end of its standard input, or its terminal.
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// None: it was gone before anybody looked.
    mount_ns: Option<MountNs>,
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    security: Security,
    oom_score_adj: Option<i32>,
    pid_namespace: PidNamespace,
    stdin_once: bool,
    want_tail: bool,
    message_file: PathBuf,
    writable: PathBuf,
    started_at: jiff::Timestamp,
    tasks: Vec<AbortHandle>,
}

struct Draining {
    container: ContainerIndex,
    instance: u32,
    cause: ExitCause,
    at: jiff::Timestamp,
    oom: bool,
    want_tail: bool,
    message_file: PathBuf,
    writable: PathBuf,
}

/// Performs the core's actions.
pub struct Performer {
    paths: Paths,
    specs: Specs,
    launcher: Box<dyn Launcher>,
    joiner: Joiner,
    log: LogHandle,
    helper: Helper,
    happenings: mpsc::UnboundedSender<Happening>,
    kills: mpsc::UnboundedSender<Pid>,
    processes: HashMap<Pid, Owner>,
    running: HashMap<ContainerIndex, Running>,
    draining: HashMap<LogId, Draining>,
    /// Ended, and no log to drain.
    undrained: Vec<Draining>,
    last_logs: HashMap<String, (u32, Option<LogId>)>,
    oom: Option<OomWatch>,
    oom_seen: u64,
    probes: ProbeContext,
    sessions: u64,
    exec_pids: HashMap<u64, Pid>,
}

impl Performer {
    /// Looks at the node once.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn new(
        paths: Paths,
        plan: &SandboxPlan,
        log: LogHandle,
        helper: Helper,
        happenings: mpsc::UnboundedSender<Happening>,
        kills: mpsc::UnboundedSender<Pid>,
    ) -> Result<Self, LaunchError> {
        let oom = OomWatch::find();
        Ok(Self {
            specs: Specs::new(paths.clone()),
            paths,
            launcher: Box::new(Native::new()?),
            joiner: Joiner::new()?,
            log,
            helper,
            happenings,
            kills,
            processes: HashMap::new(),
            running: HashMap::new(),
            draining: HashMap::new(),
            undrained: Vec::new(),
            last_logs: HashMap::new(),
            oom_seen: oom.as_ref().and_then(OomWatch::kills).unwrap_or(0),
            oom,
            probes: ProbeContext { pod_ip: [127, 0, 0, 1].into(), kube_version: plan.settings.kube_version.clone() },
            sessions: 0,
            exec_pids: HashMap::new(),
        })
    }

    /// The pod's addresses and users are known.
    pub fn sandbox_made(&mut self, ips: &[std::net::IpAddr], users: Users) {
        self.specs.sandbox_made(ips.to_vec(), users);
        if let Some(&first) = ips.first() {
            self.probes.pod_ip = first;
        }
    }

    /// Begins to start a container. Some: it has failed already.
    pub fn start(
        &mut self,
        pod: &SandboxPlan,
        plan: &ContainerPlan,
        container: ContainerIndex,
        instance: u32,
    ) -> Option<Outcome> {
        let prepared = self.pid_namespace(pod, plan).and_then(|pid| self.specs.prepare(pod, plan, instance, pid));
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return Some(Outcome::Failed(container, instance, failure)),
        };
        let folder = self.paths.instance(&plan.name, instance);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            let failure = LaunchFailure::Create(format!("{}: {error}", folder.display()));
            return Some(Outcome::Failed(container, instance, failure));
        }
        match self.launcher.start(&prepared.spec) {
            Ok(starting) => {
                let pid = starting.pid();
                // Now, when it is far from its command: one that ends at once cannot be asked after its start.
                let mount_ns = MountNs::of(pid).ok();
                let pending = Pending { container, instance, prepared, plan: plan.clone(), mount_ns, ended: None };
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
    pub fn started(&mut self, pid: Pid, result: Result<Launched, LaunchError>) -> Option<Outcome> {
        let Some(Owner::Starting(pending)) = self.processes.remove(&pid) else { return None };
        let Pending { container, instance, prepared, plan, mount_ns, ended } = *pending;
        let launched = match result {
            Ok(launched) => launched,
            Err(error) => {
                if ended.is_none() {
                    self.processes.insert(pid, Owner::Nobody);
                }
                self.discard(prepared_folder(&prepared));
                return Some(Outcome::Failed(container, instance, failure(&error)));
            }
        };
        let (stdin, terminal, source) = match launched.io {
            Io::Pipes { stdin, stdout, stderr } => (stdin, None, Some(Source::Pipes { stdout, stderr })),
            Io::Pty { master } => (None, Some(master), None),
        };
        let source = source.or_else(|| terminal.as_ref().and_then(|t| t.try_clone().ok()).map(Source::Pty));
        let target = LogTarget { dir: self.paths.logs(&plan.name), restart_count: instance };
        let log = source.and_then(|source| match self.log.open(target, source) {
            Ok(id) => Some(id),
            Err(error) => {
                eprintln!("hpk-pause: container {}: log: {error}", plan.name);
                None
            }
        });
        self.last_logs.insert(plan.name.clone(), (instance, log));
        let user = prepared.user.clone();
        let running = Running {
            name: plan.name,
            instance,
            pid,
            pidfd: launched.pidfd,
            log,
            stdin,
            terminal,
            mount_ns,
            writable: prepared_folder(&prepared),
            env: prepared.spec.env,
            working_dir: prepared.spec.working_dir,
            security: prepared.spec.security,
            oom_score_adj: prepared.spec.oom_score_adj,
            pid_namespace: prepared.spec.pid,
            stdin_once: plan.stdin_once,
            want_tail: plan.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError,
            message_file: prepared.message_file,
            started_at: jiff::Timestamp::now(),
            tasks: Vec::new(),
        };
        self.running.insert(container, running);
        match ended {
            None => {
                self.processes.insert(pid, Owner::Container(container));
            }
            Some(cause) => self.main_ended(container, cause),
        }
        Some(Outcome::Launched(container, instance, user))
    }

    /// A child was reaped.
    pub fn reaped(&mut self, reaped: Reaped) {
        match self.processes.remove(&reaped.pid) {
            Some(Owner::Starting(mut pending)) => {
                pending.ended = Some(reaped.cause);
                self.processes.insert(reaped.pid, Owner::Starting(pending));
            }
            Some(Owner::Container(container)) => self.main_ended(container, reaped.cause),
            Some(Owner::Joined(exit)) => drop(exit.send(reaped.cause.code())),
            Some(Owner::Nobody) | None => {}
        }
    }

    /// Was this child started here? Orphans were not.
    #[must_use]
    pub fn owns(&self, pid: Pid) -> bool {
        self.processes.contains_key(&pid)
    }

    /// The first process of a container has ended: its output is drained next.
    fn main_ended(&mut self, container: ContainerIndex, cause: hpk_sys::reap::ExitCause) {
        let Some(running) = self.running.remove(&container) else { return };
        for task in &running.tasks {
            task.abort();
        }
        if !matches!(running.pid_namespace, PidNamespace::Own)
            && let Some(ns) = running.mount_ns
        {
            // Its end ends all of a PID namespace of its own; where that is another's, the rest is ours to end.
            let _ = signals::kill_all(ns);
        }
        let cause = match cause {
            hpk_sys::reap::ExitCause::Exited(code) => ExitCause::Code(code),
            hpk_sys::reap::ExitCause::Signaled { signal, .. } => ExitCause::Signal(signal),
        };
        let oom = self.oom_killed(cause);
        let want_tail = running.want_tail && cause.code() != 0;
        let draining = Draining {
            container,
            instance: running.instance,
            cause,
            at: jiff::Timestamp::now(),
            oom,
            want_tail,
            message_file: running.message_file,
            writable: running.writable,
        };
        if let Some(id) = running.log {
            self.log.exited(id, want_tail);
            self.draining.insert(id, draining);
        } else {
            self.undrained.push(draining);
        }
    }

    /// The end of a container that has no log to drain.
    pub fn ended_without_log(&mut self) -> Option<Outcome> {
        let draining = self.undrained.pop()?;
        Some(self.exited(draining, None))
    }

    /// An increase of the kernel's count since the last look is the evidence for one SIGKILL.
    fn oom_killed(&mut self, cause: ExitCause) -> bool {
        if cause.code() != 137 {
            return false;
        }
        let kills = self.oom.as_ref().and_then(OomWatch::kills).unwrap_or(0);
        let oom = kills > self.oom_seen;
        self.oom_seen = kills;
        oom
    }

    /// From the log's thread. Some: a container's end is complete.
    pub fn log_event(&mut self, event: LogEvent) -> Option<Outcome> {
        match event {
            LogEvent::Drained { id, tail } => {
                let draining = self.draining.remove(&id)?;
                for (instance, log) in self.last_logs.values_mut() {
                    if *log == Some(id) && *instance == draining.instance {
                        *log = None;
                    }
                }
                Some(self.exited(draining, tail))
            }
            LogEvent::Trouble { error, .. } => {
                eprintln!("hpk-pause: a log cannot be written, its container is held back: {error}");
                None
            }
            LogEvent::Recovered { lost, .. } => {
                eprintln!("hpk-pause: a log can be written again, {lost} bytes were lost");
                None
            }
        }
    }

    fn exited(&mut self, ended: Draining, tail: Option<Vec<u8>>) -> Outcome {
        let mut message = read_message(&ended.message_file);
        if message.is_empty() && ended.want_tail {
            message = tail.unwrap_or_default();
        }
        self.discard(ended.writable);
        let message = String::from_utf8_lossy(&message).into_owned();
        let exit = Exit { cause: ended.cause, oom: ended.oom, message, at: Some(ended.at) };
        Outcome::Exited(ended.container, ended.instance, exit)
    }

    /// Removes the writable layer of an instance, off the event loop: it may hold many files.
    fn discard(&self, folder: PathBuf) {
        self.helper.run(move || {
            // What is left goes with the job's folder.
            let _ = std::fs::remove_dir_all(folder);
        });
    }

    /// Sends a signal to a container's first process.
    pub fn signal(&mut self, container: ContainerIndex, instance: u32, number: i32) {
        if let Some(running) = self.running.get(&container).filter(|r| r.instance == instance) {
            // It may have ended by itself just now.
            let _ = signals::send(running.pidfd.as_fd(), number);
        }
    }

    /// SIGKILL to all of a container.
    pub fn kill(&mut self, container: ContainerIndex, instance: u32) {
        self.signal(container, instance, Signal::SIGKILL as i32);
        if let Some(running) = self.running.get(&container).filter(|r| r.instance == instance)
            && !matches!(running.pid_namespace, PidNamespace::Own)
            && let Some(ns) = running.mount_ns
        {
            let _ = signals::kill_all(ns);
        }
    }

    /// Kills a joined process's group, if it is still there.
    pub fn kill_joined(&mut self, leader: Pid) {
        if matches!(self.processes.get(&leader), Some(Owner::Joined(_))) {
            let _ = signals::kill_group(leader, Signal::SIGKILL);
        }
    }

    /// Abandons the probes and hooks of an instance.
    pub fn cancel(&mut self, container: ContainerIndex, instance: u32) {
        if let Some(running) = self.running.get_mut(&container).filter(|r| r.instance == instance) {
            for task in running.tasks.drain(..) {
                task.abort();
            }
        }
    }

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
    pub fn probe(&mut self, run: ProbeRun, probe: &Probe) {
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
    pub fn hook(&mut self, container: ContainerIndex, instance: u32, hook: Hook, handler: &Handler) {
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
    pub fn exec(
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
                stdio: match launched.io {
                    Io::Pipes { stdin, stdout, stderr } => Stdio::Pipes { stdin, stdout, stderr },
                    Io::Pty { master } => Stdio::Pty { master },
                },
                exit: joined.exit,
            });
            let _ = answer.send(session);
        });
    }

    /// The client of a session is gone.
    pub fn end_exec(&mut self, id: u64, tty: bool) {
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

    /// The stdio of a running container.
    ///
    /// # Errors
    /// When it does not run, or no descriptor is left.
    pub fn attach(&self, container: ContainerIndex, stdin: bool) -> Result<AttachSession, ControlError> {
        let not_running = || ControlError { code: ErrorCode::Conflict, message: "container is not running".to_owned() };
        let internal = |e: std::io::Error| ControlError { code: ErrorCode::Internal, message: e.to_string() };
        let running = self.running.get(&container).ok_or_else(not_running)?;
        let log = running.log.ok_or_else(not_running)?;
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let terminal = copy(&running.terminal).map_err(internal)?;
        let input = if running.terminal.is_some() { &running.terminal } else { &running.stdin };
        let input = if stdin { copy(input).map_err(internal)? } else { None };
        Ok(AttachSession { log, tty: terminal.is_some(), stdin: input, terminal, stdin_once: running.stdin_once })
    }

    /// The first attach has ended: a container with stdinOnce gets the end of its input.
    pub fn stdin_ended(&mut self, container: ContainerIndex) {
        if let Some(running) = self.running.get_mut(&container).filter(|r| r.stdin_once) {
            running.stdin = None;
        }
    }

    /// Where a container's log is.
    ///
    /// # Errors
    /// When there is none.
    pub fn log_source(
        &self,
        name: &str,
        previous: bool,
        last_instance: Option<u32>,
    ) -> Result<LogSource, ControlError> {
        let (current, live) = match self.last_logs.get(name) {
            Some(&(instance, log)) => (Some(instance), log),
            None => (last_instance, None),
        };
        let missing = |what: &str| ControlError {
            code: ErrorCode::NotFound,
            message: format!("{what} container {name:?} not found"),
        };
        let current = current.ok_or_else(|| missing("log of"))?;
        let dir = self.paths.logs(name);
        if !previous {
            return Ok(LogSource { dir, restart_count: current, live });
        }
        let before = current.checked_sub(1).ok_or_else(|| missing("previous terminated"))?;
        Ok(LogSource { dir, restart_count: before, live: None })
    }

    /// Resource use now, read from /proc.
    #[must_use]
    pub fn stats(&self, stored: &hpk_core::StorageUse, name: impl Fn(ContainerIndex) -> Option<String>) -> StatsSample {
        let mut sample = StatsSample::default();
        for (&container, running) in &self.running {
            let (Some(ns), Some(name)) = (running.mount_ns, name(container)) else { continue };
            let used = hpk_sys::procfs::usage(ns);
            let usage = Usage {
                cpu_nanos: used.cpu_ns,
                memory_bytes: used.working_set_bytes,
                rss_bytes: used.rss_bytes,
                processes: u64::from(used.processes),
            };
            sample.pod.cpu_nanos += usage.cpu_nanos;
            sample.pod.memory_bytes += usage.memory_bytes;
            sample.pod.rss_bytes += usage.rss_bytes;
            sample.pod.processes += usage.processes;
            let started_at = Some(running.started_at);
            let hpk_core::ContainerUse { rootfs, logs } = stored.containers.get(&name).copied().unwrap_or_default();
            sample.containers.push(ContainerStats { name, started_at, usage, rootfs_bytes: rootfs, log_bytes: logs });
        }
        sample.containers.sort_by(|a, b| a.name.cmp(&b.name));
        sample
    }

    /// Bytes of output that no log could take.
    #[must_use]
    pub fn log_bytes_lost(&self) -> u64 {
        self.log.counters().lost()
    }

    /// Number of the process of a running container (tests, diagnostics).
    #[must_use]
    pub fn pid(&self, container: ContainerIndex) -> Option<Pid> {
        self.running.get(&container).map(|r| r.pid)
    }
}

fn prepared_folder(prepared: &Prepared) -> PathBuf {
    match &prepared.spec.upper {
        hpk_sys::launch::Upper::Dir(dir) | hpk_sys::launch::Upper::Limited { dir, .. } => dir.clone(),
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

/// The last bytes of the termination message file; a container may have put anything there.
fn read_message(path: &Path) -> Vec<u8> {
    let mut message = Vec::new();
    let Ok(mut file) = File::open(path) else { return message };
    let length = file.metadata().map_or(0, |m| m.len());
    if length > MAX_MESSAGE && file.seek(SeekFrom::Start(length - MAX_MESSAGE)).is_err() {
        return message;
    }
    let _ = file.take(MAX_MESSAGE).read_to_end(&mut message);
    message
}
