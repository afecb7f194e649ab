//! What is to be done about a claim or a PersistentVolume. Pure: what the API says now in, one step out.
//!
//! ```text
//! claim without volume ──▶ Provision ──▶ (the API's controller binds it) ──▶ request grows ──▶ Expand
//!                     └──▶ Refuse
//! volume Released, policy Delete ──▶ Remove          policy changed to Retain ──▶ LetGo
//! ```

use super::class::{Class, ClassError, is_ours};
use super::names::{ANNOTATION_ARCHIVE, ANNOTATION_BY, ANNOTATION_RESTORE, FINALIZER, PROVISIONER};
use crate::quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Annotations by which the API's controllers ask a provisioner.
const ASKED: [&str; 2] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// By it the scheduler says where the first pod of a claim will be.
const SELECTED: &str = "volume.kubernetes.io/selected-node";
/// Longest part of a claim's name in its folder's, bytes: a file name has 255.
const LONGEST: usize = 200;

/// Namespace and name of a claim.
pub(super) type ClaimKey = (String, String);

/// What the API has, as far as it was seen.
#[derive(Debug, Default)]
pub(super) struct World {
    pub classes: BTreeMap<String, StorageClass>,
    pub claims: BTreeMap<ClaimKey, PersistentVolumeClaim>,
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// Where volumes are whose class says nothing.
    pub home: PathBuf,
}

/// One step for a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ForClaim {
    Nothing,
    Provision(Box<Provision>),
    /// The volume has this capacity now.
    Expand {
        volume: String,
        size: Quantity,
    },
    Refuse(Refusal),
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Provision {
    pub volume: String,
    pub place: Place,
    pub class: String,
    pub reclaim: String,
    pub archive: bool,
    pub size: Quantity,
    pub modes: Vec<String>,
    pub origin: Origin,
}

/// A volume's folder: `root/namespace/leaf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub root: PathBuf,
    pub namespace: String,
    pub leaf: String,
}

impl Place {
    pub(super) fn path(&self) -> PathBuf {
        self.root.join(&self.namespace).join(&self.leaf)
    }
}

/// What is in a new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Nothing,
    /// What is in this folder now.
    CopyOf(PathBuf),
    /// A deleted volume of the same namespace, by the name of its folder in `.deleted`.
    Deleted(String),
}

/// Why a claim gets no volume.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Class(#[from] ClassError),
    #[error(
        "volumeMode Block: block devices belong to the node's administrator; leave volumeMode out, or write Filesystem"
    )]
    Block,
    #[error(
        "spec.selector: volumes of this class are made for their claim and are not selected by labels; leave it out"
    )]
    Selector,
    #[error("spec.volumeAttributesClassName: volumes of this class have no attributes to change; leave it out")]
    Attributes,
    #[error(
        "spec.dataSource: a {0} cannot be copied: only another PersistentVolumeClaim can; snapshots are not supported"
    )]
    Source(String),
    #[error("spec.dataSource: claim {0:?} is not bound to a volume of HPK's")]
    NoSource(String),
    #[error("spec.dataSource: claim {0:?} is larger than this one: ask for at least {1}")]
    Smaller(String, String),
    #[error(
        "annotation {ANNOTATION_RESTORE}: {0:?} must be the name of one folder in .deleted of the class, such as data-1234abcd.1796000000"
    )]
    Restore(String),
}

/// One step for a PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ForVolume {
    Nothing,
    /// Put its folder aside and delete the object.
    Remove {
        place: Place,
        archive: bool,
    },
    /// Its folder stays: do not hold the object back.
    LetGo,
}

