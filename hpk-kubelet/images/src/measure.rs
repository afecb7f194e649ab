//! What a tree of files consists of: how many, how large, and a digest of what the file system tells about each.

use crate::blobs::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Facts of an image's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Files, folders, links …, each once whatever its names.
    pub inodes: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Digest of all paths with mode, owner, length, time of change and target of links. What files hold is not read.
    pub digest: String,
}

/// Measures a tree.
pub(crate) fn measure(root: &Path) -> io::Result<Facts> {
    let mut facts = Facts::default();
    let mut hash = Sha256::new();
    let mut seen = HashSet::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(path) = ahead.pop() {
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(&full)?;
        if meta.nlink() < 2 || meta.is_dir() || seen.insert(meta.ino()) {
            facts.inodes += 1;
            facts.bytes += if meta.is_file() { meta.len() } else { 0 };
        }
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(path.as_os_str().as_bytes());
        // The length of a folder is the file system's own affair.
        let length = if meta.is_file() { meta.len() } else { 0 };
        for number in [u64::from(meta.mode()), meta.uid().into(), meta.gid().into(), length] {
            put(&number.to_le_bytes());
        }
        put(&meta.mtime().to_le_bytes());
        if meta.is_symlink() {
            put(std::fs::read_link(&full)?.as_os_str().as_bytes());
        }
        if meta.is_dir() {
            let names = std::fs::read_dir(&full)?.map(|entry| Ok(path.join(entry?.file_name())));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            ahead.extend(names.into_iter().rev());
        }
    }
    facts.digest = hex(&hash.finalize());
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_changes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/f"), "1234").unwrap();
        fs::hard_link(root.join("a/f"), root.join("a/g")).unwrap();
        std::os::unix::fs::symlink("f", root.join("a/l")).unwrap();
        let before = measure(root).unwrap();
        assert_eq!((before.inodes, before.bytes), (5, 4));
        assert_eq!(measure(root).unwrap(), before);
        fs::set_permissions(root.join("a/f"), fs::Permissions::from_mode(0o600)).unwrap();
        let other = measure(root).unwrap();
        assert!(other.digest != before.digest && other.inodes == before.inodes);
        fs::remove_file(root.join("a/g")).unwrap();
        assert_ne!(measure(root).unwrap().digest, other.digest);
    }
}
