//! exec beside a rank of an MPI step (`rank:5 ps`): the rank's node runs the session, and its bytes are passed on.

use super::handshake::Handshake;
use super::request::DriverRequest;
use super::{Context, ask};
use hpk_api::control::{ControlError, ErrorCode, ExecOptions, MAX_LINE, Reply};
use hpk_api::net::NetnsRequest;
use hpk_api::step::{SESSION_PREFIX, StepSession};
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::UnixStream;

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
pub(super) async fn run(mut handshake: Handshake, context: &Context, session: StepSession) {
    let (reply, mut rank, rest) = match begin(&context.netns, session).await {
        Ok(begun) => begun,
        Err(error) => {
            let message = format!("hpk-netns does not answer: {error}");
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
