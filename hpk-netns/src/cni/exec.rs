//! Runs one program inside a pod's namespaces: input in, output out, within a limit of time.

use super::inside::Inside;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// None: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Where programs are looked for that a plug-in starts: ordinary users' PATH often lacks the second half.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Runs `command` with nothing but `env`. A program that takes longer than `limit` is killed.
///
/// # Errors
/// It could not be started, or took too long.
pub(crate) async fn run(
    inside: &Inside,
    command: &[OsString],
    env: &[(&str, OsString)],
    input: &[u8],
    limit: Duration,
) -> io::Result<Ended> {
    let mut child = Command::new("/proc/self/exe")
        .args(inside.arguments())
        .args(command)
        .env_clear()
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input says by its end what it thinks.
                let _ = stdin.write_all(input).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        output
    };
    let output = tokio::time::timeout(limit, work).await;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("has not ended within {} s", limit.as_secs()));
    let output = output.map_err(late)??;
    Ok(Ended { code: output.status.code(), stdout: output.stdout, stderr: output.stderr })
}
