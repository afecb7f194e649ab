//! MPI steps: a container whose processes are started by srun, on all nodes of the job.
//!
//! ```text
//!   Start ─▶ container with a keeper ─▶ StepStart to hpk-netns ─▶ srun ─▶ ranks, which join the container
//!                                       ◀─ news of the ranks ─▶ Gang (hpk-core) ─▶ Launched, Failed, Exited
//! ```
//! The container on this node is like any other: probes, hooks and sessions join it. It ends with the step: then the keeper
//! is killed, and what is left of it is reaped and drained as any container's.

use super::{Happening, Outcome, Performer, Running};
use hpk_api::control::{ControlError, ErrorCode, Usage};
use hpk_api::net::NetnsRequest;
use hpk_api::plan::ContainerPlan;
use hpk_api::state::ContainerUser;
use hpk_api::step::{Rank, StepFile, StepNews, StepOrder, StepStart};
use hpk_core::{ContainerIndex, Exit, ExitCause, Gang, GangChange, LaunchFailure};
use hpk_log::Source;
use hpk_sys::signals;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// The step of a running container.
#[derive(Debug)]
pub(super) struct Step {
    gang: Gang,
    orders: mpsc::UnboundedSender<StepOrder>,
    /// All ranks run, and the core knows it.
    started: bool,
    user: ContainerUser,
    /// What the container's end is to be told as.
    pub(super) end: Option<StepEnd>,
    /// It was told to end before it ran.
    given_up: bool,
    /// The keeper has ended before the step.
    orphaned: bool,
    measured: Measured,
    /// The keeper lives for as long as this is open.
    _keeper: OwnedFd,
}

/// What the nodes of a step use, as they told last.
#[derive(Debug, Default)]
struct Measured {
    nodes: BTreeMap<String, Usage>,
    /// Asked, and not yet answered.
    awaited: BTreeSet<String>,
    /// Who waits for them. It is told when the last of them lets it go.
    waiting: Vec<Arc<oneshot::Sender<()>>>,
}

/// How a step ended.
#[derive(Clone, Debug)]
pub(super) enum StepEnd {
    Failed(LaunchFailure),
    Exited(Exit),
}

/// What a step's ranks are started from.
pub(super) struct Beginning {
    pub(super) file: StepFile,
    pub(super) user: ContainerUser,
    pub(super) keeper: OwnedFd,
}

impl Performer {
    /// The keeper's standard input: its reading end goes to the container.
    pub(super) fn keeper_input(&self) -> Result<(OwnedFd, OwnedFd), LaunchFailure> {
        if !self.launcher.makes_keepers() {
            return Err(LaunchFailure::Create(
                "an MPI step needs containers that HPK makes itself, for which this node's kernel is too old (before 5.11) or \
                 which the pod's annotation has switched off; its containers are made by Apptainer"
                    .to_owned(),
            ));
        }
        pipe().map_err(|error| LaunchFailure::Create(format!("a pipe for the container's keeper: {error}")))
    }

    /// The container stands: asks hpk-netns to start the ranks. Gives the reading ends of their output.
    pub(super) fn begin_step(
        &mut self,
        container: ContainerIndex,
        instance: u32,
        plan: &ContainerPlan,
        keeper_pidfd: &OwnedFd,
        beginning: Beginning,
    ) -> io::Result<(Step, Source)> {
        let ((stdout, childs_out), (stderr, childs_err)) = (pipe()?, pipe()?);
        let fds = vec![keeper_pidfd.try_clone()?, childs_out, childs_err];
        let flags = plan.step.as_ref().map(|step| step.flags.clone()).unwrap_or_default();
        let start = StepStart { container: plan.name.clone(), instance, flags };
        let (orders, given) = mpsc::unbounded_channel();
        let (path, file) = (self.paths.step_file(instance), beginning.file);
        let (written, wrote) = oneshot::channel();
        // On the shared file system: the event loop does not wait for it.
        self.helper.run(move || {
            let result = crate::ranks::write(&path, &file);
            let _ = written.send(result.map_err(|error| format!("{}: {error}", path.display())));
        });
        let (socket, happenings) = (self.paths.netns(), self.happenings.clone());
        tokio::spawn(async move {
            let tell = |news| drop(happenings.send(Happening::Step(container, instance, news)));
            let ready = wrote.await.unwrap_or_else(|_| Err("the helper thread has ended".to_owned()));
            let words = match ready {
                Ok(()) => converse(&socket, start, fds, given, tell).await,
                Err(words) => words,
            };
            // The gang hears nothing after the end that it was told.
            tell(StepNews::Ended { code: 1, words });
        });
        let step = Step {
            gang: Gang::default(),
            orders,
            started: false,
            user: beginning.user,
            end: None,
            given_up: false,
            orphaned: false,
            measured: Measured::default(),
            _keeper: beginning.keeper,
        };
        Ok((step, Source::Pipes { stdout, stderr }))
    }

