//! `/metrics/probes`: how often probes have run and how long they took, as upstream's prober tells. The supervisors count;
//! they are asked when somebody scrapes, so a pod whose probes go well costs nothing in between.

use crate::backend::Backend;
use crate::stats::{ask_all, is_running, label, name};
use hpk_api::control::{Answer, Request};
use hpk_api::probe::{DURATION_BUCKETS, ProbeCounts, ProbeKind};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::fmt::Write;
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
    let mut total = String::from(
        "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n\
         # TYPE prober_probe_total counter\n",
    );
    let mut duration = String::from(
        "# HELP prober_probe_duration_seconds [ALPHA] Duration in seconds for a probe response.\n\
         # TYPE prober_probe_duration_seconds histogram\n",
    );
    // Writing to a String does not fail.
    for (pod, counts) in all {
        let (namespace, pod_name, uid) = name(pod);
        let (namespace, pod_name) = (label(namespace), label(pod_name));
        for of in counts {
            let (container, kind) = (label(&of.container), title(of.kind));
            for (result, count) in [("failed", of.failed), ("successful", of.successful)] {
                if count > 0 {
                    let _ = writeln!(
                        total,
                        "prober_probe_total{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod_name}\",\
                         pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"}} {count}"
                    );
                }
            }
            if of.successful > 0 {
                let labels = format!(
                    "container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod_name}\",probe_type=\"{kind}\""
                );
                histogram(&mut duration, &labels, of);
            }
        }
    }
    total + &duration
}

fn histogram(out: &mut String, labels: &str, of: &ProbeCounts) {
    let metric = "prober_probe_duration_seconds";
    let mut below = 0;
    for (limit, count) in DURATION_BUCKETS.iter().zip(&of.buckets) {
        below += count;
        let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"{}\"}} {below}", f64::from(*limit) / 1e3);
    }
    let _ = writeln!(out, "{metric}_bucket{{{labels},le=\"+Inf\"}} {}", of.successful);
    let seconds = std::time::Duration::from_nanos(of.nanos).as_secs_f64();
    let _ = writeln!(out, "{metric}_sum{{{labels}}} {seconds}\n{metric}_count{{{labels}}} {}", of.successful);
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
