//! `hpk-netns gang <gang folder>`: the process of a gang's Slurm job. It starts one step for each member (`srun … hpk-netns
//! run <pod folder>`) and stays until the last has ended, and the allocation with it.
//!
//! ```text
//! gang.json ──read at the start and after USR2──▶ rule::next ─▶ srun -N1 -n1 … hpk-netns run <pod folder>
//! members/<uid>.json ◀── node, start, end ────────────┘              one for each member
//! ```
//! Orders come as a file and a signal, so that nothing is polled: the kubelet writes `gang.json` and has Slurm send USR2 to the
//! job's batch script, which is this process. Slurm's own TERM (a time limit, scancel) comes to the steps without its help.

mod rule;

use hpk_api::gang::{self, GangFile, MemberEnd, MemberFile, Wish};
use hpk_layout::Home;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rule::{Act, Slot, Step};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// A shared file system may show a file's old content for a while: after a nudge that brought nothing new it is read again
/// after these waits, seconds.
const AGAIN: [u64; 5] = [1, 2, 5, 15, 40];

/// Why the agent cannot do its work.
#[derive(Debug, thiserror::Error)]
enum GangError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: this version of HPK cannot read the gang: {source}; install one version on login and compute nodes", path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("Slurm does not say which nodes and tasks the job has ({0}): is this a job of sbatch?")]
    NoAllocation(String),
    #[error("signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the gang whose folder is `folder` to its end and returns the exit code of the job: the first of its members' that
/// is not 0.
pub async fn run(folder: &Path) -> i32 {
    match live(folder).await {
        Ok(code) => code,
        Err(error) => {
            hpk_api::say!("hpk-netns: gang: {error}");
            1
        }
    }
}

async fn live(folder: &Path) -> Result<i32, GangError> {
    // Before the orders are read: one that comes meanwhile is not missed.
    let mut nudges = signal(SignalKind::user_defined2()).map_err(GangError::Signals)?;
    // Slurm tells the steps itself; this process waits for their ends.
    let mut ends = signal(SignalKind::terminate()).map_err(GangError::Signals)?;
    let mut file = read(folder)?;
    let slots = slots(&file).await?;
    let members = folder.join(hpk_layout::gang::MEMBERS);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&members)
        .map_err(|source| GangError::File { path: members.clone(), source })?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut agent = Agent { folder, members, steps: BTreeMap::new(), pids: BTreeMap::new(), tell, code: 0 };
    let mut again = AGAIN.iter();
    let mut wait: Option<Duration> = None;
    while let Some(acts) = rule::next(&file, &agent.steps, &slots) {
        if !acts.is_empty() {
            for act in acts {
                agent.perform(act, &file);
            }
            continue;
        }
        tokio::select! {
            ended = told.recv() => {
                if let Some((uid, status)) = ended {
                    agent.ended(&uid, status, &file);
                }
                continue;
            }
            _ = nudges.recv() => again = AGAIN.iter(),
            _ = ends.recv() => continue,
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
        let before = file.generation;
        match read(folder) {
            Ok(fresh) => file = fresh,
            Err(error) => hpk_api::say!("hpk-netns: gang: {error}; the orders stay as they were"),
        }
        wait = (file.generation == before).then(|| again.next()).flatten().map(|s| Duration::from_secs(*s));
    }
    Ok(agent.code)
}

struct Agent<'a> {
    folder: &'a Path,
    members: PathBuf,
    steps: BTreeMap<String, Step>,
    /// Their srun processes.
    pids: BTreeMap<String, Pid>,
    tell: mpsc::UnboundedSender<(String, io::Result<ExitStatus>)>,
    code: i32,
}