impl World {
    pub(super) fn for_claim(&self, claim: &PersistentVolumeClaim) -> ForClaim {
        let spec = claim.spec.clone().unwrap_or_default();
        if claim.metadata.deletion_timestamp.is_some() {
            return ForClaim::Nothing;
        }
        if let Some(volume) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
            return self.grown(claim, &spec, volume);
        }
        let annotations = claim.metadata.annotations.iter().flatten();
        let has = |key: &str, value: Option<&str>| {
            annotations.clone().any(|(k, v)| k == key && value.is_none_or(|value| v == value))
        };
        let class = spec.storage_class_name.as_deref().and_then(|name| self.classes.get(name)).filter(|c| is_ours(c));
        let Some(object) = class.filter(|_| ASKED.iter().any(|key| has(key, Some(PROVISIONER)))) else {
            return ForClaim::Nothing;
        };
        let waits = object.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if (waits && !has(SELECTED, None)) || self.volumes.contains_key(&volume_name(claim)) {
            return ForClaim::Nothing;
        }
        match self.provision(claim, &spec, object) {
            Ok(provision) => ForClaim::Provision(Box::new(provision)),
            Err(refusal) => ForClaim::Refuse(refusal),
        }
    }

    fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        spec: &PersistentVolumeClaimSpec,
        object: &StorageClass,
    ) -> Result<Provision, Refusal> {
        let class = Class::read(object)?;
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err(Refusal::Block);
        }
        let selector = spec.selector.as_ref();
        if selector.is_some_and(|s| s.match_labels.is_some() || s.match_expressions.is_some()) {
            return Err(Refusal::Selector);
        }
        if spec.volume_attributes_class_name.as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(Refusal::Attributes);
        }
        let meta = &claim.metadata;
        let (name, namespace) = (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
        let uid = meta.uid.as_deref().unwrap_or_default();
        let size = request(spec);
        let origin = self.origin(claim, spec, &namespace, &size)?;
        let root = class.root.unwrap_or_else(|| self.home.clone());
        Ok(Provision {
            volume: volume_name(claim),
            place: Place { root, namespace, leaf: leaf(&name, uid) },
            class: object.metadata.name.clone().unwrap_or_default(),
            reclaim: class.reclaim,
            archive: class.archive,
            size,
            modes: spec.access_modes.clone().unwrap_or_default(),
            origin,
        })
    }

    fn origin(
        &self,
        claim: &PersistentVolumeClaim,
        spec: &PersistentVolumeClaimSpec,
        namespace: &str,
        size: &Quantity,
    ) -> Result<Origin, Refusal> {
        let restored = claim.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_RESTORE));
        if let Some(name) = restored {
            let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
            return if plain { Ok(Origin::Deleted(name.clone())) } else { Err(Refusal::Restore(name.clone())) };
        }
        let of_ref = spec.data_source_ref.as_ref().map(|s| (s.kind.as_str(), s.name.as_str(), s.namespace.as_deref()));
        let of = spec.data_source.as_ref().map(|s| (s.kind.as_str(), s.name.as_str(), None));
        let Some((kind, name, elsewhere)) = of_ref.or(of) else { return Ok(Origin::Nothing) };
        if kind != "PersistentVolumeClaim" || elsewhere.is_some_and(|other| other != namespace) {
            return Err(Refusal::Source(kind.to_owned()));
        }
        let source = self.claims.get(&(namespace.to_owned(), name.to_owned()));
        // volumeName is the claim's own word: the volume's counts, too.
        let bound = source.filter(|c| c.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound")));
        let named = bound.and_then(|c| c.spec.as_ref()).and_then(|s| s.volume_name.as_deref());
        let volume = named.and_then(|volume| self.volumes.get(volume)).filter(|v| is_by_us(v));
        let volume = volume.filter(|v| bound.is_some_and(|claim| holds(v, claim)));
        let Some(place) = volume.and_then(place) else { return Err(Refusal::NoSource(name.to_owned())) };
        let has = volume.and_then(capacity);
        if let Some(has) = has.filter(|has| quantity::value_of(has) > quantity::value_of(size)) {
            return Err(Refusal::Smaller(name.to_owned(), has.0));
        }
        Ok(Origin::CopyOf(place.path()))
    }

    /// Folders that have volumes of ours, by those that are there and by the classes.
    pub(super) fn roots(&self) -> Vec<PathBuf> {
        let classes = self.classes.values().filter(|c| is_ours(c)).filter_map(|c| Class::read(c).ok()?.root);
        let volumes = self.volumes.values().filter(|v| is_by_us(v)).filter_map(|v| Some(place(v)?.root));
        let mut roots: Vec<PathBuf> = classes.chain(volumes).chain([self.home.clone()]).collect();
        roots.sort();
        roots.dedup();
        roots
    }

    /// A bound claim that asks for more than it has.
    fn grown(&self, claim: &PersistentVolumeClaim, spec: &PersistentVolumeClaimSpec, volume: &str) -> ForClaim {
        let status = claim.status.as_ref();
        let Some(object) = self.volumes.get(volume).filter(|v| is_by_us(v)) else { return ForClaim::Nothing };
        if status.and_then(|s| s.phase.as_deref()) != Some("Bound") {
            return ForClaim::Nothing;
        }
        let size = request(spec);
        let wanted = quantity::value_of(&size);
        let told =
            status.and_then(|s| s.capacity.as_ref()).and_then(|c| c.get("storage")).map_or(0, quantity::value_of);
        let has = capacity(object).map_or(0, |c| quantity::value_of(&c));
        if wanted > has || (wanted > told && has >= wanted) {
            return ForClaim::Expand { volume: volume.to_owned(), size };
        }
        ForClaim::Nothing
    }

    pub(super) fn for_volume(&self, volume: &PersistentVolume) -> ForVolume {
        let spec = volume.spec.clone().unwrap_or_default();
        let holds = volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
        if !is_by_us(volume) {
            return ForVolume::Nothing;
        }
        if spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
            return if holds { ForVolume::LetGo } else { ForVolume::Nothing };
        }
        let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
        if !released || (volume.metadata.deletion_timestamp.is_some() && !holds) {
            return ForVolume::Nothing;
        }
        match place(volume) {
            Some(place) => ForVolume::Remove { place, archive: is_archived(volume) },
            // Somebody has changed the object: no folder is touched that we may not have made.
            None if holds => ForVolume::LetGo,
            None => ForVolume::Nothing,
        }
    }
}

