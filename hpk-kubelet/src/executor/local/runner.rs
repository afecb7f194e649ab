//! The one owner of all runs of this machine: a thread that has their records, gives each its turn, and sees its end.
//!
//! ```text
//!  submit ─▶ waits ──turn──▶ record says so ─▶ its first process ─▶ process.json … end.json ─▶ over ─▶ forgotten
//!              └─ cancel ─▶ over                 └─ cancel: TERM, which it follows by KILL itself
//! ```
//! Everything is on disk before it is done, so a kubelet that is killed at any moment finds its runs again: those that wait
//! keep their places, and a run that was about to begin is begun once more, of which one process at most goes on
//! ([`hpk_api::local`]).

use super::cgroup::{self, Cgroups};
use super::machine::Machine;
use super::needs::Needs;
use super::processes;
use super::queue::{self, Size, Wait};
use super::record::{Record, Runs};
use crate::executor::environment::inherited;
use crate::executor::run::{Run, RunPhase};
use crate::executor::words::Kind;
use hpk_api::local::{End, KILL_WAIT, RUN, RUN_ID};
use hpk_layout::Home;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

/// Seconds from TERM to KILL.
pub(crate) const KILL_WAIT_SECONDS: u32 = 30;
/// How much later a run that did not follow is ended from outside.
const PATIENCE: i64 = KILL_WAIT_SECONDS as i64 + 10;
/// A run that is over is remembered for this long, unless its pod's folder is gone before.
const MEMORY: i64 = 300;
/// Exit code that stands for one that nobody saw.
const KILLED: i32 = 137;
/// Exit code of a run that was ended while it waited.
const TERMINATED: i32 = 143;

/// What the thread is told.
pub(crate) enum Message {
    Submit {
        pod: String,
        asked: Vec<String>,
        script: PathBuf,
        reply: oneshot::Sender<Result<u64, Refused>>,
    },
    Query {
        ids: Option<Vec<String>>,
        reply: oneshot::Sender<Vec<Run>>,
    },
    Cancel {
        id: String,
    },
    Terminate {
        id: String,
    },
    Machine(Machine),
    /// A first process has ended, with this code if it was seen.
    Ended {
        id: u64,
        code: Option<i32>,
    },
}

/// A run that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the pod asks for more than this machine has: {0}; lower its requests")]
    TooLarge(String),
    #[error("the local executor does not know the request {0:?}")]
    Words(String),
    #[error("the run cannot be written down in HPK_HOME/runs")]
    Io(#[from] io::Error),
    #[error("the local executor has ended")]
    Gone,
}

struct Entry {
    record: Record,
    state: State,
    /// Of the process that this kubelet started.
    pid: Option<i32>,
}

enum State {
    Waiting(Option<Wait>),
    Running,
    Over { phase: RunPhase, end: End },
}

/// The thread's state.
pub(crate) struct Runner {
    runs: Runs,
    machine: Machine,
    cgroups: Cgroups,
    host: String,
    boot: String,
    /// Soft limit of open files for runs, where it is not our own.
    open_files: Option<u64>,
    entries: BTreeMap<u64, Entry>,
    tell: mpsc::UnboundedSender<Message>,
    news: watch::Sender<u64>,
    runtime: Handle,
}

impl Runner {
    /// Finds the runs of earlier kubelets. To be called in the runtime.
    ///
    /// # Errors
    /// It cannot be told which runs there are.
    pub(crate) fn new(
        home: &Home,
        machine: Machine,
        cgroups: Cgroups,
        open_files: Option<u64>,
        tell: mpsc::UnboundedSender<Message>,
        news: watch::Sender<u64>,
    ) -> io::Result<Self> {
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        let mut runner = Self {
            runs: Runs::open(home)?,
            machine,
            cgroups,
            host,
            boot: processes::boot(),
            open_files,
            entries: BTreeMap::new(),
            tell,
            news,
            runtime: Handle::current(),
        };
        for (id, record) in runner.runs.all()? {
            match record {
                Some(record) => runner.find(id, record),
                // Its submission came to nothing, and nobody was told its id.
                None => runner.forget(id),
            }
        }
        Ok(runner)
    }

