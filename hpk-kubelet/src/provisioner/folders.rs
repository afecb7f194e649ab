//! Folders of volumes: made, copied, put aside, removed. Blocking.
//!
//! ```text
//! root/<namespace>/<claim>-<short uid>             a volume (0777 in folders of 0700: any user of a pod's may write)
//! root/<namespace>/.<claim>-<short uid>.partial    one that is being made
//! root/<namespace>/archived-<claim>-<short uid>    kept by archiveOnDelete
//! root/.deleted/<namespace>/<leaf>.<seconds>       put aside at this Unix time, removed later
//! root/.deleted/<namespace>/.removing-<name>       being removed: it cannot be brought back any more
//! ```
//! Files of containers' users belong to subordinate ids, and a container may have given its volume's folder away. What
//! the user's own rights are not enough for is done by `mv`, [`super::copy`] and `rm` in a user namespace. The folders
//! between root and volume must be the user's and closed to others, or nothing is done in them.

use super::copy;
use super::decide::{Origin, Place};
use hpk_sys::userns;
use nix::unistd::{Gid, Uid};
use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// Folder for volumes that were put aside.
pub(super) const DELETED: &str = ".deleted";

/// A folder that could not be made or moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {source}", path.display())]
    Namespace {
        path: PathBuf,
        #[source]
        source: userns::UsernsError,
    },
    #[error("{program} of {} failed with exit code {code}: is the file system full, or a quota used up?", path.display())]
    Program { program: &'static str, path: PathBuf, code: i32 },
    #[error(
        "{}: it must be a folder of yours that is closed to others (chmod 0700), or the class's path another one",
        .0.display()
    )]
    Open(PathBuf),
    #[error("{}: not there; is its file system mounted? If the folder is gone for good, make it again", .0.display())]
    Away(PathBuf),
    #[error("annotation {}: {} is not there; hpk-kubelet removes what was deleted a day ago", super::names::ANNOTATION_RESTORE, path.display())]
    NotDeleted { path: PathBuf },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    move |source| FolderError::Io { path: path.to_owned(), source }
}

/// Makes a folder of `root` that only the user enters, or finds it so.
fn closed(root: &Path, below: &[&str]) -> Result<PathBuf, FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(at(root))?;
    let mut path = root.to_owned();
    for name in below {
        path.push(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&path)(error)),
            _ => {}
        }
        if !is_closed(&path) {
            return Err(FolderError::Open(path));
        }
    }
    Ok(path)
}

/// Whether it is a folder, no link to one, that nobody else enters.
fn is_closed(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path);
    meta.is_ok_and(|m| m.is_dir() && m.uid() == Uid::effective().as_raw() && m.mode() & 0o077 == 0)
}

/// Runs a program where it may do what the containers' users may.
fn run(name: &'static str, program: &Path, args: Vec<OsString>, path: &Path) -> Result<(), FolderError> {
    match userns::run(program, &args) {
        Ok(0) => Ok(()),
        Ok(code) => Err(FolderError::Program { program: name, path: path.to_owned(), code }),
        Err(source) => Err(FolderError::Namespace { path: path.to_owned(), source }),
    }
}

/// Copies a volume that pods may be writing to, in a process of its own.
pub(super) fn copied(from: &Path, to: &Path) -> Result<(), FolderError> {
    let args = vec![copy::COMMAND.into(), from.as_os_str().to_owned(), to.as_os_str().to_owned()];
    // This very program, also when it was replaced by a newer one meanwhile.
    run("the copy", Path::new("/proc/self/exe"), args, from)
}

/// Renames, also a folder that belongs to a container's user.
fn rename(from: &Path, to: &Path) -> Result<(), FolderError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let args = vec!["-T".into(), "--".into(), from.as_os_str().to_owned(), to.as_os_str().to_owned()];
            run("mv", Path::new("/bin/mv"), args, from)
        }
        other => other.map_err(at(from)),
    }
}

/// Makes a volume's folder with what is to be in it, under another name until it is whole. Done before: nothing.
pub(super) fn make(
    place: &Place,
    origin: &Origin,
    copied: impl FnOnce(&Path, &Path) -> Result<(), FolderError>,
) -> Result<(), FolderError> {
    let path = place.path();
    let above = closed(&place.root, &[&place.namespace])?;
    if std::fs::symlink_metadata(&path).is_ok() {
        return Ok(());
    }
    if let Origin::Deleted(name) = origin {
        let from = closed(&place.root, &[DELETED, &place.namespace])?.join(name);
        if std::fs::symlink_metadata(&from).is_err() {
            return Err(FolderError::NotDeleted { path: from });
        }
        return rename(&from, &path);
    }
    let partial = above.join(partial_name(&place.leaf));
    remove_tree(&partial)?;
    let made = open_folder(&partial).and_then(|()| match origin {
        Origin::CopyOf(source) => copied(source, &partial).and_then(|()| open_to_pods(&partial)),
        _ => Ok(()),
    });
    made.and_then(|()| rename(&partial, &path)).inspect_err(|_| {
        // A copy that did not fit must not go on filling the quota.
        let _ = remove_tree(&partial);
    })
}

