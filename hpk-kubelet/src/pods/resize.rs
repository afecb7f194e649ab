//! Resizing a pod that was submitted: the size of a run that has begun is not changed. So the pod keeps what it was begun with, and
//! its status says so, as upstream's kubelet says of a resize that its node can never carry out. The job of a pod that waits
//! is given another size ([`crate::controller`]).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use std::collections::BTreeMap;

/// Condition and event of upstream's.
pub(crate) const PENDING: &str = "PodResizePending";
/// Reason of the condition.
pub(crate) const INFEASIBLE: &str = "Infeasible";
/// Reason of the event.
pub(crate) const EVENT: &str = "ResizeInfeasible";

/// Reason of the event that it is done.
pub(crate) const DONE: &str = "ResizeCompleted";

/// What each container was begun with.
pub(crate) type Granted = BTreeMap<String, ResourceRequirements>;

/// What a pod's containers ask for now.
#[must_use]
pub(crate) fn asked(pod: &Pod) -> Granted {
    let all = pod.spec.iter().flat_map(containers);
    all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The resize that is asked for and cannot be had, for people; None: each container asks for what it was begun with.
#[must_use]
pub(crate) fn infeasible(pod: &Pod, granted: &Granted) -> Option<String> {
    let names: Vec<String> = asked(pod)
        .into_iter()
        .filter(|(name, asked)| {
            granted.get(name).is_some_and(|had| (&had.requests, &had.limits) != (&asked.requests, &asked.limits))
        })
        .map(|(name, _)| name)
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "containers {}: a pod keeps the size that it was submitted with; delete the pod and make it anew with other resources",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}, {"name": "b"}],
        }}))
        .expect("pod")
    }

    #[test]
    fn only_what_was_asked_for_otherwise_is_a_resize() {
        let granted = asked(&pod("1"));
        assert_eq!(granted.len(), 3);
        assert_eq!(infeasible(&pod("1"), &granted), None);
        let message = infeasible(&pod("2"), &granted).expect("a resize");
        assert!(message.starts_with("containers a: a pod keeps"), "{message}");
        // A kubelet of another version wrote nothing of it.
        assert_eq!(infeasible(&pod("2"), &Granted::new()), None);
    }
}
