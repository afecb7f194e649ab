//! Which gang a pod says it belongs to: by `spec.schedulingGroup` (a PodGroup), or by the annotation `slurm-job.hpk.io/gang`
//! together with the labels of Job, JobSet and LeaderWorkerSet.

use hpk_api::pod_flags::{GANG, MPI_FLAGS};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// Names one gang.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub namespace: String,
    /// `PodGroup`, `JobSet`, …
    pub kind: &'static str,
    /// Of the object; with a part that tells its gangs apart, where it has several.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// How many pods must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// The PodGroup says it: [`Policy`].
    OfPodGroup,
    /// The annotation, or a label, says it.
    Pods(u32),
}

/// What a pod says of its gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub key: Key,
    pub size: Size,
}

/// An annotation that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    #[error("annotation {GANG}: {0:?}: write how many pods the gang has, such as \"4\"")]
    Value(String),
    #[error(
        "annotation {GANG}: true: only a LeaderWorkerSet says how many pods that is; write the number, such as \"4\""
    )]
    NoSize,
    #[error(
        "annotation {GANG}: the pod is none of a Job's, a JobSet's or a LeaderWorkerSet's; put it into a PodGroup by spec.schedulingGroup"
    )]
    NoGroup,
    #[error(
        "annotation {MPI_FLAGS} in a gang: the pod would be an MPI step of its own job; leave out the gang, or the MPI flags"
    )]
    Mpi,
}

const JOB: &str = "batch.kubernetes.io/job-name";
const JOB_UID: &str = "batch.kubernetes.io/controller-uid";
const JOBSET: &str = "jobset.sigs.k8s.io/jobset-name";
const JOBSET_UID: &str = "jobset.sigs.k8s.io/jobset-uid";
const JOBSET_ATTEMPT: &str = "jobset.sigs.k8s.io/restart-attempt";
const LWS: &str = "leaderworkerset.sigs.k8s.io/name";
const LWS_GROUP: &str = "leaderworkerset.sigs.k8s.io/group-index";
const LWS_SIZE: &str = "leaderworkerset.sigs.k8s.io/size";

