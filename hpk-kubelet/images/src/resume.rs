//! Downloading a blob over a network that cuts off: what came is kept, and the rest is asked for (HTTP's Range).

use crate::error::SourceError;
use crate::manifest::Descriptor;
use crate::registry::Session;
use futures::StreamExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// How often in a row nothing more may come before it is given up, until the image is pulled again.
const CUTS: u32 = 5;
/// The wait before the first of these tries; each is twice the one before.
const WAIT: Duration = Duration::from_millis(200);

/// Writes a blob to `path`, at most `limit` bytes; what is there already is its beginning. `progress` gets the number of bytes
/// of each part. The digest is for the caller to check.
pub(crate) async fn blob(
    session: &Session,
    descriptor: &Descriptor,
    path: PathBuf,
    limit: u64,
    progress: &(dyn Fn(usize) + Send + Sync),
) -> Result<(), SourceError> {
    let mut file =
        File::options().append(true).create(true).open(&path).await.map_err(SourceError::io("create", &path))?;
    let mut have = file.metadata().await.map_err(SourceError::io("read", &path))?.len();
    if have > limit {
        empty(&file, &path).await?;
        have = 0;
    }
    progress(usize::try_from(have).unwrap_or(usize::MAX));
    let mut cuts = 0;
    loop {
        if descriptor.size > 0 && have == descriptor.size {
            return Ok(());
        }
        let before = have;
        let error = match part(session, descriptor, (&mut file, &path), &mut have, limit, progress).await {
            Ok(()) => return Ok(()),
            Err(error @ SourceError::Unavailable(_)) => error,
            Err(other) => return Err(other),
        };
        // What came is to be there for the next try, whoever makes it.
        file.flush().await.map_err(SourceError::io("write", &path))?;
        cuts = if have > before { 1 } else { cuts + 1 };
        if cuts > CUTS {
            return Err(error);
        }
        tracing::debug!(digest = descriptor.digest, have, "a download was cut off: {error}");
        tokio::time::sleep(WAIT * 2_u32.saturating_pow(cuts - 1)).await;
    }
}

/// As much as comes of what is missing.
async fn part(
    session: &Session,
    descriptor: &Descriptor,
    (file, path): (&mut File, &Path),
    have: &mut u64,
    limit: u64,
    progress: &(dyn Fn(usize) + Send + Sync),
) -> Result<(), SourceError> {
    let (answer, goes_on) = session.rest(descriptor, *have).await?;
    if !goes_on && *have > 0 {
        empty(file, path).await?;
        *have = 0;
    }
    let mut stream = answer.stream;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(cut)?;
        let more = have.saturating_add(bytes.len() as u64);
        if more > limit {
            return Err(SourceError::Other("the registry sends more than the manifest says".to_owned()));
        }
        file.write_all(&bytes).await.map_err(SourceError::io("write", path))?;
        *have = more;
        progress(bytes.len());
    }
    file.flush().await.map_err(SourceError::io("write", path))?;
    if descriptor.size > 0 && *have < descriptor.size {
        return Err(SourceError::Unavailable(format!("{have} of {} bytes came", descriptor.size)));
    }
    Ok(())
}

/// The library's word on a stream: its content was another than it should be, or it has ended early.
fn cut(error: std::io::Error) -> SourceError {
    use oci_client::errors::DigestError;
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(DigestError::VerificationError { expected, actual }) => {
            SourceError::Digest { expected: expected.clone(), actual: actual.clone() }
        }
        _ => SourceError::Unavailable(error.to_string()),
    }
}

async fn empty(file: &File, path: &Path) -> Result<(), SourceError> {
    file.set_len(0).await.map_err(SourceError::io("write", path))
}
