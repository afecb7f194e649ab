//! Applying one layer to the root file system at `/` of the calling process.
//!
//! The caller is chrooted into the image's folder, so absolute paths, `..` and symbolic links all stay
//! inside whatever a layer says; this module need not (and does not) defend against escapes itself.
//! Rules: OCI image-spec layer.md. Device nodes are skipped: containers get theirs from the launcher.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tar::EntryType;

/// What was not done as the layer says, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Report {
    /// Regular files written.
    pub(crate) files: u64,
    /// Bytes of regular files.
    pub(crate) bytes: u64,
    /// Device nodes left out.
    pub(crate) devices_skipped: u64,
    /// Files whose owner is not in the id map and became root.
    pub(crate) owners_flattened: u64,
    /// Extended attributes that could not be set.
    pub(crate) xattrs_skipped: u64,
}

/// Where and why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("the layer is not a readable tar: {0}")]
    Tar(#[source] io::Error),
    #[error("{action} {path}: {source}")]
    Entry {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayerError + 'a {
    move |source| LayerError::Entry { action, path: path.to_owned(), source }
}

/// Options of [`apply`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Set owners as recorded; false when only one id is mapped.
    pub(crate) owners: bool,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies an uncompressed layer onto `/`.
pub(crate) fn apply(layer: impl Read, options: Options, report: &mut Report) -> Result<(), LayerError> {
    let mut archive = tar::Archive::new(layer);
    let mut layer = Layer { options, report, written: HashSet::new(), folders: Vec::new() };
    for entry in archive.entries().map_err(LayerError::Tar)? {
        layer.entry(entry.map_err(LayerError::Tar)?)?;
    }
    layer.finish();
    Ok(())
}

struct Layer<'a> {
    options: Options,
    report: &'a mut Report,
    /// Paths that this layer made: a whiteout hides what lower layers made, never these.
    written: HashSet<PathBuf>,
    /// Time stamps of folders, set last because filling a folder changes them.
    folders: Vec<(PathBuf, SystemTime)>,
}

/// An absolute path whose text has no `.` and `..`; None for the root itself.
fn resolve(path: &Path) -> Option<PathBuf> {
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

impl Layer<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), LayerError> {
        let raw = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let Some(path) = resolve(&raw) else {
            // The root folder's own entry: mode and owner only.
            return if kind.is_dir() { self.metadata(&mut entry, Path::new("/")) } else { Ok(()) };
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name == OPAQUE {
            return self.clear(parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            // `.wh..wh.plnk` and the like are aufs' own book-keeping.
            if !hidden.starts_with(WHITEOUT) && !hidden.is_empty() {
                let target = parent.join(OsStr::from_bytes(hidden));
                remove(&target).map_err(at("remove", &target))?;
            }
            return Ok(());
        }
        fs::create_dir_all(parent).map_err(at("create folder", parent))?;
        self.make(&mut entry, kind, &path)?;
        self.written.insert(path);
        Ok(())
    }

    fn make<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, kind: EntryType, path: &Path) -> Result<(), LayerError> {
        let present = fs::symlink_metadata(path).ok();
        let keep = kind.is_dir() && present.as_ref().is_some_and(fs::Metadata::is_dir);
        if present.is_some() && !keep {
            remove(path).map_err(at("replace", path))?;
        }
        match kind {
            EntryType::Directory => {
                if !keep {
                    fs::create_dir(path).map_err(at("create folder", path))?;
                }
                self.metadata(entry, path)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, path),
            EntryType::Symlink => {
                let target = link_target(entry, path)?;
                std::os::unix::fs::symlink(&target, path).map_err(at("link", path))?;
                self.owner(entry, path)
            }
            EntryType::Link => {
                let target = link_target(entry, path)?;
                let target = resolve(&target).unwrap_or_else(|| PathBuf::from("/"));
                fs::hard_link(&target, path).map_err(at("hard link", path))
            }
            EntryType::Fifo => {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                    .map_err(|e| at("make fifo", path)(e.into()))?;
                self.metadata(entry, path)
            }
            EntryType::Char | EntryType::Block => {
                self.report.devices_skipped += 1;
                Ok(())
            }
            // Unknown kinds are to be treated as files (pax).
            _ => self.file(entry, path),
        }
    }

