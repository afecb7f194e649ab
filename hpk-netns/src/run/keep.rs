//! `hpk-netns run <pod folder>`: the job's first process. It stands above the one that runs the pod and clears up after
//! it, however it ended.
//!
//! ```text
//! Slurm ─▶ hpk-netns run ─▶ hpk-netns work ─▶ apptainer … hpk-pause
//!            forwards signals and waits; then ends what is left running and removes the node-local folder
//! ```
//! With the job's first process Slurm ends all of the job, and nobody is left who could clear up. So that one does nothing
//! else: it is small, one thread without a runtime, and when memory is short the kernel chooses another.

use super::layout::{Layout, Surroundings};
use super::local::Local;
use super::scratch::ScratchError;
use super::{report, scratch, tell};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm};
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Sub-command of the process that runs the pod.
pub const WORK: &str = "work";

/// What is passed on to it.
const FORWARDED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1];

/// Runs the pod whose folder is `pod` to its end and returns the exit code of the job.
#[must_use]
pub fn keep(pod: &Path) -> i32 {
    let local = Local::find();
    match local.as_ref().map_or(Ok(true), Local::claim) {
        Ok(true) => {}
        // The run is not ours, and so is nothing of it.
        Ok(false) => return super::TAKEN,
        Err(error) => {
            tell(pod, "hpk-netns", format!("cannot write down which process the run has: {error}"), None);
            return 1;
        }
    }
    let code = keep_run(pod, local.as_ref());
    match local.map_or(Ok(()), |local| local.ended(code)) {
        Ok(()) => {}
        Err(error) => hpk_api::say!("hpk-netns: cannot write down how the run ended: {error}"),
    }
    code
}

fn keep_run(pod: &Path, local: Option<&Local>) -> i32 {
    let kill_wait = local.map(|local| local.kill_wait);
    let ended = match std::env::current_exe().and_then(|exe| watch(Command::new(exe).arg(WORK).arg(pod), kill_wait)) {
        Ok(ended) => ended,
        Err(error) => {
            tell(pod, "hpk-netns", format!("cannot start the process that runs the pod: {error}"), None);
            return 1;
        }
    };
    end_the_rest();
    // The folder of a pod is named by its UID.
    let uid = pod.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let cleared = Surroundings::of_this_process().map_err(ScratchError::from).and_then(|around| {
        let layout = Layout::new(pod, uid, &around);
        scratch::clear(&layout, around.uid)?;
        crate::datapath::remove_dead_sockets(&layout.net);
        if let Err(error) = super::images::sweep(&layout.unpacked) {
            hpk_api::say!("hpk-netns: {error}");
        }
        Ok(())
    });
    match cleared {
        Ok(()) => {}
        Err(error) => hpk_api::say!("hpk-netns: {error}"),
    }
    if let Ended::Killed(signal) = ended
        && !report::supervisor_finished(pod, crate::node::run_id().as_deref())
    {
        tell(pod, "supervisor", format!("hpk-netns was ended by {signal}, and its pod with it"), Some(ended.code()));
    }
    ended.code()
}

/// How the worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Exited(i32),
    Killed(Signal),
}

impl Ended {
    /// 0–255, or 128+n for a signal n.
    fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal as i32,
        }
    }
}

/// Starts the worker and stays with it to its end. Its orphans become children of this process. `kill_wait`: seconds from
/// TERM to KILL, where nobody else sees to it.
fn watch(command: &mut Command, kill_wait: Option<u32>) -> io::Result<Ended> {
    hpk_sys::reap::become_subreaper()?;
    // Blocked before it starts, so that none is missed; it inherits that and takes it back (`heed_signals`).
    let mut signals: SigSet = FORWARDED.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGALRM);
    signals.thread_block()?;
    if std::env::var(hpk_api::gang::RUN).is_ok_and(|run| run.contains('/')) {
        // Slurm signals a step's process group: what is passed on must not come twice, nor to the network's helpers.
        command.process_group(0);
    }
    let worker = Pid::from_raw(command.spawn()?.id().cast_signed());
    loop {
        // For as long as the pod lives.
        match hpk_sys::memory::settle_then(|| signals.wait())? {
            Signal::SIGCHLD => {
                if let Some(ended) = reap(worker)? {
                    return Ok(ended);
                }
            }
            Signal::SIGALRM => drop(kill(worker, Signal::SIGKILL)),
            // It is not reaped yet, so the number is still its own.
            signal => {
                if let Some(seconds) = kill_wait.filter(|_| signal != Signal::SIGUSR1) {
                    alarm::set(seconds.max(1));
                }
                let _ = kill(worker, signal);
            }
        }
    }
}

/// Takes the ends of all that has ended; of these, the worker's counts.
fn reap(worker: Pid) -> io::Result<Option<Ended>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => return Ok(Some(Ended::Exited(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => return Ok(Some(Ended::Killed(signal))),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Kills every child until there is none: with the parent container's first process all of it ends, and what it had
/// started comes here in its turn.
fn end_the_rest() {
    loop {
        for child in children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Children of this process, as /proc has them.
fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parent(&stat) == Some(own.as_str())
    })
    .map(Pid::from_raw)
    .collect()
}

/// The parent's id in the text of `/proc/<pid>/stat`. The name before it is in brackets and may hold anything.
fn parent(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)
}

/// In the worker: signals come to it again.
///
/// # Errors
/// The system call's.
pub fn heed_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_past_any_name() {
        assert_eq!(parent("7 (a) R 1 (b) S 5 7 7 0"), Some("5"));
        assert_eq!(parent("7 (cat) S 1 7 7 0"), Some("1"));
        assert_eq!(parent(""), None);
    }
}
