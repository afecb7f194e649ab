//! A container whose root file system a nested Apptainer makes: two programs with Apptainer between them.
//!
//! ```text
//! outer: opens the sources ─ hands them over at fixed numbers ─ exec apptainer ──▶ inner: /dev, volumes, /proc, rights, exec
//! ```
//! What Apptainer itself mounts into a container is unmounted first: inside it is as in a native one.

use super::root::layers;
use super::sources::{new_proc, open_sources, ordered};
use super::text::c;
use super::{environment, exec, inside, oom_score_adj, process};
use crate::error::LaunchError;
use crate::launch::node::Node;
use crate::launch::pipes::ChildIo;
use crate::launch::spec::{LaunchSpec, PidNamespace};
use crate::program::{CStrings, OpKind, Program, Step};
use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

/// Numbers at which the inner program finds its descriptors, above what shells and Apptainer use and below the usual soft limit.
pub(crate) const INNER_PROGRAM: RawFd = 300;
pub(crate) const INNER_REPORT: RawFd = 301;
const INNER_IO: ChildIo = ChildIo { stdin: Some(302), stdout: 303, stderr: 304 };
pub(crate) const INNER_SLOTS: RawFd = 310;
/// Slots stay below this number.
const LAST: usize = 1000;

/// The program that runs the inner one, in the container until it begins.
const SHIM: &str = "/.hpk-inner";

/// What Apptainer puts into every container, beside /proc.
const APPTAINERS: [&str; 8] =
    ["/dev", "/sys", "/etc/hosts", "/etc/resolv.conf", "/etc/localtime", "/etc/passwd", "/etc/group", SHIM];

/// What a nested launch is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nested<'a> {
    pub(crate) apptainer: &'a Path,
    /// In the supervisor's view: a static program that calls `launch::nested::inner` when its first argument is `inner`.
    pub(crate) shim: &'a Path,
    /// Takes Apptainer's own words.
    pub(crate) words: RawFd,
    /// Will hold the inner program.
    pub(crate) program: RawFd,
}

/// The outer and the inner program.
pub(crate) fn compile_nested(
    spec: &LaunchSpec,
    node: &Node,
    io: Option<ChildIo>,
    nested: Nested<'_>,
) -> Result<(Program, Program), LaunchError> {
    super::identity(&spec.security, &node.ids)?;
    let mut outer = Program::default();
    let p = &mut outer;
    process(p, node.ignored_signals);
    if let Some(value) = spec.oom_score_adj {
        oom_score_adj(p, value)?;
    }
    p.push(Step::Stdio, "/dev/null", OpKind::OpenStdio { path: c("stdin", "/dev/null")?, target: 0 });
    for to in [1, 2] {
        p.push(Step::Stdio, "output", OpKind::Dup { from: nested.words, to, owner: None });
    }
    // Said here, by the path, instead of by Apptainer.
    p.push(Step::RootFs, spec.rootfs.to_string_lossy(), OpKind::Chdir { path: c("rootfs", &spec.rootfs)? });
    let mut mounts = ordered(&spec.mounts);
    let sources = open_sources(p, spec, node, &mut mounts, false)?;
    if matches!(spec.pid, PidNamespace::Of(_)) {
        // Apptainer looks itself up in /proc.
        let flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
        super::kernel_fs::fs(p, Step::Proc, "proc", "/proc", flags, None, false)?;
    }
    // Apptainer moves on to a namespace of its own. Were this one gone then, its program would have lost its path, and with
    // it, by Apptainer's rule, its configuration.
    let namespace = p.slot();
    p.push(Step::Nested, "mount namespace", OpKind::Hold { slot: namespace, path: c("proc", "/proc/self/ns/mnt")? });
    let (upper, _) = layers(p, &spec.upper)?;
    for folder in ["dev", "proc", "sys", "etc"] {
        let path = c("upper", upper.join(folder))?;
        p.push(Step::Upper, folder, OpKind::MkdirAll { path, mode: 0o755 });
    }
    let point = upper.join(SHIM.trim_start_matches('/'));
    p.push(Step::Upper, SHIM, OpKind::Touch { path: c("upper", &point)?, mode: 0o755 });
    p.push(Step::Nested, "/", OpKind::Chdir { path: c("/", "/")? });
    p.push(Step::Stdio, "descriptors", OpKind::CloseRest);
    let mut fds = vec![(nested.program, INNER_PROGRAM)];
    if let Some(io) = io {
        fds.extend([(io.stdout, INNER_IO.stdout), (io.stderr, INNER_IO.stderr)]);
        fds.extend(io.stdin.zip(INNER_IO.stdin));
    }
    let mut inner = Program::default();
    // The same slots in both: the inner program finds them by their numbers.
    inner.slots.clone_from(&p.slots);
    if inner.slots.len() + usize::try_from(INNER_SLOTS).unwrap_or(0) > LAST {
        return Err(LaunchError::Invalid {
            field: "volumeMounts",
            reason: "there are more than nested Apptainer can be given; use fewer".to_owned(),
        });
    }
    p.push(Step::Nested, "descriptors", OpKind::HandOver { slots: INNER_SLOTS, fds, report: INNER_REPORT });
    p.push(Step::Nested, nested.apptainer.to_string_lossy(), apptainer(spec, nested)?);

    let p = &mut inner;
    // What Apptainer ignores is not known.
    process(p, u64::MAX);
    for path in APPTAINERS {
        p.push_optional(Step::RootFs, path, OpKind::Unmount { path: c("rootfs", path)? });
    }
    p.push_optional(Step::RootFs, SHIM, OpKind::Unlink { path: c("rootfs", SHIM)? });
    new_proc(p, sources.proc)?;
    p.push_optional(Step::Proc, "/proc", OpKind::Unmount { path: c("proc", "/proc")? });
    let io = io.map(|io| ChildIo { stdin: io.stdin.and(INNER_IO.stdin), ..INNER_IO });
    inside(p, spec, node, &mounts, &sources, io)?;
    exec(p, &spec.argv, environment(spec, node))?;
    Ok((outer, inner))
}

fn apptainer(spec: &LaunchSpec, nested: Nested<'_>) -> Result<OpKind, LaunchError> {
    let mut argv: Vec<OsString> = vec![nested.apptainer.into()];
    // --no-init: the command itself is the first process of the container. No environment of ours, no folder of the parent's.
    argv.extend(
        [
            "--quiet",
            "exec",
            "--contain",
            "--cleanenv",
            "--no-init",
            "--no-eval",
            "--no-home",
            "--no-mount",
            "tmp,home,cwd",
        ]
        .map(OsString::from),
    );
    if matches!(spec.pid, PidNamespace::Own) {
        argv.push("--pid".into());
    }
    argv.extend(["--overlay".into(), spec.upper.clone().into(), "--bind".into()]);
    let mut bind = OsString::from(nested.shim);
    bind.push(format!(":{SHIM}:ro"));
    argv.extend([bind, spec.rootfs.clone().into(), SHIM.into(), "inner".into()]);
    let argv = argv.into_iter().map(|arg| c("rootfs", arg)).collect::<Result<_, _>>()?;
    let env = [("PATH", super::DEFAULT_PATH), ("HOME", "/"), ("LC_ALL", "C")];
    let envp = env.map(|(name, value)| c("env", format!("{name}={value}")));
    Ok(OpKind::Exec {
        candidates: vec![c("apptainer", nested.apptainer)?],
        argv: CStrings::new(argv),
        envp: CStrings::new(envp.into_iter().collect::<Result<_, _>>()?),
    })
}
