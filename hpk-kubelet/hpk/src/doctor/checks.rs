//! The checks. Each looks at one thing and reports one finding; none changes anything.

use super::{Finding, executor, images, network, policy, storage};
use crate::down::pod_jobs;
use crate::home;
use crate::site;
use hpk_api::cluster::ExecutorKind;
use hpk_api::subids;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything that can be seen from the login node.
pub(super) fn login(show: &mut dyn FnMut(Finding)) {
    show(user());
    let kind = executor::chosen();
    let slurm = [slurm_commands(), slurm_answers()];
    let local = [apptainer(), user_namespaces()];
    show(executor::which_work(&slurm, &local));
    if kind == ExecutorKind::Local {
        show(executor::limits());
    } else {
        slurm.into_iter().chain([accounting()]).for_each(&mut *show);
    }
    local.into_iter().for_each(&mut *show);
    show(subids());
    show(overlay());
    show(tun());
    show(outward());
    network::login(show);
    show(home());
    storage::home(show);
    if kind == ExecutorKind::Slurm {
        show(policy::login());
    }
    show(images::layout());
    show(installed());
    show(address(kind));
    show(if kind == ExecutorKind::Local { executor::pods() } else { jobs() });
}

/// What a compute node must have, asked there by a job of a few seconds.
pub(super) fn job(show: &mut dyn FnMut(Finding)) {
    const CHECK: &str = "compute node";
    let script = "echo host=$(uname -n); apptainer --version; unshare -Ur true && echo userns=yes; \
                  test -w /dev/net/tun && echo tun=yes; test -d \"$0\" && echo home=yes";
    let home = home::find().map(|h| h.root().display().to_string()).unwrap_or_default();
    let out = Command::new("srun").args(["-N1", "-n1", "-t1", "bash", "-c", script, &home]).output();
    let text = match out {
        Ok(o) if o.status.success() || !o.stdout.is_empty() => String::from_utf8_lossy(&o.stdout).into_owned(),
        Ok(o) => {
            let said = String::from_utf8_lossy(&o.stderr).trim().to_owned();
            show(Finding::failed(CHECK, format!("srun: {said}"), "see that srun -N1 hostname works"));
            return;
        }
        Err(e) => {
            show(Finding::failed(CHECK, format!("srun: {e}"), "install or load Slurm's commands"));
            return;
        }
    };
    show(Finding::ok(CHECK, text.lines().find(|l| l.starts_with("host=")).unwrap_or("answers").to_owned()));
    for (check, sign, remedy) in [
        ("compute: apptainer", "apptainer version", "Apptainer must be installed on the compute nodes (1.2 or later)"),
        ("compute: user namespaces", "userns=yes", "ask for user.max_user_namespaces > 0 on the compute nodes"),
        ("compute: /dev/net/tun", "tun=yes", "ask for /dev/net/tun with mode 0666; else pods use the node's network"),
        ("compute: shared home", "home=yes", "set HPK_HOME to a folder that login and compute nodes share"),
    ] {
        match text.lines().find(|l| l.contains(sign)) {
            Some(l) => show(Finding::ok(check, l.to_owned())),
            None => show(Finding::failed(check, "no", remedy)),
        }
    }
    network::job(show);
}

fn user() -> Finding {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        Finding::warning("user", "root", "HPK is meant for an ordinary user; jobs of root are often refused")
    } else {
        Finding::ok("user", format!("uid {uid}"))
    }
}

fn slurm_commands() -> Finding {
    const CHECK: &str = "Slurm's commands";
    let missing: Vec<_> = ["sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun"]
        .into_iter()
        .filter(|c| which::which(c).is_err())
        .collect();
    if missing.is_empty() {
        Finding::ok(CHECK, "all there")
    } else {
        Finding::failed(
            CHECK,
            format!("missing: {}", missing.join(", ")),
            "run hpk on a login node, or load Slurm's module",
        )
    }
}