    fn file<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<(), LayerError> {
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(path).map_err(at("create", path))?;
        let bytes = io::copy(entry, &mut file).map_err(at("write", path))?;
        self.report.files += 1;
        self.report.bytes += bytes;
        self.metadata(entry, path)?;
        self.xattrs(entry, path);
        // After everything else that touches the inode.
        let _ = file.set_modified(mtime(entry));
        Ok(())
    }

    /// Owner, then mode (a change of owner clears set-uid bits), then time.
    fn metadata<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<(), LayerError> {
        self.owner(entry, path)?;
        let mode = entry.header().mode().map_err(LayerError::Tar)? & 0o7777;
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at("set mode of", path))?;
        if entry.header().entry_type().is_dir() {
            self.folders.push((path.to_owned(), mtime(entry)));
        }
        Ok(())
    }

    fn owner<R: Read>(&mut self, entry: &tar::Entry<'_, R>, path: &Path) -> Result<(), LayerError> {
        // Some tools leave numeric fields blank; Go's reader, which others use, takes that for 0.
        let uid = entry.header().uid().unwrap_or(0);
        let gid = entry.header().gid().unwrap_or(0);
        if !self.options.owners {
            self.report.owners_flattened += u64::from(uid != 0 || gid != 0);
            return Ok(());
        }
        let set = |uid: Option<u32>, gid: Option<u32>| std::os::unix::fs::lchown(path, uid, gid);
        let (uid, gid) = (u32::try_from(uid).ok(), u32::try_from(gid).ok());
        match set(uid.or(Some(0)), gid.or(Some(0))) {
            // An id outside of the user's range cannot be set: the file stays root's.
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EINVAL as i32) => {
                self.report.owners_flattened += 1;
                let _ = set(uid, None);
                let _ = set(None, gid);
                Ok(())
            }
            other => other.map_err(at("set owner of", path)),
        }
    }

    /// File capabilities and user attributes; what the kernel refuses here is counted, not fatal.
    fn xattrs<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) {
        let Ok(Some(extensions)) = entry.pax_extensions() else { return };
        for extension in extensions.flatten() {
            let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            let wanted = name == b"security.capability" || name.starts_with(b"user.");
            if wanted && xattr::set(path, OsStr::from_bytes(name), extension.value_bytes()).is_err() {
                self.report.xattrs_skipped += 1;
            }
        }
    }

    /// An opaque whiteout: what lower layers put into `folder` goes, what this layer wrote stays.
    fn clear(&self, folder: &Path) -> Result<(), LayerError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(at("read folder", folder)(e)),
        };
        for entry in entries {
            let path = entry.map_err(at("read folder", folder))?.path();
            if self.written.contains(&path) || self.written.iter().any(|w| w.starts_with(&path)) {
                if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
                    self.clear(&path)?;
                }
            } else {
                remove(&path).map_err(at("remove", &path))?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        for (path, time) in self.folders.drain(..).rev() {
            // A later entry may have replaced the folder by something else.
            if let Ok(folder) = File::open(&path) {
                let _ = folder.set_modified(time);
            }
        }
    }
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf, LayerError> {
    entry
        .link_name_bytes()
        .map(|t| PathBuf::from(OsStr::from_bytes(&t)))
        .filter(|t| !t.as_os_str().is_empty())
        .ok_or_else(|| at("link", path)(io::Error::new(io::ErrorKind::InvalidData, "the link has no target")))
}

fn mtime<R: Read>(entry: &tar::Entry<'_, R>) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(entry.header().mtime().unwrap_or(0))
}

/// Removes whatever is there, without following a link; absence is fine.
fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
