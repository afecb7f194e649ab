//! `/metrics/probes`: how often probes have run and how long they took, as upstream's prober tells. The supervisors count;
//! they are asked when somebody scrapes, so a pod whose probes go well costs nothing in between.

use crate::backend::Backend;
use crate::prometheus::{self, Family};
use crate::stats::{ask_all, is_running, name};
use hpk_api::control::{Answer, Request};
use hpk_api::probe::{DURATION_BUCKETS, ProbeCounts, ProbeKind};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::sync::Arc;

/// Asks all running pods that have probes.
pub(crate) async fn collect<B: Backend>(backend: &Arc<B>) -> Vec<(Arc<Pod>, Vec<ProbeCounts>)> {
    let wanted = |pod: &Pod| is_running(pod) && has_probes(pod);
    let mut all = ask_all(backend, wanted, &Request::Probes, |answer| match answer {
        Answer::Probes(counts) => Some(counts),
        _ => None,
    })
    .await;
    // Scrapes that differ in figures alone are easier to read, and to compress.
    all.sort_by(|(a, _), (b, _)| name(a).cmp(&name(b)));
    all
}

fn has_probes(pod: &Pod) -> bool {
    let probed = |c: &Container| c.liveness_probe.is_some() || c.readiness_probe.is_some() || c.startup_probe.is_some();
    pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten())).any(probed)
}

/// Upstream's families, labels and order of labels (pkg/kubelet/prober/prober_manager.go). A result that has not come yet
/// has no series.
pub(crate) fn render(all: &[(Arc<Pod>, Vec<ProbeCounts>)]) -> String {
    let mut total = Family::counter(
        "prober_probe_total",
        "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    let mut duration =
        Family::histogram("prober_probe_duration_seconds", "[ALPHA] Duration in seconds for a probe response.");
    for (pod, counts) in all {
        let (namespace, pod_name, uid) = name(pod);
        for of in counts {
            let (container, kind) = (of.container.as_str(), title(of.kind));
            let of_pod = [("container", container), ("namespace", namespace), ("pod", pod_name)];
            for (result, count) in [("failed", of.failed), ("successful", of.successful)] {
                if count > 0 {
                    let labels =
                        [of_pod.as_slice(), &[("pod_uid", uid), ("probe_type", kind), ("result", result)]].concat();
                    total.sample(&labels, count);
                }
            }
            if of.successful > 0 {
                histogram(&mut duration, &[of_pod.as_slice(), &[("probe_type", kind)]].concat(), of);
            }
        }
    }
    prometheus::text([total, duration])
}

fn histogram(duration: &mut Family, labels: &[(&str, &str)], of: &ProbeCounts) {
    let mut bucket = |limit: &str, count| {
        duration.part("_bucket", &[labels, &[("le", limit)]].concat(), count);
    };
    let mut below = 0;
    for (limit, count) in DURATION_BUCKETS.iter().zip(&of.buckets) {
        below += count;
        bucket(&(f64::from(*limit) / 1e3).to_string(), below);
    }
    bucket("+Inf", of.successful);
    duration.part("_sum", labels, std::time::Duration::from_nanos(of.nanos).as_secs_f64());
    duration.part("_count", labels, of.successful);
}

fn title(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn families_labels_and_cumulative_buckets() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": []}}),
        )
        .unwrap();
        let counts = ProbeCounts {
            container: "c".to_owned(),
            kind: ProbeKind::Readiness,
            successful: 4,
            failed: 2,
            nanos: 12_500_000_000,
            buckets: vec![1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        let text = render(&[(Arc::new(pod), vec![counts])]);
        let series = r#"container="c",namespace="n",pod="p""#;
        for line in [
            format!(r#"prober_probe_total{{{series},pod_uid="u",probe_type="Readiness",result="successful"}} 4"#),
            format!(r#"prober_probe_total{{{series},pod_uid="u",probe_type="Readiness",result="failed"}} 2"#),
            format!(r#"prober_probe_duration_seconds_bucket{{{series},probe_type="Readiness",le="0.005"}} 1"#),
            format!(r#"prober_probe_duration_seconds_bucket{{{series},probe_type="Readiness",le="0.025"}} 3"#),
            format!(r#"prober_probe_duration_seconds_bucket{{{series},probe_type="Readiness",le="10"}} 3"#),
            format!(r#"prober_probe_duration_seconds_bucket{{{series},probe_type="Readiness",le="+Inf"}} 4"#),
            format!(r#"prober_probe_duration_seconds_sum{{{series},probe_type="Readiness"}} 12.5"#),
            "# TYPE prober_probe_duration_seconds histogram".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn only_pods_with_probes_are_asked() {
        let with = |container: serde_json::Value| -> bool {
            has_probes(&serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [container]}})).unwrap())
        };
        assert!(with(json!({"name": "c", "startupProbe": {"tcpSocket": {"port": 1}}})));
        assert!(!with(json!({"name": "c"})));
    }
}