    /// Until nobody can tell it anything more. Runs go on.
    pub(crate) fn work(mut self, mut told: mpsc::UnboundedReceiver<Message>) {
        self.give_turns();
        while let Some(message) = told.blocking_recv() {
            match message {
                Message::Submit { pod, asked, script, reply } => {
                    let _ = reply.send(self.submit(pod, asked, script));
                }
                Message::Query { ids, reply } => {
                    let _ = reply.send(self.query(ids.as_deref()));
                }
                Message::Cancel { id } => self.cancel(&id),
                Message::Terminate { id } => self.signal(&id, Signal::SIGUSR1),
                Message::Machine(machine) => self.machine = machine,
                Message::Ended { id, code } => self.ended(id, code),
            }
            self.prune();
            self.give_turns();
        }
    }

    /// Takes up a run of an earlier kubelet.
    fn find(&mut self, id: u64, mut record: Record) {
        let state = match (self.runs.end(id), record.started_at, self.runs.process(id)) {
            (Some(end), ..) => State::Over { phase: phase(&record, &end, false), end },
            (None, None, _) => State::Waiting(None),
            // Its process may never have been started. If it was, it goes on, and one that is started beside it ends at once.
            (None, Some(_), None) => {
                record.started_at = None;
                State::Waiting(None)
            }
            (None, Some(_), Some(_)) => State::Running,
        };
        let running = matches!(state, State::Running);
        self.entries.insert(id, Entry { record, state, pid: None });
        if running && !self.follow(id) {
            self.ended(id, None);
        }
    }

    fn submit(&mut self, pod: String, asked: Vec<String>, script: PathBuf) -> Result<u64, Refused> {
        // One pod, one run: whoever asks again is told of the first.
        let lives = |e: &Entry| e.record.pod == pod && !matches!(e.state, State::Over { .. });
        if let Some((id, _)) = self.entries.iter().find(|(_, entry)| lives(entry)) {
            return Ok(*id);
        }
        let needs = Needs::parse(&asked).ok_or_else(|| Refused::Words(asked.join(" ")))?;
        let all = self.machine.size();
        if !all.holds(&needs.size) {
            return Err(Refused::TooLarge(all.lacks(&needs.size)));
        }
        let record =
            Record { pod, script, asked, started_at: None, gpus: Vec::new(), cgroup: None, cancelled_at: None };
        let id = self.runs.next_id()?;
        if let Err(error) = self.runs.write(id, &record) {
            self.forget(id);
            return Err(error.into());
        }
        self.entries.insert(id, Entry { record, state: State::Waiting(None), pid: None });
        Ok(id)
    }

