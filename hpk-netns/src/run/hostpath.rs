//! hostPath volumes on the node: checked or made as their type asks, before the parent starts.
//!
//! Rules: <https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types>. A path of no type that
//! is missing becomes a folder, as the common runtimes do.

use hpk_api::plan::HostBind;
use std::fs::{Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a hostPath volume cannot be given to the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    /// It is there, but of another kind.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    WrongKind {
        path: String,
        /// What was asked for, in words.
        wanted: &'static str,
    },
    /// Unknown hostPath.type.
    #[error(
        "hostPath {path}: unknown type {kind:?}; use one of Directory, DirectoryOrCreate, File, FileOrCreate, Socket, CharDevice, BlockDevice or none"
    )]
    UnknownKind {
        path: String,
        /// What the volume said.
        kind: String,
    },
    /// Not absolute, or leads upwards.
    #[error("hostPath {path}: must be an absolute path without \"..\"")]
    BadPath { path: String },
    /// The kernel said no.
    #[error(
        "hostPath {path}: {source}; the pod runs as you, so you must be able to reach this path on the compute node"
    )]
    Io { path: String, source: io::Error },
}

impl HostPathError {
    /// Somebody may make it true while the pod waits, as upstream has it.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::WrongKind { .. } | Self::Io { .. } => true,
            Self::UnknownKind { .. } | Self::BadPath { .. } => false,
        }
    }
}

/// Checks or makes the sources, and makes the matching empty mount points in `points`, in their order. What an earlier
/// attempt has made there goes first.
pub(crate) fn prepare_all(binds: &[HostBind], points: &Path) -> Result<Vec<PathBuf>, HostPathError> {
    for index in 0..binds.len() {
        let point = points.join(index.to_string());
        // One of both; neither is there at first.
        let _ = std::fs::remove_file(&point);
        let _ = std::fs::remove_dir(&point);
    }
    binds.iter().enumerate().map(|(index, bind)| prepare(bind, index, points)).collect()
}

/// Checks or makes the source, and makes the matching empty mount point `<points>/<index>` for it.
fn prepare(bind: &HostBind, index: usize, points: &Path) -> Result<PathBuf, HostPathError> {
    let path = Path::new(&bind.source);
    let fail = |source| HostPathError::Io { path: bind.source.clone(), source };
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(HostPathError::BadPath { path: bind.source.clone() });
    }
    let is_dir = ensure(bind, path)?;
    let point = points.join(index.to_string());
    if is_dir {
        std::fs::create_dir(&point).map_err(fail)?;
    } else {
        std::fs::write(&point, b"").map_err(fail)?;
    }
    Ok(point)
}

/// True for a folder.
fn ensure(bind: &HostBind, path: &Path) -> Result<bool, HostPathError> {
    let fail = |source| HostPathError::Io { path: bind.source.clone(), source };
    let found = match std::fs::metadata(path) {
        Ok(meta) => Some(meta),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(fail(e)),
    };
    let of_kind = |wanted: &'static str, is: fn(&Metadata) -> bool| match &found {
        Some(meta) if is(meta) => Ok(meta.is_dir()),
        Some(_) => Err(HostPathError::WrongKind { path: bind.source.clone(), wanted }),
        None => Err(fail(io::Error::from(io::ErrorKind::NotFound))),
    };
    match (bind.kind.as_str(), &found) {
        ("", Some(meta)) => Ok(meta.is_dir()),
        ("" | "DirectoryOrCreate", None) => {
            make_folders(path).map_err(fail)?;
            Ok(true)
        }
        ("FileOrCreate", None) => {
            // Parents are not made: upstream does not either.
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(fail)?;
            file.set_permissions(Permissions::from_mode(0o644)).map_err(fail)?;
            Ok(false)
        }
        ("Directory" | "DirectoryOrCreate", _) => of_kind("directory", Metadata::is_dir),
        ("File" | "FileOrCreate", _) => of_kind("file", Metadata::is_file),
        ("Socket", _) => of_kind("socket file", |m| m.file_type().is_socket()),
        ("CharDevice", _) => of_kind("character device", |m| m.file_type().is_char_device()),
        ("BlockDevice", _) => of_kind("block device", |m| m.file_type().is_block_device()),
        (other, _) => Err(HostPathError::UnknownKind { path: bind.source.clone(), kind: other.to_owned() }),
    }
}

/// With upstream's mode, whatever the umask: containers' users are others than this process.
fn make_folders(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(above) = path.parent() else { return Err(error) };
            make_folders(above)?;
            make_folders(path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, kind: &str) -> HostBind {
        HostBind { source: source.to_string_lossy().into_owned(), kind: kind.to_owned() }
    }

    #[test]
    fn a_later_attempt_finds_what_came_meanwhile() {
        let (tmp, points) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let late = tmp.path().join("late");
        let binds = [bind(tmp.path(), "Directory"), bind(&late, "File")];
        let missing = prepare_all(&binds, points.path()).unwrap_err();
        assert!(missing.may_pass(), "{missing}");
        std::fs::create_dir(&late).unwrap();
        let folder = prepare_all(&binds, points.path()).unwrap_err();
        assert!(matches!(folder, HostPathError::WrongKind { .. }) && folder.may_pass());
        std::fs::remove_dir(&late).unwrap();
        std::fs::write(&late, "x").unwrap();
        let made = prepare_all(&binds, points.path()).unwrap();
        assert!(made[0].is_dir() && made[1].is_file());
        assert!(!prepare_all(&[bind(&late, "Folder")], points.path()).unwrap_err().may_pass());
    }

    #[test]
    fn types() {
        let tmp = tempfile::tempdir().unwrap();
        let points = tempfile::tempdir().unwrap();
        let (dir, file) = (tmp.path().join("d"), tmp.path().join("f"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(&file, b"x").unwrap();
        // (source, type, result: Some(is a folder) or None for an error)
        let cases: &[(PathBuf, &str, Option<bool>)] = &[
            (dir.clone(), "", Some(true)),
            (file.clone(), "", Some(false)),
            (tmp.path().join("new1"), "", Some(true)),
            (dir.clone(), "Directory", Some(true)),
            (file.clone(), "Directory", None),
            (tmp.path().join("missing"), "Directory", None),
            (tmp.path().join("a/b/c"), "DirectoryOrCreate", Some(true)),
            (file.clone(), "DirectoryOrCreate", None),
            (file.clone(), "File", Some(false)),
            (dir.clone(), "File", None),
            (tmp.path().join("newf"), "FileOrCreate", Some(false)),
            (tmp.path().join("no/parent"), "FileOrCreate", None),
            ("/dev/null".into(), "CharDevice", Some(false)),
            ("/dev/null".into(), "BlockDevice", None),
            (file.clone(), "Socket", None),
            (file.clone(), "Folder", None),
            ("relative".into(), "", None),
            ("/tmp/../etc".into(), "", None),
        ];
        for (i, (source, kind, want)) in cases.iter().enumerate() {
            let got = prepare(&bind(source, kind), i, points.path()).ok().map(|p| p.is_dir());
            assert_eq!(got, *want, "case {i}: {} {kind:?}", source.display());
        }
        // Other users than ours are in containers.
        for (made, mode) in [("a", 0o755), ("a/b/c", 0o755), ("newf", 0o644)] {
            assert_eq!(tmp.path().join(made).metadata().unwrap().permissions().mode() & 0o777, mode, "{made}");
        }
    }
}
