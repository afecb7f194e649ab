//! emptyDir: a folder with the pod's life, on the node's disk or in its memory; in the pod's folder on the shared file system
//! where an MPI step on several nodes shares it with other containers.

use super::Tell;
use crate::quantity;
use hpk_api::plan::{SandboxPlan, VolumePlan};
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use std::collections::BTreeSet;

pub(super) fn plan(source: &EmptyDirVolumeSource) -> VolumePlan {
    VolumePlan::EmptyDir {
        memory: source.medium.as_deref() == Some("Memory"),
        shared: false,
        size_limit: source.size_limit.as_ref().map(quantity::value_of).filter(|n| *n > 0),
    }
}

/// An emptyDir is shared by a pod's containers, wherever they run. The ranks of an MPI step run on all nodes of the job, so one
/// that they have in common with another container lies where all nodes see it. One of the step's alone stays on each
/// node's disk, which is faster; memory is a node's own.
pub(crate) fn share_with_ranks(plan: &mut SandboxPlan) {
    let mounts = |is_step: bool| -> BTreeSet<String> {
        let containers = plan.all().filter(|container| container.step.is_some() == is_step);
        containers.flat_map(|container| &container.mounts).map(|mount| mount.volume.clone()).collect()
    };
    let in_common: Vec<String> = mounts(true).intersection(&mounts(false)).cloned().collect();
    for volume in in_common {
        if let Some(VolumePlan::EmptyDir { memory: false, shared, .. }) = plan.volumes.get_mut(&volume) {
            *shared = true;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_ranks_have_in_common_with_others_is_shared() {
        let container = |name: &str, volumes: &[&str], step: bool| {
            let mounts: Vec<_> = volumes.iter().map(|v| json!({"volume": v, "path": format!("/{v}")})).collect();
            let mut container = json!({"name": name, "image": "i", "argv": ["x"], "mounts": mounts,
                "image_ref": {"folder": "f", "id": "i"}, "restart_policy": null});
            if step {
                container["step"] = json!({"flags": [], "root": false});
            }
            container
        };
        let plan = |step: bool| -> SandboxPlan {
            let empty = |memory: bool| json!({"kind": "empty_dir", "memory": memory});
            serde_json::from_value(json!({
                "version": hpk_api::VERSION, "pod": {"namespace": "n", "name": "p", "uid": "u"}, "hostname": "p",
                "restart_policy": "Never", "termination_grace_period_seconds": 1, "network": {"mode": "overlay"},
                "volumes": {"input": empty(false), "own": empty(false), "sidecars": empty(false), "fast": empty(true),
                    "config": {"kind": "kubelet", "folder": "config"}},
                "init_containers": [container("fetch", &["input", "fast", "config"], false)],
                "containers": [container("main", &["input", "own", "fast", "config"], step),
                    container("log", &["sidecars"], false)],
            }))
            .unwrap()
        };
        let shared = |mut plan: SandboxPlan| -> Vec<String> {
            share_with_ranks(&mut plan);
            let is = |v: &VolumePlan| matches!(v, VolumePlan::EmptyDir { shared: true, .. });
            plan.volumes.into_iter().filter(|(_, v)| is(v)).map(|(name, _)| name).collect()
        };
        assert_eq!(shared(plan(true)), ["input"]);
        assert_eq!(shared(plan(false)), Vec::<String>::new(), "no pod of ranks");
    }
}
