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
//!
//! A file for a user of the container is given to that user before it is seen. From then on the kubelet cannot read it: what
//! it holds is known by a hash in the time-stamped folder's name.

use crate::volumes::{File, Payload};
use hpk_sys::beneath;
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Gives files of a folder of the pod's (both below the pod's folder) to users of its containers.
pub(crate) type Give<'a> = &'a dyn Fn(&Path, &[(&str, u32)]) -> io::Result<()>;

/// Brings the folder `below` of the pod's folder to hold exactly `payload`. Returns false when it already did (nothing was
/// written). Where files cannot be given to others, all of the pod's users may read them.
///
/// # Errors
/// Any failing file operation; the former content then still stands.
pub(crate) fn write(pod: &Path, below: &Path, payload: &Payload, stamp: &str, give: Give<'_>) -> io::Result<bool> {
    let held = beneath::make_folder(pod, below)?;
    open_folder(&held)?;
    let folder = &beneath::path(&held);
    let old = fs::read_link(folder.join(DATA)).ok().filter(|old| is_ours(old));
    let sum = sum_of_others(payload);
    if let Some(old) = &old
        && has_sum(old, sum.as_deref())
        && same(&folder.join(old), payload)
    {
        link_names(folder, payload)?;
        return Ok(false);
    }
    let name = fresh_name(folder, &sum.map_or_else(|| stamp.to_owned(), |sum| format!("{stamp}.{sum}")));
    fs::DirBuilder::new().mode(0o755).create(folder.join(&name))?;
    let target = beneath::folder(folder, &name)?;
    for (path, file) in payload {
        write_file(&beneath::path(&target), Path::new(path), file)?;
    }
    give_away(&target, &below.join(&name), payload, give)?;
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

/// Files for other users of the pod than its root, who is the kubelet's own.
fn others(payload: &Payload) -> impl Iterator<Item = (&str, &File, u32)> {
    payload.iter().filter_map(|(path, file)| Some((path.as_str(), file, file.owner.filter(|uid| *uid != 0)?)))
}

/// What becomes part of the folder's name; None: all files are the kubelet's.
fn sum_of_others(payload: &Payload) -> Option<String> {
    let others: Vec<_> = others(payload).collect();
    let mut hasher = DefaultHasher::new();
    others.hash(&mut hasher);
    (!others.is_empty()).then(|| format!("{:016x}", hasher.finish()))
}

fn has_sum(old: &Path, sum: Option<&str>) -> bool {
    sum.is_none_or(|sum| old.to_string_lossy().split('.').any(|part| part == sum))
}

fn give_away(target: &fs::File, below: &Path, payload: &Payload, give: Give<'_>) -> io::Result<()> {
    let gifts: Vec<(&str, u32)> = others(payload).map(|(path, _, uid)| (path, uid)).collect();
    if gifts.is_empty() {
        return Ok(());
    }
    let Err(error) = give(below, &gifts) else { return Ok(()) };
    // A file server may refuse it.
    tracing::debug!(folder = %below.display(), %error, "files are not given to the pod's user");
    let root = beneath::path(target);
    for (path, file, _) in others(payload) {
        remove_if_there(&root.join(path))?;
        write_file(&root, Path::new(path), &File { mode: file.mode | 0o444, ..file.clone() })?;
    }
    Ok(())
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
    let given: BTreeSet<&str> = others(payload).map(|(path, ..)| path).collect();
    let matches = payload.iter().all(|(path, file)| {
        found.insert(PathBuf::from(path));
        let full = folder.join(path);
        if given.contains(path.as_str()) {
            return true;
        }
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

    fn put(pod: &Path, below: impl AsRef<Path>, payload: &Payload, stamp: &str) -> io::Result<bool> {
        write(pod, below.as_ref(), payload, stamp, &|_, _| Err(io::ErrorKind::Unsupported.into()))
    }

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        files
            .iter()
            .map(|(p, d, m)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: *m, owner: None }))
            .collect()
    }

    #[test]
    fn update_replaces_all_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("v");
        let first = payload(&[("a", "1", 0o644), ("d/e", "2", 0o400)]);
        assert!(put(dir.path(), Path::new("v"), &first, "s1").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(root.join("d/e")).expect("e"), "2");
        assert_eq!(fs::metadata(root.join("d/e")).expect("e").permissions().mode() & 0o777, 0o400);
        assert!(
            !put(dir.path(), Path::new("v"), &first, "s2").expect("write"),
            "unchanged payload is not written again"
        );

        let second = payload(&[("a", "3", 0o644), ("new", "4", 0o644)]);
        assert!(put(dir.path(), Path::new("v"), &second, "s2").expect("write"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "3");
        assert!(fs::symlink_metadata(root.join("d")).is_err(), "a name that is gone is gone");
        assert_eq!(fs::read_link(root.join(DATA)).expect("link"), PathBuf::from("..s2"));
        assert!(fs::symlink_metadata(root.join("..s1")).is_err(), "the former folder is removed");

        // What fsGroup needs outlives an update.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2755)).expect("a mode");
        let mode_only = payload(&[("a", "3", 0o600), ("new", "4", 0o644)]);
        assert!(
            put(dir.path(), Path::new("v"), &mode_only, "s2").expect("write"),
            "a changed mode is a change, even at the same second"
        );
        assert_eq!(fs::metadata(&root).expect("root").permissions().mode() & 0o7777, 0o2755);
        assert!(put(dir.path(), Path::new("v"), &Payload::new(), "s3").expect("write"));
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
        assert!(put(&pod, below, &files, "s1").is_err(), "the folder itself");
        fs::remove_file(pod.join("volumes/v")).expect("removed");
        assert!(put(&pod, below, &files, "s1").expect("write"));
        let volume = pod.join(below);
        // Where the former content was, is somebody else's.
        for old in [home.clone(), PathBuf::from("../../../home"), PathBuf::from("..")] {
            fs::remove_file(volume.join(DATA)).expect("removed");
            symlink(&old, volume.join(DATA)).expect("a link");
            assert!(put(&pod, below, &files, "s2").expect("write"), "{old:?}");
        }
        let name = fs::read_link(volume.join(DATA)).expect("a link");
        fs::remove_dir_all(volume.join(&name)).expect("removed");
        symlink(&home, volume.join(&name)).expect("a link");
        assert!(put(&pod, below, &files, "s3").expect("write"));
        assert_eq!(fs::read_to_string(home.join("key")).expect("still there"), "secret");
        assert_eq!(fs::read_dir(&home).expect("home").count(), 1, "nothing was written");
        assert_eq!(fs::read_to_string(volume.join("d/e")).expect("e"), "2");
    }

    #[test]
    fn a_file_for_another_user_is_given_before_it_is_seen_and_read_no_more() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (pod, below) = (dir.path(), Path::new("volumes/v"));
        let data = pod.join("volumes/v/..data");
        let of = |text: &str, owner| File { data: text.into(), mode: 0o600, owner };
        let files =
            |text| Payload::from([("d/token".to_owned(), of(text, Some(7))), ("own".to_owned(), of("o", Some(0)))]);
        let asked = std::cell::RefCell::new(Vec::new());
        // Nobody may read it afterwards: as if it were another's.
        let give = |folder: &Path, gifts: &[(&str, u32)]| {
            assert_ne!(fs::read_link(&data).ok().as_deref(), folder.file_name().map(Path::new), "seen too early");
            for (path, _) in gifts {
                fs::set_permissions(pod.join(folder).join(path), fs::Permissions::from_mode(0o000))?;
            }
            asked.borrow_mut().push(gifts.iter().map(|(path, uid)| format!("{path} {uid}")).collect::<String>());
            Ok(())
        };
        let write = |text, stamp| write(pod, below, &files(text), stamp, &give).expect("write");
        assert!(write("1", "s1"));
        assert!(!write("1", "s2"), "the same");
        assert!(write("2", "s3"), "known without a look into it");
        assert_eq!(*asked.borrow(), ["d/token 7", "d/token 7"]);
        assert!(put(pod, below, &files("3"), "s4").expect("write"), "nothing can be given");
        let meta = fs::metadata(data.join("d/token")).expect("token");
        assert_eq!(meta.permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_to_string(data.join("d/token")).expect("token"), "3");
        assert!(!put(pod, below, &files("3"), "s5").expect("write"), "not tried again before it changes");
    }
}
