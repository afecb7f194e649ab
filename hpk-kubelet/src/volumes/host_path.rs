//! hostPath: a path of the compute node. Its type is checked there, before the pod starts.

use hpk_api::plan::{HostBind, VolumePlan};
use k8s_openapi::api::core::v1::HostPathVolumeSource;

pub(super) fn plan(source: &HostPathVolumeSource, binds: &mut Vec<HostBind>) -> VolumePlan {
    binds.push(HostBind { source: source.path.clone(), kind: source.type_.clone().unwrap_or_default() });
    VolumePlan::Host { index: binds.len() - 1, read_only: false, group: None, claim: None }
}