impl Agent<'_> {
    fn perform(&mut self, act: Act, file: &GangFile) {
        match act {
            Act::Start { uid, slot } => {
                self.steps.insert(uid.clone(), Step { slot: slot.clone(), running: true, told: Wish::Run });
                // Before the step: what has no file was never begun.
                self.write(&uid, &MemberFile { node: slot.node.clone(), started_at: Timestamp::now(), ended: None });
                match self.start(&uid, &slot, file) {
                    Ok(mut child) => {
                        if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
                            self.pids.insert(uid.clone(), Pid::from_raw(pid));
                        }
                        let tell = self.tell.clone();
                        tokio::spawn(async move {
                            let status = child.wait().await;
                            let _ = tell.send((uid, status));
                        });
                    }
                    Err(error) => drop(self.tell.send((uid, Err(error)))),
                }
            }
            Act::Skip { uid } => {
                let slot = Slot { component: 0, node: String::new() };
                self.steps.insert(uid.clone(), Step { slot, running: false, told: Wish::Kill });
                let now = Timestamp::now();
                let ended = Some(MemberEnd { exit_code: 0, at: now, killed: true });
                self.write(&uid, &MemberFile { node: String::new(), started_at: now, ended });
            }
            // srun passes USR1 on, which hpk-netns takes for an orderly end; TERM it takes for the step's end.
            Act::Stop { uid } => self.signal(&uid, Signal::SIGUSR1, Wish::Stop),
            Act::Kill { uid } => self.signal(&uid, Signal::SIGTERM, Wish::Kill),
        }
    }

    fn start(&self, uid: &str, slot: &Slot, file: &GangFile) -> io::Result<tokio::process::Child> {
        let pod = self.pod(uid);
        let mut open = OpenOptions::new();
        open.create(true).append(true).mode(0o600).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
        let output = open.open(pod.join(hpk_layout::pod::JOB_OUTPUT))?;
        let errors = output.try_clone()?;
        let number = file.members.iter().position(|member| member.uid == uid).unwrap_or_default();
        let name = file.members.get(number).map_or(uid, |member| member.name.as_str());
        let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
        let parts = file.parts();
        let step =
            usize::try_from(slot.component).ok().and_then(|n| parts.get(n)).map_or(&file.step, |part| &part.step);
        let mut command = Command::new("srun");
        // What the batch script has of its own component would be srun's default for all.
        for name in OF_THE_JOB {
            command.env_remove(name);
        }
        command
            .args(arguments(name, slot, file.is_heterogeneous(), &pod, step))
            .arg(std::env::current_exe()?)
            .arg("run")
            .arg(&pod)
            .env(gang::RUN, format!("{job}/{number}"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
    }

    /// `HPK_HOME/pods/<uid>`.
    fn pod(&self, uid: &str) -> PathBuf {
        Home::of_member(self.folder).pod(uid)
    }

    fn signal(&mut self, uid: &str, signal: Signal, wish: Wish) {
        if let Some(step) = self.steps.get_mut(uid) {
            step.told = wish;
        }
        // It is not reaped before its end is taken, so the number is still its own.
        if let Some(pid) = self.pids.get(uid)
            && let Err(error) = kill(*pid, signal)
        {
            hpk_api::say!("hpk-netns: gang: {uid}: {signal}: {error}");
        }
    }

    fn ended(&mut self, uid: &str, status: io::Result<ExitStatus>, file: &GangFile) {
        use std::os::unix::process::ExitStatusExt;
        self.pids.remove(uid);
        let exit_code = match &status {
            Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(error) => {
                hpk_api::say!("hpk-netns: gang: srun of {uid}: {error}");
                1
            }
        };
        if self.code == 0 {
            self.code = exit_code;
        }
        let Some(step) = self.steps.get_mut(uid) else { return };
        step.running = false;
        let killed = file.members.iter().any(|member| member.uid == uid && member.wish == Wish::Kill);
        let path = self.members.join(hpk_layout::gang::member_file(uid));
        let started = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<MemberFile>(&text).ok());
        let node = step.slot.node.clone();
        let started_at = started.map_or_else(Timestamp::now, |file| file.started_at);
        let ended = Some(MemberEnd { exit_code, at: Timestamp::now(), killed });
        self.write(uid, &MemberFile { node, started_at, ended });
    }

    fn write(&self, uid: &str, file: &MemberFile) {
        let path = self.members.join(hpk_layout::gang::member_file(uid));
        let written = serde_json::to_vec_pretty(file)
            .map_err(io::Error::other)
            .and_then(|text| hpk_layout::replace(&path, &text, 0o600));
        if let Err(error) = written {
            hpk_api::say!("hpk-netns: gang: {}: {error}", path.display());
        }
    }
}

