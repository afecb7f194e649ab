//! `hpk-netns run` as Slurm starts it, with a stand-in for Apptainer: what becomes of signals, and of what a pod leaves.
#![allow(clippy::unwrap_used, reason = "tests")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A job at work: its processes and folders.
struct Job {
    first: Child,
    /// Of the stand-in for Apptainer and of a process that it has started.
    pod: [Pid; 2],
    tmp: tempfile::TempDir,
}

impl Job {
    /// `script`: what the stand-in does once it has started a process.
    fn start(script: &str) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        let folder = at("home/pods/u");
        for path in [folder.clone(), at("bin"), at("prefix/share/hpk/pause")] {
            std::fs::create_dir_all(path).unwrap();
        }
        let plan = serde_json::json!({
            "version": 1, "pod": {"namespace": "d", "name": "p", "uid": "u"}, "hostname": "p", "restart_policy": "Never",
            "termination_grace_period_seconds": 1, "network": {"mode": "host"}, "containers": []});
        std::fs::write(folder.join("plan.json"), plan.to_string()).unwrap();
        let (started, apptainer) = (at("started"), at("bin/apptainer"));
        nix::unistd::mkfifo(&started, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The supervisor's socket says that signals are heard. The other process is deaf to TERM, as a program may be.
        let socket = at(&format!("hpk-{}/u/run/supervisor.sock", nix::unistd::getuid()));
        let text = format!(
            "#!/bin/sh\n(trap '' TERM; exec sleep 1000) &\n{script}\ntouch '{}'\necho $$ $! >'{}'\nwhile :; do wait; done\n",
            socket.display(),
            started.display()
        );
        std::fs::write(&apptainer, text).unwrap();
        std::fs::set_permissions(&apptainer, Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
        let first = Command::new(env!("CARGO_BIN_EXE_hpk-netns"))
            .arg("run")
            .arg(&folder)
            .env_remove("SLURM_TMPDIR")
            .env("PATH", path)
            .env("TMPDIR", tmp.path())
            .env("HPK_PREFIX", at("prefix"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = std::fs::read_to_string(&started).unwrap();
        let pids: Vec<Pid> = said.split_whitespace().map(|p| Pid::from_raw(p.parse().unwrap())).collect();
        Self { first, pod: pids.try_into().unwrap(), tmp }
    }

    fn first(&self) -> Pid {
        Pid::from_raw(self.first.id().cast_signed())
    }

    /// The process that runs the pod.
    fn worker(&self) -> Pid {
        Pid::from_raw(parent(self.pod[0]))
    }

    fn folder(&self) -> PathBuf {
        self.tmp.path().join(format!("hpk-{}/u", nix::unistd::getuid()))
    }

    /// Those of the pod's processes that are there.
    fn left(&self) -> Vec<Pid> {
        self.pod.into_iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect()
    }

    /// The exit code, when nothing is left on the node, and the text of `launch.json`.
    fn end(mut self) -> (i32, String) {
        let code = self.first.wait().unwrap().code().unwrap();
        assert!(!self.folder().exists());
        assert_eq!(self.left(), []);
        (code, std::fs::read_to_string(self.tmp.path().join("home/pods/u/launch.json")).unwrap())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for pid in self.left() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn parent(pid: Pid) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn nothing_is_left_when_the_process_that_runs_the_pod_is_killed() {
    let job = Job::start("");
    assert_eq!(parent(job.worker()), job.first().as_raw());
    assert!(job.folder().join("scratch").exists());
    kill(job.worker(), Signal::SIGKILL).unwrap();
    let (code, report) = job.end();
    assert_eq!(code, 128 + 9);
    assert!(report.contains("hpk-netns was ended by SIGKILL"), "{report}");
}

#[test]
fn a_term_reaches_the_pod_and_its_code_comes_back() {
    let job = Job::start("trap 'exit 7' TERM");
    kill(job.first(), Signal::SIGTERM).unwrap();
    let (code, report) = job.end();
    assert!(code == 7 && report.contains("code 7"), "{code} {report}");
}
