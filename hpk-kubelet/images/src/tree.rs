//! Making an image's files below `/` of the calling process, which is chrooted into the image's folder.
//!
//! Absolute paths, `..` and symbolic links therefore stay inside whatever an image says. This module counts what it makes
//! and ends at the limits; it knows nothing of the format that the files come from.

use hpk_api::images::ImageRules;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// What was done, and what was not done as the image says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Files, folders, links … made.
    pub(crate) inodes: u64,
    /// Bytes of regular files.
    pub(crate) bytes: u64,
    /// Device nodes left out: containers get theirs from the launcher.
    pub(crate) devices_skipped: u64,
    /// Files whose owner is not in the id map and became root.
    pub(crate) owners_flattened: u64,
    /// Extended attributes that could not be set.
    pub(crate) xattrs_skipped: u64,
}

/// How much one image may take on the login node. What an image deletes again counts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of its files, and of its layers once they are inflated.
    pub bytes: u64,
    /// Files, folders and links.
    pub inodes: u64,
}

impl From<&ImageRules> for Limits {
    fn from(rules: &ImageRules) -> Self {
        Self { bytes: rules.max_bytes, inodes: rules.max_files }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&ImageRules::default())
    }
}

/// Where and why an image's file cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("{action} {path}: {source}")]
    Entry {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the image takes more than {0} bytes; `hpk up --image-max-size` allows more")]
    Bytes(u64),
    #[error("the image has more than {0} files, folders and links; `hpk up --image-max-files` allows more")]
    Inodes(u64),
    #[error("the paths of the image's files take more than {0} bytes together; use shorter ones, or fewer files")]
    Paths(u64),
}

/// Bytes of all paths together: they are held in memory until the image is unpacked.
const MOST_PATHS: u64 = 256 << 20;

pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TreeError + 'a {
    move |source| TreeError::Entry { action, path: path.to_owned(), source }
}

/// Owner, mode and time of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    /// None: larger than any id can be.
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) time: Time,
}

/// Seconds since 1970, negative before, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// The image's files as far as they are made.
pub(crate) struct Tree {
    /// Set owners as recorded; false when only one id is mapped.
    owners: bool,
    limits: Limits,
    report: Report,
    /// Time stamps of folders, set last because filling a folder changes them.
    folders: Vec<(PathBuf, Time)>,
    /// The last folder that was looked up and where it really is.
    last: Option<(PathBuf, PathBuf)>,
    /// Bytes of the paths of what was made.
    paths: u64,
}

/// An absolute path whose text has no `.` and `..`; None for the root itself.
pub(crate) fn resolve(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out.parent().is_some().then_some(out)
}

/// Links that one path may lead over, as the kernel has it.
const MAX_LINKS: u32 = 40;

impl Tree {
    pub(crate) fn new(owners: bool, limits: Limits) -> Self {
        Self { owners, limits, report: Report::default(), folders: Vec::new(), last: None, paths: 0 }
    }

