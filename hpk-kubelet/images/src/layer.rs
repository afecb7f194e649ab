//! Applying one layer, an uncompressed tar, to a [`Tree`]. Rules: OCI image-spec, layer.md.
//!
//! An error never shows bytes of the layer but the names of its entries.

use crate::tree::{Meta, Time, Tree, TreeError, at, resolve};
use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::EntryType;

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("the layer is not a readable tar (after {0} entries)")]
    Tar(u64),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies a layer onto the tree.
pub(crate) fn apply(layer: impl Read, tree: &mut Tree) -> Result<(), LayerError> {
    let count = Cell::new(0);
    let mut archive = tar::Archive::new(Counted { reader: layer, count: &count });
    let mut layer = Layer { tree, made: HashSet::new(), holding: HashSet::new() };
    let mut end = 0;
    // The tar reader's own words may hold bytes of what it read.
    for (n, entry) in (0..).zip(archive.entries().map_err(|_| LayerError::Tar(0))?) {
        let entry = match entry {
            Ok(entry) => entry,
            // Some tools (umoci insert) leave out what should fill the last file's block, and all that should follow.
            Err(_) if n > 0 && count.get() == end => break,
            Err(_) => return Err(LayerError::Tar(n)),
        };
        end = entry.raw_file_position().saturating_add(entry.size());
        layer.entry(entry)?;
    }
    layer.tree.set_folder_times();
    Ok(())
}

/// Counts the bytes that are read.
struct Counted<'a, R> {
    reader: R,
    count: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.count.set(self.count.get().saturating_add(n as u64));
        Ok(n)
    }
}

struct Layer<'a> {
    tree: &'a mut Tree,
    /// Paths that this layer made: a whiteout hides what lower layers made, never these.
    made: HashSet<PathBuf>,
    /// Folders on the way to them.
    holding: HashSet<PathBuf>,
}

impl Layer<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), TreeError> {
        let raw = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let (time, attributes) = extensions(&mut entry);
        // Some tools leave numeric fields blank; Go's reader, which others use, takes that for 0.
        let mode = entry.header().mode().unwrap_or(0);
        let uid = entry.header().uid().unwrap_or(0);
        let gid = entry.header().gid().unwrap_or(0);
        let meta = Meta { mode, uid: u32::try_from(uid).ok(), gid: u32::try_from(gid).ok(), time };
        let Some(path) = resolve(&raw) else {
            // The root folder's own entry: mode and owner only.
            return if kind.is_dir() { self.tree.set_folder(Path::new("/"), meta) } else { Ok(()) };
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or_default();
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden);
        }
        let Some(parent) = self.tree.folder(parent, true)? else { return Ok(()) };
        let path = parent.join(name);
        self.make(&mut entry, kind, &path, meta, &attributes)?;
        for folder in path.ancestors().skip(1) {
            if !self.holding.insert(folder.to_owned()) {
                break;
            }
        }
        self.made.insert(path);
        Ok(())
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
        path: &Path,
        meta: Meta,
        attributes: &[(OsString, Vec<u8>)],
    ) -> Result<(), TreeError> {
        match kind {
            EntryType::Directory => self.tree.make_folder(path, meta),
            EntryType::Symlink => self.tree.make_symlink(path, &link_target(entry, path)?, meta),
            EntryType::Link => {
                let target = link_target(entry, path)?;
                let target = resolve(&target).unwrap_or_else(|| PathBuf::from("/"));
                // By its real place, so that a name which is linked to itself is seen.
                let target = match (target.parent(), target.file_name()) {
                    (Some(parent), Some(name)) => {
                        self.tree.folder(parent, false)?.map_or_else(|| target.clone(), |real| real.join(name))
                    }
                    _ => target,
                };
                self.tree.make_hard_link(path, &target)
            }
            EntryType::Fifo => self.tree.make_fifo(path, meta),
            EntryType::Char | EntryType::Block => self.tree.skip_device(path),
            // Unknown kinds are to be treated as files (pax).
            _ => self.tree.make_file(path, meta, entry, attributes),
        }
    }

    /// `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` all that they have in the folder.
    fn whiteout(&mut self, parent: &Path, name: &OsStr, hidden: &[u8]) -> Result<(), TreeError> {
        let Some(folder) = self.tree.folder(parent, false)? else { return Ok(()) };
        if name.as_bytes() == OPAQUE {
            return self.clear(&folder);
        }
        // `.wh..wh.plnk` and the like are aufs' own book-keeping; `.` and `..` are no names.
        if hidden.starts_with(WHITEOUT) || matches!(hidden, b"" | b"." | b"..") {
            return Ok(());
        }
        self.hide(&folder.join(OsStr::from_bytes(hidden)))
    }

    /// What lower layers put at `path` goes, what this layer made stays.
    fn hide(&mut self, path: &Path) -> Result<(), TreeError> {
        if !self.made.contains(path) && !self.holding.contains(path) {
            return self.tree.remove(path);
        }
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => self.clear(path),
            _ => Ok(()),
        }
    }

    fn clear(&mut self, folder: &Path) -> Result<(), TreeError> {
        for entry in std::fs::read_dir(folder).map_err(at("read folder", folder))? {
            self.hide(&entry.map_err(at("read folder", folder))?.path())?;
        }
        Ok(())
    }
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf, TreeError> {
    entry
        .link_name_bytes()
        .map(|t| PathBuf::from(OsStr::from_bytes(&t)))
        .filter(|t| !t.as_os_str().is_empty())
        .ok_or_else(|| at("link", path)(io::Error::new(io::ErrorKind::InvalidData, "the link has no target")))
}

/// Time of change, and the extended attributes that images may carry: file capabilities and the user's own.
fn extensions<R: Read>(entry: &mut tar::Entry<'_, R>) -> (Time, Vec<(OsString, Vec<u8>)>) {
    // A number in base 256 may be negative; the tar reader hands over its bits.
    let seconds = entry.header().mtime().unwrap_or(0).cast_signed();
    let mut time = Time { seconds, nanos: 0 };
    let mut attributes = Vec::new();
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if extension.key_bytes() == b"mtime" {
                time = std::str::from_utf8(extension.value_bytes()).ok().and_then(pax_time).unwrap_or(time);
            }
            let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            if is_kept(name) {
                attributes.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
            }
        }
    }
    (time, attributes)
}

/// Whether an extended attribute is an image's to have: file capabilities and the user's own.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

/// `1700000000.25`, `-1.5` (half a second before the last but one second of 1969) …
fn pax_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    Some(match (whole.starts_with('-'), nanos) {
        (true, 1..) => Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos },
        _ => Time { seconds, nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_headers() {
        let time = |seconds, nanos| Some(Time { seconds, nanos });
        assert_eq!(pax_time("1700000000"), time(1_700_000_000, 0));
        assert_eq!(pax_time("1700000000.25"), time(1_700_000_000, 250_000_000));
        assert_eq!(pax_time("1.1234567899"), time(1, 123_456_789));
        assert_eq!(pax_time("-1"), time(-1, 0));
        assert_eq!(pax_time("-1.5"), time(-2, 500_000_000));
        assert_eq!(pax_time("-0.5"), time(-1, 500_000_000));
        for bad in ["", "x", "1.x", "1,5", "99999999999999999999"] {
            assert_eq!(pax_time(bad), None, "{bad}");
        }
    }
}
