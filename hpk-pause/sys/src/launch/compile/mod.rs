//! From a [`LaunchSpec`] to the child's [`Program`]: the order of a container's set-up.
//!
//! Pure: it reads the spec and what is known of the node, and touches nothing. Why the order is what it is:
//! * sources are opened before the pivot, while they can be named, and attached after it, where every path and every
//!   link in it can only lead into the container;
//! * /sys and /proc come after the mounts, so that no mount point is resolved through their links, and after them only
//!   what is mounted over them by paths without links;
//! * rights are dropped after everything that needs them.

mod command;
mod kernel_fs;
mod nested;
mod root;
mod sources;
mod staged;
mod text;

pub(crate) use command::exec;
use command::{DEFAULT_PATH, defaults, environment, rights, standard_io};
pub(crate) use nested::{INNER_PROGRAM, INNER_REPORT, INNER_SLOTS, Nested, compile_nested};
pub(crate) use root::overlay;

use super::node::Node;
use crate::error::LaunchError;
use crate::ids::Ids;
pub(crate) use crate::launch::pipes::ChildIo;
use crate::launch::spec::{JoinSpec, LaunchSpec, Mount, Security};
use crate::program::{CStrings, OpKind, Program, Slot, Step};
use kernel_fs::{dev, proc_and_sys};
use root::root_file_system;
use sources::{Sources, in_kernel_fs, open_sources, ordered};
use std::os::fd::RawFd;
pub(crate) use text::c;

pub(crate) fn compile(spec: &LaunchSpec, node: &Node, io: Option<ChildIo>) -> Result<Program, LaunchError> {
    identity(&spec.security, &node.ids)?;
    let mut program = Program::default();
    let p = &mut program;
    process(p, node.ignored_signals);
    if let Some(value) = spec.oom_score_adj {
        oom_score_adj(p, value)?;
    }
    stdin_from_null(p, spec.tty, io)?;
    let mut mounts = ordered(&spec.mounts);
    let attached = open_sources(p, spec, node, &mut mounts, true)?;
    let own = spec.keeper.is_some().then(|| hold_own_program(p)).transpose()?;
    let targets: Vec<(Slot, String)> =
        attached.mounts.iter().zip(&mounts).map(|(slot, mount)| (*slot, mount.target.clone())).collect();
    root_file_system(p, spec, &targets)?;
    inside(p, spec, node, &mounts, &attached, io)?;
    match own {
        Some(slot) => {
            let argv = vec![c("keeper", "hpk-pause")?, c("keeper", super::KEEP)?];
            let kind = OpKind::ExecHeld { slot, argv: CStrings::new(argv), envp: CStrings::new(Vec::new()) };
            p.push(Step::Exec, "the container's keeper", kind);
        }
        None => exec(p, &spec.argv, environment(spec, node))?,
    }
    if !node.mount_setattr {
        staged::rewrite(p)?;
    }
    Ok(program)
}

/// This very program, found before the pivot takes it out of sight.
fn hold_own_program(p: &mut Program) -> Result<Slot, LaunchError> {
    let slot = p.slot();
    p.push(Step::Source, "hpk-pause", OpKind::Hold { slot, path: c("keeper", "/proc/self/exe")? });
    Ok(slot)
}

/// From the new root to what comes before the command.
fn inside(
    p: &mut Program,
    spec: &LaunchSpec,
    node: &Node,
    mounts: &[&Mount],
    attached: &Sources,
    io: Option<ChildIo>,
) -> Result<(), LaunchError> {
    dev(p, spec, node, attached)?;
    let mut over_kernel_fs = Vec::new();
    for (mount, slot) in mounts.iter().zip(&attached.mounts) {
        let fallback = mount.read_only && !node.mount_setattr;
        let place = in_kernel_fs(&mount.target)?;
        let kind = OpKind::Attach {
            slot: *slot,
            target: c("volumeMounts.mountPath", place.as_ref().unwrap_or(&mount.target))?,
            missing: false,
            fallback_read_only: fallback,
        };
        match place {
            None => p.push(Step::Mount, &mount.target, kind),
            Some(place) => over_kernel_fs.push((place, kind)),
        }
    }
    for (file, slot) in node.gpu.iter().zip(&attached.gpu) {
        let target = c("devices", &file.target)?;
        let kind = OpKind::Attach { slot: *slot, target, missing: false, fallback_read_only: false };
        p.push_optional(Step::Mount, &file.target, kind);
    }
    proc_and_sys(p, spec, node, attached)?;
    for (place, slot) in spec.shown.iter().zip(&attached.shown) {
        let target = c("shown", &place.target)?;
        let fallback_read_only = !node.mount_setattr;
        p.push_optional(
            Step::Sys,
            &place.target,
            OpKind::Attach { slot: *slot, target, missing: false, fallback_read_only },
        );
    }
    for (place, kind) in over_kernel_fs {
        p.push(Step::Mount, place, kind);
    }
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
    Ok(())
}

