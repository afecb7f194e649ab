//! The job's node-local folder: made 0700 before the start, removed at the end. Where the whole job was killed at once,
//! another pod of the user on the node removes it: one that lives there, when the kubelet says so, or the next.
//!
//! The folder above it is shared by all of this user's pods on the node and may stand in a world-writable
//! `/tmp`, so it is used only when it is really ours: somebody else could have made it first.

use super::layout::{Layout, is_shared};
use crate::datapath::remove_dead_sockets;
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why the node-local folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScratchError {
    /// An operation on one folder failed.
    #[error("node-local folder {}: {source}; set TMPDIR to a folder on this node that you can write", path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else's, or open to others.
    #[error("node-local folder {} belongs to uid {owner} with mode {mode:o}: it must be yours with mode 700; remove it or set TMPDIR", path.display())]
    NotOurs {
        /// Which folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode bits.
        mode: u32,
    },
}

/// A file in a pod's folder that its hpk-netns keeps locked: whoever gets the lock knows that it is dead.
const LOCK: &str = "lock";

/// Makes every folder of [`Layout::local`]; what an earlier run of the same pod left is removed first. It is ours until
/// the file is closed.
pub(crate) fn make(layout: &Layout, uid: u32) -> Result<File, ScratchError> {
    folder(layout, uid)?;
    for path in [&layout.run, &layout.scratch, &layout.host] {
        private(path, uid)?;
    }
    // Locked before it has its name, so that nobody finds it free.
    let (new, path) = (layout.local.join(".lock.new"), layout.local.join(LOCK));
    let locked = File::create(&new).and_then(|file| {
        file.lock()?;
        std::fs::rename(&new, &path)?;
        Ok(file)
    });
    locked.map_err(|e| io_error(&path, e))
}

/// Removes the folders of pods whose jobs were killed, which had no time to do so. To be called beside a pod's life, for
/// it may take long.
pub(crate) fn sweep(user: &Path) {
    for entry in std::fs::read_dir(user).into_iter().flatten().flatten() {
        let folder = entry.path();
        if is_shared(&entry.file_name()) {
            remove_dead_sockets(&folder);
        }
        let Ok(file) = File::open(folder.join(LOCK)) else { continue };
        if file.try_lock().is_ok()
            && let Err(error) = remove(&folder)
        {
            hpk_api::say!("hpk-netns: cannot remove {}: {error}", folder.display());
        }
    }
}

/// [`Layout::local`], emptied, and [`Layout::user`] above it.
pub(crate) fn folder(layout: &Layout, uid: u32) -> Result<(), ScratchError> {
    if let Some(above) = layout.user.parent() {
        std::fs::create_dir_all(above).map_err(|e| io_error(above, e))?;
    }
    private(&layout.user, uid)?;
    remove(&layout.local).map_err(|e| io_error(&layout.local, e))?;
    private(&layout.net, uid)?;
    private(&layout.local, uid)
}

/// Removes [`Layout::local`], if the folder above it is ours: in another's it may be anything.
pub(crate) fn clear(layout: &Layout, uid: u32) -> Result<(), ScratchError> {
    match std::fs::symlink_metadata(&layout.user) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(&layout.user, e)),
        Ok(meta) => ours(&layout.user, &meta, uid)?,
    }
    remove(&layout.local).map_err(|e| io_error(&layout.local, e))
}

/// Removes a folder with all its content; a folder that is not there is fine. Content that belongs to
/// subordinate ids (a container's own users) is removed from inside a user namespace that maps them.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match hpk_sys::userns::remove_tree(path) {
        Ok(0) => Ok(()),
        Ok(code) => Err(io::Error::other(format!("rm ended with code {code}"))),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn private(path: &Path, uid: u32) -> Result<(), ScratchError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io_error(path, e)),
    }
    ours(path, &std::fs::symlink_metadata(path).map_err(|e| io_error(path, e))?, uid)
}

fn ours(path: &Path, meta: &Metadata, uid: u32) -> Result<(), ScratchError> {
    if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(ScratchError::NotOurs { path: path.to_path_buf(), owner: meta.uid(), mode: meta.mode() & 0o7777 })
}

fn io_error(path: &Path, source: io::Error) -> ScratchError {
    ScratchError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Surroundings;
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixDatagram;

    fn layout(tmp: &Path) -> (Layout, u32) {
        let uid = nix::unistd::getuid().as_raw();
        let around = Surroundings { user: tmp.join(format!("hpk-{uid}")), uid, ..Surroundings::default() };
        (Layout::new(Path::new("/h/pods/u"), "u", &around), uid)
    }

    #[test]
    fn made_private_and_emptied_of_an_earlier_run() {
        let tmp = tempfile::tempdir().unwrap();
        let (l, uid) = layout(tmp.path());
        make(&l, uid).unwrap();
        std::fs::write(l.scratch.join("left"), b"x").unwrap();
        make(&l, uid).unwrap();
        assert!(!l.scratch.join("left").exists());
        assert_eq!(l.run.metadata().unwrap().mode() & 0o777, 0o700);
        clear(&l, uid).unwrap();
        assert!(l.user.exists() && !l.local.exists());
        clear(&l, uid).unwrap();
    }

    #[test]
    fn folders_of_the_dead_are_swept_and_no_others() {
        let tmp = tempfile::tempdir().unwrap();
        let (living, uid) = layout(tmp.path());
        let _lock = make(&living, uid).unwrap();
        let around = Surroundings { user: living.user.clone(), uid, ..Surroundings::default() };
        let dead = Layout::new(Path::new("/h/pods/v"), "v", &around);
        drop(make(&dead, uid).unwrap());
        std::fs::create_dir(living.user.join("without")).unwrap();
        let _bound = UnixDatagram::bind(living.net.join("10.0.0.1.dp")).unwrap();
        drop(UnixDatagram::bind(living.net.join("10.0.0.2.dp")).unwrap());
        sweep(&living.user);
        assert!(living.net.join("10.0.0.1.dp").exists() && !living.net.join("10.0.0.2.dp").exists());
        assert!(!dead.local.exists() && living.scratch.exists() && living.net.exists());
        assert!(living.user.join("without").exists());
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (l, uid) = layout(tmp.path());
        std::fs::create_dir(&l.user).unwrap();
        std::fs::set_permissions(&l.user, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(make(&l, uid), Err(ScratchError::NotOurs { mode: 0o777, .. })));
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (l, uid) = layout(tmp.path());
        let elsewhere = tmp.path().join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("u")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &l.user).unwrap();
        assert!(matches!(make(&l, uid), Err(ScratchError::NotOurs { .. })));
        assert!(matches!(clear(&l, uid), Err(ScratchError::NotOurs { .. })));
        assert!(elsewhere.join("u").exists(), "what it leads to is not touched");
    }
}
