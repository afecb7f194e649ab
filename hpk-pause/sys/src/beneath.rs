//! What is below a folder that somebody else can write to: reached without following a link of theirs.
//!
//! A pod whose containers have rights over the supervisor (SYS_PTRACE with shareProcessNamespace) can put links into the
//! pod's folder on the shared file system. The kubelet, which reads and writes there as the user, must not be led to the
//! user's other files. Each component is opened by itself without following links, so this needs no openat2(2).

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

/// Opens a folder below `root`, whose own path is trusted.
///
/// # Errors
/// ENOTDIR or ELOOP where a component is a link; `InvalidInput` for a path that leads out.
pub fn folder(root: &Path, below: &Path) -> io::Result<File> {
    walk(root, below, false)
}

/// As [`folder`], and makes what is missing (0755 less the umask).
///
/// # Errors
/// As [`folder`].
pub fn make_folder(root: &Path, below: &Path) -> io::Result<File> {
    walk(root, below, true)
}

fn walk(root: &Path, below: &Path, make: bool) -> io::Result<File> {
    let mut at = File::open(root)?;
    for component in below.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} leads out", below.display()))),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&at, name, flags, Mode::empty());
        let next = match open() {
            Err(Errno::ENOENT) if make => {
                match mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                open()
            }
            result => result,
        };
        at = next?.into();
    }
    Ok(at)
}

/// Reads a regular file below `root`, at most `most` bytes of it.
///
/// # Errors
/// As [`folder`]; `InvalidInput` for what is no regular file or is longer.
pub fn read(root: &Path, below: &Path, most: u64) -> io::Result<Vec<u8>> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{} {what}", below.display()));
    let name = below.file_name().ok_or_else(|| refused("names no file"))?;
    let parent = folder(root, below.parent().unwrap_or(Path::new("")))?;
    // Not to wait for a writer of a FIFO.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(&parent, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(refused("is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        return Err(refused("is too long"));
    }
    Ok(bytes)
}

/// A path that leads to this very folder for as long as it is open, whatever becomes of its name.
#[must_use]
pub fn path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_is_followed_and_nothing_leads_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let (root, other) = (dir.path().join("pod"), dir.path().join("other"));
        for folder in [&root.join("real"), &other] {
            fs::create_dir_all(folder).expect("a folder");
            fs::write(folder.join("file"), "text").expect("a file");
        }
        symlink(&other, root.join("link")).expect("a link");
        symlink(other.join("file"), root.join("real/linked")).expect("a link");
        nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600)).expect("a fifo");
        let of = |below: &str| read(&root, Path::new(below), 4).map_err(|error| error.kind());
        assert_eq!(of("real/./file"), Ok(b"text".to_vec()));
        assert!(of("link/file").is_err() && of("real/linked").is_err());
        for below in ["../other/file", "real/../real/file", "/etc/passwd", "fifo", "real", ""] {
            assert!(of(below).is_err(), "{below}");
        }
        assert_eq!(of("none"), Err(io::ErrorKind::NotFound));
        assert!(read(&root, Path::new("real/file"), 3).is_err(), "too long");
        assert!(make_folder(&root, Path::new("link/new")).is_err());
        assert!(!other.join("new").exists());
        let made = make_folder(&root, Path::new("real/a/b")).expect("a folder");
        fs::rename(root.join("real"), root.join("moved")).expect("a rename");
        fs::write(path(&made).join("c"), "").expect("a file");
        assert!(root.join("moved/a/b/c").exists());
    }
}
