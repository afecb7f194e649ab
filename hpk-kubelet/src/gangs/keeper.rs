//! The task that owns the [`Registry`]: passes on what is heard, and does what is wanted.

use super::Gate;
use super::claim::{self, Claim, ClaimError, Policy};
use super::heard::{Effect, Heard, Seen, Ticket, World};
use super::registry::Registry;
use super::shape::{self, ShapeError};
use crate::api::node::NodeFacts;
use crate::controller::event::{Event, Sender};
use crate::controller::seen::Pods;
use crate::executor::script::quote;
use crate::executor::slurm::client::Client;
use crate::executor::slurm::flags as slurm_flags;
use crate::executor::slurm::request::Defaults;
use crate::nodes::{self, Nodes};
use crate::pods::phase;
use hpk_api::cluster::ClusterConfig;
use hpk_api::gang::{Component, GangFile, Wish};
use hpk_layout::{Home, Install};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use kube::runtime::reflector::{ObjectRef, Store};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// How long a file that could not be written is let rest.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// What became of a submission.
#[derive(Debug)]
pub(super) enum Outcome {
    Alone,
    Made(String),
    Failed { sure: bool, why: String },
}

#[derive(Debug)]
pub(super) enum Message {
    Arrived(Claim, Arc<Pod>, oneshot::Sender<Gate>),
    Ready(String, oneshot::Sender<Gate>),
    Submit(String, oneshot::Sender<Outcome>),
    Heard(Heard),
}

/// All gangs, to be asked; clones are one.
#[derive(Clone, Debug)]
pub struct Gangs {
    messages: mpsc::UnboundedSender<Message>,
    /// The files of all allocations.
    files: watch::Receiver<Arc<Vec<GangFile>>>,
}

/// What the task works with.
pub struct Parts {
    pub slurm: Client,
    pub home: Home,
    pub install: Install,
    pub cluster: ClusterConfig,
    pub defaults: Arc<Defaults>,
    pub node: watch::Receiver<NodeFacts>,
    /// All pods as the controller has them.
    pub pods: watch::Receiver<Pods>,
    /// None: this cluster has none.
    pub groups: Option<Store<PodGroup>>,
    /// PodGroups have changed.
    pub changes: mpsc::UnboundedReceiver<()>,
    pub nodes: Arc<Nodes>,
    /// To the controller.
    pub tx: Sender,
}

impl Gangs {
    /// Starts the task.
    ///
    /// # Errors
    /// The gangs that earlier kubelets left cannot be read.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let files = on_disk(&parts.home.gangs())?;
        tracing::info!(gangs = files.len(), "gangs found on disk");
        let registry = Registry::new(files.clone());
        let (messages, inbox) = mpsc::unbounded_channel();
        let (tell, told) = watch::channel(Arc::new(files));
        let keeper = Keeper {
            parts,
            registry,
            messages: messages.clone(),
            tell,
            next: 0,
            gates: HashMap::new(),
            outcomes: HashMap::new(),
        };
        hpk_link::lasting::spawn("gangs", keeper.run(inbox));
        Ok(Self { messages, files: told })
    }

    /// An attempt to prepare the pod begins.
    ///
    /// # Errors
    /// The pod says something of its gang that cannot be followed.
    pub async fn arrived(&self, pod: &Arc<Pod>) -> Result<Gate, ClaimError> {
        let Some(claim) = claim::of(pod)? else { return Ok(Gate::Open) };
        let (reply, answer) = oneshot::channel();
        self.send(Message::Arrived(claim, pod.clone(), reply));
        Ok(answer.await.unwrap_or_else(|_| Gate::Wait("the kubelet is ending".to_owned())))
    }

    /// All of the pod is ready.
    pub async fn ready(&self, uid: &str) -> Gate {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ready(uid.to_owned(), reply));
        answer.await.unwrap_or_else(|_| Gate::Wait("the kubelet is ending".to_owned()))
    }

    pub(super) async fn submit(&self, uid: &str) -> Outcome {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Submit(uid.to_owned(), reply));
        answer.await.unwrap_or_else(|_| Outcome::Failed { sure: false, why: "the kubelet is ending".to_owned() })
    }

    pub(super) fn end(&self, run: &str, wish: Wish) {
        self.send(Message::Heard(Heard::End { run: run.to_owned(), wish }));
    }

    pub(super) fn tell(&self, heard: Heard) {
        self.send(Message::Heard(heard));
    }

    pub(super) fn files(&self) -> Arc<Vec<GangFile>> {
        self.files.borrow().clone()
    }

    fn send(&self, message: Message) {
        // Without its task the kubelet ends.
        let _ = self.messages.send(message);
    }
}

