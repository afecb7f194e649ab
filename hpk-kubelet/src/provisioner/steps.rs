//! Steps of the provisioner: each is one change of a folder and of the API, and may be begun again after a failure.

use super::decide::Provision;
use super::names::FINALIZER;
use super::{folders, objects};
use crate::api::events::{Note, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use std::path::Path;

pub(super) type StepError = Box<dyn std::error::Error + Send + Sync>;
pub(super) fn sweep(root: &Path, before: i64) {
    for path in folders::old(root, before) {
        match folders::remove_old(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "deleted volume removed"),
            Err(error) => tracing::warn!(%error, "deleted volume not removed"),
        }
    }
}

pub(super) async fn blocking<E>(work: impl FnOnce() -> Result<(), E> + Send + 'static) -> Result<(), StepError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    Ok(tokio::task::spawn_blocking(work).await??)
}

pub(super) async fn provision(
    client: Client,
    recorder: Recorder,
    claim: PersistentVolumeClaim,
    made: Provision,
) -> Result<(), StepError> {
    let api: Api<PersistentVolume> = Api::all(client);
    let (place, origin) = (made.place.clone(), made.origin.clone());
    blocking(move || folders::make(&place, &origin, folders::copied)).await?;
    match api.create(&PostParams::default(), &objects::volume(&made, &claim)).await {
        // Made by an earlier attempt whose answer was lost.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => {
            other?;
        }
    }
    let text = format!("Successfully provisioned volume {}: {}", made.volume, made.place.path().display());
    recorder.tell(about_claim(&claim), Note::normal("ProvisioningSucceeded", text));
    Ok(())
}

pub(super) async fn expand(
    client: Client,
    recorder: Recorder,
    claim: PersistentVolumeClaim,
    volume: String,
    size: Quantity,
) -> Result<(), StepError> {
    let params = PatchParams::default();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.patch(&volume, &params, &Patch::Merge(objects::grown(&size))).await?;
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client, claim.metadata.namespace.as_deref().unwrap_or_default());
    claims.patch_status(&claim.name_any(), &params, &Patch::Merge(objects::told(&size))).await?;
    recorder.tell(about_claim(&claim), Note::normal("VolumeResizeSuccessful", format!("Resized volume to {}", size.0)));
    Ok(())
}

pub(super) async fn let_go(client: &Client, volume: &PersistentVolume) -> Result<(), StepError> {
    if !volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) {
        return Ok(());
    }
    let api: Api<PersistentVolume> = Api::all(client.clone());
    found(api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(objects::let_go(volume))).await)
}

pub(super) async fn delete(client: &Client, volume: &PersistentVolume) -> Result<(), StepError> {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let uid = volume.metadata.uid.clone();
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid, ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    found(api.delete(&volume.name_any(), &params).await)
}

/// What is not there need not be changed.
fn found<T>(answer: kube::Result<T>) -> Result<(), StepError> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}

pub(super) fn about_claim(claim: &PersistentVolumeClaim) -> ObjectReference {
    about("PersistentVolumeClaim", &claim.metadata)
}

pub(super) fn about_volume(volume: &PersistentVolume) -> ObjectReference {
    about("PersistentVolume", &volume.metadata)
}

fn about(kind: &str, meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}
