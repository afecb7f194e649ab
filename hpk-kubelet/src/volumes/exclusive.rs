//! ReadWriteOncePod among our pods: which pod has such a claim.
//!
//! One small file for each claim, `HPK_HOME/volumes/.one-pod/<uid of the claim>`, holds the UID of its pod. It counts as
//! long as that pod has a folder and its job has not ended. A lock keeps two pods from looking at the same time.

use crate::pods::folder::Folder;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Takes the claim for a pod whose folder is there. False: another pod has it. Blocking.
///
/// # Errors
/// The file system's.
pub(crate) fn take(holders: &Path, pods: &Path, claim: &str, pod: &str) -> io::Result<bool> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(holders)?;
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(holders.join("lock"))?;
    let _lock: Flock<File> = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    let path = holders.join(claim);
    let holder = match std::fs::read_to_string(&path) {
        Ok(uid) => uid,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if holder == pod {
        return Ok(true);
    }
    // A name from a file of our own; still nothing that leads elsewhere is followed.
    if !holder.is_empty() && !holder.contains('/') && lives(&pods.join(&holder)) {
        return Ok(false);
    }
    std::fs::write(&path, pod)?;
    Ok(true)
}

/// Whether a pod may still write: its record cannot be had, or does not say that its job has ended.
fn lives(folder: &Path) -> bool {
    folder.is_dir() && !matches!(Folder::at(folder.to_owned()).record(), Ok(Some(record)) if record.ended.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let (holders, pods) = (tmp.path().join("h"), tmp.path().join("p"));
        std::fs::create_dir_all(pods.join("a")).unwrap();
        std::fs::create_dir_all(pods.join("b")).unwrap();
        let take = |pod: &str| take(&holders, &pods, "claim", pod).unwrap();
        assert!(take("a") && take("a"), "a second attempt of the same pod");
        assert!(!take("b"));
        std::fs::remove_dir(pods.join("a")).unwrap();
        assert!(take("b"), "the first is gone");
        std::fs::create_dir(pods.join("a")).unwrap();
        assert!(!take("a"));
    }
}