fn partial_name(leaf: &str) -> String {
    format!(".{leaf}.partial")
}

/// With its mode whatever the umask.
fn open_folder(path: &Path) -> Result<(), FolderError> {
    DirBuilder::new().mode(0o700).create(path).map_err(at(path))?;
    // In a project's folder it has the project's group, which no container has: root could not give it away.
    let _ = lchown(path, None, Some(Gid::effective().as_raw()));
    open_to_pods(path)
}

fn open_to_pods(path: &Path) -> Result<(), FolderError> {
    match std::fs::set_permissions(path, Permissions::from_mode(0o777)) {
        // A copy whose owner is a container's user keeps the mode that it had there.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(at(path)),
    }
}

/// Puts a volume aside. Done before: nothing.
pub(super) fn put_aside(place: &Place, archive: bool, now: i64) -> Result<(), FolderError> {
    let path = place.path();
    let above = place.root.join(&place.namespace);
    if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        // Where a file system is away, nothing is known of the folder.
        return if above.is_dir() { Ok(()) } else { Err(FolderError::Away(above)) };
    }
    closed(&place.root, &[&place.namespace])?;
    if archive {
        return rename(&path, &above.join(format!("archived-{}", place.leaf)));
    }
    let aside = closed(&place.root, &[DELETED, &place.namespace])?;
    rename(&path, &aside.join(format!("{}.{now}", place.leaf)))
}

/// Gives up a volume that was never told to the API: what is half made goes, what is whole is put aside.
pub(super) fn abandon(place: &Place, now: i64) -> Result<(), FolderError> {
    if !is_closed(&place.root.join(&place.namespace)) {
        return Ok(());
    }
    remove_tree(&place.root.join(&place.namespace).join(partial_name(&place.leaf)))?;
    put_aside(place, false, now)
}

/// Volumes below `root` that were put aside before `before`, and those whose removal was interrupted.
pub(super) fn old(root: &Path, before: i64) -> Vec<PathBuf> {
    let entries = |path: &Path| {
        let closed = is_closed(path);
        std::fs::read_dir(path).into_iter().flatten().flatten().filter(move |_| closed).map(|e| e.path())
    };
    let all = entries(&root.join(DELETED)).flat_map(|namespace| entries(&namespace).collect::<Vec<_>>());
    all.filter(|path| is_removing(path) || put_aside_at(path).is_some_and(|at| at < before)).collect()
}

/// Before the name of a volume that is being removed.
const REMOVING: &str = ".removing-";

fn is_removing(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(REMOVING))
}

/// When it was put aside, by its name; None: it has not the form that [`put_aside`] gives.
fn put_aside_at(path: &Path) -> Option<i64> {
    let (leaf, seconds) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let short = leaf.rsplit_once('-')?.1;
    let ours = short.len() == 8 && short.bytes().all(|b| b.is_ascii_hexdigit()) && seconds.len() == 10;
    seconds.parse().ok().filter(|_| ours)
}