/// Whether the volume says itself that it is this claim's.
fn holds(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let holder = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let meta = &claim.metadata;
    holder.is_some_and(|h| h.uid.is_some() && h.uid == meta.uid && h.name == meta.name && h.namespace == meta.namespace)
}

/// The claim of the same namespace whose content this one is to have.
pub(super) fn source(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let named = spec.data_source_ref.as_ref().map(|s| s.name.as_str());
    named.or(spec.data_source.as_ref().map(|s| s.name.as_str()))
}

/// The claim that a volume is for.
pub(super) fn holder(volume: &PersistentVolume) -> Option<ClaimKey> {
    let holder = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some((holder.namespace.clone()?, holder.name.clone()?))
}

fn is_archived(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_ARCHIVE)).is_some_and(|v| v == "true")
}

/// Whether this provisioner has made it.
fn is_by_us(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_BY)).is_some_and(|by| by == PROVISIONER)
}

/// Where a volume of ours is; None: its path does not have the form that we give.
fn place(volume: &PersistentVolume) -> Option<Place> {
    let spec = volume.spec.as_ref()?;
    let claim = spec.claim_ref.as_ref()?;
    let path = Path::new(&spec.host_path.as_ref()?.path);
    let (leaf_of, above) = (path.file_name()?.to_str()?, path.parent()?);
    let namespace = above.file_name()?.to_str()?;
    let own = leaf_of == leaf(claim.name.as_deref()?, claim.uid.as_deref()?);
    let fits = own && claim.namespace.as_deref() == Some(namespace);
    fits.then(|| {
        Some(Place { root: above.parent()?.to_owned(), namespace: namespace.to_owned(), leaf: leaf_of.to_owned() })
    })?
}

/// `<claim>-<short uid>`: people find it, and a claim of the same name later has another.
fn leaf(claim: &str, uid: &str) -> String {
    let cut = |text: &str, most| text.chars().take(most).collect::<String>();
    format!("{}-{}", cut(claim, LONGEST), cut(uid, 8))
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

fn request(spec: &PersistentVolumeClaimSpec) -> Quantity {
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get("storage")).cloned().unwrap_or_else(|| Quantity("0".to_owned()))
}

fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    volume.spec.as_ref()?.capacity.as_ref()?.get("storage").cloned()
}

#[cfg(test)]
mod tests;
