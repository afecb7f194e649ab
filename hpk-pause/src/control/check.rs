//! CHECK of the pod's network, on demand: hpk-netns has the plug-ins.

use hpk_api::control::{ControlError, ErrorCode};
use hpk_api::net::{NetnsRequest, TunAnswer};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Each plug-in has a limit of its own, which hpk-netns keeps.
const LIMIT: Duration = Duration::from_secs(180);

/// Asks; an error names the plug-in.
pub(super) async fn run(socket: &Path) -> Result<(), ControlError> {
    let error = |code, message| Err(ControlError { code, message });
    match tokio::time::timeout(LIMIT, ask(socket)).await {
        Ok(Ok(TunAnswer::Ready(_))) => Ok(()),
        Ok(Ok(TunAnswer::Failed { message })) => error(ErrorCode::Conflict, message),
        Ok(Err(source)) => error(ErrorCode::Internal, format!("hpk-netns does not answer: {source}")),
        Err(_) => error(ErrorCode::Internal, format!("hpk-netns has not answered for {} s", LIMIT.as_secs())),
    }
}

async fn ask(socket: &Path) -> io::Result<TunAnswer> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(&NetnsRequest::Check)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    Ok(serde_json::from_str(&answer)?)
}
