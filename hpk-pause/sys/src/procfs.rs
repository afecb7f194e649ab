//! What the kernel tells about processes: CPU time and memory of a container, and who is there.
//!
//! Reads /proc only.

use crate::signals::{MountNs, members, pids};
use nix::unistd::Pid;

pub use crate::process::pid_of;

/// Use of a container's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of the living processes and their reaped children, nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory, bytes; pages that processes share are counted for each.
    pub rss_bytes: u64,
    /// Resident anonymous and shared memory, bytes: what cannot be dropped.
    pub working_set_bytes: u64,
    pub processes: u32,
    pub threads: u32,
}

/// When a process was started, field 22 of proc_pid_stat(5): with its number it is one process for as long as the node is up.
#[must_use]
pub fn start_time(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
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

/// A process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub pid: Pid,
    /// When it was started, clock ticks since the node's boot: with the number it names one process.
    pub started: u64,
    /// The container that it is in; that of its parent when it has ended and nobody has asked how.
    pub ns: Option<MountNs>,
    /// Resident pages.
    pub pages: u64,
    /// It has ended, or is about to.
    pub gone: bool,
    /// Page faults of the children that it has waited for.
    pub child_faults: u64,
}

/// All processes of this PID namespace.
#[must_use]
pub fn seen() -> Vec<Seen> {
    let all = pids().filter_map(|pid| {
        let stat = stat(pid)?;
        Some(Seen {
            pid,
            started: stat.started,
            ns: MountNs::of(pid).or_else(|_| MountNs::of(stat.parent)).ok(),
            pages: stat.rss_pages,
            gone: stat.gone,
            child_faults: stat.child_faults,
        })
    });
    all.collect()
}

struct Stat {
    parent: Pid,
    gone: bool,
    child_faults: u64,
    ticks: u64,
    threads: u32,
    started: u64,
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
    /// include/linux/sched.h
    const PF_EXITING: u64 = 0x4;
    let state = *fields.first()?;
    Some(Stat {
        parent: Pid::from_raw(fields.get(1)?.parse().ok()?),
        gone: matches!(state, "Z" | "X") || number(9)? & PF_EXITING != 0,
        child_faults: number(11)? + number(13)?,
        started: number(22)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_strange_name() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 2 0 3 10 20 3 4 20 0 2 0 100 1000000 250 18446744073709551615 1 1 0";
        let stat = parse_stat(text).expect("a line");
        assert_eq!((stat.ticks, stat.threads, stat.rss_pages), (37, 2, 250));
        assert_eq!((stat.parent.as_raw(), stat.gone, stat.child_faults, stat.started), (1, false, 5, 100));
        assert!(parse_stat("42 (a").is_none());
        for dying in [text.replace(") S", ") Z"), text.replace("4194304", "4194308")] {
            assert!(parse_stat(&dying).expect("a line").gone);
        }
    }
}