/// The gang of a pod; None: it begins by itself.
///
/// # Errors
/// It says something that cannot be followed.
pub(crate) fn of(pod: &Pod) -> Result<Option<Claim>, ClaimError> {
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let group = pod.spec.as_ref().and_then(|s| s.scheduling_group.as_ref()?.pod_group_name.clone());
    let Some((kind, name, size)) = (match (group, annotations.get(GANG)) {
        (Some(name), _) => Some(("PodGroup", name, Size::OfPodGroup)),
        (None, None) => None,
        (None, Some(value)) => labelled(pod, annotations, value)?,
    }) else {
        return Ok(None);
    };
    if annotations.contains_key(MPI_FLAGS) {
        return Err(ClaimError::Mpi);
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    Ok(Some(Claim { key: Key { namespace, kind, name }, size }))
}

type Labelled = (&'static str, String, Size);

fn labelled(pod: &Pod, annotations: &BTreeMap<String, String>, value: &str) -> Result<Option<Labelled>, ClaimError> {
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    // JobSet and LeaderWorkerSet write some of them as annotations.
    let said = |key: &str| labels.get(key).or_else(|| annotations.get(key)).cloned();
    let told = match value {
        "false" | "" => return Ok(None),
        "true" => None,
        number => Some(number.parse().ok().filter(|n| *n > 0).ok_or_else(|| ClaimError::Value(number.to_owned()))?),
    };
    let joined = |parts: [Option<String>; 3]| parts.into_iter().flatten().collect::<Vec<_>>().join("/");
    let (kind, name, known) = if let Some(name) = said(JOBSET) {
        // Each attempt is a gang of its own: the pods of the last one are on their way out.
        ("JobSet", joined([Some(name), said(JOBSET_UID), said(JOBSET_ATTEMPT)]), None)
    } else if let Some(name) = said(LWS) {
        ("LeaderWorkerSet", joined([Some(name), said(LWS_GROUP), None]), said(LWS_SIZE).and_then(|n| n.parse().ok()))
    } else if let Some(name) = said(JOB) {
        ("Job", joined([Some(name), said(JOB_UID), None]), None)
    } else {
        return Err(ClaimError::NoGroup);
    };
    let pods = told.or(known).ok_or(ClaimError::NoSize)?;
    Ok(Some((kind, name, Size::Pods(pods))))
}

/// What a PodGroup asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// `gang.minCount`; None: its policy is `basic`, and its pods begin one by one.
    pub min_count: Option<u32>,
    /// `disruptionMode.all`: what takes one member takes all.
    pub all: bool,
}

/// Reads a PodGroup.
#[must_use]
pub(crate) fn policy(group: &PodGroup) -> Policy {
    let gang = group.spec.scheduling_policy.gang.as_ref();
    Policy {
        min_count: gang.map(|gang| u32::try_from(gang.min_count).unwrap_or(1).max(1)),
        all: group.spec.disruption_mode.as_ref().is_some_and(|mode| mode.all.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(labels: Value, annotations: Value, spec: Value) -> Pod {
        let metadata = json!({"namespace": "ns", "name": "p", "labels": labels, "annotations": annotations});
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn which_gang() {
        let job = json!({JOB: "j", JOB_UID: "1"});
        let jobset = json!({JOB: "j", JOBSET: "s", JOBSET_ATTEMPT: "2"});
        let lws = json!({LWS: "l", LWS_GROUP: "3"});
        let group = json!({"schedulingGroup": {"podGroupName": "g"}});
        let claim = |kind, name: &str, size| {
            Ok(Some(Claim { key: Key { namespace: "ns".into(), kind, name: name.into() }, size }))
        };
        for (labels, annotations, spec, want) in [
            (json!({}), json!({}), json!({}), Ok(None)),
            (job.clone(), json!({}), json!({}), Ok(None)),
            (job.clone(), json!({GANG: "false"}), json!({}), Ok(None)),
            (json!({}), json!({}), group.clone(), claim("PodGroup", "g", Size::OfPodGroup)),
            (job.clone(), json!({GANG: "4"}), group.clone(), claim("PodGroup", "g", Size::OfPodGroup)),
            (job.clone(), json!({GANG: "4"}), json!({}), claim("Job", "j/1", Size::Pods(4))),
            (jobset, json!({GANG: "6"}), json!({}), claim("JobSet", "s/2", Size::Pods(6))),
            (
                lws.clone(),
                json!({GANG: "true", LWS_SIZE: "5"}),
                json!({}),
                claim("LeaderWorkerSet", "l/3", Size::Pods(5)),
            ),
            (lws, json!({GANG: "true"}), json!({}), Err(ClaimError::NoSize)),
            (job.clone(), json!({GANG: "true"}), json!({}), Err(ClaimError::NoSize)),
            (job.clone(), json!({GANG: "0"}), json!({}), Err(ClaimError::Value("0".into()))),
            (job.clone(), json!({GANG: "4", MPI_FLAGS: ""}), json!({}), Err(ClaimError::Mpi)),
            (json!({}), json!({MPI_FLAGS: ""}), group, Err(ClaimError::Mpi)),
            (json!({}), json!({GANG: "4"}), json!({}), Err(ClaimError::NoGroup)),
        ] {
            assert_eq!(of(&pod(labels.clone(), annotations.clone(), spec)), want, "{labels} {annotations}");
        }
    }

    #[test]
    fn policies() {
        let group = |spec: Value| policy(&serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap());
        assert_eq!(group(json!({"schedulingPolicy": {"basic": {}}})), Policy { min_count: None, all: false });
        assert_eq!(
            group(json!({"schedulingPolicy": {"gang": {"minCount": 3}}, "disruptionMode": {"all": {}}})),
            Policy { min_count: Some(3), all: true }
        );
    }
}
