//! A small image from the machine's static busybox, and helpers for real processes.
#![allow(dead_code, missing_docs, unreachable_pub, unsafe_code)]

pub mod old_kernel;

use hpk_sys::launch::{Io, LaunchSpec, Launched};
use hpk_sys::reap::{ExitCause, Poll, Reaped, Reaper};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// waitpid(-1) is the whole process's: tests of one file take turns.
static TURN: Mutex<()> = Mutex::new(());

pub struct World {
    pub dir: tempfile::TempDir,
    pub rootfs: PathBuf,
    runs: std::cell::Cell<u32>,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = tempfile::tempdir_in(std::env::var_os("HPK_SYS_SCRATCH").unwrap_or_else(|| "/var/tmp".into()))
            .expect("a scratch folder");
        let rootfs = dir.path().join("rootfs");
        for folder in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(folder)).expect("an image folder");
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.expect("busybox-static is installed (apt-get install busybox-static)");
        fs::copy(busybox, rootfs.join("bin/busybox")).expect("busybox");
        for applet in [
            "sh", "true", "false", "cat", "sleep", "id", "ls", "mount", "ps", "env", "pwd", "echo", "tty", "stat",
            "touch", "head", "dd", "kill", "readlink", "grep", "cut", "stty", "setsid", "umount", "test", "hostname",
        ] {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("an applet");
        }
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n").expect("passwd");
        fs::write(rootfs.join("etc/group"), "root:x:0:\n").expect("group");
        Self { dir, rootfs, runs: std::cell::Cell::new(0), _turn: turn }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn spec(&self, argv: &[&str]) -> LaunchSpec {
        self.runs.set(self.runs.get() + 1);
        let upper = self.path(&format!("scratch/{}", self.runs.get()));
        let env = vec![("PATH".to_owned(), "/bin".to_owned())];
        LaunchSpec { env, ..LaunchSpec::new("test", &self.rootfs, upper, argv.iter().copied()) }
    }

    pub fn sh(&self, script: &str) -> LaunchSpec {
        self.spec(&["sh", "-c", script])
    }
}

/// Output of both streams, read to their ends.
pub fn output(io: Io) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    match io {
        Io::Pipes { stdin, stdout, stderr } => {
            drop(stdin);
            let reader = std::thread::spawn(move || {
                let mut text = String::new();
                let _ = fs::File::from(stderr).read_to_string(&mut text);
                text
            });
            let _ = fs::File::from(stdout).read_to_string(&mut out);
            err = reader.join().expect("a reader");
        }
        Io::Pty { master } => {
            let mut bytes = Vec::new();
            // EIO at the end, as terminals have it.
            let _ = fs::File::from(master).read_to_end(&mut bytes);
            out = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    (out, err)
}

/// Ends of children that were met while waiting for another.
static ENDED: Mutex<Vec<Reaped>> = Mutex::new(Vec::new());

/// Waits for this process, remembering whatever else ended.
pub fn wait(pid: nix::unistd::Pid) -> ExitCause {
    let mut ended = ENDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut reaper = Reaper::new();
    loop {
        if let Some(at) = ended.iter().position(|reaped| reaped.pid == pid) {
            return ended.swap_remove(at).cause;
        }
        match reaper.poll() {
            Poll::Reaped(reaped) => ended.push(reaped),
            // A test has nothing else to do than to wait.
            Poll::NoneEnded => std::thread::sleep(std::time::Duration::from_micros(200)),
            Poll::NoChildren => panic!("{pid} was not our child"),
        }
    }
}

/// Output and end of a launch.
pub fn finish(launched: Launched) -> (String, String, ExitCause) {
    let Launched { pid, io, .. } = launched;
    let (out, err) = output(io);
    (out, err, wait(pid))
}

/// Forgets what has ended.
pub fn reap_all() {
    let mut reaper = Reaper::new();
    while let Poll::Reaped(_) = reaper.poll() {}
}
