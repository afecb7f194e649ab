//! persistentVolumeClaim and ephemeral: a claim's PersistentVolume is a folder that the node can reach, bound into the pod.

use super::{Ground, nfs};
use crate::provisioner::{ANNOTATION_BY, PROVISIONER};
use hpk_api::plan::{GroupChange, HostBind, VolumePlan};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use thiserror::Error;

/// One pod at a time may use such a claim.
pub(crate) const ONE_POD: &str = "ReadWriteOncePod";

/// A volume that is a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimUse {
    /// The claim's name.
    pub name: String,
    pub read_only: bool,
    /// The claim is made for this pod, from the pod's volumeClaimTemplate.
    pub ephemeral: bool,
}

/// Why a claim cannot be mounted; in upstream's words where it has them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ClaimError {
    #[error("persistentvolumeclaim {0:?} not found")]
    Missing(String),
    #[error("persistentvolumeclaim {0:?} was not created for this pod (pod is not owner)")]
    NotOurs(String),
    #[error("persistentvolumeclaim {0:?} is not bound yet")]
    Unbound(String),
    #[error("persistentvolumeclaim {0:?} is being deleted")]
    Deleted(String),
    #[error("persistentvolume {volume:?} of claim {claim:?} not found")]
    NoVolume { claim: String, volume: String },
    #[error("persistentvolume {volume:?} is bound to another claim than {claim:?}")]
    OfAnother { claim: String, volume: String },
    #[error(
        "claim {claim:?} has volumeMode Block: block devices belong to the node's administrator; leave volumeMode out, or write Filesystem"
    )]
    Block { claim: String },
    #[error(
        "persistentvolume {volume:?} is of kind {kind}, which is not supported by HPK: use storage class hpk-home, or a volume of kind hostPath, local or nfs"
    )]
    Kind { volume: String, kind: String },
    #[error("persistentvolume {volume:?}: {cause}")]
    Nfs { volume: String, cause: nfs::NfsError },
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    InUse,
}

pub(super) fn plan(wanted: &ClaimUse, ground: Ground<'_>, binds: &mut Vec<HostBind>) -> Result<VolumePlan, ClaimError> {
    let name = || wanted.name.clone();
    let found = ground.sources.claims.get(&wanted.name).ok_or_else(|| ClaimError::Missing(name()))?;
    if wanted.ephemeral && !is_owner(ground.pod, &found.claim) {
        return Err(ClaimError::NotOurs(name()));
    }
    let spec = found.claim.spec.clone().unwrap_or_default();
    let Some(volume) = spec.volume_name.filter(|name| !name.is_empty()) else {
        return Err(ClaimError::Unbound(name()));
    };
    if found.claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err(ClaimError::Unbound(name()));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(ClaimError::Block { claim: name() });
    }
    let Some(of) = found.volume.as_ref().and_then(|v| v.spec.as_ref()) else {
        return Err(ClaimError::NoVolume { claim: name(), volume });
    };
    let holder = of.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
    if holder.is_none() || holder != found.claim.metadata.uid.as_deref() {
        return Err(ClaimError::OfAnother { claim: name(), volume });
    }
    binds.push(bind(&volume, of, ground.mounts)?);
    let read_only = wanted.read_only || of.nfs.as_ref().is_some_and(|n| n.read_only == Some(true));
    // Data that were there before belong to whom they belong: as upstream, hostPath and nfs are left alone.
    let managed = of.local.is_some() || is_provisioned(found.volume.as_ref());
    let group = group_change(ground.pod).filter(|_| managed && !read_only);
    Ok(VolumePlan::Host { index: binds.len() - 1, read_only, group, claim: Some(name()) })
}

/// Where a PersistentVolume is on a node.
fn bind(name: &str, spec: &PersistentVolumeSpec, mounts: &str) -> Result<HostBind, ClaimError> {
    let folder = |source: String, kind: &str| Ok(HostBind { source, kind: kind.to_owned() });
    if let Some(host) = &spec.host_path {
        folder(host.path.clone(), host.type_.as_deref().unwrap_or_default())
    } else if let Some(local) = &spec.local {
        folder(local.path.clone(), "Directory")
    } else if let Some(source) = &spec.nfs {
        let found = nfs::find(mounts, &source.server, &source.path);
        let path = found.map_err(|cause| ClaimError::Nfs { volume: name.to_owned(), cause })?;
        folder(path, "Directory")
    } else {
        Err(ClaimError::Kind { volume: name.to_owned(), kind: kind(spec) })
    }
}

/// Whether its folder was made for the claim by our provisioner.
fn is_provisioned(volume: Option<&PersistentVolume>) -> bool {
    let annotations = volume.and_then(|v| v.metadata.annotations.as_ref());
    annotations.and_then(|a| a.get(ANNOTATION_BY)).is_some_and(|by| by == PROVISIONER)
}

/// What fsGroup asks for; None: nothing.
fn group_change(pod: &Pod) -> Option<GroupChange> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group?;
    Some(match context.fs_group_change_policy.as_deref() {
        Some("OnRootMismatch") => GroupChange::OnRootMismatch,
        _ => GroupChange::Always,
    })
}

