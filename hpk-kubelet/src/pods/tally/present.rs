//! Gauges about the pods that there are now, under the names of upstream's kubelet.

use super::statuses::all;
use crate::pods::phase;
use hpk_server::prometheus::Family;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use std::collections::BTreeMap;

/// The gauges of these pods.
#[must_use]
pub(crate) fn present<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<Family> {
    let (mut desired, mut active, mut ephemeral) = (0_u64, 0_u64, 0_u64);
    let mut states = BTreeMap::from([("created", 0_u64), ("exited", 0), ("running", 0), ("unknown", 0)]);
    for pod in pods {
        desired += 1;
        let status = pod.status.as_ref();
        active += u64::from(!phase::is_terminal(status.and_then(|s| s.phase.as_deref())));
        ephemeral += pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).count() as u64;
        for state in status.into_iter().flat_map(all).filter_map(|c| c.state.as_ref()) {
            let name = match state {
                ContainerState { running: Some(_), .. } => "running",
                ContainerState { terminated: Some(_), .. } => "exited",
                _ => continue,
            };
            *states.entry(name).or_default() += 1;
        }
    }
    let by_source = |name, help, value: u64| {
        let mut family = Family::gauge(name, help);
        family.sample(&[("static", "")], value);
        family
    };
    let mut running = Family::gauge("kubelet_running_containers", "[ALPHA] Number of containers currently running");
    states.iter().for_each(|(state, count)| running.sample(&[("container_state", state)], count));
    let mut managed = Family::gauge(
        "kubelet_managed_ephemeral_containers",
        "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.",
    );
    managed.sample(&[], ephemeral);
    vec![
        running,
        by_source(
            "kubelet_desired_pods",
            "[ALPHA] The number of pods the kubelet is being instructed to run.",
            desired,
        ),
        by_source("kubelet_active_pods", "[ALPHA] The number of pods the kubelet considers active.", active),
        managed,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_server::prometheus;
    use serde_json::{Value, json};

    #[test]
    fn gauges_tell_of_the_pods_of_now() {
        let pod = |spec: Value, phase: &str, state: Value| -> Pod {
            let containers =
                json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
            let status = json!({"phase": phase, "containerStatuses": containers});
            serde_json::from_value(json!({"spec": spec, "status": status})).expect("a pod")
        };
        let with_ephemeral = json!({"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]});
        let a = pod(with_ephemeral, "Running", json!({"running": {}}));
        let b = pod(json!({"containers": [{"name": "c"}]}), "Succeeded", json!({"terminated": {"exitCode": 0}}));
        let text = prometheus::text(present([&a, &b].into_iter()));
        for line in [
            r#"kubelet_running_containers{container_state="running"} 1"#,
            r#"kubelet_running_containers{container_state="exited"} 1"#,
            r#"kubelet_desired_pods{static=""} 2"#,
            r#"kubelet_active_pods{static=""} 1"#,
            "kubelet_managed_ephemeral_containers 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }
}
