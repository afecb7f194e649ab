//! Processes of runs: whether one lives, and ending all that belong to a run.
//!
//! A run's processes are known by a variable of their environment, which what they start inherits. Containers have an
//! environment of their own; they end with the supervisor, the first process of their PID namespace.

use hpk_api::local::{Process, RUN};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The machine's present boot.
#[must_use]
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Opens a process, if it is still the one that is meant and has not ended. A hold never comes to mean another one.
#[must_use]
pub(crate) fn open(process: &Process, boot: &str) -> Option<OwnedFd> {
    if process.boot != boot {
        return None;
    }
    let fd = hpk_sys::process::open(Pid::from_raw(process.pid)).ok()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    (started(&stat) == Some(process.started)).then_some(fd)
}

/// Returns when the process has ended.
pub(crate) fn wait(process: &OwnedFd) {
    while !hpk_sys::process::wait_end(process.as_fd(), None) {}
}

/// When a process was started, from its `/proc/<pid>/stat`. None: it has ended.
fn started(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(22 - 4)?.parse().ok()
}

/// Sends a signal; a process that is gone is none of our business.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if pid > 1 {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills every process of this user that belongs to the run, until there is none. Some may start others meanwhile.
pub(crate) fn end_all(run: &Path) {
    let mark = format!("{RUN}={}", run.display());
    // What Apptainer is to tell its container has a prefix.
    let passed_on = format!("APPTAINERENV_{mark}");
    for _ in 0..50 {
        let left = marked(&[mark.as_bytes(), passed_on.as_bytes()]);
        if left.is_empty() {
            return;
        }
        for pid in left {
            signal(pid, Signal::SIGKILL);
        }
        // For the kernel to end them: what was killed is still listed for a moment.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    tracing::warn!(run = %run.display(), "some of the run's processes do not end");
}

fn marked(marks: &[&[u8]]) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        // Other users' environments cannot be read, and one that has ended has none.
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != own && environ.split(|b| *b == 0).any(|pair| marks.contains(&pair))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_by_its_start_and_boot() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let process = Process { pid, started: started(&stat).unwrap(), boot: boot() };
        assert!(open(&process, &boot()).is_some());
        assert!(open(&Process { started: process.started + 1, ..process.clone() }, &boot()).is_none());
        assert!(open(&process, "another boot").is_none());
        child.kill().unwrap();
        // Not waited for: it is a zombie, and has ended all the same.
        while started(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()).is_some() {
            std::thread::yield_now();
        }
        assert!(open(&process, &boot()).is_none());
        child.wait().unwrap();
    }

    #[test]
    fn the_runs_own_processes_end_and_no_others() {
        let tmp = tempfile::tempdir().unwrap();
        let sleeper = |run: &Path| Command::new("sleep").arg("1000").env(RUN, run).spawn().unwrap();
        let (mut ours, mut other) = (sleeper(tmp.path()), sleeper(&tmp.path().join("1")));
        let waiter = std::thread::spawn(move || ours.wait().unwrap());
        end_all(tmp.path());
        assert!(!waiter.join().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