/// Slurm's variables that say how large the batch script's component and its tasks are, and which GPUs all of them have.
const OF_THE_JOB: [&str; 15] = [
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NNODES",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_TRES_PER_TASK",
    "SLURM_TASKS_PER_NODE",
    "SLURM_GPUS_ON_NODE",
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
];

/// Arguments of srun for one member.
fn arguments(name: &str, slot: &Slot, heterogeneous: bool, pod: &Path, step: &[String]) -> Vec<String> {
    // Its own part of the allocation, on the node that it was given; its end is nobody else's.
    let mut list: Vec<String> =
        ["--nodes=1", "--ntasks=1", "--exact", "--mpi=none", "--kill-on-bad-exit=0", "--input=none", "--unbuffered"]
            .map(str::to_owned)
            .into();
    list.extend(["--export=ALL".to_owned(), "--propagate=NONE".to_owned(), "--quiet".to_owned()]);
    if heterogeneous {
        list.push(format!("--het-group={}", slot.component));
    }
    list.push(format!("--nodelist={}", slot.node));
    list.push(format!("--job-name={name}"));
    list.push(format!("--chdir={}", pod.display()));
    list.extend(step.iter().cloned());
    list
}

fn read(folder: &Path) -> Result<GangFile, GangError> {
    let path = folder.join(hpk_layout::gang::FILE);
    let text = std::fs::read(&path).map_err(|source| GangError::File { path: path.clone(), source })?;
    serde_json::from_slice(&text).map_err(|source| GangError::Content { path, source })
}

/// The allocation's places, of all components.
async fn slots(file: &GangFile) -> Result<Vec<Slot>, GangError> {
    let mut all = Vec::new();
    for component in 0..u32::try_from(file.parts().len()).unwrap_or(1) {
        let suffix = if file.is_heterogeneous() { format!("_HET_GROUP_{component}") } else { String::new() };
        let of = |name: &str| {
            let name = format!("{name}{suffix}");
            std::env::var(&name).map_err(|_| GangError::NoAllocation(name))
        };
        let (list, tasks) = (of("SLURM_JOB_NODELIST")?, of("SLURM_TASKS_PER_NODE")?);
        let output = Command::new("scontrol").args(["show", "hostnames", &list]).output().await;
        let text = output.map_err(|source| GangError::File { path: "scontrol".into(), source })?;
        let nodes: Vec<String> = String::from_utf8_lossy(&text.stdout).lines().map(str::to_owned).collect();
        let places = rule::slots(component, &nodes, &tasks);
        all.extend(places.ok_or_else(|| GangError::NoAllocation(format!("{list}, {tasks}")))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_step_has_its_own_part_of_the_allocation() {
        let slot = Slot { component: 1, node: "c2".to_owned() };
        let of = |heterogeneous| {
            arguments("ns/p", &slot, heterogeneous, Path::new("/h/pods/u"), &["--cpus-per-task=2".to_owned()])
        };
        assert!(of(true).contains(&"--het-group=1".to_owned()));
        let list = of(false);
        assert!(!list.iter().any(|flag| flag.starts_with("--het-group")));
        for needed in ["--exact", "--nodes=1", "--ntasks=1", "--nodelist=c2", "--cpus-per-task=2", "--chdir=/h/pods/u"]
        {
            assert!(list.iter().any(|flag| flag == needed), "{needed}: {list:?}");
        }
    }
}
