//! exec beside a rank of an MPI step (`rank:5 ps`): the rank's node runs the session, and its bytes are passed on.

use super::handshake::Handshake;
use super::request::DriverRequest;
use super::{Context, ask};
use hpk_api::control::{ControlError, ErrorCode, ExecOptions, MAX_LINE, Reply};
use hpk_api::net::NetnsRequest;
use hpk_api::step::{SESSION_PREFIX, StepSession};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::UnixStream;

/// How long a session may take to begin: Slurm starts a step for it.
const COMES_UP: Duration = Duration::from_secs(60);

/// What a client may send before that, bytes; more waits.
const EARLY: usize = 256 << 10;

/// Which rank a command names by its first word. Pure.
pub(super) fn named(command: &[String]) -> Option<u32> {
    command.first()?.strip_prefix(SESSION_PREFIX)?.parse().ok()
}

/// Where the rank is; None: the container is no MPI step, and its command is like any other.
pub(super) async fn find(context: &Context, container: &str, rank: u32) -> Result<Option<StepSession>, ControlError> {
    let found = ask(context, |answer| DriverRequest::Rank { container: container.to_owned(), rank, answer }).await?;
    Ok(found.map(|(instance, of)| StepSession { instance, of, options: ExecOptions::default() }))
}

/// Runs the session; `options` without the word that names the rank.
pub(super) async fn run(handshake: Handshake, context: &Context, session: StepSession) {
    run_at(handshake, &context.netns, session, COMES_UP).await;
}

async fn run_at(mut handshake: Handshake, netns: &Path, session: StepSession, limit: Duration) {
    let of = session.of.clone();
    let begun = tokio::select! {
        begun = tokio::time::timeout(limit, begin(netns, session)) => begun,
        // What was begun for it ends with our connection.
        () = gone(&mut handshake) => return,
    };
    let (reply, mut rank, rest) = match begun {
        Ok(Ok(begun)) => begun,
        failed => {
            let message = match failed {
                Ok(Err(error)) => format!("hpk-netns does not answer: {error}"),
                _ => format!(
                    "no session beside rank {} on node {} within {} s: its Slurm step does not begin; squeue --steps shows the \
                     job's steps",
                    of.rank,
                    of.node,
                    limit.as_secs()
                ),
            };
            return handshake.refuse(ControlError { code: ErrorCode::Internal, message }).await;
        }
    };
    if !handshake.answer(&reply).await || matches!(reply, Reply::Error(_)) {
        return;
    }
    let early = std::mem::take(&mut handshake.rest);
    if rank.write_all(&early).await.is_err() || handshake.stream.write_all(&rest).await.is_err() {
        return;
    }
    let ((mut from_client, mut to_client), (mut from_rank, mut to_rank)) = (handshake.stream.split(), rank.split());
    let inward = async {
        // Its end tells the rank's node that the client is gone; the session ends by that.
        let _ = copy(&mut from_client, &mut to_rank).await;
        let _ = to_rank.shutdown().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = copy(&mut from_rank, &mut to_client) => {}
        () = inward => {}
    }
}

/// Returns when the client is gone. What it sends until then is kept for the session.
async fn gone(handshake: &mut Handshake) {
    while handshake.rest.len() < EARLY {
        if !matches!(handshake.stream.read_buf(&mut handshake.rest).await, Ok(1..)) {
            return;
        }
    }
    std::future::pending().await
}

/// Asks; the answer, the stream after it, and what has come of it already.
async fn begin(socket: &Path, session: StepSession) -> io::Result<(Reply, UnixStream, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(&NetnsRequest::Session(Box::new(session)))?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            let rest = answer.split_off(end + 1);
            return Ok((serde_json::from_slice(&answer)?, stream, rest));
        }
        if answer.len() > MAX_LINE || stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor's end of a client's connection, and what stands for hpk-netns, which answers nothing.
    async fn waiting(limit: Duration) -> (UnixStream, UnixStream, tokio::task::JoinHandle<()>, tempfile::TempDir) {
        let tmp = tempfile::tempdir().unwrap();
        let netns = tmp.path().join("netns.sock");
        let listener = tokio::net::UnixListener::bind(&netns).unwrap();
        let (client, ours) = UnixStream::pair().unwrap();
        let session = StepSession { of: hpk_api::step::Rank { rank: 3, node: "c2".into() }, ..StepSession::default() };
        let run = tokio::spawn(async move { run_at(Handshake::new(ours), &netns, session, limit).await });
        let (mut asked, _) = listener.accept().await.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            asked.read_buf(&mut line).await.unwrap();
        }
        (client, asked, run, tmp)
    }

    #[tokio::test]
    async fn a_client_that_goes_before_its_session_begins_is_seen() {
        let (mut client, mut asked, run, _tmp) = waiting(COMES_UP).await;
        client.write_all(b"typed ahead").await.unwrap();
        drop(client);
        // The other side hears of it, and gives up.
        assert_eq!(asked.read(&mut [0; 8]).await.unwrap(), 0);
        run.await.unwrap();
    }

    #[tokio::test]
    async fn a_session_that_does_not_begin_is_refused() {
        let (mut client, mut asked, run, _tmp) = waiting(Duration::from_secs(1)).await;
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.contains("rank 3 on node c2 within 1 s"), "{said}");
        assert_eq!(asked.read(&mut [0; 8]).await.unwrap(), 0);
        run.await.unwrap();
    }

    #[test]
    fn a_command_may_name_a_rank() {
        let named = |words: &[&str]| named(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&["rank:5", "ps"]), Some(5));
        assert_eq!(named(&["rank:0"]), Some(0));
        for other in [&["ps"][..], &["rank:"], &["rank:x"], &["rank:-1"], &["sh", "rank:5"], &[]] {
            assert_eq!(named(other), None, "{other:?}");
        }
    }
}
