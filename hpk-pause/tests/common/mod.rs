//! Real pods for tests: the built hpk-pause as PID 1 of new namespaces (`unshare`), a root file system of the node's
//! static busybox, and the control socket to look in. Nothing is faked but Slurm and Apptainer, which are not there.

#![allow(dead_code, reason = "each test binary uses its share")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "how a test fails outside of a test function"
)]

use hpk_api::control::{Answer, Request};
use hpk_api::state::{ContainerState, PodState, RunState};
use hpk_control::blocking::{self, Connection};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest time that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A static busybox: `HPK_TEST_BUSYBOX`, the one that `make images` unpacked, or the node's own.
fn busybox() -> PathBuf {
    let cache = std::env::var_os("HPK_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hpk")));
    let made = cache.and_then(|cache| {
        let entries = std::fs::read_dir(cache).ok()?;
        entries.flatten().map(|e| e.path().join("root/bin/busybox")).find(|p| p.is_file())
    });
    let own = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from);
    std::env::var_os("HPK_TEST_BUSYBOX")
        .map(PathBuf::from)
        .or(made)
        .or_else(|| own.into_iter().find(|p| p.is_file()))
        .expect("a static busybox: apt-get install busybox-static, or set HPK_TEST_BUSYBOX")
}

/// A container of the busybox image that runs a shell script.
pub(crate) fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": "busybox:1", "image_ref": {"folder": "busybox", "id": "busybox@sha256:0"},
        "argv": ["/bin/sh", "-c", script], "env": [["PATH", "/bin"]],
    })
}

/// Adds fields to a container or plan.
pub(crate) fn with(mut value: Value, fields: Value) -> Value {
    let (Some(object), Value::Object(fields)) = (value.as_object_mut(), fields) else { panic!("objects") };
    object.extend(fields);
    value
}

/// An exec probe that runs a shell script.
pub(crate) fn probe(script: &str, period: u32, failures: u32) -> Value {
    json!({
        "handler": {"exec": {"command": ["/bin/sh", "-c", script]}}, "timeout_seconds": 1, "period_seconds": period,
        "success_threshold": 1, "failure_threshold": failures,
    })
}

/// A plan of these containers.
pub(crate) fn plan(policy: &str, containers: Vec<Value>) -> Value {
    json!({
        "version": 1, "pod": {"namespace": "default", "name": "p", "uid": "u-1"}, "hostname": "p",
        "restart_policy": policy, "termination_grace_period_seconds": 3,
        "network": {"mode": "overlay", "pod_ips": ["10.244.0.7"]},
        "containers": containers, "etc_hosts": "127.0.0.1\tlocalhost\n10.244.0.7\tp\n",
    })
}

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    child: Child,
}

impl Pod {
    /// Starts it.
    pub(crate) fn start(plan: &Value) -> Self {
        Self::start_under(&[], plan, &[])
    }

    /// Starts it by another command (`prlimit …`, a shell that stays PID 1), with more options.
    pub(crate) fn start_under(wrapper: &[&str], plan: &Value, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("hpk").tempdir_in("/tmp").unwrap();
        let bin = dir.path().join("images/busybox/rootfs/bin");
        for sub in ["pod", "scratch", "host", "run", "images/busybox/rootfs/etc", "images/busybox/rootfs/tmp"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(busybox(), bin.join("busybox")).unwrap();
        for tool in [
            "sh", "true", "false", "sleep", "echo", "cat", "ls", "ps", "kill", "id", "touch", "rm", "mkdir", "date",
            "seq", "printf", "hostname", "stat", "wc", "tty", "setsid", "test", "grep",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(tool)).unwrap();
        }
        std::fs::write(dir.path().join("images/busybox/rootfs/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        std::fs::write(dir.path().join("pod/plan.json"), serde_json::to_vec(plan).unwrap()).unwrap();
        let child = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--net",
                "--pid",
                "--fork",
                "--mount",
                "--ipc",
                "--uts",
                "--mount-proc",
                "--kill-child",
                "--",
            ])
            .args(wrapper)
            .arg(env!("CARGO_BIN_EXE_hpk-pause"))
            // As in a job, whose paths are all absolute: a process that makes a container is in a mount namespace of its own.
            .args(
                [("--plan", "pod/plan.json"), ("--pod-dir", "pod"), ("--images", "images"), ("--scratch", "scratch")]
                    .into_iter()
                    .chain([("--host", "host"), ("--run", "run")])
                    .flat_map(|(option, path)| [option.into(), dir.path().join(path).into_os_string()]),
            )
            .args(options)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare of util-linux, and user namespaces");
        Self { dir, child }
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/supervisor.sock")
    }

