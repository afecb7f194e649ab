//! The pod's phase, by upstream's rule (kubelet_pods.go `getPhase`), from its containers' statuses.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec};

/// Phases that never go back.
#[must_use]
pub(crate) fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the container is started again after this exit code: its own rules, its own policy, the pod's.
#[must_use]
pub(crate) fn should_restart(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    let by_policy = |policy: &str| match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    };
    let Some(own) = container.restart_policy.as_deref() else {
        return by_policy(spec.restart_policy.as_deref().unwrap_or("Always"));
    };
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.as_ref().is_some_and(|v| v.contains(&exit_code));
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && matches!(rule.action.as_str(), "Restart" | "RestartAllContainers") {
            return true;
        }
    }
    by_policy(own)
}

/// Native sidecar.
#[must_use]
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

#[derive(Default)]
struct Counts {
    pending_init: u32,
    pending_sidecar: u32,
    failed_init_for_good: u32,
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    stopped_for_good: u32,
    succeeded: u32,
}

/// The last exit of a container that does not run: of its state, or of the state before a wait.
fn exit(status: &ContainerStatus) -> Option<(i32, bool)> {
    let state = status.state.as_ref()?;
    let ended = if state.terminated.is_some() {
        state.terminated.as_ref()
    } else if state.waiting.is_some() {
        status.last_state.as_ref().and_then(|s| s.terminated.as_ref())
    } else {
        None
    };
    ended.map(|t| (t.exit_code, t.reason.as_deref() == Some("RestartingAllContainers")))
}

/// The supervisor is about to start it, whatever ended its last run: Slurm has put the job back into its queue, say.
fn is_due(status: &ContainerStatus, finished: bool) -> bool {
    !finished && status.state.as_ref().is_some_and(|s| s.waiting.is_some())
}

fn running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// Phase of a pod. `finished`: nothing will be started again. `initialized`: a regular container has run.
#[must_use]
pub(crate) fn phase(spec: &PodSpec, statuses: &[ContainerStatus], finished: bool, initialized: bool) -> &'static str {
    let find = |name: &str| statuses.iter().find(|s| s.name == name);
    let mut n = Counts::default();
    for container in spec.init_containers.iter().flatten() {
        let status = find(&container.name);
        if is_sidecar(container) {
            count_sidecar(&mut n, status);
            continue;
        }
        match status.and_then(exit) {
            Some((code, false))
                if status.is_some_and(|s| is_due(s, finished)) && !should_restart(container, spec, code) =>
            {
                n.pending_init += 1;
            }
            Some((0, _)) if status.is_some_and(|s| s.state.as_ref().is_some_and(|st| st.terminated.is_some())) => {}
            Some((code, restarting)) if code != 0 => {
                if !restarting && (finished || !should_restart(container, spec, code)) {
                    n.failed_init_for_good += 1;
                }
            }
            Some(_) => {}
            None => n.pending_init += 1,
        }
    }
    for container in &spec.containers {
        let Some(status) = find(&container.name) else {
            n.unknown += 1;
            continue;
        };
        if running(status) {
            n.running += 1;
        } else if let Some((code, restarting)) = exit(status) {
            let for_good = !restarting && !should_restart(container, spec, code);
            if for_good && is_due(status, finished) {
                n.waiting += 1;
                continue;
            }
            n.stopped += 1;
            n.stopped_for_good += u32::from(for_good);
            if code == 0 && status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
                n.succeeded += 1;
            }
        } else if status.state.as_ref().is_some_and(|s| s.waiting.is_some()) {
            n.waiting += 1;
        } else {
            n.unknown += 1;
        }
    }
    decide(&n, finished, initialized)
}

fn count_sidecar(n: &mut Counts, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        n.unknown += 1;
        return;
    };
    if running(status) {
        if status.started != Some(true) {
            n.pending_sidecar += 1;
        }
        n.running += 1;
    } else if exit(status).is_some() {
        // Ended sidecars do not count for the phase.
    } else if status.state.as_ref().is_some_and(|s| s.waiting.is_some()) {
        n.pending_sidecar += 1;
        n.waiting += 1;
    } else {
        n.pending_sidecar += 1;
        n.unknown += 1;
    }
}