    /// News of a step.
    pub(crate) fn step_news(&mut self, container: ContainerIndex, instance: u32, news: StepNews) -> Option<Outcome> {
        let running = self.running.get_mut(&container).filter(|running| running.instance == instance)?;
        let step = running.step.as_mut()?;
        if let StepNews::Used { of, usage } = news {
            step.measured.heard(of.node, usage);
            return None;
        }
        let mut outcome = None;
        for change in step.gang.heard(news) {
            match change {
                GangChange::Started => {
                    step.started = true;
                    outcome = Some(Outcome::Launched(container, instance, step.user.clone()));
                }
                GangChange::Failed(failure) => step.end = Some(StepEnd::Failed(failure)),
                GangChange::Exited(exit) => step.end = Some(StepEnd::Exited(exit)),
            }
        }
        if step.end.is_some() {
            if step.orphaned {
                self.container_ended(container, ExitCause::Signal(Signal::SIGKILL as i32));
            } else {
                // Its end ends what is left of the container.
                running.killed = true;
                let _ = signals::send(running.pidfd.as_fd(), Signal::SIGKILL as i32);
            }
        }
        outcome
    }

    /// Where a rank of a step runs; None: the container is no running step.
    ///
    /// # Errors
    /// The step has no such rank, or not yet.
    pub(crate) fn rank(&self, container: ContainerIndex, rank: u32) -> Result<Option<(u32, Rank)>, ControlError> {
        let Some(running) = self.running.get(&container) else { return Ok(None) };
        let Some(step) = &running.step else { return Ok(None) };
        if let Some(place) = step.gang.place(rank) {
            return Ok(Some((running.instance, place)));
        }
        let ranks = step.gang.ranks();
        Err(if rank < ranks || ranks == 0 {
            let message = format!("rank {rank} of container {:?} has not started", running.name);
            ControlError { code: ErrorCode::Conflict, message }
        } else {
            let message = format!("container {:?} has the ranks 0 to {}, not {rank}", running.name, ranks - 1);
            ControlError { code: ErrorCode::NotFound, message }
        })
    }

    /// Asks the nodes of all steps what they use; `done` goes when all have answered. What is on this node alone needs not
    /// be asked.
    pub(crate) fn measure_steps(&mut self, done: oneshot::Sender<()>) {
        let done = Arc::new(done);
        for step in self.running.values_mut().filter_map(|running| running.step.as_mut()) {
            let nodes = step.gang.nodes();
            if step.started && step.end.is_none() && nodes.len() > 1 {
                step.measured.awaited = nodes.into_iter().map(str::to_owned).collect();
                step.measured.waiting.push(Arc::clone(&done));
                // It may be over.
                let _ = step.orders.send(StepOrder::Usage);
            }
        }
    }

    /// The pod is to end: a step that is not yet running would not be asked to.
    pub(crate) fn give_up_forming(&mut self) {
        let steps = self.running.values_mut().filter_map(|running| running.step.as_mut());
        for step in steps.filter(|step| !step.started) {
            if !std::mem::replace(&mut step.given_up, true) {
                step.order(Signal::SIGKILL as i32);
            }
        }
    }
}

