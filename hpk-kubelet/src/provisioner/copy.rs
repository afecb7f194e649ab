//! Copies a volume while pods may write to it.
//!
//! A pod can put a link in the place of a folder at any moment, and this runs on the login node, as the user. So no path is
//! ever followed: each entry is opened below its folder without following links, looked at once it is open, and copied from
//! that descriptor. What vanishes or becomes something else in between is left out. It runs in a process of its own
//! ([`main`]) in a user namespace, where it may read files of subordinate ids and give them to their owners.

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// First argument of the program that calls [`main`].
pub const COMMAND: &str = "copy-volume";

/// The process: `copy-volume SOURCE TARGET`. Exit code 0 when the copy is whole.
#[must_use]
pub fn main() -> ExitCode {
    let paths: Vec<OsString> = std::env::args_os().skip(2).collect();
    let [from, to] = paths.as_slice() else { return ExitCode::from(2) };
    match tree(Path::new(from), Path::new(to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            hpk_api::say!("copy of {}: {error}", from.display());
            ExitCode::FAILURE
        }
    }
}

/// Copies what is in `from` to the empty folder `to`. Names above both are trusted.
///
/// # Errors
/// The first one that is not the source's own change.
pub(crate) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let open = |path| fs::open(path, FOLDER, Mode::empty());
    let (source, target) = (open(from)?, open(to)?);
    let mut copier = Copier { root: target.try_clone()?, links: HashMap::new() };
    copier.entries(source.as_fd(), target.as_fd(), Path::new(""))?;
    Ok(keep(source.as_fd(), target.as_fd(), &fs::fstat(&source)?)?)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Not to wait for the writer of a FIFO.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Only the user sees it before it has its own mode.
const PRIVATE: Mode = Mode::RWXU;

struct Copier {
    /// The copy's folder.
    root: OwnedFd,
    /// Where a file with several names is in the copy, below `root`. By device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copier {
    fn entries(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, below: &Path) -> io::Result<()> {
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match self.entry(source, target, name, below) {
                Err(error) if changed(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, below: &Path) -> io::Result<()> {
        let stat = fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.folder(source, target, name, below),
            FileType::RegularFile => self.file(source, target, name, below),
            FileType::Symlink => {
                let to = fs::readlinkat(source, name, Vec::new())?;
                fs::symlinkat(to.as_c_str(), target, name)?;
                let (owner, group) = owners(&stat);
                allowed(fs::chownat(target, name, owner, group, AtFlags::SYMLINK_NOFOLLOW))?;
                Ok(())
            }
            FileType::Fifo => {
                fs::mknodat(target, name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode), 0)?;
                Ok(())
            }
            // A socket has no content, and devices are the administrator's.
            _ => Ok(()),
        }
    }

    fn folder(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, below: &Path) -> io::Result<()> {
        let from = fs::openat(source, name, FOLDER, Mode::empty())?;
        fs::mkdirat(target, name, PRIVATE)?;
        let to = fs::openat(target, name, FOLDER, Mode::empty())?;
        self.entries(from.as_fd(), to.as_fd(), &below.join(OsStr::from_bytes(name.to_bytes())))?;
        Ok(keep(from.as_fd(), to.as_fd(), &fs::fstat(&from)?)?)
    }

    fn file(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, below: &Path) -> io::Result<()> {
        let from = fs::openat(source, name, FILE, Mode::empty())?;
        let stat = fs::fstat(&from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            return Ok(fs::linkat(&self.root, first, target, name, AtFlags::empty())?);
        }
        let to = fs::openat(target, name, NEW, PRIVATE)?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        // A clone takes no time and no space, where the file system has it.
        if fs::ioctl_ficlone(&to, &from).is_err() {
            io::copy(&mut from, &mut to)?;
        }
        keep(from.as_fd(), to.as_fd(), &stat)?;
        if stat.st_nlink > 1 {
            self.links.insert(identity, below.join(OsStr::from_bytes(name.to_bytes())));
        }
        Ok(())
    }
}

/// The source is in use: what was listed is gone, or something else by now.
fn changed(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO))
}

fn owners(stat: &Stat) -> (Option<fs::Uid>, Option<fs::Gid>) {
    (Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))
}

/// An owner that the user cannot give stays the user.
fn allowed(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::PERM | Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Gives the copy its owner, attributes, mode and times.
fn keep(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    let (owner, group) = owners(stat);
    allowed(fs::fchown(to, owner, group))?;
    attributes(from, to);
    // After the owner, whose change takes the set-uid bits away.
    allowed(fs::fchmod(to, Mode::from_raw_mode(stat.st_mode)))?;
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    allowed(fs::futimens(to, &times))
}

/// Attributes of users, as far as both file systems have them.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut names = vec![0u8; 64 << 10];
    let Ok(length) = fs::flistxattr(from, names.as_mut_slice()) else { return };
    names.truncate(length);
    for name in names.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        if let Ok(length) = fs::fgetxattr(from, name, value.as_mut_slice()) {
            value.truncate(length);
            let _ = fs::fsetxattr(to, name, &value, fs::XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_copy_has_what_the_source_has() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        std::fs::create_dir_all(from.join("d/deep")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/deep/file"), "text").unwrap();
        std::fs::hard_link(from.join("d/deep/file"), from.join("same")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        std::fs::set_permissions(from.join("d/deep"), PermissionsExt::from_mode(0o2751)).unwrap();
        tree(&from, &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("same")).unwrap(), "text");
        assert_eq!(to.join("same").metadata().unwrap().ino(), to.join("d/deep/file").metadata().unwrap().ino());
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(to.join("d/deep").metadata().unwrap().permissions().mode() & 0o7777, 0o2751);
        let times = |root: &Path| root.join("d/deep/file").metadata().unwrap().mtime_nsec();
        assert_eq!(times(&from), times(&to));
        assert!(to.join("fifo").symlink_metadata().is_ok());
    }

    #[test]
    fn a_folder_that_becomes_a_link_is_not_entered() {
        let tmp = tempfile::tempdir().unwrap();
        let secret = tmp.path().join("secret");
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("key"), "private").unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        symlink(&secret, from.join("d")).unwrap();
        let open = |path: &Path| fs::open(path, FOLDER, Mode::empty()).unwrap();
        let (source, target) = (open(&from), open(&to));
        let mut copier = Copier { root: target.try_clone().unwrap(), links: HashMap::new() };
        // As if it had been a folder when it was looked at.
        let error = copier.folder(source.as_fd(), target.as_fd(), c"d", Path::new("")).unwrap_err();
        assert!(changed(&error), "{error}");
        let error = copier.file(source.as_fd(), target.as_fd(), c"d", Path::new("")).unwrap_err();
        assert!(changed(&error), "{error}");
        assert!(!to.join("d/key").exists());
        assert!(tree(&from.join("d"), &to).is_err(), "the source itself is a link");
    }
}
