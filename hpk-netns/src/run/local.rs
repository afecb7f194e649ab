//! What the first process of a run does for the local executor, where no Slurm watches it: it is the one process of its run
//! ([`Local::claim`]), ends the run by force when its time is over, and writes down how it ended.

use hpk_api::local::{End, KILL_WAIT, Process, RUN};
use hpk_layout::run::{END, PROCESS};
use jiff::Timestamp;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Seconds from TERM to KILL where nobody says: Slurm's usual KillWait.
const USUAL_KILL_WAIT: u32 = 30;

/// The run, as the environment tells of it.
pub(super) struct Local {
    folder: PathBuf,
    pub(super) kill_wait: u32,
}

impl Local {
    /// None: this is a Slurm job.
    pub(super) fn find() -> Option<Self> {
        let folder = std::env::var_os(RUN).filter(|folder| !folder.is_empty())?;
        let kill_wait = std::env::var(KILL_WAIT).ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL_KILL_WAIT);
        Some(Self { folder: folder.into(), kill_wait })
    }

    /// Leaves the session of who started us, and says who we are. False: another process has this run.
    pub(super) fn claim(&self) -> io::Result<bool> {
        // A leader of a session already: there is nothing to leave.
        let _ = nix::unistd::setsid();
        let pid = nix::unistd::getpid();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let started = hpk_sys::procfs::start_time(pid).ok_or(io::ErrorKind::NotFound)?;
        let process = Process { pid: pid.as_raw(), started, boot };
        // Whole, or not there at all, and only once: a link does not take the place of a file.
        let fresh = self.folder.join(format!("{PROCESS}.{pid}"));
        hpk_layout::replace(&fresh, &serde_json::to_vec(&process)?, 0o600)?;
        let linked = fs::hard_link(&fresh, self.folder.join(PROCESS));
        fs::remove_file(&fresh)?;
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The run is over: nothing of it is left but this process.
    pub(super) fn ended(&self, code: i32) -> io::Result<()> {
        let end = End { code, at: Timestamp::now(), cancelled: false };
        hpk_layout::replace(&self.folder.join(END), &serde_json::to_vec(&end)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_the_run_and_its_end_is_written() {
        let tmp = tempfile::tempdir().unwrap();
        let run = Local { folder: tmp.path().to_owned(), kill_wait: 1 };
        assert!(run.claim().unwrap());
        assert!(!run.claim().unwrap(), "a second one");
        let process: Process = serde_json::from_slice(&fs::read(tmp.path().join(PROCESS)).unwrap()).unwrap();
        assert_eq!(process.pid.cast_unsigned(), std::process::id());
        run.ended(3).unwrap();
        let end: End = serde_json::from_slice(&fs::read(tmp.path().join(END)).unwrap()).unwrap();
        assert_eq!((end.code, end.cancelled), (3, false));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2, "nothing else is left");
    }
}
