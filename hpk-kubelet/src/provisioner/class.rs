//! What a StorageClass of ours asks for. Pure.

use super::names::PROVISIONER;
use k8s_openapi::api::storage::v1::StorageClass;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// Parameter: the folder below which the class' volumes are; without it HPK_HOME's own.
pub(super) const PATH: &str = "path";
/// Parameter: a volume that is deleted is kept under another name.
pub(super) const ARCHIVE: &str = "archiveOnDelete";

/// A StorageClass, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Where its volumes are; None: in HPK_HOME.
    pub root: Option<PathBuf>,
    pub archive: bool,
    /// `Delete` or `Retain`.
    pub reclaim: String,
    /// WaitForFirstConsumer.
    pub waits: bool,
}

/// Why no volume of a class can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum ClassError {
    #[error("storage class {class}: parameters.path: {path:?} must be an absolute path without \"..\"")]
    Path { class: String, path: String },
    #[error("storage class {class}: parameters.archiveOnDelete: write \"true\" or \"false\", not {value:?}")]
    Archive { class: String, value: String },
    #[error("storage class {class}: parameters.{name} is not known: HPK knows path and archiveOnDelete")]
    Unknown { class: String, name: String },
    #[error("storage class {class}: mountOptions: a volume is a folder of a file system that the site has mounted")]
    MountOptions { class: String },
}

/// Whether the class is one of ours.
pub(super) fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

impl Class {
    /// Reads a class of ours.
    ///
    /// # Errors
    /// The first thing that cannot be carried out.
    pub(super) fn read(class: &StorageClass) -> Result<Self, ClassError> {
        let name = || class.metadata.name.clone().unwrap_or_default();
        let (mut root, mut archive) = (None, false);
        for (key, value) in class.parameters.iter().flatten() {
            match (key.as_str(), value.as_str()) {
                (PATH, path) if is_plain(Path::new(path)) => root = Some(PathBuf::from(path)),
                (PATH, path) => return Err(ClassError::Path { class: name(), path: path.to_owned() }),
                (ARCHIVE, "true") => archive = true,
                (ARCHIVE, "false") => {}
                (ARCHIVE, other) => return Err(ClassError::Archive { class: name(), value: other.to_owned() }),
                (other, _) => return Err(ClassError::Unknown { class: name(), name: other.to_owned() }),
            }
        }
        if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(ClassError::MountOptions { class: name() });
        }
        Ok(Self {
            root,
            archive,
            reclaim: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        })
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path != Path::new("/") && path.components().all(|c| c != Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(parameters: Value) -> Result<Class, String> {
        let class = json!({"metadata": {"name": "x"}, "provisioner": PROVISIONER, "parameters": parameters});
        let class: StorageClass = serde_json::from_value(class).expect("a class");
        Class::read(&class).map_err(|e| e.to_string())
    }

    #[test]
    fn parameters() {
        let plain = Class { root: None, archive: false, reclaim: "Delete".into(), waits: false };
        assert_eq!(read(json!({})), Ok(plain.clone()));
        let both = read(json!({"path": "/scratch/alice", "archiveOnDelete": "true"}));
        assert_eq!(both, Ok(Class { root: Some("/scratch/alice".into()), archive: true, ..plain }));
        for (bad, word) in [
            (json!({"path": "scratch"}), "absolute"),
            (json!({"path": "/a/../etc"}), "absolute"),
            (json!({"path": "/"}), "absolute"),
            (json!({"archiveOnDelete": "yes"}), "archiveOnDelete"),
            (json!({"fsType": "ext4"}), "parameters.fsType"),
        ] {
            assert!(read(bad.clone()).expect_err("an error").contains(word), "{bad}");
        }
    }
}
