//! HPK_HOME is this kubelet's alone.

use hpk_layout::Home;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use thiserror::Error;

/// HPK_HOME cannot be had for this kubelet alone.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    /// Another one has it.
    #[error("another hpk-kubelet works on {0}: stop it first (hpk down)")]
    Taken(PathBuf),
    /// The file system's.
    #[error("cannot lock {path}")]
    Io {
        /// Lock file.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Takes the home for this process: two kubelets would submit every pod twice.
///
/// # Errors
/// Another kubelet has it.
pub(crate) fn lock(home: &Home) -> Result<Flock<File>, LockError> {
    let path = home.kubelet_lock();
    let fail = |source| LockError::Io { path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home.run()).map_err(fail)?;
    let file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => LockError::Taken(home.root().to_owned()),
        error => LockError::Io { path: path.clone(), source: error.into() },
    })
}
