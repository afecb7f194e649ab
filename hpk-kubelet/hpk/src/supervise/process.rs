//! Starts a component's process and carries its output to a log file of bounded size.
//!
//! Programs are started through `hpk exec-child`, which asks the kernel for a TERM when the supervisor dies
//! ([`exec_child`]): an etcd without its supervisor would hold the data that the next one needs.

use crate::components::{Component, Probe};
use crate::supervise::strays;
use hpk_layout::Home;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A log is moved aside to `<name>.log.1` at this size, bytes.
const LOG_SIZE: u64 = 16 << 20;

/// Starts `component` in a process group of its own (a Ctrl-C for someone else must not reach it).
///
/// `says_ready` is called when the program says [`hpk_api::READY`] on its standard output.
///
/// # Errors
/// When a log cannot be opened or the process not be made.
pub(crate) fn start(
    component: &Component,
    hpk: &Path,
    home: &Home,
    says_ready: impl FnOnce() + Send + 'static,
) -> io::Result<tokio::process::Child> {
    let (reader, writer) = io::pipe()?;
    let log = Log::open(home.log_of(component.name))?;
    // One pipe for both keeps the order of what is said; only who is listened to gets two.
    let (says, stdout) = match component.probe {
        Probe::Says => {
            let (says, stdout) = io::pipe()?;
            (Some(says), stdout)
        }
        _ => (None, writer.try_clone()?),
    };
    let mut command = tokio::process::Command::new(hpk);
    command
        .arg("exec-child")
        .arg("--parent")
        .arg(std::process::id().to_string())
        .arg("--home")
        .arg(home.root())
        .arg("--name")
        .arg(component.name)
        .arg("--")
        .arg(&component.program)
        .args(&component.args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(writer)
        .process_group(0)
        .current_dir("/");
    let child = command.spawn()?;
    // The parent's ends of the pipes.
    drop(command);
    if let Some(says) = says {
        let name = format!("says {}", component.name);
        std::thread::Builder::new().name(name).spawn(move || listen(says, says_ready))?;
    }
    // A thread, because the log may be on a file system that stalls, and the supervisor must not.
    std::thread::Builder::new().name(format!("log {}", component.name)).spawn(move || pump(reader, log))?;
    Ok(child)
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// `hpk exec-child`: becomes `argv`, with the kernel's promise to send TERM when process `parent` dies.
/// Returns only the error.
#[must_use]
pub(crate) fn exec_child(parent: u32, home: &Path, name: &str, argv: &[OsString]) -> io::Error {
    if let Err(e) = prctl::set_pdeathsig(Signal::SIGTERM) {
        return e.into();
    }
    // It may have died before the promise.
    if i32::try_from(parent).ok() != Some(getppid().as_raw()) {
        return io::Error::other("the supervisor is gone");
    }
    let Some((program, args)) = argv.split_first() else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    if strays::end_component(home, name) > 0 {
        hpk_api::say!("hpk: what was left of an earlier {name} ended");
    }
    let error = Command::new(program).args(args).exec();
    io::Error::new(error.kind(), format!("{}: {error}", Path::new(program).display()))
}

/// Until the program ends; what it says besides is nobody's.
fn listen(says: PipeReader, says_ready: impl FnOnce()) {
    let mut says_ready = Some(says_ready);
    for line in BufReader::new(says).lines().map_while(Result::ok) {
        if line == hpk_api::READY
            && let Some(says_ready) = says_ready.take()
        {
            says_ready();
        }
    }
}

/// Copies until the last writer is gone.
fn pump(mut reader: PipeReader, mut log: Log) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
            // A full disk loses log lines; it must not stop the control plane by a full pipe.
            Ok(n) => log.write(&buffer[..n]).unwrap_or_default(),
        }
    }
}

/// A log file that is moved aside when it is full.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, limit: LOG_SIZE })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size >= self.limit {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            std::fs::rename(&self.path, aside)?;
            let limit = self.limit;
            *self = Self { limit, ..Self::open(self.path.clone())? };
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = Log { limit: 100, ..Log::open(path.clone()).unwrap() };
        for i in 0..50 {
            log.write(format!("line {i:04}\n").as_bytes()).unwrap();
        }
        let (old, new) =
            (std::fs::read_to_string(dir.path().join("x.log.1")).unwrap(), std::fs::read_to_string(&path).unwrap());
        assert_eq!((old.len(), new.len()), (100, 100));
        assert!(old.starts_with("line 0030") && new.ends_with("line 0049\n"), "{old}{new}");
        // Opened again, it goes on where it was.
        assert_eq!(Log::open(path).unwrap().size, 100);
    }
}
