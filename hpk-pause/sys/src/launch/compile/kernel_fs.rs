//! /dev, /proc and /sys of a container, and what of them is hidden.

use super::sources::Sources;
use super::text::{c, c_opt};
use crate::error::LaunchError;
use crate::launch::node::{MASKED, Node};
use crate::launch::spec::LaunchSpec;
use crate::program::{OpKind, Program, Step};
use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID};

/// Paths that container engines make read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Group of terminals, where it exists.
const TTY_GROUP: u32 = 5;

pub(super) fn fs(
    p: &mut Program,
    step: Step,
    fstype: &str,
    target: &str,
    flags: u64,
    data: Option<&str>,
    optional: bool,
) -> Result<(), LaunchError> {
    let kind = OpKind::Mount {
        source: c_opt("mount", fstype)?,
        target: c("mount", target)?,
        fstype: c_opt("mount", fstype)?,
        flags,
        data: data.map(|data| c("mount", data)).transpose()?,
    };
    if optional {
        p.push_optional(step, target, kind);
    } else {
        p.push(step, target, kind);
    }
    Ok(())
}

pub(super) fn mkdir(p: &mut Program, step: Step, path: &str) -> Result<(), LaunchError> {
    p.push(step, path, OpKind::MkdirAll { path: c("mount", path)?, mode: 0o755 });
    Ok(())
}

pub(super) fn dev(p: &mut Program, spec: &LaunchSpec, node: &Node, sources: &Sources) -> Result<(), LaunchError> {
    mkdir(p, Step::Dev, "/dev")?;
    // 0755: in a sticky world-writable folder the kernel refuses O_CREAT on nodes of another owner, as `> /dev/null` is.
    fs(p, Step::Dev, "tmpfs", "/dev", MS_NOSUID, Some("mode=755,size=65536k"), false)?;
    mkdir(p, Step::Dev, "/dev/pts")?;
    let tty_group = if node.ids.gids.contains(TTY_GROUP) { ",gid=5" } else { "" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620{tty_group}");
    fs(p, Step::Dev, "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, Some(&options), false)?;
    mkdir(p, Step::Dev, "/dev/shm")?;
    match sources.shm {
        Some(slot) => p.push(
            Step::Dev,
            "/dev/shm",
            OpKind::Attach { slot, target: c("shm", "/dev/shm")?, missing: false, fallback_read_only: false },
        ),
        None => fs(
            p,
            Step::Dev,
            "tmpfs",
            "/dev/shm",
            MS_NOSUID | MS_NODEV | MS_NOEXEC,
            Some("mode=1777,size=65536k"),
            false,
        )?,
    }
    mkdir(p, Step::Dev, "/dev/mqueue")?;
    // Kernels can be built without it.
    fs(p, Step::Dev, "mqueue", "/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, None, true)?;
    for (device, slot) in node.devices.iter().filter(|d| !spec.hides(&d.target)).zip(&sources.devices) {
        let path = &device.target;
        let (target, missing) = (c("devices", path)?, !device.folder);
        let kind = OpKind::Attach { slot: *slot, target, missing, fallback_read_only: false };
        if path == "/dev/null" {
            p.push(Step::Dev, path, kind);
        } else {
            p.push_optional(Step::Dev, path, kind);
        }
    }
    for (path, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        p.push(Step::Dev, path, OpKind::Symlink { target: c("dev", target)?, path: c("dev", path)? });
    }
    Ok(())
}

pub(super) fn proc_and_sys(
    p: &mut Program,
    spec: &LaunchSpec,
    node: &Node,
    sources: &Sources,
) -> Result<(), LaunchError> {
    mkdir(p, Step::Sys, "/sys")?;
    let fallback_read_only = !node.mount_setattr && !spec.security.writable_sys;
    let attach = |slot, target, fallback_read_only| OpKind::Attach { slot, target, missing: false, fallback_read_only };
    p.push(Step::Sys, "/sys", attach(sources.sys, c("sys", "/sys")?, fallback_read_only));
    // One by one, where they cannot be changed together. One that another hides is not found, and not reached either.
    for point in node.below_sys.iter().filter(|_| fallback_read_only) {
        p.push_optional(Step::Sys, point, OpKind::RemountReadOnly { path: c("sys", point)? });
    }
    mkdir(p, Step::Proc, "/proc")?;
    p.push(Step::Proc, "/proc", attach(sources.proc, c("proc", "/proc")?, false));
    if !spec.security.unmasked {
        for path in READ_ONLY {
            p.push(Step::Mask, path, OpKind::ReadOnlyPath { path: c("proc", path)? });
        }
        for path in MASKED {
            p.push(
                Step::Mask,
                path,
                OpKind::Mask { path: c("proc", path)?, folder: node.masked_folders.contains(&path) },
            );
        }
    }
    Ok(())
}
