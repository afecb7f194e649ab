//! From a [`LaunchSpec`] to the child's [`Program`]: the order of a container's set-up.
//!
//! Pure: it reads the spec and what is known of the node, and touches nothing. Why the order is what it is:
//! * sources are opened before the pivot, while they can be named, and attached after it, where every path and every
//!   link in it can only lead into the container;
//! * /proc comes last, so that no mount point is resolved through its links;
//! * rights are dropped after everything that needs them.

use super::{LaunchSpec, Mount, Propagation, Upper};
use crate::ids::Ids;
use crate::program::{CStrings, OpKind, Program, Slot, Step};
use crate::spawn::LaunchError;
use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE};
use std::ffi::{CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What engines give when the image and the pod name none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths that container engines hide (containerd, moby: `DefaultSpec`).
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that container engines make read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Group of terminals, where it exists.
const TTY_GROUP: u32 = 5;

/// MOUNT_ATTR_NOSUID, _NODEV and _NOEXEC of linux/mount.h.
const PROC_ATTRIBUTES: u64 = 0x2 | 0x4 | 0x8;

/// What is known of the node and the pod's namespaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) ids: Ids,
    /// Below /dev, in the order in which they are bound.
    pub(crate) devices: Vec<String>,
    /// The supervisor's own permitted capabilities.
    pub(crate) permitted: u64,
    /// Highest capability that the kernel knows.
    pub(crate) last_cap: u8,
    /// Libraries that Apptainer's --nv and --rocm bound into the parent.
    pub(crate) gpu_libs: Option<String>,
    /// mount_setattr(2) is there (5.12).
    pub(crate) mount_setattr: bool,
}

/// Child's ends of its standard input and output, as numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildIo {
    pub(crate) stdin: Option<RawFd>,
    pub(crate) stdout: RawFd,
    pub(crate) stderr: RawFd,
}

pub(crate) fn c(field: &'static str, text: impl AsRef<OsStr>) -> Result<CString, LaunchError> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).map_err(|_| LaunchError::Invalid {
        field,
        reason: format!(
            "{:?} contains a NUL character, which no program can be given; remove it",
            text.to_string_lossy()
        ),
    })
}

fn c_opt(field: &'static str, text: &str) -> Result<Option<CString>, LaunchError> {
    c(field, text).map(Some)
}

pub(crate) fn compile(spec: &LaunchSpec, node: &Node, io: Option<ChildIo>) -> Result<Program, LaunchError> {
    check_identity(spec, &node.ids)?;
    let mut program = Program::default();
    let p = &mut program;
    process(p);
    if let Some(value) = spec.oom_score_adj {
        oom_score_adj(p, value)?;
    }
    stdin_from_null(p, spec, io)?;
    let mut mounts = ordered(&spec.mounts);
    let attached = open_sources(p, spec, node, &mut mounts)?;
    let targets: Vec<(Slot, String)> =
        attached.mounts.iter().zip(&mounts).map(|(slot, mount)| (*slot, mount.target.clone())).collect();
    root_file_system(p, spec, &targets)?;
    dev(p, spec, node, &attached)?;
    for (mount, slot) in mounts.iter().zip(&attached.mounts) {
        let fallback = mount.read_only && !node.mount_setattr;
        let kind = OpKind::Attach {
            slot: *slot,
            target: c("volumeMounts.mountPath", &mount.target)?,
            fallback_read_only: fallback,
        };
        p.push(Step::Mount, &mount.target, kind);
    }
    if let (Some(libs), Some(slot)) = (&node.gpu_libs, attached.gpu_libs) {
        p.push(Step::Mount, libs, OpKind::Attach { slot, target: c("devices", libs)?, fallback_read_only: false });
    }
    proc_and_sys(p, spec, node, &attached)?;
    let working_dir = spec.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
    if working_dir != "/" {
        p.push(Step::WorkingDir, working_dir, OpKind::MkdirAll { path: c("workingDir", working_dir)?, mode: 0o755 });
    }
    if spec.security.read_only_rootfs {
        p.push(Step::ReadOnly, "/", OpKind::RemountReadOnly { path: c("/", "/")? });
    }
    for limit in &spec.rlimits {
        let resource = i32::try_from(limit.resource).map_err(|_| LaunchError::Invalid {
            field: "rlimits",
            reason: format!("there is no resource {}", limit.resource),
        })?;
        p.push(
            Step::Limits,
            format!("rlimit {resource}"),
            OpKind::Rlimit { resource, soft: limit.soft, hard: limit.hard },
        );
    }
    standard_io(p, &spec.security, spec.tty, true, (0, 0), io);
    p.push(Step::WorkingDir, working_dir, OpKind::Chdir { path: c("workingDir", working_dir)? });
    p.push(Step::Process, "umask", OpKind::Umask(0o022));
    rights(p, &spec.security, node);
    exec(p, &spec.argv, environment(spec, node))?;
    Ok(program)
}

