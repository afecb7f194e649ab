//! The PersistentVolume of a volume that was made. Pure.

use super::decide::Provision;
use super::names::{ANNOTATION_ARCHIVE, ANNOTATION_BY, FINALIZER, PROVISIONER};
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// Bound to its claim from the first moment.
pub(super) fn volume(made: &Provision, claim: &PersistentVolumeClaim) -> PersistentVolume {
    let mut annotations = vec![(ANNOTATION_BY.to_owned(), PROVISIONER.to_owned())];
    if made.archive {
        annotations.push((ANNOTATION_ARCHIVE.to_owned(), "true".to_owned()));
    }
    let meta = &claim.metadata;
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(made.volume.clone()),
            annotations: Some(annotations.into_iter().collect()),
            // The folder is to be put aside before the object goes, whoever deletes it.
            finalizers: (made.reclaim == "Delete").then(|| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(made.modes.clone()),
            capacity: Some([("storage".to_owned(), made.size.clone())].into()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                ..ObjectReference::default()
            }),
            host_path: Some(HostPathVolumeSource {
                path: made.place.path().to_string_lossy().into_owned(),
                type_: Some("Directory".to_owned()),
            }),
            persistent_volume_reclaim_policy: Some(made.reclaim.clone()),
            storage_class_name: Some(made.class.clone()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// Patch of a volume that has grown.
pub(super) fn grown(size: &Quantity) -> Value {
    json!({"spec": {"capacity": {"storage": size}}})
}

/// Patch of the status of a claim whose volume has grown.
pub(super) fn told(size: &Quantity) -> Value {
    json!({"status": {"capacity": {"storage": size}, "conditions": null}})
}

/// Patch of a volume that is not held back any more.
pub(super) fn let_go(volume: &PersistentVolume) -> Value {
    let others = volume.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER);
    let others: Vec<&String> = others.collect();
    json!({"metadata": {"finalizers": others, "resourceVersion": volume.metadata.resource_version}})
}
