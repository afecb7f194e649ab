//! Names that HPK's volumes bear in the API.

/// Our name in StorageClasses.
pub(crate) const PROVISIONER: &str = "volumes.hpk.io";
/// On a claim: the folder in `.deleted` that it is to have.
pub(crate) const ANNOTATION_RESTORE: &str = "volumes.hpk.io/restore";
/// On a volume: its folder is kept under another name.
pub(super) const ANNOTATION_ARCHIVE: &str = "volumes.hpk.io/archive-on-delete";
/// On a volume: who has made it.
pub(crate) const ANNOTATION_BY: &str = "pv.kubernetes.io/provisioned-by";
/// External provisioners' own.
pub(super) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
