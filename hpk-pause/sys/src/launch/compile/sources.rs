//! Sources of mounts: opened before the pivot, while they can be named.

use super::text::c;
use crate::error::LaunchError;
use crate::launch::node::{Handed, Node};
use crate::launch::spec::{LaunchSpec, Mount, PidNamespace, Propagation};
use crate::program::{OpKind, Program, Slot, Step};
use libc::{MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE};
use std::ffi::CString;

/// MOUNT_ATTR_NOSUID, _NODEV and _NOEXEC of linux/mount.h.
const PROC_ATTRIBUTES: u64 = 0x2 | 0x4 | 0x8;

/// Shallow targets first, as container engines order them; equal depth keeps the spec's order.
pub(super) fn ordered(mounts: &[Mount]) -> Vec<&Mount> {
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
    mounts
}

/// Files of /proc that can be mounted over, as with runc, but for those behind links (`validateProcMount`).
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// A mount point without `.`, `..` and doubled slashes, as text.
fn normal(target: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Some: the mount point is in one of the kernel's file systems, so it comes after them, by this path.
pub(super) fn in_kernel_fs(target: &str) -> Result<Option<String>, LaunchError> {
    let path = normal(target);
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if below("/proc") && !PROC_FILES.contains(&path.as_str()) {
        return Err(LaunchError::Invalid {
            field: "volumeMounts.mountPath",
            reason: format!("{target} is in /proc, where only these can be mounted over: {}", PROC_FILES.join(", ")),
        });
    }
    Ok((below("/proc") || below("/sys")).then_some(path))
}

/// Slots of opened sources.
pub(super) struct Sources {
    pub(super) mounts: Vec<Slot>,
    pub(super) devices: Vec<Slot>,
    pub(super) shm: Option<Slot>,
    pub(super) sys: Slot,
    pub(super) proc: Slot,
    pub(super) gpu: Vec<Slot>,
    pub(super) shown: Vec<Slot>,
}

pub(super) fn open_sources(
    p: &mut Program,
    spec: &LaunchSpec,
    node: &Node,
    mounts: &mut [&Mount],
    with_proc: bool,
) -> Result<Sources, LaunchError> {
    let slots: Vec<Slot> = mounts.iter().map(|_| p.slot()).collect();
    // These keep their ties to the supervisor's mounts, so they are copied before the ties are cut.
    for (mount, slot) in mounts.iter().zip(&slots).filter(|(mount, _)| mount.propagation != Propagation::Private) {
        open_mount(p, mount, *slot, node)?;
    }
    let none =
        OpKind::Mount { source: None, target: c("/", "/")?, fstype: None, flags: MS_REC | MS_PRIVATE, data: None };
    p.push(Step::Propagation, "/", none);
    for (mount, slot) in mounts.iter().zip(&slots).filter(|(mount, _)| mount.propagation == Propagation::Private) {
        open_mount(p, mount, *slot, node)?;
    }
    let mut devices = Vec::with_capacity(node.devices.len());
    for device in node.devices.iter().filter(|d| !spec.hides(&d.target)) {
        devices.push(handed(p, device, Step::Dev)?);
    }
    let shm = match &spec.shm {
        Some(path) => {
            let slot = p.slot();
            p.push(
                Step::Source,
                path.to_string_lossy(),
                OpKind::OpenTree { slot, path: c("shm", path)?, recursive: false },
            );
            Some(slot)
        }
        None => None,
    };
    let gpu = node.gpu.iter().map(|file| handed(p, file, Step::Source)).collect::<Result<_, _>>()?;
    let mut shown = Vec::with_capacity(spec.shown.len());
    for place in &spec.shown {
        let slot = p.slot();
        let path = c("shown", &place.source)?;
        p.push_optional(Step::Source, &place.target, OpKind::OpenTree { slot, path, recursive: false });
        if node.mount_setattr {
            let read_only = OpKind::SetAttr { slot, read_only: true, recursive: false, propagation: 0 };
            p.push_optional(Step::Source, &place.target, read_only);
        }
        shown.push(slot);
    }
    let sys = p.slot();
    p.push(Step::Sys, "/sys", OpKind::OpenTree { slot: sys, path: c("sys", "/sys")?, recursive: true });
    if !spec.security.writable_sys && node.mount_setattr {
        p.push(Step::Sys, "/sys", OpKind::SetAttr { slot: sys, read_only: true, recursive: true, propagation: 0 });
    }
    let proc = p.slot();
    match &spec.pid {
        _ if !with_proc => {}
        // The very processes that the caller sees, and its namespace is not for a container to mount.
        PidNamespace::Pod => {
            p.push(Step::Proc, "/proc", OpKind::OpenTree { slot: proc, path: c("proc", "/proc")?, recursive: true });
        }
        PidNamespace::Own | PidNamespace::Of(_) => new_proc(p, proc)?,
    }
    Ok(Sources { mounts: slots, devices, shm, sys, proc, gpu, shown })
}

/// A user namespace may mount /proc only where it sees another one: in the old root, so before the pivot.
pub(super) fn new_proc(p: &mut Program, slot: Slot) -> Result<(), LaunchError> {
    p.push(Step::Proc, "/proc", OpKind::NewFs { slot, fstype: c("proc", "proc")?, attributes: PROC_ATTRIBUTES });
    Ok(())
}

/// What the node may have lost since it was looked at.
fn handed(p: &mut Program, file: &Handed, step: Step) -> Result<Slot, LaunchError> {
    let slot = p.slot();
    let path = c("devices", &file.source)?;
    p.push_optional(step, file.source.to_string_lossy(), OpKind::OpenTree { slot, path, recursive: true });
    Ok(slot)
}

pub(super) fn open_mount(p: &mut Program, mount: &Mount, slot: Slot, node: &Node) -> Result<(), LaunchError> {
    if !mount.target.starts_with('/') {
        return Err(LaunchError::Invalid {
            field: "volumeMounts.mountPath",
            reason: format!("{:?} is not an absolute path", mount.target),
        });
    }
    let source = c("volumes", &mount.source)?;
    if let Some(mode) = mount.create_file {
        p.push(Step::Source, mount.source.to_string_lossy(), OpKind::Touch { path: source.clone(), mode });
    }
    match mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
        None => p.push(
            Step::Source,
            mount.source.to_string_lossy(),
            OpKind::OpenTree { slot, path: source, recursive: true },
        ),
        Some(path) => {
            let (prefixes, last_components) = sub_path(path)?;
            p.push(
                Step::SubPath,
                path,
                OpKind::OpenSubTree { slot, volume: source, prefixes, last_components, copy: true },
            );
        }
    }
    let (set, recursive) = match mount.propagation {
        // The copy of a private mount is private.
        Propagation::Private => (0, false),
        Propagation::Slave => (MS_SLAVE, true),
        Propagation::Shared => (MS_SHARED, true),
    };
    if set != 0 {
        p.push(Step::Mount, &mount.target, OpKind::SetAttr { slot, read_only: false, recursive, propagation: set });
    }
    if mount.read_only && node.mount_setattr {
        let kind = OpKind::SetAttr { slot, read_only: true, recursive: mount.recursive_read_only, propagation: 0 };
        p.push(Step::Mount, &mount.target, kind);
    } else if mount.recursive_read_only {
        return Err(LaunchError::Invalid {
            field: "volumeMounts.recursiveReadOnly",
            reason: "the node's kernel is older than 5.12 and cannot do it; use readOnly alone".to_owned(),
        });
    }
    Ok(())
}

