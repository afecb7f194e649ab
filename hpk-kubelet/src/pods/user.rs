//! Whose the credentials in a pod's volumes are. Pure.

use super::step;
use k8s_openapi::api::core::v1::{Pod, SecurityContext};

/// The one `runAsUser` of all containers, as upstream's `FsUserFrom`. None: a container has none, or two differ. Then no one
/// user can own a file that all containers read. Nor in a pod with an MPI step, whose ranks have a user of their own.
pub(crate) fn of(pod: &Pod) -> Option<u32> {
    if step::container(pod).is_some() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let pods = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let user = |own: Option<&SecurityContext>| {
        own.and_then(|context| context.run_as_user).or(pods).and_then(|user| u32::try_from(user).ok())
    };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.security_context.as_ref());
    let added = spec.ephemeral_containers.iter().flatten().map(|c| c.security_context.as_ref());
    let mut users = containers.chain(added).map(user);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn one_user_of_all_containers_or_none() {
        let one = |user: i64| json!({"name": "c", "securityContext": {"runAsUser": user}});
        let plain = || json!({"name": "c"});
        let of = |outer: Value, init: Vec<Value>, containers: Vec<Value>| {
            let pod = json!({"spec": {"securityContext": outer, "initContainers": init, "containers": containers}});
            of(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(of(json!({}), vec![], vec![plain()]), None);
        assert_eq!(of(json!({"runAsUser": 7}), vec![plain()], vec![plain(), plain()]), Some(7));
        assert_eq!(of(json!({}), vec![one(7)], vec![one(7)]), Some(7));
        assert_eq!(of(json!({"runAsUser": 7}), vec![], vec![one(8)]), Some(8), "the container's own counts");
        assert_eq!(of(json!({"runAsUser": 0}), vec![], vec![plain()]), Some(0));
        assert_eq!(of(json!({}), vec![], vec![one(7), plain()]), None, "one says nothing");
        assert_eq!(of(json!({"runAsUser": 7}), vec![one(8)], vec![plain()]), None, "two differ");
        assert_eq!(of(json!({"runAsUser": -1}), vec![], vec![plain()]), None);
        let debug = json!({"spec": {"containers": [one(7)], "ephemeralContainers": [plain()]}});
        assert_eq!(super::of(&serde_json::from_value(debug).unwrap()), None, "one that was added");
        let step = json!({"metadata": {"annotations": {"slurm-job.hpk.io/mpi-flags": ""}},
            "spec": {"securityContext": {"runAsUser": 7}, "containers": [plain()]}});
        assert_eq!(super::of(&serde_json::from_value(step).unwrap()), None);
    }
}
