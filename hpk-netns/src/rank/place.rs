//! A step's folder on one node: where its ranks find their container, and who of them makes it and clears up.
//!
//! ```text
//! <user's folder>/<pod's uid>.<job>.<instance>/
//!   gate      locked by whoever looks for the container, makes it or leaves it: one at a time
//!   lock      locked (shared) by each rank for its life; the keeper waits for all of them to end
//!   keeper    Keeper, as JSON
//!   voice     locked by the rank that speaks for the node, when it is first asked
//!   rank.<n>  environment of rank n, for sessions beside it
//!   scratch/ host/ run/    of the container, on nodes where the ranks make it
//! ```

use super::RankError;
use crate::run::layout::{Layout, Surroundings};
use crate::run::scratch::ScratchError;
use crate::run::{images, scratch};
use hpk_api::step::Keeper;
use hpk_layout::node;
use hpk_sys::{procfs, rank};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const GATE: &str = "gate";
const KEEPER: &str = "keeper";
const VOICE: &str = "voice";

/// How often the folder may be taken away by one that leaves while it is being entered.
const TRIES: usize = 100;

/// The folder, ours with others.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) layout: Layout,
    pub(crate) folder: PathBuf,
    uid: u32,
    /// None: others may pass.
    gate: Option<File>,
    lock: File,
    /// Of images that may be unpacked on this node.
    shares: Vec<File>,
}

impl Place {
    /// Takes it and its gate; it is made when missing.
    pub(crate) fn take(pod: &Path, instance: u32) -> Result<Self, RankError> {
        let around = Surroundings::of_this_process().map_err(ScratchError::from)?;
        let uid = pod.file_name().unwrap_or_default().to_string_lossy();
        let job = std::env::var("SLURM_JOB_ID").unwrap_or_default();
        let layout = Layout::new(pod, &uid, &around);
        let folder = layout.user.join(node::ranks(&uid, &job, instance));
        for _ in 0..TRIES {
            scratch::keep(&layout, &folder, around.uid)?;
            match enter(&folder) {
                Ok((gate, lock)) => {
                    return Ok(Self { layout, folder, uid: around.uid, gate: Some(gate), lock, shares: Vec::new() });
                }
                // The last one that left has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(RankError::Io { path: folder, source: error }),
            }
        }
        Err(RankError::Io { path: folder, source: io::ErrorKind::NotFound.into() })
    }

    /// Has a share of the container's images while this lives. To be called while they are there by somebody else's.
    pub(crate) fn share_images(mut self) -> Result<Self, RankError> {
        self.shares = images::shares(&self.folder.join(node::IMAGES), &self.layout.unpacked)?;
        Ok(self)
    }

    /// The keeper of the container on this node, if it lives.
    pub(crate) fn keeper(&self) -> Option<(Keeper, OwnedFd)> {
        let keeper: Keeper = serde_json::from_slice(&std::fs::read(self.folder.join(KEEPER)).ok()?).ok()?;
        let pid = Pid::from_raw(keeper.pid);
        let pidfd = rank::pidfd(pid).ok()?;
        (procfs::start_time(pid) == Some(keeper.start)).then_some((keeper, pidfd))
    }

    /// Where the keeper is told of.
    pub(crate) fn keeper_file(&self) -> PathBuf {
        self.folder.join(KEEPER)
    }

    /// Tells of the keeper.
    pub(crate) fn record(&self, keeper: Keeper) -> Result<(), RankError> {
        let path = self.keeper_file();
        let text = serde_json::to_vec(&keeper).unwrap_or_default();
        hpk_layout::replace_soon(&path, &text, 0o600).map_err(|source| RankError::Io { path, source })
    }

    /// Leaves a rank's environment.
    pub(crate) fn note(&self, rank: u32, env: &[(String, String)]) -> Result<(), RankError> {
        let path = self.folder.join(format!("rank.{rank}"));
        let text = serde_json::to_vec(env).unwrap_or_default();
        hpk_layout::replace_soon(&path, &text, 0o600).map_err(|source| RankError::Io { path, source })
    }

    /// The environment of a rank of this node; None: there is no such rank.
    pub(crate) fn noted(&self, rank: u32) -> Option<Vec<(String, String)>> {
        serde_json::from_slice(&std::fs::read(self.folder.join(format!("rank.{rank}"))).ok()?).ok()
    }

    /// A file that one rank of the node has locked: it speaks for all of them, until it ends. None: it cannot be had.
    pub(crate) fn voice(&self) -> Option<File> {
        voice(&self.folder).ok()
    }

    /// What the keeper is to wait for: a lock of its own.
    pub(crate) fn lock_for_keeper(&self) -> io::Result<File> {
        File::open(self.folder.join(node::LOCK))
    }

    /// Lets others pass.
    pub(crate) fn open(mut self) -> Self {
        self.gate = None;
        self
    }

    /// Leaves it. The last one ends the container and removes the folder.
    pub(crate) fn leave(self) {
        let Ok(gate) = File::open(self.folder.join(GATE)) else { return };
        if gate.lock().is_err() || self.lock.try_lock().is_err() {
            return;
        }
        if let Some((_, keeper)) = self.keeper() {
            let _ = hpk_sys::signals::send(std::os::fd::AsFd::as_fd(&keeper), nix::libc::SIGKILL);
            let mut ended = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&keeper), nix::poll::PollFlags::POLLIN)];
            let _ = nix::poll::poll(&mut ended, nix::poll::PollTimeout::from(2000u16));
        }
        if let Err(error) = scratch::remove(&self.folder) {
            hpk_api::say!("hpk-netns: cannot remove {}: {error}", self.folder.display());
        }
    }

    /// The user, as Slurm knows it.
    pub(crate) fn user(&self) -> u32 {
        self.uid
    }
}

fn voice(folder: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(folder.join(VOICE))
}

/// Its gate and its lock.
fn enter(folder: &Path) -> io::Result<(File, File)> {
    let path = folder.join(GATE);
    let gate = OpenOptions::new().create(true).append(true).open(&path)?;
    gate.lock()?;
    // The folder may be another one by now.
    if std::fs::metadata(&path)?.ino() != gate.metadata()?.ino() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let path = folder.join(node::LOCK);
    match File::open(&path) {
        Ok(lock) => {
            lock.lock_shared()?;
            Ok((gate, lock))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Locked before it has its name, so that nobody takes the folder for one of the dead.
            let new = folder.join(".lock.new");
            let lock = File::create(&new)?;
            lock.lock_shared()?;
            std::fs::rename(new, path)?;
            Ok((gate, lock))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voice_passes_on_when_its_rank_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let (first, second) = (voice(tmp.path()).unwrap(), voice(tmp.path()).unwrap());
        assert!(first.try_lock().is_ok());
        assert!(second.try_lock().is_err(), "one speaks");
        assert!(first.try_lock().is_ok(), "the same, again");
        drop(first);
        assert!(second.try_lock().is_ok());
    }
}