/// `ns/name`: what an allocation's job is called. `group`: a gang's [`GangFile::group`].
pub(super) fn job_name(group: &str) -> String {
    let name = group.split_once(' ').map_or(group, |(_, name)| name);
    name.split('/').take(2).collect::<Vec<_>>().join("/")
}

struct Keeper {
    parts: Parts,
    registry: Registry,
    messages: mpsc::UnboundedSender<Message>,
    tell: watch::Sender<Arc<Vec<GangFile>>>,
    next: Ticket,
    gates: HashMap<Ticket, oneshot::Sender<Gate>>,
    outcomes: HashMap<Ticket, oneshot::Sender<Outcome>>,
}

struct Around<'a> {
    pods: watch::Ref<'a, Pods>,
    parts: &'a Parts,
}

impl World for Around<'_> {
    fn policy(&self, namespace: &str, name: &str) -> Option<Policy> {
        let group = self.parts.groups.as_ref()?.get(&ObjectRef::new(name).within(namespace))?;
        Some(claim::policy(&group))
    }

    fn fits(&self, pod: &Pod, component: &Component) -> bool {
        // Of a gang that an earlier version has begun this is not known; its places are equal.
        let Some(place) = &component.place else { return true };
        let facts = self.parts.node.borrow();
        flags(self.parts, pod)
            .is_ok_and(|flags| shape::fits(pod, &flags, place, &self.parts.defaults, ground(self.parts, &facts)))
    }

    fn pod(&self, uid: &str) -> Seen {
        let Some(info) = self.pods.get(uid) else { return Seen::Nothing };
        match () {
            () if phase::is_terminal(info.phase()) => Seen::Over,
            () if info.is_deleted() => Seen::Ending,
            () => Seen::Alive,
        }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

fn ground<'a>(parts: &Parts, facts: &'a NodeFacts) -> shape::Ground<'a> {
    shape::Ground { site: &facts.site, there: &facts.cluster, vendor: parts.cluster.gpu_vendor }
}

