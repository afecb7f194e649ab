//! Ends programs that a killed supervisor left behind.
//!
//! The parent-death signal that [`super::process`] asks for does not survive Apptainer (the kernel clears it
//! when credentials change), so programs in the image outlive a supervisor that got SIGKILL. They carry a
//! mark in their environment by which the next `hpk up` knows them. hpk-kubelet gets no mark: its
//! environment would reach the jobs that it submits, and those must go on.

use hpk_sys::process;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for an orderly end of all of them, etcd's included.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// The mark of programs that belong to this HPK_HOME, as `NAME=value`.
#[must_use]
pub(crate) fn mark(home: &Path) -> String {
    format!("HPK_SUPERVISED={}", home.display())
}

/// The mark of one component's program beside that of its HPK_HOME.
#[must_use]
pub(crate) fn component_mark(name: &str) -> String {
    format!("HPK_COMPONENT={name}")
}

/// Ends every process of this user with the mark of `home`, and returns how many there were.
/// Only for a caller who knows that no supervisor runs.
#[must_use]
pub(crate) fn end(home: &Path) -> usize {
    end_marked(&[mark(home)])
}

/// Ends what is left of a component whose first process is gone: Apptainer's own may be killed and its program go on. Two
/// of one component would share its port. Only for a caller who knows that the component is not started.
#[must_use]
pub(crate) fn end_component(home: &Path, name: &str) -> usize {
    end_marked(&[mark(home), component_mark(name)])
}

fn end_marked(marks: &[String]) -> usize {
    let strays = find(marks);
    for stray in &strays {
        let _ = process::send(stray.as_fd(), Signal::SIGTERM as i32);
    }
    let deadline = Instant::now() + GRACE;
    for stray in &strays {
        if !process::wait_end(stray.as_fd(), Some(deadline.saturating_duration_since(Instant::now()))) {
            let _ = process::send(stray.as_fd(), Signal::SIGKILL as i32);
            let _ = process::wait_end(stray.as_fd(), Some(Duration::from_secs(1)));
        }
    }
    strays.len()
}

/// A hold on each, taken before its environment is read: it cannot come to mean another process.
fn find(marks: &[String]) -> Vec<OwnedFd> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let fd = process::open(Pid::from_raw(pid)).ok()?;
            // Other users' environments cannot be read.
            let environ = std::fs::read(entry.path().join("environ")).ok()?;
            let has = |mark: &String| environ.split(|b| *b == 0).any(|e| e == mark.as_bytes());
            marks.iter().all(has).then_some(fd)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_marked_are_ended_and_no_others() {
        let home = tempfile::tempdir().unwrap();
        let sleeper = |home: &Path, component: &str| {
            let pair = |mark: String| mark.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
            Command::new("sleep").arg("1000").envs([pair(mark(home)), pair(component_mark(component))]).spawn().unwrap()
        };
        let mut etcd = sleeper(home.path(), "etcd");
        let mut ours = sleeper(home.path(), "coredns");
        let mut other = sleeper(&home.path().join("x"), "etcd");
        // Between fork and exec a process still has its parent's environment; spawn returns after exec.
        assert_eq!(end_component(home.path(), "etcd"), 1);
        assert!(!etcd.wait().unwrap().success());
        assert!(ours.try_wait().unwrap().is_none());
        assert_eq!(end(home.path()), 1);
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
