//! How many outposts in the pods' network a pod may have: one for each node of its job where processes of it are in the node's
//! own network ([`hpk_api::net::NetworkPlan::outposts`]). Pure.

use super::step;
use crate::executor::slurm::flags;

use hpk_api::net::NetworkMode;
use hpk_api::pod_flags::PodFlags;
use k8s_openapi::api::core::v1::Pod;

/// Nodes of one job that are given addresses at most: ranks on further ones reach what their node does.
const MOST: usize = 256;

/// For which nodes of its job, by their numbers, the pod is to have addresses. `mode`: the cluster's.
#[must_use]
pub(crate) fn wanted(pod: &Pod, mode: NetworkMode, policy: PodFlags) -> Vec<bool> {
    if mode != NetworkMode::Overlay {
        return Vec::new();
    }
    let host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let nodes = if step::container(pod).is_some() { nodes(pod, policy) } else { 1 };
    // A pod with a network of its own needs no other on its first node.
    let wanted: Vec<bool> = (0..nodes).map(|node| node > 0 || host).collect();
    if wanted.contains(&true) { wanted } else { Vec::new() }
}

/// The most nodes that the job of a step may get.
fn nodes(pod: &Pod, policy: PodFlags) -> usize {
    let annotations = pod.metadata.annotations.as_ref();
    // What is wrong with them is told elsewhere.
    let job = flags::of_job(annotations, policy).unwrap_or_default();
    let number = |name: &str| flags::value(&job, name).and_then(most);
    let tasks = number("ntasks").unwrap_or(1).max(1);
    let apart = number("ntasks-per-node").filter(|each| *each > 0).map(|each| tasks.div_ceil(each));
    number("nodes").or(apart).unwrap_or(tasks).clamp(1, MOST)
}

/// The largest number of `4`, `2-4`, `1,3,5`.
fn most(text: &str) -> Option<usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::pod_flags::{FLAGS, MPI_FLAGS};
    use serde_json::json;

    #[test]
    fn one_for_each_node_where_somebody_needs_it() {
        for (flags, step, host, expected) in [
            (None, false, false, vec![]),
            (None, false, true, vec![true]),
            (Some("--nodes=4"), false, true, vec![true]),
            (None, true, false, vec![]),
            (Some("--ntasks=2"), true, false, vec![false, true]),
            (Some("--ntasks=8 --nodes=2"), true, false, vec![false, true]),
            (Some("--ntasks=8 --nodes=1-3"), true, false, vec![false, true, true]),
            (Some("-n 8 --ntasks-per-node=3"), true, false, vec![false, true, true]),
            (Some("--nodes=2"), true, true, vec![true, true]),
        ] {
            let mut pod =
                json!({"metadata": {"annotations": {}}, "spec": {"hostNetwork": host, "containers": [{"name": "a"}]}});
            if let Some(flags) = flags {
                pod["metadata"]["annotations"][FLAGS] = json!(flags);
            }
            if step {
                pod["metadata"]["annotations"][MPI_FLAGS] = json!("");
            }
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let of = |mode| wanted(&pod, mode, PodFlags::default());
            assert_eq!(of(NetworkMode::Overlay), expected, "{flags:?} {step} {host}");
            assert_eq!(of(NetworkMode::Cni), Vec::<bool>::new());
        }
        let many = json!({"metadata": {"annotations": {FLAGS: "--ntasks=100000", MPI_FLAGS: ""}}, "spec": {"containers": [{"name": "a"}]}});
        let many: Pod = serde_json::from_value(many).expect("a pod");
        assert_eq!(wanted(&many, NetworkMode::Overlay, PodFlags::default()).len(), MOST);
    }
}
