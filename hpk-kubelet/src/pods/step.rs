//! Pods whose container is an MPI step: which container, and what of such a pod cannot be carried out. Pure.

use crate::volumes::Tell;
use hpk_api::pod_flags::{MPI_CONTAINER, MPI_FLAGS, MPI_USER};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};

/// What kubectl takes for the pod's main container; who makes pods with helpers of its own in front of it says so here, as Argo
/// Workflows does.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The container that is a step, of a pod with flags of srun (none is a value, too): the one that is named, or kubectl's default
/// container, or the first.
#[must_use]
pub(crate) fn container(pod: &Pod) -> Option<&Container> {
    annotation(pod, MPI_FLAGS)?;
    let containers = &pod.spec.as_ref()?.containers;
    let named = |name: &str| containers.iter().find(|container| container.name == name);
    match annotation(pod, MPI_CONTAINER) {
        Some(name) => named(name),
        // A name that no container has means the first one to kubectl, too.
        None => annotation(pod, DEFAULT_CONTAINER).and_then(named).or_else(|| containers.first()),
    }
}

/// Whether the ranks are to be uid 0. Err: the annotation says something else.
///
/// # Errors
/// Its value.
pub(crate) fn root(pod: &Pod) -> Result<bool, &str> {
    match annotation(pod, MPI_USER) {
        None | Some("user") => Ok(false),
        Some("root") => Ok(true),
        Some(other) => Err(other),
    }
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Tells what of the pod is not carried out because of its step.
pub(super) fn unsupported(pod: &Pod, tell: &mut Tell<'_>) {
    let of = |key: &str| format!("metadata.annotations[{key}]");
    if annotation(pod, MPI_CONTAINER).is_some() && annotation(pod, MPI_FLAGS).is_none() {
        tell(
            false,
            of(MPI_CONTAINER),
            "an MPI step needs the annotation slurm-job.hpk.io/mpi-flags, whose value may be empty",
        );
    }
    if annotation(pod, MPI_FLAGS).is_none() {
        return;
    }
    let Some(container) = container(pod) else {
        tell(true, of(MPI_CONTAINER), "name one of spec.containers");
        return;
    };
    let as_root = root(pod);
    if as_root.is_err() {
        tell(true, of(MPI_USER), "write user or root, or leave it out");
    }
    let field = |name: &str| format!("spec.containers[{}].{name}", container.name);
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.run_as_user);
    if as_root == Ok(false) && own.or(pods).is_some() {
        let remedy = "the ranks of an MPI step have your own uid, by which PMIx knows them; the annotation slurm-job.hpk.io/mpi-user: root changes it";
        tell(false, field("securityContext.runAsUser"), remedy);
    }
    if container.stdin == Some(true) {
        tell(false, field("stdin"), "the ranks of an MPI step read nothing; give them a file");
    }
    if container.tty == Some(true) {
        tell(false, field("tty"), "the ranks of an MPI step have no terminal; kubectl exec -it has one");
    }
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let by_network = |probe: &Option<Probe>| probe.as_ref().is_some_and(|probe| probe.exec.is_none());
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        if by_network(probe) && !host_network {
            let remedy = "the ranks of an MPI step are in the node's network, where such a probe does not look; use exec, or hostNetwork: true";
            tell(true, field(name), remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(annotations: Value, first: Value) -> Pod {
        let mut first = first;
        first["name"] = json!("a");
        let spec = json!({"containers": [first, {"name": "b"}]});
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).expect("pod")
    }

    #[test]
    fn which_container() {
        for (annotations, name) in [
            (json!({}), None),
            (json!({MPI_CONTAINER: "b"}), None),
            (json!({MPI_FLAGS: ""}), Some("a")),
            (json!({MPI_FLAGS: "--mpi=pmi2", MPI_CONTAINER: "b"}), Some("b")),
            (json!({MPI_FLAGS: "", MPI_CONTAINER: "c"}), None),
            (json!({MPI_FLAGS: "", DEFAULT_CONTAINER: "b"}), Some("b")),
            (json!({MPI_FLAGS: "", DEFAULT_CONTAINER: "c"}), Some("a")),
            (json!({MPI_FLAGS: "", DEFAULT_CONTAINER: "b", MPI_CONTAINER: "a"}), Some("a")),
            (json!({DEFAULT_CONTAINER: "b"}), None),
        ] {
            let pod = pod(annotations.clone(), json!({}));
            assert_eq!(container(&pod).map(|c| c.name.as_str()), name, "{annotations}");
        }
    }

    #[test]
    fn what_has_no_effect_is_told() {
        for (annotations, first, told) in [
            (json!({}), json!({"tty": true}), vec![]),
            (json!({MPI_CONTAINER: "b"}), json!({}), vec![(MPI_CONTAINER, false)]),
            (json!({MPI_FLAGS: "", MPI_CONTAINER: "c"}), json!({}), vec![(MPI_CONTAINER, true)]),
            (json!({MPI_FLAGS: ""}), json!({"tty": true, "stdin": true}), vec![("stdin", false), ("tty", false)]),
            (json!({MPI_FLAGS: "", MPI_USER: "alice"}), json!({}), vec![(MPI_USER, true)]),
            (
                json!({MPI_FLAGS: ""}),
                json!({"securityContext": {"runAsUser": 7}}),
                vec![("securityContext.runAsUser", false)],
            ),
            (json!({MPI_FLAGS: "", MPI_USER: "root"}), json!({"securityContext": {"runAsUser": 7}}), vec![]),
            (json!({MPI_FLAGS: ""}), json!({"readinessProbe": {"exec": {"command": ["true"]}}}), vec![]),
            (
                json!({MPI_FLAGS: ""}),
                json!({"livenessProbe": {"tcpSocket": {"port": 1}}}),
                vec![("livenessProbe", true)],
            ),
        ] {
            let mut list = Vec::new();
            unsupported(&pod(annotations.clone(), first), &mut |fatal, field, _| list.push((field, fatal)));
            assert_eq!(list.len(), told.len(), "{annotations} {list:?}");
            for (item, (field, fatal)) in list.iter().zip(told) {
                assert!(item.0.contains(field) && item.1 == fatal, "{item:?}");
            }
        }
    }
}
