//! Sessions beside a rank, for the supervisor: a process on the rank's node, and the bytes between it and the supervisor.
//! What the bytes say is the two others' business, see [`hpk_api::step`].

use super::{WORDS, find_srun, srun, telling};
use hpk_api::control::{ControlError, ErrorCode, Reply};
use hpk_api::step::StepSession;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// How long the session's process may take to end when its client is gone.
const LEAVE: Duration = Duration::from_secs(5);

/// Runs a session to its end.
pub(crate) async fn run(pod: PathBuf, session: StepSession, mut stream: UnixStream) {
    match begin(&pod, &session).await {
        Ok(begun) => begun.carry(stream).await,
        Err(error) => drop(stream.write_all(&refusal(error.to_string())).await),
    }
}

fn refusal(message: String) -> Vec<u8> {
    let reply = Reply::Error(ControlError { code: ErrorCode::Internal, message });
    let mut line = serde_json::to_vec(&reply).unwrap_or_default();
    line.push(b'\n');
    line
}

struct Session {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    errors: ChildStderr,
    node: String,
}

async fn begin(pod: &Path, session: &StepSession) -> io::Result<Session> {
    let StepSession { instance, of, options } = session;
    let own = std::env::current_exe()?.into_os_string();
    let numbers = [instance.to_string().into(), of.rank.to_string().into()];
    let words: Vec<OsString> = [own, "session".into(), pod.into()].into_iter().chain(numbers).collect();
    let argv = if of.node == crate::node::slurm_name() {
        words
    } else {
        let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
        [vec![find_srun()?.into_os_string()], srun::beside(&job, &of.node, &words)].concat()
    };
    let missing = || io::Error::other("no command");
    let mut command = Command::new(argv.first().ok_or_else(missing)?);
    // What the job says of its tasks is not for this one.
    for (name, _) in std::env::vars_os() {
        let slurms = name.to_str().is_some_and(|name| name.starts_with("SLURM_") && !KEPT.contains(&name));
        if slurms {
            command.env_remove(name);
        }
    }
    let mut child = command
        .args(argv.iter().skip(1))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().ok_or_else(missing)?;
    let (output, errors) = (child.stdout.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
    let mut line = serde_json::to_vec(options)?;
    line.push(b'\n');
    input.write_all(&line).await?;
    Ok(Session { child, input, output, errors, node: of.node.clone() })
}

/// By which srun finds its Slurm, and the other process its place.
const KEPT: [&str; 3] = ["SLURM_CONF", "SLURM_JOB_ID", "SLURM_TMPDIR"];

impl Session {
    async fn carry(self, stream: UnixStream) {
        let Self { mut child, input, mut output, mut errors, node } = self;
        let (from, mut to) = stream.into_split();
        let words = tokio::spawn(async move { last_words(&mut errors).await });
        let mut inward = tokio::spawn(copy_in(from, input));
        let said = tokio::select! {
            said = copy_out(&mut output, &mut to) => said,
            // The client is gone. A session that has begun ends by that; one that never came up does not even hear of it.
            () = async {
                let _ = (&mut inward).await;
                tokio::time::sleep(LEAVE).await;
            } => true,
        };
        // Its output is at its end, or its client is gone; in both cases it needs no more input, and ends by that.
        inward.abort();
        if tokio::time::timeout(LEAVE, child.wait()).await.is_err() {
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
        if !said {
            let words = words.await.unwrap_or_default();
            let _ = to.write_all(&refusal(format!("no session on node {node}: {words}"))).await;
        }
    }
}

async fn copy_in(mut from: OwnedReadHalf, mut input: ChildStdin) {
    // Either end may go first.
    let _ = tokio::io::copy(&mut from, &mut input).await;
}

/// True: there was something.
async fn copy_out(output: &mut ChildStdout, to: &mut OwnedWriteHalf) -> bool {
    tokio::io::copy(output, to).await.is_ok_and(|bytes| bytes > 0)
}

async fn last_words(errors: &mut ChildStderr) -> String {
    let mut last = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(n @ 1..) = errors.read(&mut buffer).await {
        last.extend_from_slice(buffer.get(..n).unwrap_or_default());
        last.drain(..last.len().saturating_sub(WORDS));
    }
    telling(&last)
}
