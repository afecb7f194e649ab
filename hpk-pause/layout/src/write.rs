//! How a shared file is replaced, and how a socket gets its place.
//!
//! A file has one writer and is replaced by rename: a reader sees the old content or the new one, whole. Its bytes are on
//! disk before the name is, so after a crash of the node the name leads to the old content or to the new one, too.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces a file. `mode` is that of the new file.
///
/// # Errors
/// The file system's. The old file is then still there.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replaced(path, content, mode, true)
}

/// Replaces a file without waiting for the disk: for news that the next writing makes old anyway. After a crash of the
/// node the file may be empty.
///
/// # Errors
/// As [`replace`].
pub fn replace_soon(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replaced(path, content, mode, false)
}

fn replaced(path: &Path, content: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let fresh = beside(path);
    let written = || -> io::Result<()> {
        // Made anew: in a pod's folder it might be a link of the pod's.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        if sync {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(&fresh, path)
    };
    written().inspect_err(|_| {
        // The first error is the one that matters.
        let _ = fs::remove_file(&fresh);
    })
}

/// A hidden name in the same folder, which no other writing has.
fn beside(path: &Path) -> PathBuf {
    static WRITINGS: AtomicU64 = AtomicU64::new(0);
    let number = WRITINGS.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{number}.new", std::process::id()))
}

/// Makes way for a socket: removes the one that a former process left. The caller knows that no other process uses it.
///
/// # Errors
/// The file system's.
pub fn remove_stale_socket(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for (content, mode) in [("old and long", 0o644), ("new", 0o600)] {
            replace(&path, content.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        replace_soon(&path, b"news", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "news");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_fails_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // A folder cannot be replaced by a file.
        let path = dir.path().join("folder");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("absent/file"), b"x", 0o600).is_err());
    }

    #[test]
    fn writers_side_by_side_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c', b'd'] {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| replace_soon(path, &[byte; 4096], 0o600).unwrap()));
            }
        });
        let content = fs::read(&path).unwrap();
        assert!(content.len() == 4096 && content.iter().all(|b| *b == content[0]));
    }

    #[test]
    fn a_stale_socket_goes_and_none_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        remove_stale_socket(&path).unwrap();
        remove_stale_socket(&path).unwrap();
        std::os::unix::net::UnixListener::bind(&path).unwrap();
    }
}
