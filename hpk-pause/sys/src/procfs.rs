//! What the kernel tells about processes: CPU time and memory of a container, evidence of the OOM killer.
//!
//! Reads /proc and the job's cgroup only.

use crate::signals::{MountNs, members};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Use of a container's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of the living processes and their reaped children, nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory, bytes; pages that processes share are counted for each.
    pub rss_bytes: u64,
    /// Resident anonymous and shared memory, bytes: what cannot be dropped.
    pub working_set_bytes: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
}

/// The process of a pidfd, by its number in the caller's PID namespace; None when it is gone or elsewhere.
#[must_use]
pub fn pid_of(pidfd: BorrowedFd<'_>) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (number > 0).then(|| Pid::from_raw(number))
}

/// Use of everything in a mount namespace.
#[must_use]
pub fn usage(ns: MountNs) -> Usage {
    let page = page_size();
    let tick = 1_000_000_000 / clock_ticks();
    members(ns).into_iter().fold(Usage::default(), |mut sum, pid| {
        if let Some(stat) = stat(pid) {
            sum.cpu_ns += stat.ticks * tick;
            sum.rss_bytes += stat.rss_pages * page;
            sum.threads += stat.threads;
            sum.processes += 1;
            // statm's third field is file-backed pages.
            let file = file_pages(pid).unwrap_or(0).min(stat.rss_pages);
            sum.working_set_bytes += (stat.rss_pages - file) * page;
        }
        sum
    })
}

struct Stat {
    ticks: u64,
    threads: u32,
    rss_pages: u64,
}

fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5). The command's name may hold anything, so fields count from the last parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let rest = text.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 (state) is index 0.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        threads: u32::try_from(number(20)?).ok()?,
        rss_pages: number(24)?,
    })
}

fn file_pages(pid: Pid) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split_ascii_whitespace().nth(2)?.parse().ok()
}

fn sysconf(name: libc::c_int, default: u64) -> u64 {
    // SAFETY: plain query.
    u64::try_from(unsafe { libc::sysconf(name) }).ok().filter(|&value| value > 0).unwrap_or(default)
}

fn page_size() -> u64 {
    sysconf(libc::_SC_PAGESIZE, 4096)
}

fn clock_ticks() -> u64 {
    sysconf(libc::_SC_CLK_TCK, 100)
}

/// Counts kills by the OOM killer in the job's cgroup: an increase between a process's start and its end by SIGKILL is
/// the evidence that tells OOMKilled from a plain 137.
#[derive(Clone, Debug)]
pub struct OomWatch {
    file: PathBuf,
}

impl OomWatch {
    /// Finds the counter of the calling process's memory cgroup. None where the kernel or the site shows none.
    #[must_use]
    pub fn find() -> Option<Self> {
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        candidates(&cgroups).into_iter().map(|file| Self { file }).find(|watch| watch.kills().is_some())
    }

    /// Processes killed so far; None when the file cannot be read any more.
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        parse_kills(&std::fs::read_to_string(&self.file).ok()?)
    }
}

fn candidates(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|name| name == "memory") {
            let root = Path::new("/sys/fs/cgroup/memory");
            files.push(root.join(path).join("memory.oom_control"));
            files.push(root.join("memory.oom_control"));
        } else if controllers.is_empty() {
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                files.push(Path::new(root).join(path).join("memory.events"));
                files.push(Path::new(root).join("memory.events"));
            }
        }
    }
    files
}

/// The line `oom_kill N` of memory.events (v2) and memory.oom_control (v1, 4.13).
fn parse_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_strange_name() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 10 20 3 4 20 0 2 0 100 1000000 250 18446744073709551615 1 1 0";
        let stat = parse_stat(text).expect("a line");
        assert_eq!((stat.ticks, stat.threads, stat.rss_pages), (37, 2, 250));
        assert!(parse_stat("42 (a").is_none());
    }

    #[test]
    fn oom_counters_of_both_versions() {
        assert_eq!(parse_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse_kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(parse_kills("oom_kill_disable 0\n"), None);
        let files = candidates("5:memory:/slurm/uid_1000/job_7\n0::/\n");
        assert_eq!(
            files.first(),
            Some(&PathBuf::from("/sys/fs/cgroup/memory/slurm/uid_1000/job_7/memory.oom_control"))
        );
    }
}
