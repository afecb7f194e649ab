//! Descriptors of the kubelet: each link and each session has some, and a login session's usual soft limit (1024) is less
//! than the pods that one kubelet holds.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What 2,000 links, their sessions and all else come to, with room.
const ENOUGH: u64 = 65_536;

/// Raises the soft limit as far as it is useful and allowed. Returns the former one, when it was changed: what Slurm hands
/// on to jobs should be the user's.
pub(crate) fn raise() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let wanted = hard.min(ENOUGH);
    if wanted <= soft {
        return None;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => Some(soft),
        Err(error) => {
            tracing::warn!(%error, soft, "the limit of open files stays: with many pods links will be missing");
            None
        }
    }
}
