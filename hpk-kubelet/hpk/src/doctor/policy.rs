//! What ends long programs on a login node: limits of CPU time and memory, and systemd's end of a session.

use super::Finding;
use hpk_sys::cgroup::JobMemory;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::path::{Path, PathBuf};

const CHECK: &str = "long programs here";
const REMEDY: &str = "run the control plane in a job: hpk up --in-job='--time=2-0'";
/// What the control plane has at rest, and room for its work: bytes.
const MEMORY: u64 = 3 << 29;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// RLIMIT_CPU of each process, seconds.
    cpu_seconds: Option<u64>,
    /// The smallest limit of the cgroups that this process is in, bytes.
    memory: Option<u64>,
    /// systemd ends a user's programs with the last session.
    killed_at_logout: bool,
}

/// The check.
pub(super) fn login() -> Finding {
    judge(&Facts {
        cpu_seconds: getrlimit(Resource::RLIMIT_CPU).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY),
        memory: JobMemory::find().and_then(|memory| memory.limit()),
        killed_at_logout: kills(&logind()) && !lingers(),
    })
}

/// What is told of these facts. Pure.
fn judge(facts: &Facts) -> Finding {
    let mut found = Vec::new();
    found.extend(facts.cpu_seconds.map(|s| format!("each process may use {} minutes of CPU (ulimit -t)", s / 60)));
    found.extend(
        facts.memory.filter(|m| *m < MEMORY).map(|m| format!("your programs may use {} MiB (cgroup)", m >> 20)),
    );
    if facts.killed_at_logout {
        found.push("systemd ends your programs when you log out (KillUserProcesses, no linger)".to_owned());
    }
    if found.is_empty() {
        Finding::ok(CHECK, "no limit of CPU time or memory was found; the site may have rules of its own")
    } else {
        Finding::warning(CHECK, found.join("; "), REMEDY)
    }
}

/// systemd-logind's configuration, in the order in which it is read.
fn logind() -> String {
    let mut files: Vec<PathBuf> = ["/usr/lib/systemd/logind.conf.d", "/etc/systemd/logind.conf.d"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .collect();
    files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files.insert(0, PathBuf::from("/etc/systemd/logind.conf"));
    files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n")
}

/// The last word counts.
fn kills(configuration: &str) -> bool {
    let mut values = configuration.lines().filter_map(|line| line.trim().strip_prefix("KillUserProcesses="));
    values.next_back().is_some_and(|value| matches!(value.trim(), "yes" | "true" | "1" | "on"))
}

fn lingers() -> bool {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.is_some_and(|user| Path::new("/var/lib/systemd/linger").join(user.name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_site_that_ends_long_programs_is_told_with_the_way_out() {
        assert_eq!(judge(&Facts::default()).verdict, Verdict::Ok);
        assert_eq!(judge(&Facts { memory: Some(8 << 30), ..Facts::default() }).verdict, Verdict::Ok);
        for (facts, word) in [
            (Facts { cpu_seconds: Some(1800), ..Facts::default() }, "30 minutes of CPU"),
            (Facts { memory: Some(512 << 20), ..Facts::default() }, "512 MiB"),
            (Facts { killed_at_logout: true, ..Facts::default() }, "log out"),
        ] {
            let told = judge(&facts);
            assert!(told.verdict == Verdict::Warning && told.found.contains(word), "{told:?}");
            assert!(told.remedy.contains("--in-job"), "{told:?}");
        }
    }

    #[test]
    fn the_last_word_of_logind_counts() {
        assert!(!kills("#KillUserProcesses=yes\n"));
        assert!(kills("[Login]\nKillUserProcesses=yes\n"));
        assert!(!kills("KillUserProcesses=yes\nKillUserProcesses=no\n"));
    }
}
