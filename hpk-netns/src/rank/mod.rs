//! `hpk-netns rank <pod folder> <instance>`: one rank of an MPI step, started by srun on each node.
//!
//! ```text
//! slurmstepd ─▶ hpk-netns rank ─▶ command, in the step's container on this node
//!                 │ standard input: StepOrder, a line each       ▲ shared by the ranks of the node: user, mount, PID and
//!                 └ standard output: records of output and news  │ IPC namespaces, /dev/shm
//! ```
//! The first rank on a node makes the container, unless the supervisor has made it (on the pod's first node). Slurm's signals
//! come to this process and are passed on.

mod attend;
mod crossing;
mod facts;
pub(crate) mod place;
mod session;
mod signals;
mod streams;
mod watch;

pub use session::run as session;

use crate::run::hostpath::{self, HostPathError};
use crate::run::images::Images;
use crate::run::scratch::ScratchError;
use crate::step::record;
use hpk_api::control::Usage;
use hpk_api::plan::SandboxPlan;
use hpk_api::step::{Keeper, Rank, RankPlan, StepFile, StepNews};
use hpk_layout::node;
use hpk_sys::caps::CapSet;
use hpk_sys::cgroup::JobMemory;
use hpk_sys::crossing::Desk;
use hpk_sys::launch::JoinSpec;
use hpk_sys::launch::{LaunchError, Launched, Security};
use hpk_sys::rank::Entered;
use hpk_sys::signals::MountNs;
use hpk_sys::userns::{self, Surroundings, UsernsError, Users};
use place::Place;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Exit code of a rank that could not be started.
const NOT_STARTED: i32 = 125;

/// Why a rank could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RankError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    #[error(transparent)]
    Images(#[from] crate::run::images::ImagesError),
    #[error("the container on this node: {0}")]
    Namespaces(#[from] UsernsError),
    #[error("the container on this node: {0}")]
    Container(String),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("securityContext.seccompProfile: RuntimeDefault cannot be had on this node: {0}")]
    Seccomp(String),
}

/// Runs the rank to its end. The exit code of its command, or 125.
#[must_use]
pub fn run(pod: &Path, instance: u32) -> i32 {
    let job = Job::of_this_process();
    let of = Rank { rank: job.rank, node: crate::node::slurm_name() };
    let rank = of.rank;
    let said = move |news: StepNews| {
        let mut out = Vec::new();
        record::write_news(rank, &news, &mut out);
        out
    };
    let memory = JobMemory::find();
    let kills = || memory.as_ref().map_or(0, |memory| memory.counts().kills);
    let before = kills();
    let begun = signals::Signals::take().map_err(|source| RankError::Io { path: "signals".into(), source });
    let begun = begun.and_then(|signals| Ok((signals, begin(pod, instance, &job)?)));
    let (signals, (launched, place, whole, desk)) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            streams::write_all(&said(StepNews::Failed { of: of.clone(), message: error.to_string() }));
            return NOT_STARTED;
        }
    };
    let first = said(StepNews::Started { of: of.clone(), ranks: job.ranks });
    // One of them answers for the node: whoever has the voice when it is asked, for as long as it lives.
    let voice = place.voice();
    let usage = whole.zip(voice).map(|(ns, voice)| {
        let of = of.clone();
        move || {
            let speaks = voice.try_lock().is_ok();
            if speaks { said(StepNews::Used { of: of.clone(), usage: usage(ns) }) } else { Vec::new() }
        }
    });
    let ended = attend::attend(of.rank, launched, signals, (first, desk), usage);
    let (code, signal) = (ended.code, ended.signal);
    let oom = code == 128 + nix::libc::SIGKILL && kills() > before;
    ended.finish(&said(StepNews::Exited { of: of.clone(), code, signal, oom }));
    place.leave();
    code
}

/// What Slurm tells a rank.
struct Job {
    rank: u32,
    ranks: u32,
    nodes: u32,
    env: Vec<(String, String)>,
}