/// securityContext against the ids that exist here.
pub(crate) fn identity(security: &Security, ids: &Ids) -> Result<(), LaunchError> {
    let missing = |field, id, map: &crate::ids::IdMap| LaunchError::IdNotMapped { field, id, range: map.words() };
    if !ids.uids.contains(security.uid) {
        return Err(missing("securityContext.runAsUser", security.uid, &ids.uids));
    }
    if !ids.gids.contains(security.gid) {
        return Err(missing("securityContext.runAsGroup", security.gid, &ids.gids));
    }
    if !security.groups.is_empty() && !ids.setgroups {
        return Err(LaunchError::GroupsDenied);
    }
    match security.groups.iter().find(|&&group| !ids.gids.contains(group)) {
        Some(&id) => Err(missing("securityContext.supplementalGroups", id, &ids.gids)),
        None => Ok(()),
    }
}

/// `ignored`: the signals that the child ignores; its handlers are gone with its birth (CLONE_CLEAR_SIGHAND).
pub(crate) fn process(p: &mut Program, ignored: u64) {
    p.push(Step::Process, "signals", OpKind::ResetSignals { ignored });
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

fn stdin_from_null(p: &mut Program, tty: bool, io: Option<ChildIo>) -> Result<(), LaunchError> {
    if !tty && io.is_none_or(|io| io.stdin.is_none()) {
        p.push(Step::Stdio, "/dev/null", OpKind::OpenStdio { path: c("stdin", "/dev/null")?, target: 0 });
    }
    Ok(())
}

/// The program of a process that joins the container of `target`, a pidfd, and its user namespace if so.
pub(crate) fn compile_join(
    spec: &JoinSpec,
    node: &Node,
    target: RawFd,
    enter_users: bool,
    io: Option<ChildIo>,
) -> Result<Program, LaunchError> {
    let joined = spec.identity.map(|own| node.ids.with_own(own).1);
    identity(&spec.security, joined.as_ref().unwrap_or(&node.ids))?;
    let mut program = Program::default();
    let p = &mut program;
    process(p, node.ignored_signals);
    if let Some(value) = spec.oom_score_adj {
        oom_score_adj(p, value)?;
    }
    stdin_from_null(p, spec.tty, io)?;
    let user = if enter_users { libc::CLONE_NEWUSER } else { 0 };
    p.push(Step::Namespaces, "mount namespace", OpKind::Setns { fd: target, flags: libc::CLONE_NEWNS | user });
    standard_io(p, &spec.security, spec.tty, false, spec.size, io);
    for fd in &spec.inherit {
        p.push(Step::Stdio, format!("descriptor {fd}"), OpKind::Inherit { fd: *fd });
    }
    let working_dir = spec.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/");
    p.push(Step::WorkingDir, working_dir, OpKind::Chdir { path: c("workingDir", working_dir)? });
    p.push(Step::Process, "umask", OpKind::Umask(0o022));
    rights(p, &spec.security, node);
    let env = defaults(&spec.env, &spec.security, spec.tty);
    exec(p, &spec.argv, env)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::root::overlay_escape;
    use super::sources::sub_path;
    use super::*;
    use proptest::prelude::*;
    use std::ffi::CString;
    use std::path::Path;

    fn spec(targets: &[&str]) -> LaunchSpec {
        let mounts = targets.iter().map(|target| Mount::new("/volume", *target)).collect();
        LaunchSpec { mounts, ..LaunchSpec::new("test", "/images/a:b,c\\d/rootfs", "/scratch/1", ["true"]) }
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
