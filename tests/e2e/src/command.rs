//! Commands in the nodes of the site, and kubectl as alice.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Run {
    /// The command as it was given, for messages.
    pub line: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
}

impl Run {
    pub(crate) fn new(line: String, output: Output) -> Self {
        Self {
            line,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }

    /// Standard output without its trailing newline; fails the case unless the command exited with 0.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}\n{}{}", self.line, self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n')
    }

    /// Both outputs of a command that had to fail.
    #[track_caller]
    pub fn err(&self) -> String {
        assert_ne!(self.code, Some(0), "{} should fail but printed\n{}", self.line, self.stdout);
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// The site's `sx` script.
fn sx_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../site/sx")
}

/// A command in a node, as root or as `user`. It is not started yet.
pub(crate) fn sx_command(node: &str, user: Option<&str>, command: &[&str]) -> Command {
    site_is_up();
    let mut sx = Command::new(sx_path());
    sx.arg(node);
    if let Some(user) = user {
        sx.args(["-u", user]);
    }
    sx.args(command);
    sx
}

/// Fails the case, once and clearly, when there is no site.
fn site_is_up() {
    static UP: OnceLock<Result<(), String>> = OnceLock::new();
    let up = UP.get_or_init(|| {
        let probe = ["login", "-u", "alice", "kubectl", "get", "--raw", "/readyz"];
        match Command::new(sx_path()).args(probe).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    });
    if let Err(why) = up {
        let remedy = if cfg!(feature = "site") { "make site-up" } else { "make fast" };
        panic!("the machines of the cases are not up: {remedy}\n{why}");
    }
}

/// Runs a command in a node (`login`, `c1`, `c2`), as root or as `user`.
pub fn sx(node: &str, user: Option<&str>, command: &[&str]) -> Run {
    let line = format!("sx {node} {}", command.join(" "));
    match sx_command(node, user, command).stdin(Stdio::null()).output() {
        Ok(output) => Run::new(line, output),
        Err(error) => panic!("{line}: {error}"),
    }
}

/// The process id of a node's first process, as this machine sees it: for entering its namespaces.
pub fn node_pid(node: &str) -> u32 {
    site_is_up();
    let common = sx_path().with_file_name("common.sh");
    let script = format!(". {} && node_pid {node}", common.display());
    let run = match Command::new("bash").args(["-c", &script]).output() {
        Ok(output) => Run::new(script, output),
        Err(error) => panic!("bash: {error}"),
    };
    match run.ok().parse() {
        Ok(pid) => pid,
        Err(error) => panic!("{run:?}: {error}"),
    }
}

/// Runs kubectl as alice on the login node.
pub fn kubectl(args: &[&str]) -> Run {
    kubectl_with_input(args, "")
}

/// Runs kubectl as alice with `input` on its standard input.
pub fn kubectl_with_input(args: &[&str], input: &str) -> Run {
    let line = format!("kubectl {}", args.join(" "));
    let command: Vec<&str> = std::iter::once("kubectl").chain(args.iter().copied()).collect();
    let run = || -> std::io::Result<Output> {
        let mut child = sx_command("login", Some("alice"), &command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Inputs here are manifests of a few kilobytes: they fit the pipe.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    match run() {
        Ok(output) => Run::new(line, output),
        Err(error) => panic!("{line}: {error}"),
    }
}
