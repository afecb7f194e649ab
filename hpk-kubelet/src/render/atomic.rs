//! Writes a volume's files so that a reader sees either all old or all new ones.
//!
//! The layout is Kubernetes': real files in a time-stamped folder, `..data` a link to it that is replaced by
//! rename, and the user's names links through `..data`. Containers that have the folder mounted see an
//! update at once. The only part of `render` that touches the disk.
//!
//! A pod may have put links where this writes: folders are held open ([`beneath`]), files are made anew, modes are set on what
//! is open, and `..data` counts only when it names a folder beside it.
//!
//! A pod's fsGroup is the supervisor's to set, who can: it gives the volume's folder the group and the bit by which what is
//! made in it later is the group's too. So that bit is kept here (a chmod by somebody outside of the group takes it away),
//! and modes of folders are set when all is in them.

use crate::volumes::{File, Payload};
use hpk_sys::beneath;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings the folder `below` of the pod's folder to hold exactly `payload`. Returns false when it already did (nothing was
/// written).
///
/// # Errors
/// Any failing file operation; the former content then still stands.
pub(crate) fn write(pod: &Path, below: &Path, payload: &Payload, stamp: &str) -> io::Result<bool> {
    let held = beneath::make_folder(pod, below)?;
    open_folder(&held)?;
    let folder = &beneath::path(&held);
    let old = fs::read_link(folder.join(DATA)).ok().filter(|old| is_ours(old));
    if let Some(old) = &old
        && same(&folder.join(old), payload)
    {
        link_names(folder, payload)?;
        return Ok(false);
    }
    let name = fresh_name(folder, stamp);
    fs::DirBuilder::new().mode(0o755).create(folder.join(&name))?;
    let target = beneath::folder(folder, &name)?;
    for (path, file) in payload {
        write_file(&beneath::path(&target), Path::new(path), file)?;
    }
    for path in payload.keys() {
        for parent in Path::new(path).ancestors().skip(1) {
            open_folder(&beneath::folder(&beneath::path(&target), parent)?)?;
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

/// `..2026_…`: a folder of ours beside the link, and nothing further away.
fn is_ours(old: &Path) -> bool {
    let mut parts = old.components();
    matches!(parts.next(), Some(Component::Normal(name)) if name.as_encoded_bytes().starts_with(b".."))
        && parts.next().is_none()
}

/// A folder that every user of the pod may read, whatever the umask; one that is so already is left alone.
fn open_folder(folder: &fs::File) -> io::Result<()> {
    let mode = folder.metadata()?.permissions().mode() & 0o7777;
    if mode & 0o755 == 0o755 { Ok(()) } else { folder.set_permissions(fs::Permissions::from_mode(mode | 0o755)) }
}

fn fresh_name(folder: &Path, stamp: &str) -> PathBuf {
    let first = PathBuf::from(format!("..{stamp}"));
    (0_u32..)
        .map(|n| if n == 0 { first.clone() } else { PathBuf::from(format!("..{stamp}.{n}")) })
        .find(|name| fs::symlink_metadata(folder.join(name)).is_err())
        .unwrap_or(first)
}

fn write_file(root: &Path, path: &Path, file: &File) -> io::Result<()> {
    let parent = beneath::make_folder(root, path.parent().unwrap_or(Path::new("")))?;
    let full = beneath::path(&parent).join(path.file_name().unwrap_or_default());
    let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(full)?;
    io::Write::write_all(&mut out, &file.data)?;
    // Not by the open mode: the umask must not count.
    out.set_permissions(fs::Permissions::from_mode(file.mode))
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
        assert!(write(dir.path(), Path::new("v"), &first, "s1").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(root.join("d/e")).expect("e"), "2");
        assert_eq!(fs::metadata(root.join("d/e")).expect("e").permissions().mode() & 0o777, 0o400);
        assert!(
            !write(dir.path(), Path::new("v"), &first, "s2").expect("write"),
            "unchanged payload is not written again"
        );

        let second = payload(&[("a", "3", 0o644), ("new", "4", 0o644)]);
        assert!(write(dir.path(), Path::new("v"), &second, "s2").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "3");
        assert!(fs::symlink_metadata(root.join("d")).is_err(), "a name that is gone is gone");
        assert_eq!(fs::read_link(root.join(DATA)).expect("link"), PathBuf::from("..s2"));
        assert!(fs::symlink_metadata(root.join("..s1")).is_err(), "the former folder is removed");

        // What fsGroup needs outlives an update.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2755)).expect("a mode");
        let mode_only = payload(&[("a", "3", 0o600), ("new", "4", 0o644)]);
        assert!(
            write(dir.path(), Path::new("v"), &mode_only, "s2").expect("write"),
            "a changed mode is a change, even at the same second"
        );
        assert_eq!(fs::metadata(&root).expect("root").permissions().mode() & 0o7777, 0o2755);
        assert!(write(dir.path(), Path::new("v"), &Payload::new(), "s3").expect("write"));
        assert!(fs::symlink_metadata(root.join("a")).is_err());
    }

    #[test]
    fn links_of_the_pod_lead_nowhere() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (pod, home) = (dir.path().join("pod"), dir.path().join("home"));
        for folder in [&pod.join("volumes"), &home] {
            fs::create_dir_all(folder).expect("a folder");
        }
        fs::write(home.join("key"), "secret").expect("a file");
        let files = payload(&[("a", "1", 0o644), ("d/e", "2", 0o644)]);
        let below = Path::new("volumes/v");
        symlink(&home, pod.join("volumes/v")).expect("a link");
        assert!(write(&pod, below, &files, "s1").is_err(), "the folder itself");
        fs::remove_file(pod.join("volumes/v")).expect("removed");
        assert!(write(&pod, below, &files, "s1").expect("write"));
        let volume = pod.join(below);
        // Where the former content was, is somebody else's.
        for old in [home.clone(), PathBuf::from("../../../home"), PathBuf::from("..")] {
            fs::remove_file(volume.join(DATA)).expect("removed");
            symlink(&old, volume.join(DATA)).expect("a link");
            assert!(write(&pod, below, &files, "s2").expect("write"), "{old:?}");
        }
        let name = fs::read_link(volume.join(DATA)).expect("a link");
        fs::remove_dir_all(volume.join(&name)).expect("removed");
        symlink(&home, volume.join(&name)).expect("a link");
        assert!(write(&pod, below, &files, "s3").expect("write"));
        assert_eq!(fs::read_to_string(home.join("key")).expect("still there"), "secret");
        assert_eq!(fs::read_dir(&home).expect("home").count(), 1, "nothing was written");
        assert_eq!(fs::read_to_string(volume.join("d/e")).expect("e"), "2");
    }
}
