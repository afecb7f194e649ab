//! The job's node-local folder: made 0700 before the start, removed at the end. Where the whole job was killed at once,
//! another pod of the user on the node removes it: one that lives there, when the kubelet says so, or the next.
//!
//! The folder above it is shared by all of this user's pods on the node and may stand in a world-writable
//! `/tmp`, so it is used only when it is really ours: somebody else could have made it first.

use super::layout::{Layout, NoFolder};
use crate::datapath::remove_dead_sockets;
use hpk_layout::node::{self, LOCK, TURN};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the node-local folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScratchError {
    /// There is no folder of the user's.
    #[error(transparent)]
    NoFolder(#[from] NoFolder),
    /// An operation on one folder failed.
    #[error("node-local folder {}: {source}; set TMPDIR to a folder on this node that you can write", path.display())]
    Io {
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else's, or open to others.
    #[error("node-local folder {} belongs to uid {owner} with mode {mode:o}: it must be yours with mode 700; remove it or set TMPDIR", path.display())]
    NotOurs {
        path: PathBuf,
        owner: u32,
        /// Its mode bits.
        mode: u32,
    },
    /// Another job of the same pod lives in it.
    #[error("another job of this pod runs on this node and has {}: this job ends, the other one goes on", path.display())]
    Taken { path: PathBuf },
}

/// Makes every folder of [`Layout::local`]; what an earlier run of the same pod left is removed first. It is ours until
/// the file is closed.
pub(crate) fn make(layout: &Layout, uid: u32) -> Result<File, ScratchError> {
    user_folder(layout, uid)?;
    let (locked, old) = {
        let _turn = turn(&layout.user)?;
        let old = take_away(&layout.user, &layout.local)?;
        private(&layout.local, uid)?;
        let path = layout.local.join(LOCK);
        let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
        (locked.map_err(|e| io_error(&path, e))?, old)
    };
    if let Some(old) = old {
        old.remove().map_err(|e| io_error(&layout.local, e))?;
    }
    for path in [&layout.net, &layout.run, &layout.scratch, &layout.host] {
        private(path, uid)?;
    }
    Ok(locked)
}

/// Locks the file beside the pods' folders. Who holds its lock may judge and move them: between a look at a pod's lock and
/// what follows from it, nobody else takes the folder away or makes it anew.
fn turn(user: &Path) -> Result<File, ScratchError> {
    let path = user.join(TURN);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    file.and_then(|file| file.lock().map(|()| file)).map_err(|e| io_error(&path, e))
}

/// A folder that was moved out of the way, to be removed without haste.
struct Old {
    path: PathBuf,
    /// So that nobody else removes it at the same time.
    _lock: Option<File>,
}

impl Old {
    fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Moves a pod's folder out of the way, unless a living hpk-netns has it. To be called in one's [`turn`].
fn take_away(user: &Path, folder: &Path) -> Result<Option<Old>, ScratchError> {
    let fail = |e| io_error(folder, e);
    let lock = match File::open(folder.join(LOCK)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return Err(ScratchError::Taken { path: folder.to_path_buf() }),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(fail(error)),
    };
    let path = user.join(node::old(folder.file_name().unwrap_or_default(), std::process::id()));
    match std::fs::rename(folder, &path) {
        Ok(()) => Ok(Some(Old { path, _lock: lock })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error)),
    }
}

/// Removes the folders of pods whose jobs were killed, which had no time to do so. To be called beside a pod's life, for
/// it may take long.
pub(crate) fn sweep(user: &Path) {
    for entry in std::fs::read_dir(user).into_iter().flatten().flatten() {
        let folder = entry.path();
        if node::is_packets(&entry.file_name()) {
            remove_dead_sockets(&folder);
        }
        if !folder.join(LOCK).exists() {
            continue;
        }
        // The turn ends before the removal begins.
        let old = turn(user).and_then(|_turn| take_away(user, &folder));
        let removed = match old {
            Ok(old) => old.map_or(Ok(()), Old::remove).map_err(|e| io_error(&folder, e)),
            Err(ScratchError::Taken { .. }) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            hpk_api::say!("hpk-netns: {error}");
        }
    }
}

/// A folder below [`Layout::user`] that several processes share: it stays as it is found.
pub(crate) fn keep(layout: &Layout, folder: &Path, uid: u32) -> Result<(), ScratchError> {
    user_folder(layout, uid)?;
    private(folder, uid)
}

/// [`Layout::local`], emptied, and [`Layout::user`] above it, for what no pod has.
pub(crate) fn folder(layout: &Layout, uid: u32) -> Result<(), ScratchError> {
    user_folder(layout, uid)?;
    remove(&layout.local).map_err(|e| io_error(&layout.local, e))?;
    private(&layout.net, uid)?;
    private(&layout.local, uid)
}

fn user_folder(layout: &Layout, uid: u32) -> Result<(), ScratchError> {
    if let Some(above) = layout.user.parent() {
        std::fs::create_dir_all(above).map_err(|e| io_error(above, e))?;
    }
    private(&layout.user, uid)
}

/// Removes [`Layout::local`], if the folder above it is ours: in another's it may be anything. One that another job of the
/// pod lives in stays.
pub(crate) fn clear(layout: &Layout, uid: u32) -> Result<(), ScratchError> {
    match std::fs::symlink_metadata(&layout.user) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(&layout.user, e)),
        Ok(meta) => ours(&layout.user, &meta, uid)?,
    }
    let old = turn(&layout.user).and_then(|_turn| take_away(&layout.user, &layout.local));
    match old {
        Ok(old) => old.map_or(Ok(()), Old::remove).map_err(|e| io_error(&layout.local, e)),
        Err(ScratchError::Taken { .. }) => Ok(()),
        Err(error) => Err(error),
    }
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
    fn a_second_job_of_a_pod_leaves_the_first_ones_folder() {
        let tmp = tempfile::tempdir().unwrap();
        let (l, uid) = layout(tmp.path());
        let first = make(&l, uid).unwrap();
        std::fs::write(l.scratch.join("work"), b"x").unwrap();
        assert!(matches!(make(&l, uid), Err(ScratchError::Taken { .. })));
        clear(&l, uid).unwrap();
        sweep(&l.user);
        assert!(l.scratch.join("work").exists());
        drop(first);
        let _next = make(&l, uid).unwrap();
        assert!(!l.scratch.join("work").exists());
        let names: Vec<_> = std::fs::read_dir(&l.user).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!names.iter().any(|n| n.to_string_lossy().starts_with(".old-")), "{names:?}");
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
