//! `hpk-netns run <pod folder>`: the whole of a Slurm job, in two processes. The first ([`keep()`]) clears up after the
//! second ([`run`], `hpk-netns work`), which runs the pod:
//!
//! ```text
//! plan.json ─▶ scratch ─▶ host paths ─▶ apptainer exec … hpk-pause ──▶ wait, forward TERM ─▶ exit code
//!                                          │ supervisor.sock, netns.sock
//!                                          └▶ link to the kubelet, datapath (run beside, never in the way)
//! ```
//! It starts no container of the pod and decides nothing about them: that is the supervisor's. What it must
//! say itself, because there is no supervisor to say it, goes to `launch.json` and to standard error.

mod child;
mod devices;
pub(crate) mod hostpath;
mod hostport;
pub mod images;
mod keep;
pub(crate) mod layout;
mod local;
mod nested;
mod parent;
mod report;
pub(crate) mod scratch;

use crate::apptainer::Site;
use hostport::HostPorts;
use hpk_api::link::MEMBER;
use hpk_api::net::NetworkMode;
use hpk_api::plan::{PlanError, SandboxPlan, UserIds};
use hpk_api::state::LaunchReport;
use hpk_layout::{Home, node};
pub use keep::{WORK, heed_signals, keep};
use layout::{Layout, Surroundings};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no supervisor. Each becomes a `launch.json` when the pod's folder can be written.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("{}: {source}", path.display())]
    ReadPlan { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Plan { path: PathBuf, source: PlanError },
    #[error(transparent)]
    Scratch(#[from] scratch::ScratchError),
    #[error(transparent)]
    HostPath(#[from] hostpath::HostPathError),
    #[error(transparent)]
    Images(#[from] images::ImagesError),
    #[error(
        "apptainer is not on this node's PATH ({source}); load its module in ~/.bashrc or ask for it on the compute nodes"
    )]
    NoApptainer { source: which::Error },
    #[error("the parent image {} is missing: install HPK where the compute nodes see it, or set HPK_PREFIX", path.display())]
    NoParentImage { path: PathBuf },
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: child::StartError },
    #[error("{0}")]
    Runtime(#[from] std::io::Error),
}

impl LaunchError {
    /// [`LaunchReport::step`].
    fn step(&self) -> &'static str {
        match self {
            Self::ReadPlan { .. } | Self::Plan { .. } => "plan",
            Self::Scratch(_) => "scratch",
            Self::HostPath(_) => hpk_api::state::HOST_PATH,
            Self::Images(_) => "image",
            Self::NoApptainer { .. } | Self::NoParentImage { .. } | Self::Start { .. } => "apptainer",
            Self::Runtime(_) => "supervisor",
        }
    }
}

/// Exit code of a job whose pod another job runs on this node (EX_TEMPFAIL of sysexits.h).
pub const TAKEN: i32 = 75;

/// First and longest wait for a host path to become as it should be.
const HOST_PATH_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Runs the pod whose folder is `pod` and returns the exit code of the job. Its node-local folder stays.
pub async fn run(pod: &Path) -> i32 {
    let job_id = crate::node::run_id();
    match launch(pod, job_id.as_deref()).await {
        Ok(code) => code,
        // The pod's folder is the other job's, too: it is not told there.
        Err(LaunchError::Scratch(error @ scratch::ScratchError::Taken { .. })) => {
            hpk_api::say!("hpk-netns: {error}");
            TAKEN
        }
        Err(error) => {
            tell(pod, error.step(), error.to_string(), None);
            1
        }
    }
}

async fn launch(pod: &Path, job_id: Option<&str>) -> Result<i32, LaunchError> {
    let plan = read_plan(pod)?;
    let around = Surroundings::of_this_process().map_err(scratch::ScratchError::from)?;
    let layout = Layout::new(pod, &plan.pod.uid, &around);
    let mut signals = child::Signals::listen()?;
    let _lock = scratch::make(&layout, around.uid)?;
    report::clear(pod)?;
    live(&plan, &layout, job_id, &mut signals).await
}

