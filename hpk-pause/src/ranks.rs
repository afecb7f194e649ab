//! The ranks of an MPI step: what they execute, and their container on nodes other than the pod's first.
//!
//! On the first node the supervisor makes the step's container like any other. On the others hpk-netns starts this program in
//! a user, mount and IPC namespace of its own; it makes the volumes and the container there, leaves the keeper's number and
//! ends: beside the ranks only the keeper remains, which ends with the last of them.

use crate::options::Ranks;
use crate::paths::Paths;
use crate::spec::{Prepared, Specs};
use hpk_api::plan::{ContainerPlan, SandboxPlan, Seccomp};
use hpk_api::state::ContainerUser;
use hpk_api::step::{Keeper, RankPlan, StepFile};
use hpk_core::LaunchFailure;
use hpk_sys::ids::Ids;
use hpk_sys::launch::{LaunchError, Launcher, Native, PidNamespace};
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is no container for the ranks of this node.
#[derive(Debug, thiserror::Error)]
pub enum RanksError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Volumes or files of /etc.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// The container's plan cannot be carried out.
    #[error("{0}")]
    Plan(String),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// What every rank of a prepared container executes.
#[must_use]
pub(crate) fn plan(prepared: &Prepared, container: &ContainerPlan) -> RankPlan {
    let spec = &prepared.spec;
    let security = &spec.security;
    RankPlan {
        argv: spec.argv.clone(),
        env: spec.env.iter().filter(|(name, _)| !prepared.by_slurm.contains(name)).cloned().collect(),
        working_dir: spec.working_dir.clone(),
        uid: security.uid,
        gid: security.gid,
        groups: security.groups.clone(),
        keep_groups: security.keep_groups,
        home: security.home.clone(),
        caps: security.caps.bits(),
        no_new_privs: security.no_new_privs,
        seccomp: security.seccomp.is_some() && container.security.seccomp == Seccomp::RuntimeDefault,
        oom_score_adj: spec.oom_score_adj,
    }
}

/// A step's container: of a keeper instead of a command, and of the user's own ids unless the plan says root. Capabilities
/// and other users are for containers of root.
pub(crate) fn keep(prepared: &mut Prepared, container: &ContainerPlan, input: OwnedFd) {
    prepared.spec.keeper = Some(Arc::new(input));
    if container.step.as_ref().is_none_or(|step| step.root) {
        return;
    }
    prepared.spec.identity = Ids::outside();
    if let Some((uid, gid)) = prepared.spec.identity {
        let security = &mut prepared.spec.security;
        (security.uid, security.gid) = (uid, gid);
        security.groups.clear();
        security.keep_groups = true;
        prepared.user = ContainerUser { uid, gid, groups: Vec::new() };
    }
}

/// Writes what the ranks read. Blocks: it is on the shared file system.
///
/// # Errors
/// As writing a file.
pub(crate) fn write(path: &Path, file: &StepFile) -> io::Result<()> {
    hpk_layout::replace(path, &serde_json::to_vec(file)?, 0o600)
}

/// Makes the container on this node, and leaves the keeper's number in a file. Standard input is the keeper's.
///
/// # Errors
/// What cannot be made.
pub fn make(ranks: &Ranks) -> Result<(), RanksError> {
    let Ranks { paths, instance, record } = ranks;
    let pod: SandboxPlan = read(&paths.plan)?;
    let step: StepFile = read(&paths.step_file(*instance))?;
    let container = pod.containers.iter().find(|container| container.name == step.container);
    let container =
        container.ok_or_else(|| RanksError::Plan(format!("the pod has no container {:?}", step.container)))?;
    crate::sandbox::make_for_ranks(&pod, paths, &step.pod_ips)?;
    let prepared = prepare(&pod, container, paths, *instance, &step)?;
    let folder = paths.instance(&container.name, *instance);
    std::fs::create_dir_all(&folder).map_err(|source| RanksError::Io { path: folder, source })?;
    let native = Native::new()?;
    let mut native = if hpk_sys::below::in_user_namespace() { native.below() } else { native };
    let launched = native.launch(&prepared.spec)?;
    let start = hpk_sys::procfs::start_time(launched.pid).unwrap_or_default();
    let keeper = Keeper { pid: launched.pid.as_raw(), start, ready: false };
    let text = serde_json::to_vec(&keeper).unwrap_or_default();
    hpk_layout::replace_soon(record, &text, 0o600).map_err(|source| RanksError::Io { path: record.clone(), source })
}

fn prepare(
    pod: &SandboxPlan,
    container: &ContainerPlan,
    paths: &Paths,
    instance: u32,
    step: &StepFile,
) -> Result<Prepared, RanksError> {
    let mut specs = Specs::new(paths.clone());
    specs.sandbox_made(step.pod_ips.clone(), crate::spec::users(pod, paths), crate::crossing::Reach::default());
    // A step is in its node's network, so that these are the node's addresses.
    specs.host_is(crate::network::own_addresses(&pod.network));
    let prepared = specs.prepare(pod, container, instance, PidNamespace::Own);
    let mut prepared = prepared.map_err(|failure| {
        let (LaunchFailure::Config(why) | LaunchFailure::Create(why) | LaunchFailure::Start(why)) = failure;
        RanksError::Plan(why)
    })?;
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|source| RanksError::Io { path: "standard input".into(), source })?;
    keep(&mut prepared, container, input);
    Ok(prepared)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RanksError> {
    let fail = |source| RanksError::Io { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(fail)?;
    serde_json::from_slice(&bytes).map_err(|error| RanksError::Io { path: path.to_owned(), source: error.into() })
}
