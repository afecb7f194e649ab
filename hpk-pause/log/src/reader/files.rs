//! Opening a log's files.

use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

pub(super) fn inode_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// A log is never a link: a pod that can write to its folder must not lead its reader to another file.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)
}

/// Opens a rotated file, which may have been compressed since it was listed; None when it was pruned.
pub(super) fn open_rotated(path: &Path, gz: bool) -> io::Result<Option<(File, bool)>> {
    let compressed = path.with_added_extension("gz");
    let candidates = if gz { vec![(path, true)] } else { vec![(path, false), (compressed.as_path(), true)] };
    for (path, gz) in candidates {
        match open_file(path) {
            Ok(file) => return Ok(Some((file, gz))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