/// From a made scratch folder to the end of the parent container.
async fn live(
    plan: &SandboxPlan,
    layout: &Layout,
    job_id: Option<&str>,
    signals: &mut child::Signals,
) -> Result<i32, LaunchError> {
    let host_points = host_points(plan, layout, signals).await?;
    let apptainer = which::which("apptainer")
        .or_else(|_| which::which("singularity"))
        .map_err(|source| LaunchError::NoApptainer { source })?;
    if !layout.parent_image.is_dir() {
        return Err(LaunchError::NoParentImage { path: layout.parent_image.clone() });
    }
    let mode = plan.network.mode;
    let job: Vec<_> = std::env::vars_os().collect();
    let nested = nested::Nested::choose(
        plan.settings.launcher,
        &nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default(),
        &std::fs::canonicalize(&apptainer).unwrap_or_else(|_| apptainer.clone()),
        Path::exists,
    );
    let root_lacks = nix::unistd::getuid().is_root().then(hpk_sys::caps::missing);
    let host_ports = match (mode, plan.network.cni_network.as_deref()) {
        (NetworkMode::Cni, Some(name)) if !plan.network.host_ports.is_empty() => {
            HostPorts::judge(&plan.network.host_ports, name, Site::of(&apptainer).maps_ports(name))
        }
        _ => HostPorts::default(),
    };
    let is_ours = parent::Namespaces::of(mode) == parent::Namespaces::Ours;
    let mut images = images::Images::find(plan, layout, layout.local.join(node::IMAGES));
    // Until this process ends.
    let _shares = if images.is_empty() { Vec::new() } else { images.take(Some(&apptainer))? };
    if !is_ours {
        // Apptainer makes the namespaces: nothing can be mounted in them before.
        images.unpack()?;
    }
    let parts = parent::Parts {
        mounted: (!images.is_empty()).then(|| if is_ours { images.points() } else { images.unpacked() }),
        layout,
        host_ports: &host_ports,
        root_lacks: root_lacks.as_deref(),
        nested: nested.as_ref(),
        host_points: &host_points,
        devices: devices::Devices::choose(mode == NetworkMode::Overlay, Path::exists, |name| {
            job.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
        }),
    };
    let args = parent::arguments(plan, &parts);
    let places = crate::network::Places { pod: &layout.pod, run: &layout.run, net: &layout.net, local: &layout.local };
    let address = crate::network::address(plan, &places);
    let mut own = vec![("HPK_NODE", crate::node::hostname())];
    own.extend(std::env::var(hpk_api::gang::RUN).ok().map(|run| (hpk_api::gang::RUN, run)));
    own.extend(nested.as_ref().map(|nested| ("HPK_APPTAINER", nested.program.to_string_lossy().into_owned())));
    own.push(("HPK_HOST_IPS", crate::node::addresses(address.node_ip, plan.network.has_both_families())));
    own.extend(address.mtu.map(|mtu| ("HPK_POD_MTU", mtu.to_string())));
    let env = parent::environment(job.into_iter(), &own);
    let namespaces = is_ours.then_some(child::NewNamespaces { network: mode != NetworkMode::Host });
    let failed = |source| LaunchError::Start { program: apptainer.clone(), source };
    let (program, args) = if is_ours { images.wrap(apptainer.clone(), args) } else { (apptainer.clone(), args) };
    let mounts = !images.is_empty() && is_ours;
    let own =
        (plan.user_ids == UserIds::Keep).then(|| (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
    let beginning = child::Start { program, args, env, namespaces, own, mounts }.begin().map_err(failed)?;
    // While the helpers give it its ids. The supervisor finds the sockets: its own start comes after this.
    let user = layout.user.clone();
    let sweep = move || {
        let user = user.clone();
        // Beside, and not waited for: it may take long.
        drop(tokio::task::spawn_blocking(move || scratch::sweep(&user)));
    };
    let network = crate::network::start(plan, &places, job_id, &address, host_ports.refused, Box::new(sweep.clone()));
    let child = beginning.finish().map_err(failed)?;
    // What is to be done for others comes after the pod's beginning.
    sweep();
    let socket = layout.run.join(hpk_layout::node::SUPERVISOR_SOCK);
    let ended = child::supervise(child, signals, &socket).await?;
    network.finish().await;
    let code = ended.code;
    if !report::supervisor_finished(&layout.pod, job_id) {
        let had_status = hpk_layout::pod::inside(&layout.pod).join(hpk_layout::pod::STATUS).exists();
        let (step, message) = report::explain(code, &ended.tail, had_status);
        tell(&layout.pod, step, message, Some(code));
        return Ok(if code == 0 { 1 } else { code });
    }
    Ok(code)
}

/// The mount points of the pod's host paths. A path that is missing or of another kind is told and looked at again, until
/// the pod is to end: somebody may make it.
async fn host_points(
    plan: &SandboxPlan,
    layout: &Layout,
    signals: &mut child::Signals,
) -> Result<Vec<PathBuf>, LaunchError> {
    let (mut wait, longest) = HOST_PATH_WAITS;
    let mut told = String::new();
    loop {
        let error = match hostpath::prepare_all(&plan.host_binds, &layout.host) {
            Ok(points) => {
                if !told.is_empty() {
                    report::clear(&layout.pod)?;
                }
                return Ok(points);
            }
            Err(error) if error.may_pass() => error,
            Err(error) => return Err(error.into()),
        };
        let text = error.to_string();
        if text != told {
            tell(&layout.pod, hpk_api::state::HOST_PATH, text.clone(), None);
            told = text;
        }
        let next = tokio::time::Instant::now() + wait;
        // Ends of children are none of ours here.
        while let Ok(signal) = tokio::time::timeout_at(next, signals.next()).await {
            if signal.is_some() {
                return Err(error.into());
            }
        }
        wait = (wait * 2).min(longest);
    }
}

/// The node-local folders of the member of the cluster in `home`: for packets between its pods, and its own, emptied;
/// both 0700.
pub(crate) fn member_folders(home: &Path) -> std::io::Result<(PathBuf, PathBuf)> {
    let around = Surroundings::of_this_process().map_err(std::io::Error::other)?;
    let layout = Layout::new(&Home::at(home).pod(MEMBER), &node::member(home), &around);
    scratch::folder(&layout, around.uid).map_err(std::io::Error::other)?;
    Ok((layout.net, layout.local))
}

fn read_plan(pod: &Path) -> Result<SandboxPlan, LaunchError> {
    let path = hpk_layout::pod::inside(pod).join(hpk_layout::pod::PLAN);
    let bytes = std::fs::read(&path).map_err(|source| LaunchError::ReadPlan { path: path.clone(), source })?;
    SandboxPlan::parse(&bytes).map_err(|source| LaunchError::Plan { path, source })
}

/// Says on standard error and in `launch.json` why there is no supervisor.
fn tell(pod: &Path, step: &str, message: String, exit_code: Option<i32>) {
    hpk_api::say!("hpk-netns: {step}: {message}");
    let report = LaunchReport {
        node: crate::node::hostname(),
        at: Some(jiff::Timestamp::now()),
        step: step.to_owned(),
        message,
        exit_code,
    };
    if let Err(error) = report::write(pod, &report) {
        hpk_api::say!("hpk-netns: {}: cannot write {}: {error}", pod.display(), hpk_layout::pod::LAUNCH);
    }
}