    /// Begins what fits.
    fn give_turns(&mut self) {
        let running: Vec<Size> =
            self.entries.values().filter(|e| matches!(e.state, State::Running)).map(|e| e.record.size()).collect();
        let waiting: Vec<(u64, Size)> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.state, State::Waiting(_)))
            .map(|(id, e)| (*id, e.record.size()))
            .collect();
        let turns = queue::turns(&self.machine.size(), &running, &waiting);
        let mut changed = !turns.begin.is_empty();
        for id in turns.begin {
            self.begin(id);
        }
        for (id, why) in turns.wait {
            if let Some(State::Waiting(told)) = self.entries.get_mut(&id).map(|e| &mut e.state)
                && told.as_ref() != Some(&why)
            {
                *told = Some(why);
                changed = true;
            }
        }
        if changed {
            self.news.send_modify(|n| *n += 1);
        }
    }

    fn begin(&mut self, id: u64) {
        let used: Vec<String> = self
            .entries
            .values()
            .filter(|e| matches!(e.state, State::Running))
            .flat_map(|e| e.record.gpus.iter().cloned())
            .collect();
        let free = self.machine.gpus.ids.iter().filter(|gpu| !used.contains(gpu)).cloned();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let needs = Needs::parse(&entry.record.asked).unwrap_or_default();
        entry.record.gpus = free.take(usize::try_from(needs.size.gpus).unwrap_or(usize::MAX)).collect();
        entry.record.started_at = Some(Timestamp::now());
        let begun = self.start(id, needs);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match begun {
            Ok(pid) => {
                entry.pid = pid;
                entry.state = State::Running;
            }
            Err(error) => {
                tracing::warn!(run = id, %error, "the run cannot be begun");
                self.over(id, End { code: 127, at: Timestamp::now(), cancelled: false });
            }
        }
    }

    /// Starts a run's first process, which its record tells first.
    fn start(&mut self, id: u64, needs: Needs) -> io::Result<Option<i32>> {
        let Some(entry) = self.entries.get_mut(&id) else { return Err(io::ErrorKind::NotFound.into()) };
        let pod = entry.record.pod.clone();
        entry.record.cgroup = self.cgroups.make(&pod, needs.size.milli_cpu, needs.limits)?;
        self.runs.write(id, &entry.record)?;
        let folder = entry.record.pod_folder();
        let output = || {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(folder.join(hpk_layout::pod::JOB_OUTPUT))
        };
        // Enters the cgroup and takes back the limit of open files before anything of the pod's runs.
        let words = "[ -z \"$1\" ] || echo $$ > \"$1/cgroup.procs\" || exit 1; [ -z \"$2\" ] || ulimit -Sn \"$2\"; shift 2; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", words, "hpk-run"]);
        command.arg(entry.record.cgroup.as_deref().unwrap_or(Path::new("")));
        command.arg(self.open_files.map(|n| n.to_string()).unwrap_or_default());
        command.args(self.cgroups.prefix(&pod, needs.size.milli_cpu, needs.limits));
        command.arg("sh").arg(&entry.record.script);
        command
            .current_dir(folder)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(keep)))
            .env(RUN, self.runs.folder(id))
            .env(RUN_ID, id.to_string())
            .env(KILL_WAIT, KILL_WAIT_SECONDS.to_string())
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .kill_on_drop(false);
        if !entry.record.gpus.is_empty() {
            command.env(self.machine.gpus.variable, entry.record.gpus.join(","));
        }
        let _runtime = self.runtime.enter();
        let mut child = command.spawn()?;
        let pid = child.id().map(u32::cast_signed);
        let tell = self.tell.clone();
        self.runtime.spawn(async move {
            let code = child.wait().await.ok().and_then(|status| {
                use std::os::unix::process::ExitStatusExt;
                status.code().or_else(|| status.signal().map(|signal| 128 + signal))
            });
            let _ = tell.send(Message::Ended { id, code });
        });
        Ok(pid)
    }

    /// Waits for the end of a run's first process, which is no child of ours. False: it has ended.
    fn follow(&mut self, id: u64) -> bool {
        let Some(process) = self.runs.process(id) else { return false };
        let Some(fd) = processes::open(&process, &self.boot) else { return false };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pid = Some(process.pid);
        }
        let tell = self.tell.clone();
        // It sleeps until then. A machine has few of them, and only after a restart of the kubelet.
        let waiter = move || {
            processes::wait(&fd);
            let _ = tell.send(Message::Ended { id, code: None });
        };
        if let Err(error) = std::thread::Builder::new().stack_size(64 << 10).spawn(waiter) {
            tracing::error!(run = id, %error, "the end of a run cannot be waited for");
        }
        true
    }

    fn ended(&mut self, id: u64, code: Option<i32>) {
        if !self.entries.get(&id).is_some_and(|e| matches!(e.state, State::Running)) {
            return;
        }
        if let Some(end) = self.runs.end(id) {
            self.over(id, end);
            return;
        }
        // What ended was the second process of two: the first has the run.
        if self.follow(id) {
            // It may have been cancelled meanwhile, which only the second one has heard.
            if let Some(entry) = self.entries.get(&id).filter(|e| e.record.cancelled_at.is_some())
                && let Some(pid) = entry.pid
            {
                processes::signal(pid, Signal::SIGTERM);
            }
            return;
        }
        // It was killed: nobody has cleared up after it.
        processes::end_all(&self.runs.folder(id));
        let end = End { code: code.unwrap_or(KILLED), at: Timestamp::now(), cancelled: false };
        self.over(id, end);
    }

    fn over(&mut self, id: u64, end: End) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let ran_out = entry.record.cgroup.as_deref().is_some_and(cgroup::ran_out);
        if let Some(folder) = &entry.record.cgroup {
            cgroup::end(folder);
        }
        if let Err(error) = self.runs.write_end(id, &end) {
            tracing::warn!(run = id, %error, "the run's end is not written down");
        }
        entry.state = State::Over { phase: phase(&entry.record, &end, ran_out), end };
        self.news.send_modify(|n| *n += 1);
    }

    fn cancel(&mut self, id: &str) {
        let Some((id, entry)) = id.parse().ok().and_then(|id: u64| Some((id, self.entries.get_mut(&id)?))) else {
            return;
        };
        let now = Timestamp::now();
        let before = entry.record.cancelled_at;
        match entry.state {
            State::Over { .. } => {}
            State::Waiting(_) => self.over(id, End { code: TERMINATED, at: now, cancelled: true }),
            State::Running => {
                entry.record.cancelled_at = Some(before.unwrap_or(now));
                if before.is_none()
                    && let Err(error) = self.runs.write(id, &entry.record)
                {
                    tracing::warn!(run = id, %error, "it is not written down that the run is cancelled");
                }
                let late = before.is_some_and(|at| now.as_second() - at.as_second() > PATIENCE);
                let pid = entry.pid;
                if late {
                    tracing::warn!(run = id, "the run does not end by itself: it is killed");
                    processes::end_all(&self.runs.folder(id));
                } else if let Some(pid) = pid {
                    processes::signal(pid, Signal::SIGTERM);
                }
            }
        }
    }

    fn signal(&self, id: &str, signal: Signal) {
        let entry = id.parse().ok().and_then(|id: u64| self.entries.get(&id));
        // Before it has written its name down it is a shell, which such a signal would kill.
        let begun = || id.parse().ok().is_some_and(|id| self.runs.process(id).is_some());
        if let Some(pid) = entry.filter(|e| matches!(e.state, State::Running)).and_then(|e| e.pid)
            && begun()
        {
            processes::signal(pid, signal);
        }
    }

    fn query(&self, ids: Option<&[String]>) -> Vec<Run> {
        let wanted = |id: &u64| ids.is_none_or(|ids| ids.contains(&id.to_string()));
        self.entries.iter().filter(|(id, _)| wanted(id)).map(|(id, entry)| self.run(*id, entry)).collect()
    }

    fn run(&self, id: u64, entry: &Entry) -> Run {
        let record = &entry.record;
        let (phase, reason, why, end) = match &entry.state {
            State::Waiting(Some(wait)) => (RunPhase::Pending, wait.reason(), wait.text(), None),
            State::Waiting(None) => (RunPhase::Pending, "", String::new(), None),
            State::Running => (RunPhase::Running, "", String::new(), None),
            State::Over { phase, end } => (*phase, "", String::new(), Some(end)),
        };
        Run {
            pod: record.pod.clone(),
            folder: record.pod_folder().display().to_string(),
            phase,
            reason: reason.to_owned(),
            why,
            nodes: if record.started_at.is_some() { self.host.clone() } else { String::new() },
            exit_code: end.map(|end| end.code),
            started_at: record.started_at.filter(|_| phase != RunPhase::Pending),
            ended_at: end.map(|end| end.at),
            kind: Kind::Local,
            ..Run::lost(&id.to_string(), "")
        }
    }

    /// Forgets runs that are over and that nobody will ask about.
    fn prune(&mut self) {
        let now = Timestamp::now().as_second();
        let old = |entry: &Entry| match &entry.state {
            State::Over { end, .. } => now - end.at.as_second() > MEMORY || !entry.record.pod_folder().exists(),
            _ => false,
        };
        let gone: Vec<u64> = self.entries.iter().filter(|(_, entry)| old(entry)).map(|(id, _)| *id).collect();
        for id in gone {
            self.entries.remove(&id);
            self.forget(id);
        }
    }

    fn forget(&self, id: u64) {
        if let Err(error) = self.runs.remove(id)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(run = id, %error, "the run's folder is not removed");
        }
    }
}

/// How a run that is over counts.
fn phase(record: &Record, end: &End, ran_out: bool) -> RunPhase {
    if end.cancelled || record.cancelled_at.is_some() {
        RunPhase::Cancelled
    } else if end.code == 0 {
        RunPhase::Completed
    } else if ran_out && end.code == KILLED {
        RunPhase::OutOfMemory
    } else {
        RunPhase::Failed
    }
}

/// Whether a run inherits this variable: also what leads to systemd's session. An allocation's own would mislead programs that
/// look for Slurm.
fn keep(name: &str) -> bool {
    inherited(name) || matches!(name, "XDG_RUNTIME_DIR" | "DBUS_SESSION_BUS_ADDRESS")
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
