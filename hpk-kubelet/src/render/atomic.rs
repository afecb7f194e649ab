//! Writes a volume's files so that a reader sees either all old or all new ones.
//!
//! The layout is Kubernetes': real files in a time-stamped folder, `..data` a link to it that is replaced by
//! rename, and the user's names links through `..data`. Containers that have the folder mounted see an
//! update at once. The only part of `render` that touches the disk.
//!
//! A pod's fsGroup is the supervisor's to set, who can: it gives the volume's folder the group and the bit by which what is
//! made in it later is the group's too. So that bit is kept here (a chmod by somebody outside of the group takes it away),
//! and modes of folders are set when all is in them.

use super::volumes::{File, Payload};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings `folder` to hold exactly `payload`. Returns false when it already did (nothing was written).
///
/// # Errors
/// Any failing file operation; the former content then still stands.
pub fn write(folder: &Path, payload: &Payload, stamp: &str) -> io::Result<bool> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    open_folder(folder)?;
    let old = fs::read_link(folder.join(DATA)).ok();
    if let Some(old) = &old
        && same(&folder.join(old), payload)
    {
        link_names(folder, payload)?;
        return Ok(false);
    }
    let name = fresh_name(folder, stamp);
    let target = folder.join(&name);
    fs::DirBuilder::new().mode(0o755).create(&target)?;
    for (path, file) in payload {
        write_file(&target, path, file)?;
    }
    for path in payload.keys() {
        for folder in Path::new(path).ancestors().skip(1) {
            open_folder(&target.join(folder))?;
        }
    }
    open_folder(&target)?;
    let fresh = folder.join(DATA_NEW);
    remove_if_there(&fresh)?;
    symlink(&name, &fresh)?;
    fs::rename(&fresh, folder.join(DATA))?;
    link_names(folder, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old)).or_else(not_found_is_fine)?;
    }
    Ok(true)
}

/// A folder that every user of the pod may read, whatever the umask; one that is so already is left alone.
fn open_folder(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.permissions().mode() & 0o7777;
    if mode & 0o755 == 0o755 { Ok(()) } else { fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o755)) }
}

fn fresh_name(folder: &Path, stamp: &str) -> PathBuf {
    let first = PathBuf::from(format!("..{stamp}"));
    (0_u32..)
        .map(|n| if n == 0 { first.clone() } else { PathBuf::from(format!("..{stamp}.{n}")) })
        .find(|name| fs::symlink_metadata(folder.join(name)).is_err())
        .unwrap_or(first)
}

fn write_file(root: &Path, path: &str, file: &File) -> io::Result<()> {
    let full = root.join(path);
    if let Some(parent) = full.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(0o600).open(&full)?;
    io::Write::write_all(&mut out, &file.data)?;
    // Not by the open mode: the umask must not count.
    fs::set_permissions(&full, fs::Permissions::from_mode(file.mode))
}

/// Makes the links of the user's names and removes those that are no longer wanted.
fn link_names(folder: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let keep = name.to_str().is_some_and(|n| n.starts_with("..") || wanted.contains(n));
        if !keep {
            remove_if_there(&folder.join(name))?;
        }
    }
    Ok(())
}

fn same(folder: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    let matches = payload.iter().all(|(path, file)| {
        found.insert(PathBuf::from(path));
        let full = folder.join(path);
        let mode = fs::metadata(&full).map(|m| m.permissions().mode() & 0o7777);
        mode.is_ok_and(|m| m == file.mode) && fs::read(&full).is_ok_and(|data| data == file.data)
    });
    matches && files_below(folder, folder).is_ok_and(|files| files.iter().all(|f| found.contains(f)))
}

fn files_below(root: &Path, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list.extend(files_below(root, &entry.path())?);
        } else if let Ok(relative) = entry.path().strip_prefix(root) {
            list.push(relative.components().filter(|c| matches!(c, Component::Normal(_))).collect());
        }
    }
    Ok(list)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(not_found_is_fine)
}

fn not_found_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        files.iter().map(|(p, d, m)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: *m })).collect()
    }

    #[test]
    fn update_replaces_all_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("v");
        let first = payload(&[("a", "1", 0o644), ("d/e", "2", 0o400)]);
        assert!(write(&root, &first, "s1").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(root.join("d/e")).expect("e"), "2");
        assert_eq!(fs::metadata(root.join("d/e")).expect("e").permissions().mode() & 0o777, 0o400);
        assert!(!write(&root, &first, "s2").expect("write"), "unchanged payload is not written again");

        let second = payload(&[("a", "3", 0o644), ("new", "4", 0o644)]);
        assert!(write(&root, &second, "s2").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "3");
        assert!(fs::symlink_metadata(root.join("d")).is_err(), "a name that is gone is gone");
        assert_eq!(fs::read_link(root.join(DATA)).expect("link"), PathBuf::from("..s2"));
        assert!(fs::symlink_metadata(root.join("..s1")).is_err(), "the former folder is removed");

        // What fsGroup needs outlives an update.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2755)).expect("a mode");
        let mode_only = payload(&[("a", "3", 0o600), ("new", "4", 0o644)]);
        assert!(write(&root, &mode_only, "s2").expect("write"), "a changed mode is a change, even at the same second");
        assert_eq!(fs::metadata(&root).expect("root").permissions().mode() & 0o7777, 0o2755);
        assert!(write(&root, &Payload::new(), "s3").expect("write"));
        assert!(fs::symlink_metadata(root.join("a")).is_err());
    }
}
