//! What stands before the first container: folders, volumes, files of /etc, kernel settings.
//!
//! Everything here is on node-local storage. The network is [`crate::network`]'s.

use crate::paths::Paths;
use crate::spec::fill;
use hpk_api::plan::{GroupChange, SandboxPlan, VolumePlan};
use hpk_sys::ids::Ids;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

/// Why the sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A folder or file.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    #[error("emptyDir {name}: cannot mount a tmpfs: {errno}")]
    Tmpfs { name: String, errno: hpk_sys::Errno },
    /// An emptyDir that lies in the pod's folder.
    #[error("emptyDir {name}: cannot mount it from the pod's folder: {errno}")]
    Shared { name: String, errno: hpk_sys::Errno },
    /// A group that the pod has not.
    #[error(transparent)]
    Group(hpk_sys::launch::LaunchError),
    #[error("securityContext.sysctls {name}: {source}; only sysctls of the pod's own namespaces can be set")]
    Sysctl {
        name: String,
        /// The kernel's word.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SandboxError + '_ {
    move |source| SandboxError::Io { path: path.to_owned(), source }
}

/// Makes all of it; the addresses are known.
///
/// # Errors
/// The first thing that cannot be made, by name.
pub(crate) fn make(plan: &SandboxPlan, paths: &Paths, pod_ips: &[IpAddr]) -> Result<(), SandboxError> {
    if let (Some(group), Ok(ids)) = (plan.fs_group, Ids::of_self()) {
        let ids = crate::keep::own(plan).map_or(ids.clone(), |own| ids.with_own(own).1);
        fs_group(group, &ids)?;
    }
    empty(plan, paths)?;
    volumes(plan, paths)?;
    etc(plan, paths, pod_ips)?;
    sysctls(plan)
}

/// Said here by its name: the kernel calls it an invalid argument of a volume.
fn fs_group(group: u32, ids: &Ids) -> Result<(), SandboxError> {
    if ids.gids.contains(group) {
        return Ok(());
    }
    let (field, range) = ("securityContext.fsGroup", ids.gids.words());
    Err(SandboxError::Group(hpk_sys::launch::LaunchError::IdNotMapped { field, id: group, range }))
}

/// What of it a container needs on a node that is not the pod's own: one where ranks of its MPI step run. emptyDir volumes
/// that are not shared are that node's, and a host path is where it is there.
///
/// # Errors
/// As [`make`].
pub(crate) fn make_for_ranks(plan: &SandboxPlan, paths: &Paths, pod_ips: &[IpAddr]) -> Result<(), SandboxError> {
    volumes(plan, paths)?;
    etc(plan, paths, pod_ips)?;
    for (index, bind) in plan.host_binds.iter().enumerate() {
        let link = paths.host.join(index.to_string());
        std::os::unix::fs::symlink(&bind.source, &link).map_err(at(&link))?;
    }
    Ok(())
}

/// emptyDir volumes in the pod's folder: empty, for a job that Slurm has requeued begins anew.
fn empty(plan: &SandboxPlan, paths: &Paths) -> Result<(), SandboxError> {
    for (name, volume) in &plan.volumes {
        if !matches!(volume, VolumePlan::EmptyDir { shared: true, .. }) {
            continue;
        }
        let dir = paths.shared_empty_dir(name);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&dir)(e)),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o777).create(&dir).map_err(at(&dir))?;
    }
    Ok(())
}