/// Removes one that [`old`] has named. From now on it cannot be brought back.
pub(super) fn remove_old(path: &Path) -> Result<(), FolderError> {
    if is_removing(path) {
        return remove_tree(path);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let removing = path.with_file_name(format!("{REMOVING}{name}"));
    rename(path, &removing)?;
    remove_tree(&removing)
}

/// Removes a tree whoever its files belong to. It may take long; killed in between it goes on the next time.
pub(super) fn remove_tree(path: &Path) -> Result<(), FolderError> {
    match userns::remove_tree(path) {
        Ok(0) => Ok(()),
        Ok(code) => Err(FolderError::Program { program: "rm", path: path.to_owned(), code }),
        Err(source) => Err(FolderError::Namespace { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn in_process(from: &Path, to: &Path) -> Result<(), FolderError> {
        copy::tree(from, to).map_err(at(from))
    }

    fn place(root: &Path, leaf: &str) -> Place {
        Place { root: root.to_owned(), namespace: "ns".into(), leaf: leaf.into() }
    }

    fn empty(place: &Place) {
        make(place, &Origin::Nothing, in_process).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_volume_put_aside_comes_back_with_its_files() {
        let tmp = tempfile::tempdir().unwrap();
        let first = place(tmp.path(), "data-0123abcd");
        empty(&first);
        assert_eq!((mode(&first.path()), mode(&tmp.path().join("ns"))), (0o777, 0o700));
        std::fs::write(first.path().join("file"), "x").unwrap();
        put_aside(&first, false, 1_700_000_000).unwrap();
        put_aside(&first, false, 1_700_000_001).unwrap();
        assert!(!first.path().exists());
        assert!(old(tmp.path(), 1_700_000_000).is_empty());
        assert_eq!(old(tmp.path(), 1_700_000_001), [tmp.path().join(".deleted/ns/data-0123abcd.1700000000")]);
        let second = place(tmp.path(), "data-2");
        let restored = |name: &str| make(&second, &Origin::Deleted(name.into()), in_process);
        assert!(matches!(restored("data-0123abcd.99").unwrap_err(), FolderError::NotDeleted { .. }));
        restored("data-0123abcd.1700000000").unwrap();
        assert_eq!(std::fs::read_to_string(second.path().join("file")).unwrap(), "x");
        put_aside(&second, true, 1_700_000_002).unwrap();
        assert!(tmp.path().join("ns/archived-data-2/file").exists());
    }

    #[test]
    fn only_what_was_put_aside_here_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let aside = tmp.path().join(".deleted/ns");
        std::fs::create_dir_all(&aside).unwrap();
        let elsewhere = tmp.path().join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("data-0123abcd.1700000000")).unwrap();
        for name in ["libfoo.so.1", "run.20240101", "data-0123abcd.1700000000", ".removing-data-0123abcd.1700000000"] {
            std::fs::create_dir(aside.join(name)).unwrap();
        }
        symlink(&elsewhere, tmp.path().join(".deleted/link")).unwrap();
        let found = |root: &Path| old(root, i64::MAX);
        assert!(found(tmp.path()).is_empty(), "others can enter it");
        for folder in [&aside, &tmp.path().join(".deleted")] {
            std::fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
        }
        let mut names: Vec<_> = found(tmp.path());
        names.sort();
        assert_eq!(names, [".removing-data-0123abcd.1700000000", "data-0123abcd.1700000000"].map(|n| aside.join(n)));
        names.iter().for_each(|path| remove_old(path).unwrap_or_default());
        assert!(found(tmp.path()).is_empty() && aside.join("libfoo.so.1").exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_gets_no_volume() {
        let tmp = tempfile::tempdir().unwrap();
        let refused = |what: &str| {
            let error = make(&place(tmp.path(), "data-1"), &Origin::Nothing, in_process).unwrap_err();
            assert!(matches!(&error, FolderError::Open(path) if path.ends_with("ns")), "{what}: {error}");
            std::fs::remove_dir(tmp.path().join("ns"))
                .or_else(|_| std::fs::remove_file(tmp.path().join("ns")))
                .unwrap();
        };
        std::fs::create_dir(tmp.path().join("ns")).unwrap();
        std::fs::set_permissions(tmp.path().join("ns"), Permissions::from_mode(0o755)).unwrap();
        refused("0755");
        let other = tempfile::tempdir().unwrap();
        symlink(other.path(), tmp.path().join("ns")).unwrap();
        refused("a link");
        assert!(other.path().read_dir().unwrap().next().is_none());
    }

    #[test]
    fn a_copy_is_whole_or_not_there() {
        let tmp = tempfile::tempdir().unwrap();
        let (first, second) = (place(tmp.path(), "a-1"), place(tmp.path(), "b-2"));
        empty(&first);
        std::fs::create_dir(first.path().join("d")).unwrap();
        std::fs::write(first.path().join("d/file"), "x").unwrap();
        // What a kubelet left that was killed.
        std::fs::create_dir(tmp.path().join("ns/.b-2.partial")).unwrap();
        std::fs::write(tmp.path().join("ns/.b-2.partial/half"), "").unwrap();
        let copy = Origin::CopyOf(first.path());
        make(&second, &copy, |_, to| Err(FolderError::NotDeleted { path: to.to_owned() })).unwrap_err();
        assert!(!second.path().exists() && !tmp.path().join("ns/.b-2.partial").exists());
        make(&second, &copy, in_process).unwrap();
        assert_eq!(std::fs::read_to_string(second.path().join("d/file")).unwrap(), "x");
        assert!(!second.path().join("half").exists());
    }

    #[test]
    fn a_file_system_that_is_away_is_not_taken_for_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let away = place(&tmp.path().join("not-mounted"), "a-1");
        assert!(matches!(put_aside(&away, false, 1), Err(FolderError::Away(_))));
        let first = place(tmp.path(), "a-1");
        empty(&first);
        abandon(&first, 1_700_000_000).unwrap();
        assert!(!first.path().exists() && tmp.path().join(".deleted/ns/a-1.1700000000").exists());
    }
}