fn slurm_answers() -> Finding {
    const CHECK: &str = "Slurm answers";
    match (site::cluster_name(), site::slurm("sinfo", &["-h", "-o", "%D %t"])) {
        (Ok(name), Ok(nodes)) => {
            let nodes: Vec<_> = nodes.lines().map(str::trim).collect();
            Finding::ok(CHECK, format!("cluster {name}, nodes: {}", nodes.join(", ")))
        }
        (Err(e), _) | (_, Err(e)) => Finding::failed(CHECK, e.to_string(), "see that sinfo works"),
    }
}

fn accounting() -> Finding {
    const CHECK: &str = "Slurm's accounting";
    match site::slurm("sacct", &["-n", "-X", "-o", "JobID", "-S", "now"]) {
        Ok(_) => Finding::ok(CHECK, "sacct works"),
        Err(e) => Finding::warning(
            CHECK,
            e.to_string(),
            "without it, how a job ended is known only as long as squeue remembers it (MinJobAge)",
        ),
    }
}

fn apptainer() -> Finding {
    const CHECK: &str = "Apptainer";
    match Command::new("apptainer").arg("--version").output() {
        Ok(o) if o.status.success() => {
            let text = String::from_utf8_lossy(&o.stdout).trim().to_owned();
            match version(&text) {
                Some(v) if v < APPTAINER => Finding::failed(CHECK, text, "1.2 or later is needed"),
                _ => Finding::ok(CHECK, text),
            }
        }
        Ok(o) => Finding::failed(
            CHECK,
            String::from_utf8_lossy(&o.stderr).trim().to_owned(),
            "see that apptainer --version works",
        ),
        Err(_) => Finding::failed(
            CHECK,
            "no apptainer command",
            "load the site's module, or install Apptainer in your home (it needs no setuid)",
        ),
    }
}

/// The first version with what is used of it; docs/guide/install.md says the same.
const APPTAINER: (u32, u32) = (1, 2);

/// Major and minor number in `apptainer version 1.4.5-1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let word = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = word.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn user_namespaces() -> Finding {
    const CHECK: &str = "user namespaces";
    match Command::new("unshare").args(["-Ur", "true"]).output() {
        Ok(o) if o.status.success() => Finding::ok(CHECK, "can be made"),
        Ok(o) => Finding::failed(
            CHECK,
            String::from_utf8_lossy(&o.stderr).trim().to_owned(),
            "ask for user.max_user_namespaces > 0 (and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)",
        ),
        Err(e) => Finding::warning(CHECK, format!("unshare: {e}"), "install util-linux to check"),
    }
}

fn subids() -> Finding {
    const CHECK: &str = "subordinate ids";
    let Ok(Some(user)) = nix::unistd::User::from_uid(nix::unistd::geteuid()) else {
        return Finding::failed(CHECK, "this user has no name", "an entry in passwd is needed");
    };
    let count = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        subids::largest(&text, user.uid.as_raw(), Some(&user.name)).map_or(0, |(_, count)| count)
    };
    let (uids, gids) = (count("/etc/subuid"), count("/etc/subgid"));
    let remedy = "ask for a range in /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 …); without, \
                  all users in containers are yourself";
    if uids.min(gids) < 65536 {
        Finding::warning(CHECK, format!("{uids} uids, {gids} gids"), remedy)
    } else if which::which("newuidmap").is_err() {
        Finding::warning(CHECK, "no newuidmap command", "ask for the package uidmap (shadow-utils)")
    } else {
        Finding::ok(CHECK, format!("{uids} uids, {gids} gids"))
    }
}

fn overlay() -> Finding {
    const CHECK: &str = "overlay in user namespaces";
    let script = "d=$(mktemp -d) && mkdir $d/l $d/m && mount -t tmpfs t $d/m && mkdir $d/m/u $d/m/w $d/m/x && \
                  mount -t overlay o -o userxattr,lowerdir=$d/l,upperdir=$d/m/u,workdir=$d/m/w $d/m/x; r=$?; \
                  umount -l $d/m 2>/dev/null; rm -rf $d; exit $r";
    match Command::new("unshare").args(["-Urm", "sh", "-c", script]).output() {
        Ok(o) if o.status.success() => Finding::ok(CHECK, "can be mounted"),
        Ok(_) => Finding::warning(
            CHECK,
            "cannot be mounted",
            "Linux 5.11 or later; without, containers start by a nested Apptainer, some 0.2 s slower each",
        ),
        Err(e) => Finding::warning(CHECK, format!("unshare: {e}"), "install util-linux to check"),
    }
}

