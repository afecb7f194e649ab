//! emptyDir: a folder with the pod's life, on the node's disk or in its memory.

use super::Tell;
use crate::quantity;
use hpk_api::plan::VolumePlan;
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

pub(super) fn plan(source: &EmptyDirVolumeSource) -> VolumePlan {
    VolumePlan::EmptyDir {
        memory: source.medium.as_deref() == Some("Memory"),
        size_limit: source.size_limit.as_ref().map(quantity::value_of).filter(|n| *n > 0),
    }
}

pub(super) fn unsupported(source: &EmptyDirVolumeSource, field: &dyn Fn(&str) -> String, tell: &mut Tell<'_>) {
    if source.mode.is_some() {
        tell(false, field("emptyDir.mode"), "it is 0777; fsGroup sets its group");
    }
    if source.medium.as_deref().is_some_and(|medium| medium.starts_with("HugePages")) {
        tell(true, field("emptyDir.medium"), "use Memory or the node's disk");
    }
}
