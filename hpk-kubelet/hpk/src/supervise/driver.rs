//! The one task that owns the supervisor's state: takes events in, performs the core's actions, tells
//! watchers. One thread: the children's parent-death signal is bound to the thread that started them.

use super::control::{self, ComponentStatus, ControlError, Phase, Request, Snapshot};
use super::core::{Action, Core, Event, Id, Spec, State};
use super::lease::{self, Lost};
use super::{ask, process};
use crate::components::{Component, Kind};
use hpk_layout::Home;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// SIGHUP: somebody does not find the socket. Listened to before the lock is taken, for it would end the process.
pub(crate) type Hangup = tokio::signal::unix::Signal;

/// What other tasks tell the owner.
enum Note {
    Served(Id),
    NotYet(Id, String),
    Ended(Id, std::io::Result<ExitStatus>),
    Stop(&'static str),
    Listen,
}

pub(crate) struct Supervisor {
    components: Vec<Component>,
    core: Core,
    begin: Instant,
    hpk: PathBuf,
    home: Home,
    host: String,
    started: String,
    pids: Vec<Option<u32>>,
    messages: Vec<String>,
    asking: Vec<Option<tokio::task::AbortHandle>>,
    notes: mpsc::Sender<Note>,
    inbox: mpsc::Receiver<Note>,
    snapshots: watch::Sender<Snapshot>,
}

impl Supervisor {
    /// Nothing runs yet.
    #[must_use]
    pub(crate) fn new(components: Vec<Component>, home: Home, hpk: PathBuf, host: String) -> Self {
        let index = |name: &str| components.iter().position(|c| c.name == name);
        let specs = components
            .iter()
            .map(|c| Spec {
                needs: c.needs.iter().filter_map(|n| index(n)).collect(),
                once: c.kind == Kind::Once,
                grace: c.grace,
            })
            .collect();
        let n = components.len();
        let (notes, inbox) = mpsc::channel(64);
        let started = jiff::Timestamp::now().to_string();
        let empty = Snapshot {
            pid: std::process::id(),
            host: host.clone(),
            started: started.clone(),
            stopping: false,
            ready: false,
            components: vec![],
        };
        Self {
            components,
            core: Core::new(specs),
            begin: Instant::now(),
            hpk,
            home,
            host,
            started,
            pids: vec![None; n],
            messages: vec![String::new(); n],
            asking: (0..n).map(|_| None).collect(),
            notes,
            inbox,
            snapshots: watch::Sender::new(empty),
        }
    }