/// securityContext against the ids that exist here.
fn check_identity(spec: &LaunchSpec, ids: &Ids) -> Result<(), LaunchError> {
    identity(&spec.security, ids)
}

pub(crate) fn identity(security: &super::Security, ids: &Ids) -> Result<(), LaunchError> {
    if !ids.uids.contains(security.uid) {
        return Err(LaunchError::IdNotMapped { field: "securityContext.runAsUser", id: security.uid });
    }
    if !ids.gids.contains(security.gid) {
        return Err(LaunchError::IdNotMapped { field: "securityContext.runAsGroup", id: security.gid });
    }
    if !security.groups.is_empty() && !ids.setgroups {
        return Err(LaunchError::GroupsDenied);
    }
    match security.groups.iter().find(|&&group| !ids.gids.contains(group)) {
        Some(&id) => Err(LaunchError::IdNotMapped { field: "securityContext.supplementalGroups", id }),
        None => Ok(()),
    }
}

pub(crate) fn process(p: &mut Program) {
    p.push(Step::Process, "signals", OpKind::ResetSignals);
    p.push(Step::Process, "session", OpKind::Setsid);
    // Modes below are meant as written.
    p.push(Step::Process, "umask", OpKind::Umask(0));
}

pub(crate) fn oom_score_adj(p: &mut Program, value: i32) -> Result<(), LaunchError> {
    let path = c("oom_score_adj", "/proc/self/oom_score_adj")?;
    // Lower than the supervisor's own is root's privilege; the job's cgroup decides between pods anyhow.
    p.push_optional(Step::Limits, "oom_score_adj", OpKind::WriteFile { path, data: value.to_string().into_bytes() });
    Ok(())
}

fn stdin_from_null(p: &mut Program, spec: &LaunchSpec, io: Option<ChildIo>) -> Result<(), LaunchError> {
    if !spec.tty && io.is_none_or(|io| io.stdin.is_none()) {
        p.push(Step::Stdio, "/dev/null", OpKind::OpenStdio { path: c("stdin", "/dev/null")?, target: 0 });
    }
    Ok(())
}

/// Shallow targets first, as container engines order them; equal depth keeps the spec's order.
fn ordered(mounts: &[Mount]) -> Vec<&Mount> {
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
    mounts
}

/// Slots of opened sources.
struct Sources {
    mounts: Vec<Slot>,
    devices: Vec<Slot>,
    shm: Option<Slot>,
    sys: Slot,
    proc: Slot,
    gpu_libs: Option<Slot>,
}

