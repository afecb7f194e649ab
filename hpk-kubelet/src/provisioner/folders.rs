//! Folders of volumes: made, copied, put aside, removed. Blocking.
//!
//! ```text
//! root/<namespace>/<claim>-<short uid>          a volume (0777 in folders of 0700: any user of a pod's may write)
//! root/<namespace>/archived-<claim>-<short uid> kept by archiveOnDelete
//! root/.deleted/<namespace>/<leaf>.<seconds>    put aside at this Unix time, removed later
//! ```
//! Files of containers' users belong to subordinate ids, and a container may have given its volume's folder away. What
//! the user's own rights are not enough for is done by `mv`, `cp` and `rm` in a user namespace.

use super::decide::{Origin, Place};
use hpk_sys::userns;
use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
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
    #[error("annotation {}: {} is not there; hpk-kubelet removes what was deleted a day ago", super::ANNOTATION_RESTORE, path.display())]
    NotDeleted { path: PathBuf },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    move |source| FolderError::Io { path: path.to_owned(), source }
}

fn closed(path: &Path) -> Result<(), FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Runs a program of the system where it may do what the containers' users may.
fn run(program: &'static str, options: &[&str], paths: &[&Path]) -> Result<(), FolderError> {
    let path = paths.first().map(|p| (*p).to_owned()).unwrap_or_default();
    let options = options.iter().map(OsString::from).chain([OsString::from("--")]);
    let args: Vec<OsString> = options.chain(paths.iter().map(|p| p.as_os_str().to_owned())).collect();
    match userns::run(&Path::new("/bin").join(program), &args) {
        Ok(0) => Ok(()),
        Ok(code) => Err(FolderError::Program { program, path, code }),
        Err(source) => Err(FolderError::Namespace { path, source }),
    }
}

/// Renames, also a folder that belongs to a container's user.
fn rename(from: &Path, to: &Path) -> Result<(), FolderError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => run("mv", &["-T"], &[from, to]),
        other => other.map_err(at(from)),
    }
}

/// Makes a volume's folder with what is to be in it. Done before: nothing.
pub(super) fn make(place: &Place, origin: &Origin) -> Result<(), FolderError> {
    let path = place.path();
    if path.exists() {
        return Ok(());
    }
    let above = place.root.join(&place.namespace);
    closed(&above)?;
    match origin {
        Origin::Nothing => open_folder(&path),
        Origin::Deleted(name) => {
            let from = place.root.join(DELETED).join(&place.namespace).join(name);
            if !from.exists() {
                return Err(FolderError::NotDeleted { path: from });
            }
            rename(&from, &path)
        }
        Origin::CopyOf(source) => {
            // Under another name until it is whole.
            let partial = above.join(format!(".{}.partial", place.leaf));
            remove_tree(&partial)?;
            open_folder(&partial)?;
            run("cp", &["-a", "--reflink=auto"], &[&source.join("."), &partial])?;
            rename(&partial, &path)
        }
    }
}

/// With its mode whatever the umask.
fn open_folder(path: &Path) -> Result<(), FolderError> {
    match DirBuilder::new().create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(error)),
        _ => {}
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o777)).map_err(at(path))
}

/// Puts a volume aside. Done before: nothing.
pub(super) fn put_aside(place: &Place, archive: bool, now: i64) -> Result<(), FolderError> {
    let path = place.path();
    if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    if archive {
        return rename(&path, &place.root.join(&place.namespace).join(format!("archived-{}", place.leaf)));
    }
    let aside = place.root.join(DELETED).join(&place.namespace);
    closed(&aside)?;
    rename(&path, &aside.join(format!("{}.{now}", place.leaf)))
}

/// Volumes below `root` that were put aside before `before`.
pub(super) fn old(root: &Path, before: i64) -> Vec<PathBuf> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let all = entries(&root.join(DELETED)).flat_map(|namespace| entries(&namespace).collect::<Vec<_>>());
    all.filter(|path| put_aside_at(path).is_some_and(|at| at < before)).collect()
}

fn put_aside_at(path: &Path) -> Option<i64> {
    path.file_name()?.to_str()?.rsplit_once('.')?.1.parse().ok()
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

    #[test]
    fn a_volume_put_aside_comes_back_with_its_files() {
        let tmp = tempfile::tempdir().unwrap();
        let place = |leaf: &str| Place { root: tmp.path().to_owned(), namespace: "ns".into(), leaf: leaf.into() };
        let first = place("data-1");
        make(&first, &Origin::Nothing).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&first.path()), mode(&tmp.path().join("ns"))), (0o777, 0o700));
        std::fs::write(first.path().join("file"), "x").unwrap();
        put_aside(&first, false, 100).unwrap();
        put_aside(&first, false, 101).unwrap();
        assert!(!first.path().exists());
        assert!(old(tmp.path(), 100).is_empty());
        assert_eq!(old(tmp.path(), 101), [tmp.path().join(".deleted/ns/data-1.100")]);
        let second = place("data-2");
        let gone = make(&second, &Origin::Deleted("data-1.99".into())).unwrap_err();
        assert!(matches!(gone, FolderError::NotDeleted { .. }));
        make(&second, &Origin::Deleted("data-1.100".into())).unwrap();
        assert_eq!(std::fs::read_to_string(second.path().join("file")).unwrap(), "x");
        put_aside(&second, true, 102).unwrap();
        assert!(tmp.path().join("ns/archived-data-2/file").exists());
    }

    #[test]
    fn a_copy_is_whole_or_not_there() {
        let tmp = tempfile::tempdir().unwrap();
        let place = |leaf: &str| Place { root: tmp.path().to_owned(), namespace: "ns".into(), leaf: leaf.into() };
        let (first, second) = (place("a-1"), place("b-2"));
        make(&first, &Origin::Nothing).unwrap();
        std::fs::create_dir(first.path().join("d")).unwrap();
        std::fs::write(first.path().join("d/file"), "x").unwrap();
        // What a kubelet left that was killed.
        std::fs::create_dir(tmp.path().join("ns/.b-2.partial")).unwrap();
        std::fs::write(tmp.path().join("ns/.b-2.partial/half"), "").unwrap();
        make(&second, &Origin::CopyOf(first.path())).unwrap();
        assert_eq!(std::fs::read_to_string(second.path().join("d/file")).unwrap(), "x");
        assert!(!second.path().join("half").exists());
    }
}