impl Job {
    fn of_this_process() -> Self {
        let env: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?))).collect();
        let number = |names: [&str; 2]| {
            let value = names.iter().find_map(|name| env.iter().find(|(known, _)| known == name));
            value.and_then(|(_, value)| value.parse().ok())
        };
        Self {
            rank: number(["SLURM_PROCID", "PMI_RANK"]).unwrap_or(0),
            ranks: number(["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]).unwrap_or(1),
            nodes: number(["SLURM_STEP_NUM_NODES", "SLURM_NNODES"]).unwrap_or(1),
            env,
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Of all that is in the step's container on this node.
fn usage(ns: MountNs) -> Usage {
    let used = hpk_sys::procfs::usage(ns);
    Usage {
        cpu_nanos: used.cpu_ns,
        memory_bytes: used.working_set_bytes,
        rss_bytes: used.rss_bytes,
        processes: u64::from(used.processes),
    }
}

/// From nothing to the running command, and by what all of the container's processes are known.
fn begin(pod: &Path, instance: u32, job: &Job) -> Result<(Launched, Place, Option<MountNs>, Option<Desk>), RankError> {
    let step: StepFile = read(&hpk_layout::pod::inside(pod).join(hpk_layout::pod::step(instance)))?;
    let place = Place::take(pod, instance)?;
    let mut shares = Vec::new();
    let (keeper, pidfd) = match place.keeper() {
        Some(found) => found,
        None => {
            let made = make(pod, instance, &place, &mut shares)?;
            if step.crossing.is_some() {
                // Now, for once it has entered the container this process has no children outside of it.
                let started = crate::outpost::start_process(pod, &place.folder);
                started.unwrap_or_else(|error| hpk_api::say!("hpk: no way to the pods' network on this node: {error}"));
            }
            made
        }
    };
    // Each rank for itself: the first one may end before the others.
    let place = place.share_images()?;
    drop(shares);
    let entered = Entered::enter(pidfd)?;
    if !keeper.ready {
        let folders: Vec<PathBuf> = facts::folders(|name| job.variable(name), place.user())
            .into_iter()
            .filter(|folder| folder.is_dir())
            .collect();
        entered.bring(&folders)?;
        place.record(Keeper { ready: true, ..keeper })?;
    }
    let place = place.open();
    let whole = MountNs::of(nix::unistd::Pid::from_raw(keeper.pid)).ok();
    let mut spec = spec(&step.rank, job)?;
    place.note(job.rank, &spec.env)?;
    let desk = crossing::desk(step.crossing.as_ref(), &place, &mut spec.security);
    Ok((entered.start(&spec)?.wait()?, place, whole, desk))
}

fn spec(plan: &RankPlan, job: &Job) -> Result<JoinSpec, RankError> {
    Ok(JoinSpec {
        env: facts::environment(&plan.env, job.env.iter().cloned(), job.nodes, plan.uid == 0),
        inherit: facts::pmi_descriptor(|name| job.variable(name))
            .into_iter()
            .filter(|fd| streams::is_open(*fd))
            .collect(),
        ..spec_of(plan)?
    })
}

/// What does not depend on the rank.
fn spec_of(plan: &RankPlan) -> Result<JoinSpec, RankError> {
    let seccomp = plan.seccomp.then(hpk_sys::seccomp::runtime_default).transpose();
    let seccomp = seccomp.map_err(|error| RankError::Seccomp(error.to_string()))?.map(Arc::new);
    let security = Security {
        uid: plan.uid,
        gid: plan.gid,
        groups: plan.groups.clone(),
        keep_groups: plan.keep_groups,
        home: plan.home.clone(),
        caps: CapSet::of_bits(plan.caps),
        no_new_privs: plan.no_new_privs,
        seccomp,
        ..Security::default()
    };
    Ok(JoinSpec {
        env: plan.env.clone(),
        working_dir: plan.working_dir.clone(),
        security,
        oom_score_adj: plan.oom_score_adj,
        ..JoinSpec::new(plan.argv.clone())
    })
}

/// Of a place: mount points for host paths, as their paths are to the container of the step.
const POINTS: &str = "points";

/// Makes the container of the step on this node.
fn make(pod: &Path, instance: u32, place: &Place, shares: &mut Vec<File>) -> Result<(Keeper, OwnedFd), RankError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RankError::Io { path, source }
    };
    let inside = hpk_layout::pod::inside(pod);
    let plan: SandboxPlan = read(&inside.join(hpk_layout::pod::PLAN))?;
    let of = |name: &str| place.folder.join(name);
    for name in [node::SCRATCH, node::HOST, node::RUN, POINTS, node::IMAGES] {
        let folder = of(name);
        crate::run::scratch::remove(&folder).and_then(|()| std::fs::create_dir(&folder)).map_err(io(&folder))?;
    }
    hostpath::prepare_all(&plan.host_binds, &of(POINTS))?;
    let record = place.keeper_file();
    let arguments = [
        "ranks".into(),
        "--plan".into(),
        inside.join(hpk_layout::pod::PLAN).into_os_string(),
        "--pod-dir".into(),
        inside.into_os_string(),
        "--images".into(),
        place.layout.images.clone().into_os_string(),
        "--mounted".into(),
        of(node::IMAGES).into_os_string(),
        "--scratch".into(),
        of(node::SCRATCH).into_os_string(),
        "--host".into(),
        of(node::HOST).into_os_string(),
        "--run".into(),
        of(node::RUN).into_os_string(),
        "--instance".into(),
        instance.to_string().into(),
        "--record".into(),
        record.clone().into_os_string(),
    ];
    let program = place.layout.parent_image.join("hpk-pause");
    let (reader, writer) = io::pipe().map_err(io(&record))?;
    let lock = place.lock_for_keeper().map_err(io(&place.folder))?;
    let env: Vec<_> = std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME").collect();
    let around = Surroundings {
        users: Users::most(),
        mounts: true,
        ipc: true,
        env: Some(&env),
        folder: Some(Path::new("/")),
        stdin: Some(lock.into()),
        stderr: Some(writer.into()),
        ..Surroundings::default()
    };
    let mut shown = Images::find(&plan, &place.layout, of(node::IMAGES));
    if !shown.is_empty() {
        shares.extend(shown.take(which::which("apptainer").ok().as_deref())?);
    }
    let (program, arguments) = shown.wrap(program, arguments.into());
    let code = userns::start(&program, &arguments, around)?.wait()?;
    if code != 0 {
        return Err(RankError::Container(words(reader)));
    }
    place.keeper().ok_or_else(|| RankError::Container("it ended at once".to_owned()))
}

fn words(reader: io::PipeReader) -> String {
    let mut text = String::new();
    let _ = File::from(OwnedFd::from(reader)).take(4096).read_to_string(&mut text);
    text.trim().to_owned()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RankError> {
    let fail = |source| RankError::Io { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(fail)?;
    serde_json::from_slice(&bytes).map_err(|error| RankError::Io { path: path.to_owned(), source: error.into() })
}