/// The flags of a member's job: what it says itself, and the partition of its Node.
fn flags(parts: &Parts, pod: &Pod) -> Result<Vec<String>, ShapeError> {
    let mut given = shape::flags_of(pod, parts.cluster.pod_flags, &parts.cluster.priority_classes)?;
    let partition = nodes::partition(parts.nodes.of_pod(pod), slurm_flags::value(&given, "partition"))?;
    if let Some(partition) = partition.filter(|_| !slurm_flags::has(&given, "partition")) {
        given.insert(0, format!("--partition={partition}"));
    }
    Ok(given)
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        let far = Duration::from_secs(3600);
        loop {
            let wake = self.registry.due().unwrap_or_else(|| Instant::now() + far);
            let heard = tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                Some(()) = self.parts.changes.recv() => Heard::Look,
                changed = self.parts.pods.changed(), if !self.registry.is_idle() => match changed {
                    Ok(()) => Heard::Look,
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(wake.into()) => Heard::Look,
            };
            self.hear(heard);
        }
    }

    fn take(&mut self, message: Message) -> Heard {
        self.next += 1;
        let ticket = self.next;
        match message {
            Message::Arrived(claim, pod, reply) => {
                self.gates.insert(ticket, reply);
                Heard::Arrived { ticket, claim, pod }
            }
            Message::Ready(uid, reply) => {
                self.gates.insert(ticket, reply);
                Heard::Ready { ticket, uid }
            }
            Message::Submit(uid, reply) => {
                self.outcomes.insert(ticket, reply);
                Heard::Submit { ticket, uid }
            }
            Message::Heard(heard) => heard,
        }
    }

    fn hear(&mut self, heard: Heard) {
        let mut queue = vec![heard];
        while let Some(heard) = queue.pop() {
            // Changes from now on are heard of.
            self.parts.pods.mark_unchanged();
            let around = Around { pods: self.parts.pods.borrow(), parts: &self.parts };
            let effects = self.registry.on(heard, &around);
            drop(around);
            for effect in effects {
                queue.extend(self.perform(effect));
            }
        }
        // Before anybody asks Slurm about a job of theirs.
        let files: Vec<GangFile> = self.registry.files().cloned().collect();
        self.tell.send_if_modified(|old| {
            let news = **old != files;
            if news {
                *old = Arc::new(files);
            }
            news
        });
    }

    /// Returns what is heard at once.
    fn perform(&mut self, effect: Effect) -> Option<Heard> {
        match effect {
            Effect::Gate { ticket, gate } => {
                // An attempt that was given up asks for nothing any more.
                let _ = self.gates.remove(&ticket).map(|reply| reply.send(gate));
            }
            Effect::Alone { ticket } => self.answer(ticket, Outcome::Alone),
            Effect::Made { ticket, run } => self.answer(ticket, Outcome::Made(run)),
            Effect::Failed { ticket, sure, why } => self.answer(ticket, Outcome::Failed { sure, why }),
            Effect::Wake { uid } => {
                let tx = self.parts.tx.clone();
                tokio::spawn(async move { tx.send(Event::ReferencesChanged { uid: uid.into() }).await });
            }
            Effect::Shape { id, group, members, all } => {
                let result = self.shape(&id, &group.to_string(), &members, all);
                return Some(Heard::Shaped { id, result });
            }
            Effect::Write(file) => self.write(file),
            Effect::Sbatch { id, arguments } => self.sbatch(id, arguments),
            Effect::Nudge { job } => {
                let slurm = self.parts.slurm.clone();
                tokio::spawn(async move {
                    if let Err(error) = slurm.nudge(&job).await {
                        // It may wait still; its agent reads its orders when it begins.
                        tracing::debug!(%job, %error, "the gang's agent was not told to read its orders");
                    }
                });
            }
            Effect::Cancel { job } => {
                let slurm = self.parts.slurm.clone();
                tokio::spawn(async move {
                    if let Err(error) = slurm.cancel(&job).await {
                        tracing::warn!(%job, %error, "scancel of a gang");
                    }
                });
            }
            Effect::Remove { id } => {
                let folder = self.parts.home.gangs().join(id);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = fs::remove_dir_all(&folder)
                        && error.kind() != io::ErrorKind::NotFound
                    {
                        tracing::warn!(folder = %folder.display(), %error, "a gang's folder is not removed");
                    }
                });
            }
        }
        None
    }

    fn answer(&mut self, ticket: Ticket, outcome: Outcome) {
        // A pod that is gone wants no answer: its run is found by its record.
        let _ = self.outcomes.remove(&ticket).map(|reply| reply.send(outcome));
    }

    fn shape(&self, id: &str, group: &str, members: &[Arc<Pod>], all: bool) -> Result<shape::Request, ShapeError> {
        let folder = self.parts.home.gangs().join(id);
        let name = job_name(group);
        let names = shape::Names { id, name: &name, folder: &folder };
        let facts = self.parts.node.borrow();
        let flags = members.iter().map(|pod| flags(&self.parts, pod)).collect::<Result<Vec<_>, _>>()?;
        let list: Vec<(&Pod, Vec<String>)> = members.iter().map(AsRef::as_ref).zip(flags).collect();
        shape::request(&list, &names, all, &self.parts.defaults, ground(&self.parts, &facts))
    }

    fn write(&self, file: GangFile) {
        let folder = self.parts.home.gangs().join(&file.id);
        let script = script(&file, &self.parts.install.netns(), &folder);
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let (id, generation) = (file.id.clone(), file.generation);
            let written = tokio::task::spawn_blocking(move || write(&folder, &file, &script)).await;
            let written = written.unwrap_or_else(|error| Err(error.into()));
            if let Err(error) = &written {
                tracing::warn!(gang = %id, %error, "the gang's folder is not written");
                tokio::time::sleep(WRITE_AGAIN).await;
            }
            let _ = messages.send(Message::Heard(Heard::Written { id, generation, ok: written.is_ok() }));
        });
    }

    fn sbatch(&self, id: String, arguments: Vec<String>) {
        let (slurm, messages) = (self.parts.slurm.clone(), self.messages.clone());
        let script = self.parts.home.gangs().join(&id).join(hpk_layout::pod::JOB_SCRIPT);
        tokio::spawn(async move {
            let result = slurm.submit(&arguments, &script).await;
            let result = result.map(|made| made.id).map_err(|error| (error.is_refusal(), error.to_string()));
            let _ = messages.send(Message::Heard(Heard::Submitted { id, result }));
        });
    }
}