    /// Where the folder `path` really is, its links followed. What is missing is made, when `make`, as root's and with
    /// mode 0755, the target of a dangling link too; else None.
    pub(crate) fn folder(&mut self, path: &Path, make: bool) -> Result<Option<PathBuf>, TreeError> {
        if let Some((asked, real)) = &self.last
            && asked == path
        {
            return Ok(Some(real.clone()));
        }
        let mut ahead: VecDeque<OsString> = VecDeque::new();
        queue(&mut ahead, path);
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_dir() => real = next,
                Ok(meta) if meta.is_symlink() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(at("follow", path)(nix::errno::Errno::ELOOP.into()));
                    }
                    let target = fs::read_link(&next).map_err(at("read link", &next))?;
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    queue(&mut ahead, &target);
                }
                Ok(_) => return Err(at("create folder", &next)(io::ErrorKind::NotADirectory.into())),
                Err(e) if e.kind() == io::ErrorKind::NotFound && !make => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.count()?;
                    fs::create_dir(&next).map_err(at("create folder", &next))?;
                    fs::set_permissions(&next, Permissions::from_mode(0o755)).map_err(at("set mode of", &next))?;
                    real = next;
                }
                Err(e) => return Err(at("look up", &next)(e)),
            }
        }
        self.last = Some((path.to_owned(), real.clone()));
        Ok(Some(real))
    }

    fn count(&mut self) -> Result<(), TreeError> {
        self.report.inodes += 1;
        if self.report.inodes > self.limits.inodes { Err(TreeError::Inodes(self.limits.inodes)) } else { Ok(()) }
    }

    /// Room for a new file at `path`: what is there goes, except a folder when a folder is to come (true then).
    fn room(&mut self, path: &Path, folder: bool) -> Result<bool, TreeError> {
        self.count()?;
        self.paths = self.paths.saturating_add(u64::try_from(path.as_os_str().len()).unwrap_or(u64::MAX));
        if self.paths > MOST_PATHS {
            return Err(TreeError::Paths(MOST_PATHS));
        }
        let present = fs::symlink_metadata(path).ok();
        let keep = folder && present.as_ref().is_some_and(fs::Metadata::is_dir);
        if present.is_some() && !keep {
            self.remove(path)?;
        }
        Ok(keep)
    }

    pub(crate) fn make_folder(&mut self, path: &Path, meta: Meta) -> Result<(), TreeError> {
        if !self.room(path, true)? {
            fs::create_dir(path).map_err(at("create folder", path))?;
        }
        self.set_folder(path, meta)
    }

    /// Owner, mode and time of a folder that is there.
    pub(crate) fn set_folder(&mut self, path: &Path, meta: Meta) -> Result<(), TreeError> {
        self.metadata(path, meta)?;
        self.folders.push((path.to_owned(), meta.time));
        Ok(())
    }

    /// A regular file; `attributes` are set on it before its time.
    pub(crate) fn make_file(
        &mut self,
        path: &Path,
        meta: Meta,
        content: &mut dyn Read,
        attributes: &[(OsString, Vec<u8>)],
    ) -> Result<(), TreeError> {
        self.room(path, false)?;
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(path).map_err(at("create", path))?;
        let left = self.limits.bytes.saturating_sub(self.report.bytes);
        let bytes = io::copy(&mut content.take(left.saturating_add(1)), &mut file).map_err(at("write", path))?;
        if bytes > left {
            return Err(TreeError::Bytes(self.limits.bytes));
        }
        self.report.bytes += bytes;
        self.metadata(path, meta)?;
        for (name, value) in attributes {
            // What the kernel refuses here is counted, not fatal.
            self.report.xattrs_skipped += u64::from(xattr::set(path, name, value).is_err());
        }
        set_time(path, meta.time);
        Ok(())
    }

    pub(crate) fn make_symlink(&mut self, path: &Path, target: &Path, meta: Meta) -> Result<(), TreeError> {
        self.room(path, false)?;
        // It may stand where a folder was looked for.
        self.last = None;
        std::os::unix::fs::symlink(target, path).map_err(at("link", path))?;
        self.owner(path, meta)?;
        set_time(path, meta.time);
        Ok(())
    }

    /// A further name of the file `target`.
    pub(crate) fn make_hard_link(&mut self, path: &Path, target: &Path) -> Result<(), TreeError> {
        if path == target {
            return Ok(());
        }
        self.room(path, false)?;
        self.last = None;
        fs::hard_link(target, path).map_err(at("hard link", path))
    }

    pub(crate) fn make_fifo(&mut self, path: &Path, meta: Meta) -> Result<(), TreeError> {
        self.room(path, false)?;
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))
            .map_err(|e| at("make fifo", path)(e.into()))?;
        self.metadata(path, meta)?;
        set_time(path, meta.time);
        Ok(())
    }

    /// A device node, which is left out; what was there before goes all the same.
    pub(crate) fn skip_device(&mut self, path: &Path) -> Result<(), TreeError> {
        self.room(path, false)?;
        self.report.devices_skipped += 1;
        Ok(())
    }

    /// Removes whatever is there, without following a link; absence is fine.
    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), TreeError> {
        self.last = None;
        let result = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(e) => Err(e),
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("remove", path)),
        }
    }

    /// Owner, then mode: a change of owner clears set-uid bits.
    fn metadata(&mut self, path: &Path, meta: Meta) -> Result<(), TreeError> {
        self.owner(path, meta)?;
        fs::set_permissions(path, Permissions::from_mode(meta.mode & 0o7777)).map_err(at("set mode of", path))
    }

    fn owner(&mut self, path: &Path, meta: Meta) -> Result<(), TreeError> {
        if !self.owners {
            self.report.owners_flattened += u64::from(meta.uid != Some(0) || meta.gid != Some(0));
            return Ok(());
        }
        let set = |uid: Option<u32>, gid: Option<u32>| std::os::unix::fs::lchown(path, uid, gid);
        match set(meta.uid.or(Some(0)), meta.gid.or(Some(0))) {
            // An id outside of the user's range cannot be set: the file stays root's.
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
                self.report.owners_flattened += 1;
                let _ = set(meta.uid, None);
                let _ = set(None, meta.gid);
                Ok(())
            }
            other => other.map_err(at("set owner of", path)),
        }
    }

    /// Sets the time stamps of the folders that were made since the last call.
    pub(crate) fn set_folder_times(&mut self) {
        for (path, time) in self.folders.drain(..).rev() {
            // A later entry may have replaced the folder by something else.
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                set_time(&path, time);
            }
        }
    }

    pub(crate) fn report(&self) -> Report {
        self.report
    }
}

fn queue(ahead: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            _ => {}
        }
    }
}

/// Best effort: no file system keeps every time there is.
fn set_time(path: &Path, time: Time) {
    let time = TimeSpec::new(time.seconds, i64::from(time.nanos));
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_fill_the_memory_are_refused() {
        let path = Path::new("/no-file-of-this-name");
        let length = u64::try_from(path.as_os_str().len()).unwrap();
        let mut tree = Tree::new(false, Limits::default());
        tree.paths = MOST_PATHS - length;
        assert!(matches!(tree.room(path, false), Ok(false)));
        assert!(matches!(tree.room(path, false), Err(TreeError::Paths(_))));
    }
}
