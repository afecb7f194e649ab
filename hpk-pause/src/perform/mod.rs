//! Actions become effects here: processes are started, signalled, joined and reaped, their logs opened.
//!
//! Owns every process of the pod that the supervisor started, by id. Decides nothing: restarts, time-outs and
//! order are the core's. Never waits: what takes time reports by [`Happening`].
//!
//! `start`: a container to its command; `end`: signals, deaths and what is kept of them; `joined`: probes, hooks and
//! sessions; `answers`: what control clients ask for; `launcher`: who makes the containers; `step`: MPI steps.

mod answers;
mod end;
mod joined;
mod launcher;
mod start;
mod step;

use crate::crossing::Reach;
use crate::helper::Helper;
use crate::memory::{Members, Memory};
use crate::network::Network;
use crate::paths::Paths;
use crate::probe::ProbeContext;
use crate::spec::{Prepared, Specs, Users};
use hpk_api::plan::{ContainerPlan, SandboxPlan};
use hpk_api::probe::ProbeKind;
use hpk_api::state::ContainerUser;
use hpk_api::step::StepNews;
use hpk_core::{ContainerIndex, Exit, ExitCause, Hook, HookFailure, LaunchFailure, MemoryFinding, ProbeOutcome};
use hpk_log::{LogEvent, LogHandle, LogId};
use hpk_sys::join::Joiner;
use hpk_sys::launch::{LaunchError, Launched, Launcher, PidNamespace, Security};
use hpk_sys::signals::MountNs;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Reported to the driver's loop by tasks and threads.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A container's command is executed, or it failed.
    Started {
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
    /// From the ranks of a step.
    Step(ContainerIndex, u32, StepNews),
    /// Network, volumes and the images' users, or why not.
    Sandbox(Result<Box<(Network, Users, Reach)>, String>),
}

/// One try of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeRun {
    pub container: ContainerIndex,
    pub instance: u32,
    pub kind: ProbeKind,
    /// From 1.
    pub attempt: usize,
}

/// What the core is to be told after an effect.
#[derive(Debug)]
pub(crate) enum Outcome {
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
    /// Of a step's container.
    keeper: Option<OwnedFd>,
}

struct Running {
    name: String,
    instance: u32,
    pidfd: OwnedFd,
    log: Option<LogId>,
    /// Writing end of its standard input, or its terminal.
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// None: it was gone before anybody looked.
    mount_ns: Option<MountNs>,
    /// Where Apptainer stands between: the namespace of Apptainer and its FUSE helpers.
    apptainer_ns: Option<MountNs>,
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    security: Security,
    identity: Option<(u32, u32)>,
    oom_score_adj: Option<i32>,
    pid_namespace: PidNamespace,
    stdin_once: bool,
    want_tail: bool,
    message_file: PathBuf,
    writable: PathBuf,
    started_at: jiff::Timestamp,
    tasks: Vec<AbortHandle>,
    /// The supervisor has sent SIGKILL.
    killed: bool,
    /// All of it was killed, since one of its processes was for memory.
    out_of_memory: bool,
    /// It is an MPI step: the process is the container's keeper, and its end is the step's to tell.
    step: Option<step::Step>,
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
    /// How a step ended, in place of the cause.
    step: Option<step::StepEnd>,
}

/// Performs the core's actions.
pub(crate) struct Performer {
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
    memory: Memory,
    /// A container of which a process was killed for memory ends as a whole.
    whole: bool,
    probes: ProbeContext,
    sessions: u64,
    exec_pids: HashMap<u64, Pid>,
}

impl Performer {
    /// Looks at the node once.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn new(
        paths: Paths,
        plan: &SandboxPlan,
        log: LogHandle,
        helper: Helper,
        happenings: mpsc::UnboundedSender<Happening>,
        kills: mpsc::UnboundedSender<Pid>,
    ) -> Result<Self, LaunchError> {
        Ok(Self {
            specs: Specs::new(paths.clone()),
            launcher: launcher::choose(plan.settings.launcher, crate::keep::own(plan), &paths)?,
            joiner: Joiner::new()?,
            paths,
            log,
            helper,
            happenings,
            kills,
            processes: HashMap::new(),
            running: HashMap::new(),
            draining: HashMap::new(),
            undrained: Vec::new(),
            last_logs: HashMap::new(),
            memory: Memory::find(),
            whole: !plan.settings.single_process_oom_kill,
            probes: ProbeContext { pod_ip: [127, 0, 0, 1].into(), kube_version: plan.settings.kube_version.clone() },
            sessions: 0,
            exec_pids: HashMap::new(),
        })
    }

    /// Waits until the job's memory is to be looked at. True: the kernel has said something.
    pub(crate) async fn memory_word(&self) -> bool {
        self.memory.word().await
    }

    /// The job's limit of memory, bytes.
    #[must_use]
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        self.memory.limit()
    }

    /// Looks at the job's memory. Containers that have lost a process to it are killed as a whole.
    pub(crate) fn look_at_memory(&mut self, word: bool) -> Vec<MemoryFinding> {
        let members = self.members();
        let findings = self.memory.look(word, &members);
        self.end_whole(&findings);
        findings
    }

    /// As [`Performer::look_at_memory`], what came to light by the end of a container.
    pub(crate) fn found_of_memory(&mut self) -> Vec<MemoryFinding> {
        let findings = self.memory.found();
        self.end_whole(&findings);
        findings
    }

    fn end_whole(&mut self, findings: &[MemoryFinding]) {
        if !self.whole {
            return;
        }
        for finding in findings {
            if let MemoryFinding::Killed(Some(container)) = *finding
                && let Some(running) = self.running.get_mut(&container)
            {
                running.out_of_memory = true;
                let instance = running.instance;
                self.kill(container, instance);
            }
        }
    }

    fn members(&self) -> Members {
        self.running.iter().filter_map(|(&container, running)| Some((running.mount_ns?, container))).collect()
    }

    /// The pod's addresses and users are known.
    pub(crate) fn sandbox_made(&mut self, ips: &[std::net::IpAddr], users: Users, reach: Reach) {
        self.specs.sandbox_made(ips.to_vec(), users, reach);
        if let Some(&first) = ips.first() {
            self.probes.pod_ip = first;
        }
    }
}
