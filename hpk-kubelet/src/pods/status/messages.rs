//! Termination messages of a pod share a limit, so that its status fits the API server (upstream's normalizeStatus).

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodSpec};

/// Bytes of all containers' messages together (upstream's MaxPodTerminationMessageLogLength).
const PER_POD: usize = 12 << 10;

/// Cuts each message to its container's share.
pub(super) fn cut(spec: &PodSpec, statuses: &mut [ContainerStatus]) {
    let ephemeral = spec.ephemeral_containers.as_ref().map_or(0, Vec::len);
    let containers = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len) + ephemeral;
    let share = PER_POD / containers.max(1);
    for status in statuses {
        for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
            shorten(state, share);
        }
    }
}

fn shorten(state: &mut ContainerState, share: usize) {
    if let Some(message) = state.terminated.as_mut().and_then(|t| t.message.as_mut()) {
        message.truncate(message.floor_char_boundary(share));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_share_twelve_kibibytes() {
        for (containers, init, length, left) in
            [(1, 0, 4096, 4096), (3, 0, 4096, 4096), (4, 0, 4096, 3072), (6, 6, 4096, 1024), (6, 6, 1000, 1000)]
        {
            let many = |n: usize| (0..n).map(|i| json!({"name": format!("c{i}")})).collect::<Vec<_>>();
            let spec: PodSpec =
                serde_json::from_value(json!({"containers": many(containers), "initContainers": many(init)})).unwrap();
            let ended = json!({"terminated": {"exitCode": 1, "message": "m".repeat(length)}});
            let status = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": ended, "lastState": ended});
            let mut statuses = vec![serde_json::from_value::<ContainerStatus>(status).unwrap()];
            cut(&spec, &mut statuses);
            let of = |state: &Option<ContainerState>| {
                state.as_ref().and_then(|s| s.terminated.as_ref()?.message.as_ref().map(String::len))
            };
            assert_eq!((of(&statuses[0].state), of(&statuses[0].last_state)), (Some(left), Some(left)));
        }
    }

    #[test]
    fn a_character_is_not_torn() {
        let mut state: ContainerState =
            serde_json::from_value(json!({"terminated": {"exitCode": 1, "message": "aä"}})).unwrap();
        shorten(&mut state, 2);
        assert_eq!(state.terminated.unwrap().message.as_deref(), Some("a"));
    }
}
