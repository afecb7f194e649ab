//! Standard streams, rights, environment and command: what joining processes have as well.

use super::text::c;
use crate::crossing::filter::PROGRAM;
use crate::error::LaunchError;
use crate::launch::node::Node;
use crate::launch::pipes::ChildIo;
use crate::launch::spec::{LaunchSpec, Security};
use crate::program::{CStrings, OpKind, Program, Step};

pub(crate) fn standard_io(
    p: &mut Program,
    security: &Security,
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
pub(crate) fn rights(p: &mut Program, security: &Security, node: &Node) {
    // Optional: where the kernel refuses it (another one answers already), the process has what it had before.
    if let Some(post) = &security.crossing {
        p.push_optional(Step::Seccomp, "connections that ask first", OpKind::Ask(PROGRAM.to_vec()));
        p.post = Some(post.clone());
    }
    // A filter needs CAP_SYS_ADMIN where no_new_privs is not set, so it comes before the drop; the default one allows
    // the calls below.
    if let Some(filter) = &security.seccomp {
        p.push(Step::Seccomp, "RuntimeDefault", OpKind::Seccomp(filter.instructions()));
    }
    let bounding = security.caps.bits();
    let drop = (0..=node.last_cap).filter(|cap| bounding & (1 << cap) == 0).map(i32::from).collect();
    p.push(Step::Capabilities, "bounding set", OpKind::DropBounding(drop));
    if node.ids.setgroups && !security.keep_groups {
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

/// What engines give when the image and the pod name none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command's environment with what engines add to it.
pub(super) fn defaults(own: &[(String, String)], security: &Security, tty: bool) -> Vec<(String, String)> {
    let mut env = own.to_vec();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(n, _)| n == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", security.home.as_deref().unwrap_or("/"));
    if tty {
        default("TERM", "xterm");
    }
    env
}

pub(super) fn environment(spec: &LaunchSpec, node: &Node) -> Vec<(String, String)> {
    let mut env = defaults(&spec.env, &spec.security, spec.tty);
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
