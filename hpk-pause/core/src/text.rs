//! Texts that users and tests know from upstream, word for word (kuberuntime, prober, lifecycle).

use crate::types::HookFailure;
use hpk_api::go_duration;
use hpk_api::plan::{PodRef, SandboxPlan};
use hpk_api::probe::{Handler, ProbeKind};
use std::time::Duration;

/// `name_namespace(uid)`, upstream's `format.Pod`.
pub(crate) fn pod(pod: &PodRef) -> String {
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

/// Why a container that nothing has been done for yet waits.
pub(crate) fn not_yet_started(plan: &SandboxPlan) -> &'static str {
    if plan.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

pub(crate) fn crash_loop(delay: Duration, container: &str, of: &PodRef) -> String {
    let delay = go_duration::format(delay);
    format!("back-off {delay} restarting failed container={container} pod={}", pod(of))
}

pub(crate) fn back_off_event(container: &str, of: &PodRef) -> String {
    format!("Back-off restarting failed container {container} in pod {}", pod(of))
}

pub(crate) fn probe_kind(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
    }
}

/// The waiting message after a failed postStart hook, and the log line after a failed preStop hook.
pub(crate) fn hook_failure(handler: &Handler, container: &str, of: &PodRef, failure: &HookFailure) -> String {
    let (error, of) = (&failure.error, pod(of));
    match handler {
        Handler::Exec { command } => format!(
            "Exec lifecycle hook ([{}]) for Container {container:?} in Pod {of:?} failed - error: {error}, message: {:?}",
            command.join(" "),
            failure.output
        ),
        Handler::HttpGet { path, .. } => {
            format!("HTTP lifecycle hook ({path}) for Container {container:?} in Pod {of:?} failed - error: {error}")
        }
        Handler::Sleep { seconds } => {
            format!(
                "Sleep lifecycle hook ({seconds}) for Container {container:?} in Pod {of:?} failed - error: {error}"
            )
        }
        Handler::TcpSocket { .. } | Handler::Grpc { .. } | Handler::Invalid { .. } => {
            format!("Cannot run handler: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_wording() {
        let p = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u-1".into() };
        assert_eq!(
            crash_loop(Duration::from_secs(80), "c", &p),
            "back-off 1m20s restarting failed container=c pod=p_ns(u-1)"
        );
        assert_eq!(back_off_event("c", &p), "Back-off restarting failed container c in pod p_ns(u-1)");
        assert_eq!(
            hook_failure(
                &Handler::Exec { command: vec!["sh".into(), "-c".into(), "exit 1".into()] },
                "c",
                &p,
                &HookFailure { error: "command 'sh -c exit 1' exited with 1: ".into(), output: String::new() }
            ),
            "Exec lifecycle hook ([sh -c exit 1]) for Container \"c\" in Pod \"p_ns(u-1)\" failed - error: command 'sh -c exit 1' exited with 1: , message: \"\""
        );
    }
}