    /// Runs until everything has stopped. Not None: since the lease was lost.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub(crate) async fn run(
        mut self,
        listener: UnixListener,
        mut hangup: Hangup,
        lease: lease::Shared,
    ) -> Result<Option<Lost>, ControlError> {
        let notes = self.notes.clone();
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                if notes.send(Note::Listen).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(serve(listener, self.snapshots.subscribe(), self.notes.clone()));
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut stream, notes) = (signal(kind)?, self.notes.clone());
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if notes.send(Note::Stop("signal")).await.is_err() {
                        return;
                    }
                }
            });
        }
        let holding = lease::hold(lease);
        tokio::pin!(holding);
        let mut lost = None;
        let mut event = Some(Event::Tick);
        loop {
            if let Some(event) = event {
                let actions = self.core.step(self.begin.elapsed(), event);
                for action in actions {
                    if action == Action::Finish {
                        self.tell();
                        say("everything has stopped");
                        return Ok(lost);
                    }
                    self.perform(action);
                }
            }
            self.tell();
            let wake = self.core.deadline().map(|d| tokio::time::Instant::from_std(self.begin + d));
            event = tokio::select! {
                note = self.inbox.recv() => note.and_then(|n| self.take(n)),
                why = &mut holding, if lost.is_none() => {
                    say(&format!("everything is killed: {why:?}"));
                    self.kill_all();
                    lost = Some(why);
                    Some(Event::Stop)
                }
                () = sleep_until(wake) => Some(Event::Tick),
            };
        }
    }

    fn take(&mut self, note: Note) -> Option<Event> {
        match note {
            Note::Served(id) => {
                if let State::Starting = self.core.state(id) {
                    say(&format!("{} serves", self.components[id].name));
                    self.messages[id].clear();
                }
                Some(Event::Served(id))
            }
            Note::NotYet(id, message) => {
                if let State::Starting = self.core.state(id) {
                    self.messages[id] = message;
                }
                None
            }
            Note::Ended(id, result) => {
                if let Some(asking) = self.asking[id].take() {
                    asking.abort();
                }
                self.pids[id] = None;
                let (success, how) = match result {
                    Ok(status) => (status.success(), status.to_string()),
                    Err(e) => (false, e.to_string()),
                };
                let name = self.components[id].name;
                say(&format!("{name} ended: {how}"));
                self.messages[id] =
                    if success { String::new() } else { format!("{how}, see {}", self.log(name).display()) };
                Some(Event::Ended { id, success })
            }
            Note::Listen => {
                // The earlier socket's clients keep it.
                match control::listen(&self.home, &self.host) {
                    Ok(listener) => {
                        say("the socket is made anew");
                        tokio::spawn(serve(listener, self.snapshots.subscribe(), self.notes.clone()));
                    }
                    Err(error) => say(&format!("the socket cannot be made anew: {error}")),
                }
                None
            }
            Note::Stop(who) => {
                if !self.core.stopping() {
                    say(&format!("stopping, asked by {who}"));
                }
                Some(Event::Stop)
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start(id) => self.start(id),
            Action::Term(id) | Action::Kill(id) => {
                let signal = if matches!(action, Action::Term(_)) { Signal::SIGTERM } else { Signal::SIGKILL };
                if let Some(pid) = self.pids[id] {
                    process::signal(pid, signal);
                }
            }
            Action::Finish => {}
        }
    }

    /// Another login node may start the cluster soon.
    fn kill_all(&self) {
        for pid in self.pids.iter().flatten() {
            process::signal(*pid, Signal::SIGKILL);
        }
    }

    fn start(&mut self, id: Id) {
        let component = &self.components[id];
        let notes = self.notes.clone();
        let says = notes.clone();
        // From a thread; the owner may be slow, and must hear it.
        let says_ready = move || drop(says.blocking_send(Note::Served(id)));
        let mut child = match process::start(component, &self.hpk, &self.home, says_ready) {
            Ok(child) => child,
            Err(e) => {
                tokio::spawn(async move { notes.send(Note::Ended(id, Err(e))).await });
                return;
            }
        };
        self.pids[id] = child.id();
        say(&format!("{} started, process {}", component.name, child.id().unwrap_or_default()));
        let ended = notes.clone();
        tokio::spawn(async move { ended.send(Note::Ended(id, child.wait().await)).await });
        if component.kind == Kind::Service {
            let probe = component.probe.clone();
            let asking = tokio::spawn(async move {
                ask::until_served(&probe, |e| {
                    // A full inbox drops this message; another follows.
                    let _ = notes.try_send(Note::NotYet(id, e.to_string()));
                })
                .await;
                let _ = notes.send(Note::Served(id)).await;
            });
            self.asking[id] = Some(asking.abort_handle());
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.home.log_of(name)
    }

    fn tell(&self) {
        let snapshot = Snapshot {
            pid: std::process::id(),
            host: self.host.clone(),
            started: self.started.clone(),
            stopping: self.core.stopping(),
            ready: self.core.all_serve(),
            components: self
                .components
                .iter()
                .enumerate()
                .map(|(id, c)| ComponentStatus {
                    name: c.name.to_owned(),
                    phase: phase(self.core.state(id)),
                    pid: self.pids[id],
                    restarts: self.core.restarts(id),
                    message: self.messages[id].clone(),
                })
                .collect(),
        };
        self.snapshots.send_if_modified(|old| {
            let changed = *old != snapshot;
            *old = snapshot;
            changed
        });
    }
}

fn phase(state: State) -> Phase {
    match state {
        State::Waiting => Phase::Waiting,
        State::Starting => Phase::Starting,
        State::Ready(_) => Phase::Ready,
        State::Backoff(_) => Phase::Backoff,
        State::Done => Phase::Done,
        State::Stopping(_) => Phase::Stopping,
        State::Stopped => Phase::Stopped,
    }
}

/// To the supervisor's log, which is its standard error.
fn say(message: &str) {
    hpk_api::say!("{} {message}", jiff::Timestamp::now());
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn serve(listener: UnixListener, snapshots: watch::Receiver<Snapshot>, notes: mpsc::Sender<Note>) {
    let mut answers = JoinSet::new();
    let mut news = snapshots.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if control::is_ours(&stream) => {
                    answers.spawn(answer(stream, snapshots.clone(), notes.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    say(&format!("accept: {error}"));
                    if is_out_of_room(&error) {
                        // Room comes when a client goes or when a program ends, which changes the snapshot.
                        news.mark_unchanged();
                        tokio::select! {
                            Some(_) = answers.join_next() => {}
                            _ = news.changed() => {}
                        }
                    }
                }
            },
            Some(_) = answers.join_next() => {}
        }
    }
}

/// The connection that waits stays in the queue, so accepting at once again would fail for ever.
fn is_out_of_room(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

async fn answer(
    stream: UnixStream,
    mut snapshots: watch::Receiver<Snapshot>,
    notes: mpsc::Sender<Note>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let Some(line) = BufReader::new(read).lines().next_line().await? else { return Ok(()) };
    let request: Request = serde_json::from_str(&line)?;
    if request == Request::Stop {
        let _ = notes.send(Note::Stop("hpk down")).await;
    }
    loop {
        let mut line = serde_json::to_vec(&*snapshots.borrow_and_update())?;
        line.push(b'\n');
        write.write_all(&line).await?;
        if request == Request::Status || snapshots.changed().await.is_err() {
            return Ok(());
        }
    }
}