impl Step {
    pub(super) fn order(&self, signal: i32) {
        // It may be over.
        let _ = self.orders.send(StepOrder::Signal(signal));
    }

    /// What all of its nodes use, where it has several and they have told.
    pub(super) fn used(&self) -> Option<Usage> {
        self.measured.sum()
    }

    /// The keeper has ended. True: and so has the step.
    pub(super) fn keeper_ended(&mut self) -> bool {
        if self.end.is_none() {
            self.orphaned = true;
            self.order(Signal::SIGKILL as i32);
        }
        self.end.is_some()
    }
}

impl Measured {
    fn heard(&mut self, node: String, usage: Usage) {
        self.awaited.remove(&node);
        self.nodes.insert(node, usage);
        if self.awaited.is_empty() {
            self.waiting.clear();
        }
    }

    fn sum(&self) -> Option<Usage> {
        let add = |a: Usage, b: &Usage| Usage {
            cpu_nanos: a.cpu_nanos + b.cpu_nanos,
            memory_bytes: a.memory_bytes + b.memory_bytes,
            rss_bytes: a.rss_bytes + b.rss_bytes,
            processes: a.processes + b.processes,
        };
        (!self.nodes.is_empty()).then(|| self.nodes.values().fold(Usage::default(), add))
    }
}

impl Running {
    /// A signal for the container's own process, or for all ranks.
    pub(super) fn send(&self, number: i32) {
        match &self.step {
            Some(step) => step.order(number),
            // It may have ended by itself just now.
            None => drop(signals::send(self.pidfd.as_fd(), number)),
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// From the request to the step's end; why there will be no more news.
async fn converse(
    socket: &Path,
    start: StepStart,
    fds: Vec<OwnedFd>,
    mut orders: mpsc::UnboundedReceiver<StepOrder>,
    tell: impl Fn(StepNews),
) -> String {
    let stream = match ask(socket, start, fds).await {
        Ok(stream) => stream,
        Err(error) => return format!("hpk-netns does not answer on {}: {error}", socket.display()),
    };
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(news) => tell(news),
                    Err(error) => return format!("hpk-netns speaks another version of HPK: {error}"),
                },
                Ok(None) | Err(_) => return "hpk-netns has ended".to_owned(),
            },
            Some(order) = orders.recv() => {
                let mut line = serde_json::to_vec(&order).unwrap_or_default();
                line.push(b'\n');
                // Its end is seen above.
                let _ = write.write_all(&line).await;
            }
        }
    }
}

async fn ask(socket: &Path, start: StepStart, fds: Vec<OwnedFd>) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(&NetnsRequest::Step(Box::new(start)))?;
    line.push(b'\n');
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let sent = stream
        .async_io(tokio::io::Interest::WRITABLE, || {
            hpk_sys::fdpass::send(&stream, &line, &borrowed).map_err(io::Error::from)
        })
        .await?;
    if sent == line.len() { Ok(stream) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_added_up_as_they_told_last() {
        let usage = |n| Usage { cpu_nanos: n, memory_bytes: 10 * n, rss_bytes: 20 * n, processes: 1 };
        let mut measured = Measured::default();
        assert_eq!(measured.sum(), None);
        let (done, mut waiting) = oneshot::channel();
        measured.awaited = ["c1".to_owned(), "c2".to_owned()].into();
        measured.waiting.push(Arc::new(done));
        measured.heard("c1".to_owned(), usage(1));
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        measured.heard("c2".to_owned(), usage(2));
        assert_eq!(waiting.try_recv(), Err(oneshot::error::TryRecvError::Closed), "all have answered");
        measured.heard("c2".to_owned(), usage(5));
        let want = Usage { cpu_nanos: 6, memory_bytes: 60, rss_bytes: 120, processes: 2 };
        assert_eq!(measured.sum(), Some(want));
    }
}