fn volumes(plan: &SandboxPlan, paths: &Paths) -> Result<(), SandboxError> {
    let fs_group = crate::keep::fs_group(plan);
    for folder in [paths.empty_dirs(), paths.containers(), paths.etc_files(), paths.shm()] {
        fs::create_dir_all(&folder).map_err(at(&folder))?;
    }
    // Shared by the pod's containers, as the pause container's is upstream.
    hpk_sys::mounts::tmpfs(&paths.shm(), None, 0o1777)
        .map_err(|errno| SandboxError::Tmpfs { name: "/dev/shm".to_owned(), errno })?;
    for (name, volume) in &plan.volumes {
        if let (VolumePlan::Kubelet { folder, read_only }, Some(group)) = (volume, fs_group) {
            own(&paths.kubelet_volume(folder), group, *read_only);
        }
        if let (VolumePlan::Host { index, group: Some(change), .. }, Some(group)) = (volume, fs_group) {
            let root = paths.host.join(index.to_string());
            if *change == GroupChange::Always || !belongs(&root, group) {
                own(&root, group, false);
            }
        }
        let VolumePlan::EmptyDir { memory, shared, size_limit } = volume else { continue };
        let dir = paths.empty_dir(name);
        match DirBuilder::new().mode(0o777).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at(&dir)(e)),
            _ => {}
        }
        if *memory {
            hpk_sys::mounts::tmpfs(&dir, *size_limit, 0o1777)
                .map_err(|errno| SandboxError::Tmpfs { name: name.clone(), errno })?;
        }
        if *shared {
            hpk_sys::mounts::bind(&paths.shared_empty_dir(name), &dir)
                .map_err(|errno| SandboxError::Shared { name: name.clone(), errno })?;
        }
        // Upstream makes them 0777 whatever the umask and leaves a tmpfs its sticky bit; with fsGroup new files inherit the group.
        let mut mode = if *memory { 0o1777 } else { 0o777 };
        if let Some(group) = fs_group {
            match chown(&dir, None, Some(group)) {
                // A file server may know nothing of that group.
                Err(e) if !*shared => return Err(at(&dir)(e)),
                _ => {}
            }
            mode |= 0o2000;
        }
        fs::set_permissions(&dir, Permissions::from_mode(mode)).map_err(at(&dir))?;
        if propagates(plan, name) {
            hpk_sys::mounts::make_shared(&dir).map_err(|errno| at(&dir)(errno.into()))?;
        }
    }
    Ok(())
}

/// Whether a container mounts this volume with mountPropagation, so that mounts below it are to be seen by others.
fn propagates(plan: &SandboxPlan, volume: &str) -> bool {
    let containers = plan.all();
    containers.flat_map(|container| &container.mounts).any(|mount| {
        mount.volume == volume && mount.propagation.as_deref().is_some_and(|propagation| propagation != "None")
    })
}

/// Whether a volume's root shows that [`own`] has been here, as upstream's `requiresPermissionChange` sees it.
fn belongs(root: &Path, group: u32) -> bool {
    fs::metadata(root).is_ok_and(|meta| meta.gid() == group && meta.mode() & 0o2660 == 0o2660)
}

/// fsGroup for a volume that the kubelet has filled or that a claim has, as upstream's SetVolumeOwnership: the group owns it and may read
/// (and write) it, new files inherit the group. Where the file system refuses (NFS), it stays as it was.
fn own(path: &Path, group: u32, read_only: bool) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let _ = lchown(path, None, Some(group));
    if meta.is_symlink() {
        return;
    }
    let mut mode = meta.permissions().mode() & 0o7777 | if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            own(&entry.path(), group, read_only);
        }
    }
    let _ = fs::set_permissions(path, Permissions::from_mode(mode));
}

fn etc(plan: &SandboxPlan, paths: &Paths, pod_ips: &[IpAddr]) -> Result<(), SandboxError> {
    let put = |path: PathBuf, content: &str| {
        fs::write(&path, content).map_err(at(&path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(at(&path))
    };
    let write = |name: &str, content: &str| put(paths.etc(name), content);
    if let Some(step) = plan.containers.iter().find_map(|container| container.step.as_ref()) {
        put(paths.step_etc("hosts"), &fill(&step.etc_hosts, pod_ips, &[]))?;
        let cluster = step.cluster_resolv_conf.as_ref().filter(|_| crate::crossing::reaches(&plan.network));
        put(paths.step_etc("resolv.conf"), cluster.unwrap_or(&step.resolv_conf))?;
    }
    if let Some(hosts) = &plan.etc_hosts {
        write("hosts", &fill(hosts, pod_ips, &[]))?;
    }
    // Without one of its own the pod uses the node's, which the parent container has.
    let nodes = || fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write("resolv.conf", &plan.resolv_conf.as_ref().map_or_else(nodes, |text| fill(text, pod_ips, &[])))?;
    let nodes = || nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let hostname = if plan.hostname.is_empty() { nodes() } else { plan.hostname.clone() };
    write("hostname", &format!("{hostname}\n"))
}

fn sysctls(plan: &SandboxPlan) -> Result<(), SandboxError> {
    for (name, value) in &plan.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|source| SandboxError::Sysctl { name: name.clone(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_sys::ids::IdMap;

    #[test]
    fn a_group_that_is_not_to_be_had_is_named_with_those_that_are() {
        let ids = Ids { gids: IdMap::parse("0 1000 1\n1 100000 65536"), ..Ids::default() };
        fs_group(65_536, &ids).unwrap();
        let error = fs_group(1_000_660_002, &ids).unwrap_err().to_string();
        for word in ["securityContext.fsGroup", "1000660002", "0 to 65536"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