fn decide(n: &Counts, finished: bool, initialized: bool) -> &'static str {
    if n.failed_init_for_good > 0 {
        return "Failed";
    }
    if finished && n.running == 0 {
        // Nothing starts any more: what never ran has failed.
        return if n.stopped > 0 && n.stopped == n.succeeded && n.waiting + n.unknown + n.pending_init == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if n.pending_init > 0 || (n.pending_sidecar > 0 && !initialized) || n.waiting > 0 {
        "Pending"
    } else if n.running > 0 && n.unknown == 0 {
        "Running"
    } else if n.running == 0 && n.stopped > 0 && n.unknown == 0 {
        if n.stopped != n.stopped_for_good {
            "Running"
        } else if n.stopped == n.succeeded {
            "Succeeded"
        } else {
            "Failed"
        }
    } else {
        "Pending"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(name: &str, text: &str) -> ContainerStatus {
        let state = match text {
            "run" | "run!" => json!({"running": {}}),
            "wait" => json!({"waiting": {"reason": "ContainerCreating"}}),
            "crash" => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            code => json!({"terminated": {"exitCode": code.parse::<i32>().expect("exit code")}}),
        };
        let last = if text == "crash" { json!({"terminated": {"exitCode": 1}}) } else { json!({}) };
        serde_json::from_value(json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "started": text == "run!", "state": state, "lastState": last}))
        .expect("status")
    }

    /// `i:` init, `s:` sidecar, else regular.
    fn of(policy: &str, containers: &[(&str, &str)], finished: bool) -> &'static str {
        let (mut init, mut main, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
        for (name, state) in containers {
            match name.split_once(':') {
                Some(("s", _)) => init.push(json!({"name": name, "restartPolicy": "Always"})),
                Some(_) => init.push(json!({"name": name})),
                None => main.push(json!({"name": name})),
            }
            statuses.push(status(name, state));
        }
        let spec: PodSpec =
            serde_json::from_value(json!({"restartPolicy": policy, "initContainers": init, "containers": main}))
                .expect("spec");
        phase(&spec, &statuses, finished, false)
    }

    #[test]
    fn upstream_table() {
        for (policy, containers, expected) in [
            ("Always", vec![("a", "run"), ("b", "run")], "Running"),
            ("Always", vec![("a", "0"), ("b", "1")], "Running"),
            ("Always", vec![("a", "run"), ("b", "crash")], "Running"),
            ("Always", vec![("a", "run"), ("b", "wait")], "Pending"),
            ("Never", vec![("a", "0"), ("b", "0")], "Succeeded"),
            ("Never", vec![("a", "0"), ("b", "1")], "Failed"),
            ("Never", vec![("a", "run"), ("b", "1")], "Running"),
            ("OnFailure", vec![("a", "0"), ("b", "0")], "Succeeded"),
            ("OnFailure", vec![("a", "0"), ("b", "1")], "Running"),
            ("OnFailure", vec![("a", "crash")], "Running"),
            ("Never", vec![("i:a", "1"), ("b", "wait")], "Failed"),
            ("OnFailure", vec![("i:a", "1"), ("b", "wait")], "Pending"),
            ("Always", vec![("i:a", "run"), ("b", "wait")], "Pending"),
            ("Always", vec![("i:a", "0"), ("b", "run")], "Running"),
            ("Always", vec![("s:a", "run"), ("b", "run")], "Pending"),
            ("Always", vec![("s:a", "run!"), ("b", "run")], "Running"),
            ("Never", vec![("s:a", "0"), ("b", "0")], "Succeeded"),
            ("Never", vec![("s:a", "run!"), ("b", "0")], "Running"),
            ("Never", vec![("s:a", "137"), ("b", "0")], "Succeeded"),
        ] {
            assert_eq!(of(policy, &containers, false), expected, "{policy} {containers:?}");
        }
    }

    #[test]
    fn finished_pods() {
        for (containers, expected) in [
            (vec![("a", "0")], "Succeeded"),
            (vec![("a", "143")], "Failed"),
            (vec![("a", "crash")], "Failed"),
            (vec![("i:a", "137"), ("b", "wait")], "Failed"),
            (vec![("s:a", "137"), ("b", "0")], "Succeeded"),
        ] {
            assert_eq!(of("Always", &containers, true), expected, "{containers:?}");
        }
    }

    #[test]
    fn container_rules_come_first() {
        let spec: PodSpec = serde_json::from_value(json!({"restartPolicy": "Never", "containers": []})).expect("spec");
        let container: Container = serde_json::from_value(json!({"name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}))
        .expect("container");
        assert!(should_restart(&container, &spec, 42));
        assert!(!should_restart(&container, &spec, 1));
    }
}
