//! Pods of the local executor while no kubelet runs: which there are, and ending them.

use hpk_api::local::{End, Process};
use hpk_layout::Home;
use hpk_layout::run::{END, PROCESS};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A run ends itself by force 30 s after it was told to.
const PATIENCE: Duration = Duration::from_secs(45);
/// Exit code of a run that was ended while it waited.
const TERMINATED: i32 = 143;

/// Folders of the runs that are not over, by id.
pub(crate) fn living(home: &Home) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(home.runs()).into_iter().flatten().flatten();
    let folders = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let lives = |folder: &Path| {
        if folder.join(END).exists() {
            return false;
        }
        // Of one whose process was killed the next kubelet finds that it is over.
        !folder.join(PROCESS).exists() || open(folder).is_some()
    };
    folders.filter(|(id, folder)| id.bytes().all(|b| b.is_ascii_digit()) && lives(folder)).collect()
}

/// Ends all runs and returns how many there were. Only for a caller who knows that no kubelet runs, which would begin those
/// that wait.
///
/// # Errors
/// The file system's, or a process that does not end.
pub(crate) fn end(home: &Home) -> anyhow::Result<usize> {
    let runs = living(home);
    let mut told = Vec::new();
    for (id, folder) in &runs {
        match open(folder) {
            Some(process) => {
                let _ = hpk_sys::process::send(process.as_fd(), Signal::SIGTERM as i32);
                told.push((id, process));
            }
            None => {
                let end = End { code: TERMINATED, at: Timestamp::now(), cancelled: true };
                crate::home::replace_file(&folder.join(END), &serde_json::to_vec(&end)?)?;
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    for (id, process) in told {
        let left = deadline.saturating_duration_since(Instant::now());
        if !hpk_sys::process::wait_end(process.as_fd(), Some(left)) {
            anyhow::bail!("run {id} does not end: kill -KILL its process, see {}/{id}", home.runs().display());
        }
    }
    Ok(runs.len())
}

/// The run's first process, if it lives.
fn open(folder: &Path) -> Option<OwnedFd> {
    let process: Process = serde_json::from_slice(&fs::read(folder.join(PROCESS)).ok()?).ok()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let fd = hpk_sys::process::open(Pid::from_raw(process.pid)).ok()?;
    let started = hpk_sys::procfs::start_time(nix::unistd::Pid::from_raw(process.pid))?;
    (boot.trim() == process.boot && started == process.started).then_some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn those_that_run_and_those_that_wait_are_ended() {
        let tmp = tempfile::tempdir().unwrap();
        let home = Home::at(tmp.path().to_owned());
        let run = |id: &str| {
            let folder = Home::at(tmp.path()).runs().join(id);
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let started = hpk_sys::procfs::start_time(nix::unistd::Pid::from_raw(pid)).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
        let put = |id: &str, started| {
            let process = Process { pid, started, boot: boot.clone() };
            fs::write(run(id).join(PROCESS), serde_json::to_vec(&process).unwrap()).unwrap();
        };
        put("1", started);
        // Another process has its number now.
        put("2", started + 1);
        run("3");
        let over = End { code: 0, at: Timestamp::UNIX_EPOCH, cancelled: false };
        fs::write(run("4").join(END), serde_json::to_vec(&over).unwrap()).unwrap();
        let mut ids: Vec<String> = living(&home).into_iter().map(|(id, _)| id).collect();
        ids.sort();
        assert_eq!(ids, ["1", "3"]);
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(end(&home).unwrap(), 2);
        assert_eq!(waiter.join().unwrap().signal(), Some(15));
        assert!(living(&home).is_empty());
    }
}
