//! `hpk-netns carry <pod folder>`: bytes between our standard streams and the pod's link, on its node.
//!
//! The kubelet starts this in the pod's job (`srun --overlap`) where the node cannot dial the kubelet. It interprets
//! nothing: TLS and everything inside are the link's. It ends with either side.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Bytes taken at a time.
const CHUNK: usize = 64 << 10;

/// Why nothing can be carried.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The pod's hpk-netns did not say where its socket is.
    #[error("{}: {source}: does the pod run, and on this node?", path.display())]
    Where {
        /// File in the pod's folder.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The socket is not there, or a stream broke.
    #[error("{}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

/// Carries until either side ends.
///
/// # Errors
/// When there is no link to carry to.
pub fn run(pod: &Path) -> Result<(), CarryError> {
    let file = pod.join(hpk_layout::pod::CARRIER);
    let text = std::fs::read_to_string(&file).map_err(|source| CarryError::Where { path: file, source })?;
    let path = PathBuf::from(text.trim_end());
    let broke = |source| CarryError::Socket { path: path.clone(), source };
    let link = UnixStream::connect(&path).map_err(broke)?;
    let mut to_link = link.try_clone().map_err(broke)?;
    // Files instead of std's handles: those buffer lines.
    let mut from = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(broke)?);
    let mut to = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(broke)?);
    std::thread::spawn(move || {
        // The reason does not matter: the kubelet's end is gone.
        let _ = copy(&mut from, &mut to_link);
        let _ = to_link.shutdown(Shutdown::Both);
    });
    // The other thread may wait for input for ever; it goes with the process.
    copy(&mut &link, &mut to).map_err(broke)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_never_ran_is_said_so() {
        let tmp = tempfile::tempdir().unwrap();
        let error = run(tmp.path()).unwrap_err().to_string();
        assert!(error.contains("carrier") && error.contains("does the pod run"), "{error}");
        std::fs::write(tmp.path().join(hpk_layout::pod::CARRIER), "/nowhere/link.sock").unwrap();
        assert!(run(tmp.path()).unwrap_err().to_string().starts_with("/nowhere/link.sock: "));
    }
}
