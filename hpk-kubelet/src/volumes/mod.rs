//! A pod's volumes. Each is parsed once into its kind; what a kind refers to, how it is planned and what of it is refused
//! stand together in the kind's module. Pure.
//!
//! A kind that is not known here is refused by its name in the API, never left out.

pub(crate) mod claim;
pub(crate) mod empty_dir;
pub(crate) mod exclusive;
pub(crate) mod filled;
pub(crate) mod host_path;
pub(crate) mod image;
pub(crate) mod nfs;
mod references;

use crate::render::downward::Facts;
use crate::render::sources::{References, Sources};
use claim::{ClaimError, ClaimUse};
use filled::Filled;
use hpk_api::plan::{HostBind, ImageRef, VolumePlan};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, NFSVolumeSource, Pod, Volume,
};
use std::collections::BTreeMap;
use thiserror::Error;

pub(crate) use filled::{File, FillError, Payload};

/// Told of a field: whether the pod cannot run without it, the field's path in the pod, what to do instead.
pub(crate) type Tell<'a> = dyn FnMut(bool, String, &'static str) + 'a;

/// One volume of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodVolume<'a> {
    pub name: &'a str,
    pub source: VolumeSource<'a>,
}

/// What a volume is made of.
#[derive(Clone, Debug)]
pub(crate) enum VolumeSource<'a> {
    EmptyDir(&'a EmptyDirVolumeSource),
    HostPath(&'a HostPathVolumeSource),
    Image(&'a ImageVolumeSource),
    Nfs(&'a NFSVolumeSource),
    /// A PersistentVolumeClaim, of its own name or made for the pod.
    Claim(ClaimUse),
    /// Files that the kubelet writes: configMap, secret, downwardAPI, projected.
    Filled(Filled<'a>),
    /// Any other kind, by its name in the API.
    Refused(String),
}

/// What volumes are planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    pub pod: &'a Pod,
    /// Whose credentials are; None: the mode of their volume says who reads them.
    pub user: Option<u32>,
    pub sources: &'a Sources,
    pub facts: &'a Facts,
    /// By volume name: images of volumes of kind image.
    pub images: &'a BTreeMap<String, ImageRef>,
    /// /proc/self/mountinfo of the login node.
    pub mounts: &'a str,
}

/// The planned volumes of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Volumes {
    pub plans: BTreeMap<String, VolumePlan>,
    pub host_binds: Vec<HostBind>,
    /// Content of the volumes that the kubelet fills, by name.
    pub payloads: BTreeMap<String, Payload>,
}

/// Why a volume cannot be had; becomes the message of a `FailedMount` event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Claim { volume: String, cause: ClaimError },
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Nfs { volume: String, cause: nfs::NfsError },
    /// The image of a volume is not there yet.
    #[error("MountVolume.SetUp failed for volume {volume:?} : its image has not been pulled")]
    NoImage { volume: String },
    /// It should have been refused before.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {kind} is not supported by HPK")]
    Refused { volume: String, kind: String },
}

/// What an event says of a kind that is refused.
const OTHER_KINDS: &str = "use persistentVolumeClaim, hostPath on the shared file system, emptyDir, configMap, secret, projected, downwardAPI, image or nfs";

impl<'a> PodVolume<'a> {
    /// The volumes of a pod, in the order of the spec.
    pub(crate) fn all(pod: &'a Pod) -> impl Iterator<Item = Self> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).map(|volume| Self::parse(name, volume))
    }

    /// A volume of the pod of this name.
    #[must_use]
    pub(crate) fn parse(pod: &str, volume: &'a Volume) -> Self {
        let source = if let Some(source) = &volume.empty_dir {
            VolumeSource::EmptyDir(source)
        } else if let Some(source) = &volume.host_path {
            VolumeSource::HostPath(source)
        } else if let Some(source) = &volume.image {
            VolumeSource::Image(source)
        } else if let Some(source) = &volume.nfs {
            VolumeSource::Nfs(source)
        } else if let Some(source) = &volume.persistent_volume_claim {
            let (name, read_only) = (source.claim_name.clone(), source.read_only == Some(true));
            VolumeSource::Claim(ClaimUse { name, read_only, ephemeral: false })
        } else if volume.ephemeral.is_some() {
            // The name that the API's controller for ephemeral volumes gives.
            let name = format!("{pod}-{}", volume.name);
            VolumeSource::Claim(ClaimUse { name, read_only: false, ephemeral: true })
        } else if let Some(source) = Filled::of(volume) {
            VolumeSource::Filled(source)
        } else {
            VolumeSource::Refused(kind(volume))
        };
        Self { name: &volume.name, source }
    }

    /// Adds the objects that the volume refers to.
    pub(crate) fn references(&self, all: &mut References) {
        match &self.source {
            VolumeSource::Filled(source) => source.references(self.name, all),
            VolumeSource::Claim(wanted) => {
                all.claims.insert(wanted.name.clone());
            }
            VolumeSource::EmptyDir(_)
            | VolumeSource::HostPath(_)
            | VolumeSource::Image(_)
            | VolumeSource::Nfs(_)
            | VolumeSource::Refused(_) => {}
        }
    }

    /// Tells what of the volume is not carried out.
    pub(crate) fn unsupported(&self, tell: &mut Tell<'_>) {
        let field = |name: &str| format!("spec.volumes[{}].{name}", self.name);
        match &self.source {
            VolumeSource::EmptyDir(source) => empty_dir::unsupported(source, &field, tell),
            VolumeSource::Filled(source) => source.unsupported(&field, tell),
            VolumeSource::Refused(kind) => tell(true, field(kind), OTHER_KINDS),
            VolumeSource::HostPath(_) | VolumeSource::Image(_) | VolumeSource::Nfs(_) | VolumeSource::Claim(_) => {}
        }
    }

    /// Adds the volume's plan.
    fn plan(&self, ground: Ground<'_>, volumes: &mut Volumes) -> Result<(), VolumeError> {
        let plan = match &self.source {
            VolumeSource::EmptyDir(source) => empty_dir::plan(source),
            VolumeSource::HostPath(source) => host_path::plan(source, &mut volumes.host_binds),
            VolumeSource::Nfs(source) => nfs::plan(self.name, source, ground.mounts, &mut volumes.host_binds)?,
            VolumeSource::Claim(wanted) => claim::plan(wanted, ground, &mut volumes.host_binds)
                .map_err(|cause| VolumeError::Claim { volume: self.name.to_owned(), cause })?,
            VolumeSource::Image(_) => image::plan(self.name, ground.images)?,
            VolumeSource::Filled(source) => {
                let payload = source.payload(self.name, ground)?;
                volumes.payloads.insert(self.name.to_owned(), payload);
                VolumePlan::Kubelet { folder: self.name.to_owned(), read_only: true }
            }
            VolumeSource::Refused(kind) => {
                return Err(VolumeError::Refused { volume: self.name.to_owned(), kind: kind.clone() });
            }
        };
        volumes.plans.insert(self.name.to_owned(), plan);
        Ok(())
    }
}

/// Plans all volumes of a pod.
///
/// # Errors
/// The first volume that cannot be had.
pub(crate) fn plan(ground: Ground<'_>) -> Result<Volumes, VolumeError> {
    let mut volumes = Volumes::default();
    for volume in PodVolume::all(ground.pod) {
        volume.plan(ground, &mut volumes)?;
    }
    Ok(volumes)
}

/// The name of the volume's source, as the API has it, whichever that is.
fn kind(volume: &Volume) -> String {
    let object = serde_json::to_value(volume).unwrap_or_default();
    let mut keys = object.as_object().into_iter().flatten().map(|(key, _)| key.clone());
    keys.find(|key| key != "name").unwrap_or_else(|| "(source)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kind_that_is_not_known_is_refused_and_never_left_out() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "a", "emptyDir": {}}, {"name": "b", "iscsi": {"iqn": "x", "lun": 0, "targetPortal": "x"}}]}}))
        .expect("pod");
        let (sources, facts, images) = (Sources::default(), Facts::default(), BTreeMap::new());
        let refused =
            plan(Ground { pod: &pod, user: None, sources: &sources, facts: &facts, images: &images, mounts: "" });
        assert_eq!(refused, Err(VolumeError::Refused { volume: "b".into(), kind: "iscsi".into() }));
        let mut told = Vec::new();
        for volume in PodVolume::all(&pod) {
            volume.unsupported(&mut |fatal, field, _| told.push((fatal, field)));
        }
        assert_eq!(told, [(true, "spec.volumes[b].iscsi".to_owned())]);
    }
}