/// The allocation's batch script. Signals that come before the agent listens must not end the job.
fn script(file: &GangFile, netns: &Path, folder: &Path) -> String {
    format!(
        "#!/bin/sh\n# {}\ntrap '' USR1 USR2\nexec {} gang {}\n",
        file.group.replace(['\n', '\r'], " "),
        quote(&netns.to_string_lossy()),
        quote(&folder.to_string_lossy())
    )
}

fn write(folder: &PathBuf, file: &GangFile, script: &str) -> io::Result<()> {
    let closed = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    closed(folder)?;
    closed(&folder.join(hpk_layout::gang::MEMBERS))?;
    if file.job_id.is_none() {
        // Slurm appends to it and would make it for all to read.
        let output = folder.join(hpk_layout::pod::JOB_OUTPUT);
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(output)?;
        hpk_layout::replace(&folder.join(hpk_layout::pod::JOB_SCRIPT), script.as_bytes(), 0o700)?;
    }
    let text = serde_json::to_vec_pretty(file).map_err(io::Error::other)?;
    hpk_layout::replace(&folder.join(hpk_layout::gang::FILE), &text, 0o600)?;
    fs::File::open(folder)?.sync_all()
}

/// All gangs' files. A folder without one was never submitted from; one that is damaged has no members any more, whose own
/// records tell of them.
fn on_disk(gangs: &Path) -> io::Result<Vec<GangFile>> {
    let entries = match fs::read_dir(gangs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path().join(hpk_layout::gang::FILE);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(file) => files.push(file),
                Err(error) => tracing::error!(file = %path.display(), %error, "a gang's file is damaged"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_gangs_are_named_after_their_group() {
        for (group, name) in [("PodGroup ns/g", "ns/g"), ("Job ns/j/1-2", "ns/j"), ("JobSet ns/s/u/0", "ns/s")] {
            assert_eq!(job_name(group), name);
        }
    }

    #[test]
    fn gangs_are_found_on_disk() {
        let home = tempfile::tempdir().unwrap();
        let gangs = Home::at(home.path()).gangs();
        assert!(on_disk(&gangs).unwrap().is_empty());
        let file = GangFile {
            version: 1,
            id: "g-0".into(),
            generation: 1,
            group: "PodGroup ns/g".into(),
            slots: 1,
            step: vec![],
            components: vec![],
            members: vec![],
            job_id: None,
        };
        write(&gangs.join("g-0"), &file, "x").unwrap();
        fs::create_dir(gangs.join("empty")).unwrap();
        assert_eq!(on_disk(&gangs).unwrap(), std::slice::from_ref(&file));
        let script = script(&file, Path::new("/p/hpk-netns"), Path::new("/h/gangs/g-0"));
        assert!(script.contains("trap '' USR1 USR2\nexec /p/hpk-netns gang /h/gangs/g-0\n"), "{script}");
    }
}