fn open_sources(
    p: &mut Program,
    spec: &LaunchSpec,
    node: &Node,
    mounts: &mut [&Mount],
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
    for device in &node.devices {
        let slot = p.slot();
        let path = format!("/dev/{device}");
        p.push_optional(Step::Dev, &path, OpKind::OpenTree { slot, path: c("devices", &path)?, recursive: true });
        devices.push(slot);
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
    let gpu_libs = match &node.gpu_libs {
        Some(path) => {
            let slot = p.slot();
            p.push(Step::Source, path, OpKind::OpenTree { slot, path: c("devices", path)?, recursive: true });
            Some(slot)
        }
        None => None,
    };
    let sys = p.slot();
    p.push(Step::Sys, "/sys", OpKind::OpenTree { slot: sys, path: c("sys", "/sys")?, recursive: true });
    if !spec.security.writable_sys && node.mount_setattr {
        p.push(Step::Sys, "/sys", OpKind::SetAttr { slot: sys, read_only: true, recursive: true, propagation: 0 });
    }
    // A user namespace may mount /proc only where it sees another one: in the old root, so before the pivot.
    let proc = p.slot();
    p.push(Step::Proc, "/proc", OpKind::NewFs { slot: proc, fstype: c("proc", "proc")?, attributes: PROC_ATTRIBUTES });
    Ok(Sources { mounts: slots, devices, shm, sys, proc, gpu_libs })
}

fn open_mount(p: &mut Program, mount: &Mount, slot: Slot, node: &Node) -> Result<(), LaunchError> {
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
            p.push(Step::SubPath, path, OpKind::OpenSubTree { slot, volume: source, prefixes, last_components });
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
fn sub_path(path: &str) -> Result<(Vec<CString>, Vec<CString>), LaunchError> {
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

/// `:`, `,` and `\` mean something in overlay's options.
fn overlay_escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

/// `targets`: mount points to come, absolute.
pub(crate) fn overlay(
    p: &mut Program,
    rootfs: &Path,
    upper: &Upper,
    targets: &[(Slot, String)],
) -> Result<CString, LaunchError> {
    let dir = match upper {
        Upper::Dir(dir) | Upper::Limited { dir, .. } => dir,
    };
    p.push(Step::Upper, dir.to_string_lossy(), OpKind::MkdirAll { path: c("upper", dir)?, mode: 0o700 });
    if let Upper::Limited { bytes, .. } = upper {
        let data = c_opt("upper", &format!("size={bytes},mode=0700"))?;
        let kind = OpKind::Mount {
            source: c_opt("upper", "tmpfs")?,
            target: c("upper", dir)?,
            fstype: c_opt("upper", "tmpfs")?,
            flags: MS_NOSUID | MS_NODEV,
            data,
        };
        p.push(Step::Upper, dir.to_string_lossy(), kind);
    }
    let (upper_dir, work_dir) = (dir.join("upper"), dir.join("work"));
    // The root of the merged tree takes the upper folder's mode.
    for (path, mode) in [(&upper_dir, 0o755), (&work_dir, 0o700)] {
        p.push(Step::Upper, path.to_string_lossy(), OpKind::MkdirAll { path: c("upper", path)?, mode });
    }
    let root = stage(p, targets)?;
    // volatile (5.10): the layer dies with the container, and without it the end of a container waits until all dirty data of
    // the scratch file system is on disk (150 ms and more on a busy node).
    let mut options = b"userxattr,volatile,lowerdir=".to_vec();
    options.extend(overlay_escape(rootfs));
    options.extend(b":");
    options.extend(overlay_escape(Path::new(SKELETON)));
    options.extend(b",upperdir=");
    options.extend(overlay_escape(&upper_dir));
    options.extend(b",workdir=");
    options.extend(overlay_escape(&work_dir));
    let kind = OpKind::Mount {
        source: c_opt("rootfs", "overlay")?,
        target: root.clone(),
        fstype: c_opt("rootfs", "overlay")?,
        flags: 0,
        data: c("rootfs", OsStr::from_bytes(&options)).map(Some)?,
    };
    p.push(Step::RootFs, rootfs.to_string_lossy(), kind);
    Ok(root)
}

/// In the child's own mount namespace a tmpfs is put over /sys, whose tree is already held, as the place for what a launch
/// needs only until the pivot: a folder made there costs no write to the scratch disk.
const STAGE: &str = "/sys";
const STAGED_ROOT: &str = "/sys/root";
const SKELETON: &str = "/sys/skeleton";

/// Makes the stage, with the mount point of the root, which is returned, and the skeleton: a lowest layer of empty mount
/// points, so that what the image lacks is there without a write to the disk for each, and the writable layer holds what
/// the container wrote and nothing else. What the image has wins.
fn stage(p: &mut Program, targets: &[(Slot, String)]) -> Result<CString, LaunchError> {
    fs(p, Step::Upper, "tmpfs", STAGE, MS_NOSUID | MS_NODEV, Some("mode=0755"), false)?;
    let (staged_root, root) = (c("upper", STAGED_ROOT)?, c("upper", SKELETON)?);
    for path in [&staged_root, &root] {
        p.push(Step::Upper, STAGE, OpKind::MkdirAll { path: path.clone(), mode: 0o755 });
    }
    let folders = ["/dev", "/proc", "/sys"].iter().map(|path| c("mount", path)).collect::<Result<_, _>>()?;
    // `..` would lead out of the skeleton; such a mount point is made when it is attached, inside the container's root.
    let targets = targets
        .iter()
        .filter(|(_, target)| !target.split('/').any(|part| part == ".."))
        .filter(|(_, target)| !["/dev/", "/proc/", "/sys/"].iter().any(|fs| target.starts_with(fs)))
        .map(|(slot, target)| Ok((*slot, c("volumeMounts.mountPath", target)?)))
        .collect::<Result<_, LaunchError>>()?;
    p.push(Step::Upper, SKELETON, OpKind::Skeleton { root, folders, targets });
    Ok(staged_root)
}

fn root_file_system(p: &mut Program, spec: &LaunchSpec, targets: &[(Slot, String)]) -> Result<(), LaunchError> {
    let root = overlay(p, &spec.rootfs, &spec.upper, targets)?;
    p.push(Step::Pivot, spec.rootfs.to_string_lossy(), OpKind::Pivot { path: root });
    Ok(())
}

fn fs(
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

fn mkdir(p: &mut Program, step: Step, path: &str) -> Result<(), LaunchError> {
    p.push(step, path, OpKind::MkdirAll { path: c("mount", path)?, mode: 0o755 });
    Ok(())
}

fn dev(p: &mut Program, spec: &LaunchSpec, node: &Node, sources: &Sources) -> Result<(), LaunchError> {
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
            OpKind::Attach { slot, target: c("shm", "/dev/shm")?, fallback_read_only: false },
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
    for (device, slot) in node.devices.iter().zip(&sources.devices) {
        let path = format!("/dev/{device}");
        let kind = OpKind::Attach { slot: *slot, target: c("devices", &path)?, fallback_read_only: false };
        if device == "null" {
            p.push(Step::Dev, &path, kind);
        } else {
            p.push_optional(Step::Dev, &path, kind);
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
    let _ = spec;
    Ok(())
}

fn proc_and_sys(p: &mut Program, spec: &LaunchSpec, node: &Node, sources: &Sources) -> Result<(), LaunchError> {
    mkdir(p, Step::Sys, "/sys")?;
    let fallback_read_only = !node.mount_setattr && !spec.security.writable_sys;
    p.push(Step::Sys, "/sys", OpKind::Attach { slot: sources.sys, target: c("sys", "/sys")?, fallback_read_only });
    mkdir(p, Step::Proc, "/proc")?;
    p.push(
        Step::Proc,
        "/proc",
        OpKind::Attach { slot: sources.proc, target: c("proc", "/proc")?, fallback_read_only: false },
    );
    if !spec.security.unmasked {
        for path in READ_ONLY {
            p.push(Step::Mask, path, OpKind::ReadOnlyPath { path: c("proc", path)? });
        }
        for path in MASKED {
            p.push(Step::Mask, path, OpKind::Mask { path: c("proc", path)? });
        }
    }
    Ok(())
}

pub(crate) fn standard_io(
    p: &mut Program,
    security: &super::Security,
    tty: bool,
    console: bool,
    size: (u16, u16),
    io: Option<ChildIo>,
) {
    let owner = (security.uid, security.gid);
    if tty {
        p.push(Step::Terminal, "/dev/pts", OpKind::Terminal { owner, console, rows: size.0, cols: size.1 });
    } else if let Some(io) = io {
        if let Some(fd) = io.stdin {
            p.push(Step::Stdio, "stdin", OpKind::Dup { from: fd, to: 0, owner: Some(owner) });
        }
        p.push(Step::Stdio, "stdout", OpKind::Dup { from: io.stdout, to: 1, owner: Some(owner) });
        p.push(Step::Stdio, "stderr", OpKind::Dup { from: io.stderr, to: 2, owner: Some(owner) });
    }
    p.push(Step::Stdio, "descriptors", OpKind::CloseRest);
}

/// Everything that takes rights away, in the only order in which it works.
pub(crate) fn rights(p: &mut Program, security: &super::Security, node: &Node) {
    // A filter needs CAP_SYS_ADMIN where no_new_privs is not set, so it comes before the drop; the default one allows
    // the calls below.
    if let Some(filter) = &security.seccomp {
        p.push(Step::Seccomp, "RuntimeDefault", OpKind::Seccomp(filter.instructions()));
    }
    let bounding = security.caps.bits();
    let drop = (0..=node.last_cap).filter(|cap| bounding & (1 << cap) == 0).map(i32::from).collect();
    p.push(Step::Capabilities, "bounding set", OpKind::DropBounding(drop));
    if node.ids.setgroups {
        p.push(Step::Identity, "groups", OpKind::SetGroups(security.groups.clone()));
    }
    p.push(Step::Identity, format!("gid {}", security.gid), OpKind::SetGid(security.gid));
    p.push(Step::Identity, format!("uid {}", security.uid), OpKind::SetUid(security.uid));
    let permitted = if security.uid == 0 { bounding & node.permitted } else { 0 };
    p.push(Step::Capabilities, "permitted set", OpKind::SetCaps { permitted });
    if security.no_new_privs {
        p.push(Step::Seccomp, "no_new_privs", OpKind::NoNewPrivs);
    }
}

fn environment(spec: &LaunchSpec, node: &Node) -> Vec<(String, String)> {
    let mut env = spec.env.clone();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(n, _)| n == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", spec.security.home.as_deref().unwrap_or("/"));
    if spec.tty {
        default("TERM", "xterm");
    }
    if let Some(libs) = &node.gpu_libs {
        match env.iter_mut().find(|(name, _)| name == "LD_LIBRARY_PATH") {
            Some((_, value)) => *value = format!("{value}:{libs}"),
            None => env.push(("LD_LIBRARY_PATH".to_owned(), libs.clone())),
        }
    }
    env
}

pub(crate) fn exec(p: &mut Program, argv: &[String], env: Vec<(String, String)>) -> Result<(), LaunchError> {
    let Some(command) = argv.first() else {
        return Err(LaunchError::Invalid {
            field: "command",
            reason: "no command: the image has no ENTRYPOINT or CMD and the pod gives none; set command".to_owned(),
        });
    };
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    let candidates = if command.contains('/') {
        vec![c("command", command)?]
    } else {
        path.split(':')
            .filter(|dir| dir.starts_with('/') && !command.is_empty())
            .map(|dir| c("command", format!("{}/{command}", dir.trim_end_matches('/'))))
            .collect::<Result<_, _>>()?
    };
    let label = command.clone();
    let argv = argv.iter().map(|arg| c("args", arg)).collect::<Result<_, _>>()?;
    // Later entries win: a C library's getenv finds the first, so only the last of each name is passed.
    let mut seen = std::collections::HashSet::new();
    let mut entries = Vec::with_capacity(env.len());
    for (name, value) in env.iter().rev() {
        if seen.insert(name) {
            entries.push(c("env", format!("{name}={value}"))?);
        }
    }
    entries.reverse();
    p.push(Step::Exec, label, OpKind::Exec { candidates, argv: CStrings::new(argv), envp: CStrings::new(entries) });
    Ok(())
}

/// The program of a process that joins the container of `target`, a pidfd.
pub(crate) fn compile_join(
    spec: &crate::join::JoinSpec,
    node: &Node,
    target: RawFd,
    io: Option<ChildIo>,
) -> Result<Program, LaunchError> {
    identity(&spec.security, &node.ids)?;
    let mut program = Program::default();
    let p = &mut program;
    process(p);
    if let Some(value) = spec.oom_score_adj {
        oom_score_adj(p, value)?;
    }
    if !spec.tty && io.is_none_or(|io| io.stdin.is_none()) {
        p.push(Step::Stdio, "/dev/null", OpKind::OpenStdio { path: c("stdin", "/dev/null")?, target: 0 });
    }
    p.push(Step::Namespaces, "mount namespace", OpKind::Setns { fd: target, flags: libc::CLONE_NEWNS });
    standard_io(p, &spec.security, spec.tty, false, spec.size, io);
    let working_dir = spec.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
    p.push(Step::WorkingDir, working_dir, OpKind::Chdir { path: c("workingDir", working_dir)? });
    p.push(Step::Process, "umask", OpKind::Umask(0o022));
    rights(p, &spec.security, node);
    let mut env = spec.env.clone();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".to_owned(), spec.security.home.clone().unwrap_or_else(|| "/".to_owned())));
    }
    if spec.tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    exec(p, &spec.argv, env)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Security;
    use proptest::prelude::*;

    fn spec(targets: &[&str]) -> LaunchSpec {
        LaunchSpec {
            name: "test".to_owned(),
            rootfs: "/images/a:b,c\\d/rootfs".into(),
            upper: Upper::Dir("/scratch/1".into()),
            argv: vec!["true".to_owned()],
            env: Vec::new(),
            working_dir: None,
            mounts: targets.iter().map(|target| Mount::new("/volume", *target)).collect(),
            shm: None,
            security: Security::default(),
            share_pid: false,
            stdin: false,
            tty: false,
            rlimits: Vec::new(),
            oom_score_adj: None,
        }
    }

    fn node() -> Node {
        let all = crate::ids::IdMap::parse("0 0 4294967295");
        Node {
            ids: Ids { uids: all.clone(), gids: all, setgroups: true },
            last_cap: 40,
            mount_setattr: true,
            ..Node::default()
        }
    }

    #[test]
    fn sub_paths_are_walked_prefix_by_prefix() {
        let texts = |list: Vec<CString>| list.into_iter().map(|c| c.into_string().expect("text")).collect::<Vec<_>>();
        let (prefixes, last) = sub_path("a//./b/c/").expect("a path");
        assert_eq!(
            (texts(prefixes), texts(last)),
            (vec!["a".into(), "a/b".into(), "a/b/c".into()], vec!["a".into(), "b".into(), "c".into()])
        );
        for bad in ["/a", "a/../b", "..", "a/\0"] {
            assert!(matches!(sub_path(bad), Err(LaunchError::Invalid { .. })), "{bad:?}");
        }
    }

    #[test]
    fn option_separators_in_paths_are_escaped() {
        assert_eq!(overlay_escape(Path::new("/a:b,c\\d")), b"/a\\:b\\,c\\\\d");
    }

    #[test]
    fn rights_go_after_the_mounts_and_exec_is_last() {
        let mut container = spec(&["/data"]);
        container.security.read_only_rootfs = true;
        let program = compile(&container, &node(), None).expect("a program");
        let at =
            |wanted: fn(&OpKind) -> bool| program.ops.iter().position(|op| wanted(&op.kind)).expect("an operation");
        let order = [
            at(|kind| matches!(kind, OpKind::NewFs { .. })),
            at(|kind| matches!(kind, OpKind::Pivot { .. })),
            at(|kind| matches!(kind, OpKind::Attach { .. })),
            at(|kind| matches!(kind, OpKind::RemountReadOnly { .. })),
            at(|kind| matches!(kind, OpKind::CloseRest)),
            at(|kind| matches!(kind, OpKind::DropBounding(_))),
            at(|kind| matches!(kind, OpKind::SetGid(_))),
            at(|kind| matches!(kind, OpKind::SetUid(_))),
            at(|kind| matches!(kind, OpKind::SetCaps { .. })),
            at(|kind| matches!(kind, OpKind::Exec { .. })),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(order.last(), Some(&(program.ops.len() - 1)));
    }

    proptest! {
        /// No spec makes the compiler panic, and no mount point outside of the skeleton is made before the pivot.
        #[test]
        fn any_targets_compile_or_are_refused(targets in proptest::collection::vec("(/|\\.\\.|a|b|\u{0}|){0,8}", 0..6)) {
            let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
            if let Ok(program) = compile(&spec(&targets), &node(), None) {
                for op in &program.ops {
                    if let OpKind::Skeleton { targets, .. } = &op.kind {
                        for (_, target) in targets {
                            let target = target.to_str().expect("text");
                            prop_assert!(target.starts_with('/') && !target.split('/').any(|part| part == ".."));
                        }
                    }
                }
            }
        }
    }
}