    fn connect(&self, request: &Request) -> Option<(Answer, Connection)> {
        blocking::request(&self.socket(), request).ok()
    }

    /// Watches the state until this holds; from status.json when the supervisor has ended.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&PodState) -> bool) -> PodState {
        let begun = Instant::now();
        let mut last = PodState::default();
        while begun.elapsed() < LIMIT {
            if let Some((Answer::Status(state), mut connection)) = self.connect(&Request::Status { watch: true }) {
                last = *state;
                while !holds(&last) {
                    match connection.line::<PodState>() {
                        Ok(Some(state)) => last = state,
                        _ => break,
                    }
                }
                if holds(&last) {
                    return last;
                }
            }
            if self.child.try_wait().unwrap().is_some() {
                last = self.status();
                assert!(holds(&last), "{what}: the pod ended as {last:#?}");
                return last;
            }
            // Only until the socket is there.
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{what}: not within {LIMIT:?}: {last:#?}");
    }

    /// Asks for one thing.
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        blocking::request(&self.socket(), request).expect("an answer").0
    }

    /// SIGTERM to the supervisor, as Slurm's reaches it.
    pub(crate) fn terminate(&self) {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let pid: i32 = children.split_whitespace().next().expect("a supervisor").parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Id of the supervisor outside of its namespace.
    pub(crate) fn supervisor(&self) -> i32 {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.split_whitespace().next().expect("a supervisor").parse().unwrap()
    }

    /// Runs a command in a container; its output and exit code.
    pub(crate) fn exec(&self, container: &str, script: &str) -> (String, i32) {
        let out = Command::new(env!("CARGO_BIN_EXE_hpk-pause"))
            .args(["ctl", "--socket"])
            .arg(self.socket())
            .args(["exec", container, "--", "/bin/sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (String::from_utf8_lossy(&out.stdout).into_owned(), out.status.code().unwrap_or(-1))
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> (ExitStatus, PodState) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.status());
            }
            assert!(begun.elapsed() < LIMIT, "the pod does not end: {:#?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// status.json
    pub(crate) fn status(&self) -> PodState {
        let path = self.dir.path().join("pod/status.json");
        serde_json::from_slice(&std::fs::read(path).expect("status.json")).expect("never torn")
    }

    /// Content of a log, without times.
    pub(crate) fn log(&self, container: &str, instance: u32) -> Vec<String> {
        self.log_file(container, instance).unwrap_or_else(|e| panic!("{container}/{instance}.log: {e}"))
    }

    /// Waits until a log has this line. Its file comes a moment after the container runs.
    pub(crate) fn until_log(&self, container: &str, instance: u32, line: &str) {
        let begun = Instant::now();
        loop {
            let log = self.log_file(container, instance).unwrap_or_default();
            if log.iter().any(|l| l == line) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{container}/{instance}.log has no line {line:?}: {log:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn log_file(&self, container: &str, instance: u32) -> std::io::Result<Vec<String>> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("pod/logs/{container}/{instance}.log")))?;
        Ok(text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()).collect())
    }

    /// The scratch folder, for the files of a test.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // --kill-child takes the whole namespace along.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One container's state.
pub(crate) fn of<'a>(state: &'a PodState, name: &str) -> &'a ContainerState {
    state.find(name).expect("a container of this name")
}

/// `Running`, `Waiting(reason)`, `Terminated(code reason)`.
pub(crate) fn shown(state: &PodState, name: &str) -> String {
    match &of(state, name).state {
        RunState::Running { .. } => "Running".to_owned(),
        RunState::Waiting { reason, .. } => format!("Waiting({reason})"),
        RunState::Terminated(t) => format!("Terminated({} {})", t.exit_code, t.reason),
    }
}

/// Events as `Reason: message`.
pub(crate) fn events(state: &PodState) -> Vec<String> {
    state.events.iter().map(|e| format!("{}: {}", e.reason, e.message)).collect()
}