/// Cumulative prefixes of a subPath and their last components; `..` and absolute paths are refused.
pub(super) fn sub_path(path: &str) -> Result<(Vec<CString>, Vec<CString>), LaunchError> {
    let invalid =
        |reason: &str| LaunchError::Invalid { field: "volumeMounts.subPath", reason: format!("{path:?} {reason}") };
    if path.starts_with('/') {
        return Err(invalid("must be relative to the volume"));
    }
    let mut prefixes = Vec::new();
    let mut last = Vec::new();
    let mut prefix = String::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(invalid("must not contain \"..\""));
        }
        if !prefix.is_empty() {
            prefix.push('/');
        }
        prefix.push_str(part);
        prefixes.push(c("volumeMounts.subPath", &prefix)?);
        last.push(c("volumeMounts.subPath", part)?);
    }
    Ok((prefixes, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_proc_only_harmless_files_can_be_mounted_over() {
        for (target, expected) in [
            ("/data", Some(None)),
            ("/process", Some(None)),
            ("/proc/../data", Some(None)),
            ("/proc/cpuinfo", Some(Some("/proc/cpuinfo"))),
            ("/a/..//proc/./loadavg/", Some(Some("/proc/loadavg"))),
            ("/sys/fs/cgroup", Some(Some("/sys/fs/cgroup"))),
            ("/sys", Some(Some("/sys"))),
            ("/proc", None),
            ("/x/../proc/self/attr", None),
            ("/proc/cpuinfo/x", None),
        ] {
            let found = in_kernel_fs(target);
            assert_eq!(found.as_ref().ok().map(Option::as_deref), expected, "{target}: {found:?}");
        }
    }
}
