//! Locks against other processes of the same user: flock on small files that are never removed.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::PathBuf;

/// Held until dropped.
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Waits for the lock; blocks a thread of the blocking pool, not the caller's.
pub(crate) async fn acquire(path: PathBuf) -> std::io::Result<Lock> {
    tokio::task::spawn_blocking(move || {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        loop {
            let again = file.try_clone()?;
            match Flock::lock(again, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Lock { _file: lock }),
                Err((_, nix::errno::Errno::EINTR)) => {}
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    })
    .await
    .map_err(std::io::Error::other)?
}
