//! Locks against other processes of the same user: flock on small files. They are removed only by whoever has the store's
//! own lock alone, for then nobody has one of them open.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::PathBuf;

/// Held until dropped.
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Waits for the lock; blocks a thread of the blocking pool, not the caller's.
pub(crate) async fn acquire(path: PathBuf) -> std::io::Result<Lock> {
    wait(path, FlockArg::LockExclusive).await
}

/// As [`acquire`], together with others that share it.
pub(crate) async fn share(path: PathBuf) -> std::io::Result<Lock> {
    wait(path, FlockArg::LockShared).await
}

/// The lock, if nobody else has it now.
pub(crate) fn try_acquire(path: PathBuf) -> std::io::Result<Option<Lock>> {
    match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock { _file: lock })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn open(path: PathBuf) -> std::io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

async fn wait(path: PathBuf, kind: FlockArg) -> std::io::Result<Lock> {
    tokio::task::spawn_blocking(move || {
        let file = open(path)?;
        loop {
            let again = file.try_clone()?;
            match Flock::lock(again, kind) {
                Ok(lock) => return Ok(Lock { _file: lock }),
                Err((_, Errno::EINTR)) => {}
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    })
    .await
    .map_err(std::io::Error::other)?
}