fn is_owner(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.filter(|o| o.controller == Some(true)).any(|o| Some(&o.uid) == pod.metadata.uid.as_ref())
}

/// The name of a volume's source, as the API has it.
fn kind(spec: &PersistentVolumeSpec) -> String {
    const COMMON: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let object = serde_json::to_value(spec).unwrap_or_default();
    let mut keys = object.as_object().into_iter().flatten().map(|(key, _)| key.clone());
    keys.find(|key| !COMMON.contains(&key.as_str())).unwrap_or_else(|| "(source)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::downward::Facts;
    use crate::render::sources::FoundClaim;
    use crate::render::sources::Sources;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const MOUNTS: &str = "36 35 0:40 / /data rw shared:1 - nfs4 filer:/export/data rw,vers=4.2\n";

    fn planned(claim: Value, volume: Value, pod: Value) -> Result<(VolumePlan, HostBind), ClaimError> {
        let pod: Pod = serde_json::from_value(pod).expect("pod");
        let found = FoundClaim {
            claim: serde_json::from_value(claim).expect("claim"),
            volume: serde_json::from_value(volume).expect("volume"),
        };
        let sources = Sources { claims: [("c".to_owned(), found)].into(), ..Sources::default() };
        let (facts, images) = (Facts::default(), BTreeMap::new());
        let ground =
            Ground { pod: &pod, user: None, sources: &sources, facts: &facts, images: &images, mounts: MOUNTS };
        let mut binds = Vec::new();
        let wanted = ClaimUse { name: "c".into(), read_only: false, ephemeral: false };
        let plan = plan(&wanted, ground, &mut binds)?;
        Ok((plan, binds.remove(0)))
    }

    fn claim(volume: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "c", "uid": "u"}, "spec": {"volumeName": volume}, "status": {"phase": phase}})
    }

    fn volume(spec: Value) -> Value {
        let mut spec = spec;
        spec["claimRef"] = json!({"uid": "u"});
        json!({"metadata": {"name": "v"}, "spec": spec})
    }

    #[test]
    fn a_bound_claim_is_a_bind_of_its_folder() {
        for (spec, source, kind) in [
            (json!({"hostPath": {"path": "/x", "type": "Directory"}}), "/x", "Directory"),
            (json!({"local": {"path": "/y"}}), "/y", "Directory"),
            (json!({"nfs": {"server": "filer", "path": "/export/data/mine"}}), "/data/mine", "Directory"),
        ] {
            let (plan, bind) = planned(claim("v", "Bound"), volume(spec), json!({"spec": null})).expect("a plan");
            let claim = Some("c".to_owned());
            assert_eq!(plan, VolumePlan::Host { index: 0, read_only: false, group: None, claim });
            assert_eq!(bind, HostBind { source: source.into(), kind: kind.into() });
        }
        let pod = json!({"spec": {"containers": [],
            "securityContext": {"fsGroup": 7, "fsGroupChangePolicy": "OnRootMismatch"}}});
        let group = |volume: Value| {
            let (plan, _) = planned(claim("v", "Bound"), volume, pod.clone()).expect("a plan");
            let VolumePlan::Host { group, .. } = plan else { panic!("{plan:?}") };
            group
        };
        let mut ours = volume(json!({"hostPath": {"path": "/x"}}));
        assert_eq!(group(ours.clone()), None, "somebody's data");
        ours["metadata"]["annotations"] = json!({ANNOTATION_BY: PROVISIONER});
        assert_eq!(group(ours), Some(GroupChange::OnRootMismatch));
        assert_eq!(group(volume(json!({"local": {"path": "/y"}}))), Some(GroupChange::OnRootMismatch));
    }

    #[test]
    fn what_cannot_be_mounted_is_said() {
        let none = || json!({"spec": null});
        let path = || volume(json!({"hostPath": {"path": "/x"}}));
        let of = |claim, volume| planned(claim, volume, none()).expect_err("an error").to_string();
        assert!(of(claim("", "Pending"), Value::Null).contains("not bound"));
        assert!(of(claim("v", "Lost"), Value::Null).contains("not bound"));
        assert!(of(claim("v", "Bound"), Value::Null).contains("\"v\" of claim \"c\" not found"));
        let mut other = path();
        other["spec"]["claimRef"]["uid"] = "w".into();
        assert!(of(claim("v", "Bound"), other).contains("another claim"));
        let mut block = claim("v", "Bound");
        block["spec"]["volumeMode"] = "Block".into();
        assert!(of(block, path()).contains("volumeMode Block"));
        let csi = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}, "accessModes": ["ReadWriteOnce"]}));
        assert!(of(claim("v", "Bound"), csi).contains("kind csi"));
        let nfs = volume(json!({"nfs": {"server": "other", "path": "/export"}}));
        assert!(of(claim("v", "Bound"), nfs).contains("other:/export"));
    }
}