fn tun() -> Finding {
    const CHECK: &str = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::ok(CHECK, "can be opened"),
        Err(e) => Finding::warning(
            CHECK,
            e.to_string(),
            "ask for mode 0666 on the compute nodes (it matters there: hpk doctor --job); else pods use the node's network",
        ),
    }
}

fn outward() -> Finding {
    const CHECK: &str = "pods reach the outside";
    match ["passt", "slirp4netns"].into_iter().find(|c| which::which(c).is_ok()) {
        Some(c) => Finding::ok(CHECK, format!("by {c}")),
        None => Finding::warning(
            CHECK,
            "neither passt nor slirp4netns",
            "install passt on the compute nodes, if pods need more than each other",
        ),
    }
}

fn home() -> Finding {
    const CHECK: &str = "HPK_HOME";
    let home = match home::find() {
        Ok(h) => h,
        Err(e) => return Finding::failed(CHECK, e.to_string(), "set HPK_HOME"),
    };
    if let Err(e) = home::check_above(&home) {
        return Finding::failed(CHECK, e.to_string(), "set HPK_HOME to a folder in your home");
    }
    // It may not be there yet: then its parent tells.
    let place = home.root().ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let kind = match nix::sys::statfs::statfs(place).map(|s| s.filesystem_type()) {
        Ok(nix::sys::statfs::TMPFS_MAGIC) => {
            return Finding::failed(
                CHECK,
                format!("{}: a tmpfs", home.root().display()),
                "set HPK_HOME to a folder that login and compute nodes share",
            );
        }
        Ok(nix::sys::statfs::NFS_SUPER_MAGIC) => "on NFS",
        _ => "there",
    };
    match nix::unistd::access(place, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Finding::ok(CHECK, format!("{} {kind}", home.root().display())),
        Err(e) => Finding::failed(CHECK, format!("{}: {e}", place.display()), "set HPK_HOME to a folder of yours"),
    }
}

fn installed() -> Finding {
    const CHECK: &str = "HPK's own files";
    let install = match home::install() {
        Ok(i) => i,
        Err(e) => return Finding::failed(CHECK, e.to_string(), "set HPK_PREFIX"),
    };
    let wanted = [
        install.kubelet(),
        install.libexec("hpk-pause"),
        install.libexec("hpk-netns"),
        install.image(),
        install.pause_image(),
    ];
    let missing: Vec<_> = wanted.iter().filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
    if missing.is_empty() {
        Finding::ok(CHECK, "all there")
    } else {
        Finding::failed(CHECK, format!("missing: {}", missing.join(", ")), "make install, or set HPK_PREFIX")
    }
}

fn address(executor: ExecutorKind) -> Finding {
    const CHECK: &str = "address of this host";
    match site::node_ip(None, executor) {
        Ok(ip) => Finding::ok(CHECK, ip.to_string()),
        Err(e) => Finding::failed(CHECK, e.to_string(), "hpk up --node-ip ADDRESS"),
    }
}

fn jobs() -> Finding {
    const CHECK: &str = "jobs of pods";
    match home::find().ok().map(|h| pod_jobs(&h)) {
        Some(Ok(jobs)) => Finding::ok(CHECK, jobs.len().to_string()),
        _ => Finding::warning(CHECK, "squeue does not tell", "see that squeue --me works"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("apptainer version 1.4.5-1"), Some((1, 4)));
        assert_eq!(version("apptainer version 1.0.3"), Some((1, 0)));
        assert_eq!(version("nonsense"), None);
    }
}
