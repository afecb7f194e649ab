//! Counts of what happens to pods and their containers, under the names of upstream's kubelet (pkg/kubelet/metrics). Pure.
//!
//! Each is read off two statuses of a pod, one after the other: what was not so before has happened. A kubelet that begins
//! takes the API's status for the first, so nothing is counted twice over a restart, and counters begin at 0 as upstream's do.

mod present;
mod statuses;

pub(crate) use present::present;

use super::phase;
use hpk_server::prometheus::Family;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus, VolumeMount};
use statuses::{ends, has_begun, image_mounts, lacks_sandbox, last_end, never_ran, starts, waiting_error};
use std::collections::BTreeMap;

/// Upper bounds of the buckets of times until a pod runs, seconds: upstream's.
const START_BUCKETS: [f64; 21] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0,
];

/// Kinds of containers, as upstream's label names them.
const KINDS: [&str; 3] = ["init_container", "container", "ephemeral_container"];

/// What has happened since this kubelet began.
#[derive(Debug, Default)]
pub struct Tally {
    pods: Attempts,
    /// Those of them with `hostUsers: false`.
    user_namespaced: Attempts,
    /// By kind.
    started: BTreeMap<&'static str, u64>,
    /// By kind and code.
    start_errors: BTreeMap<(&'static str, String), u64>,
    /// By kind, exit code and reason.
    terminated: BTreeMap<(&'static str, i32, String), u64>,
    /// Refused pods by reason.
    rejected: BTreeMap<String, u64>,
    /// Images mounted as volumes; an attempt is one mount of one container.
    image_volumes: Attempts,
    /// From when the kubelet saw the pod, and from when it was made, until it ran.
    seen_to_running: Times,
    made_to_running: Times,
}

#[derive(Debug, Default)]
struct Attempts {
    all: u64,
    failed: u64,
}

#[derive(Debug, Default)]
struct Times {
    buckets: [u64; START_BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Times {
    fn add(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        for (bucket, bound) in self.buckets.iter_mut().zip(START_BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    fn family(&self, name: &'static str, help: &str) -> Family {
        let mut family = Family::histogram(name, help);
        for (bucket, bound) in self.buckets.iter().zip(START_BUCKETS) {
            family.part("_bucket", &[("le", &bound.to_string())], bucket);
        }
        family.part("_bucket", &[("le", "+Inf")], self.count);
        family.part("_sum", &[], self.sum);
        family.part("_count", &[], self.count);
        family
    }
}

impl Tally {
    /// Counts what has happened to `pod` between two of its statuses.
    pub fn observe(&mut self, pod: &Pod, before: Option<&PodStatus>, after: &PodStatus) {
        let empty = (PodStatus::default(), PodSpec::default());
        let before = before.unwrap_or(&empty.0);
        let spec = pod.spec.as_ref().unwrap_or(&empty.1);
        let mut failed = self.sandbox(spec, before, after);
        self.refusal(before, after);
        self.start_times(pod, before, after);
        let lists = [
            (&before.init_container_statuses, &after.init_container_statuses),
            (&before.container_statuses, &after.container_statuses),
            (&before.ephemeral_container_statuses, &after.ephemeral_container_statuses),
        ];
        for (kind, (before, after)) in KINDS.into_iter().zip(lists) {
            for status in after.iter().flatten() {
                let was = before.iter().flatten().find(|s| s.name == status.name);
                failed |= self.container(kind, spec, was, status);
            }
        }
        // As upstream: a container that does not start counts here too.
        self.user_namespaced.failed += u64::from(failed && spec.host_users == Some(false));
    }

    /// Whether it failed.
    fn sandbox(&mut self, spec: &PodSpec, before: &PodStatus, after: &PodStatus) -> bool {
        let (begins, fails) = (!has_begun(before) && has_begun(after), !lacks_sandbox(before) && lacks_sandbox(after));
        let attempts = u64::from(begins || fails);
        self.pods.all += attempts;
        self.pods.failed += u64::from(fails);
        self.user_namespaced.all += if spec.host_users == Some(false) { attempts } else { 0 };
        fails
    }

    fn refusal(&mut self, before: &PodStatus, after: &PodStatus) {
        let is_refused = |s: &PodStatus| s.message.as_deref().is_some_and(|m| m.starts_with("Pod was rejected: "));
        if let Some(reason) = after.reason.clone().filter(|_| !is_refused(before) && is_refused(after)) {
            *self.rejected.entry(reason).or_default() += 1;
        }
    }

    fn start_times(&mut self, pod: &Pod, before: &PodStatus, after: &PodStatus) {
        let runs = |s: &PodStatus| s.phase.as_deref() == Some("Running");
        if runs(before) || phase::is_terminal(before.phase.as_deref()) || !runs(after) {
            return;
        }
        let all = after.container_statuses.iter().flatten();
        let at = all.filter_map(|s| Some(s.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)).max();
        let Some(at) = at else { return };
        let since = |time: jiff::Timestamp| at.duration_since(time).as_secs_f64().max(0.0);
        if let Some(seen) = &after.start_time {
            self.seen_to_running.add(since(seen.0));
        }
        if let Some(made) = &pod.metadata.creation_timestamp {
            self.made_to_running.add(since(made.0));
        }
    }

    /// Whether a start of it failed.
    fn container(
        &mut self,
        kind: &'static str,
        spec: &PodSpec,
        before: Option<&ContainerStatus>,
        after: &ContainerStatus,
    ) -> bool {
        let starts = starts(after).saturating_sub(before.map_or(0, starts));
        let waits_on = |s: &ContainerStatus| waiting_error(s).map(str::to_owned);
        let error = waits_on(after).filter(|error| before.and_then(waits_on).as_ref() != Some(error));
        *self.started.entry(kind).or_default() += starts + u64::from(error.is_some());
        let waits = error.is_some();
        if let Some(code) = error {
            *self.start_errors.entry((kind, code)).or_default() += 1;
        }
        let ends = ends(after).saturating_sub(before.map_or(0, ends));
        let mut failed = 0;
        if let Some(end) = last_end(after).filter(|_| ends > 0) {
            let key = (kind, end.exit_code, end.reason.clone().unwrap_or_default());
            // Of ends that came so fast that no status told of each, the last one stands for all.
            *self.terminated.entry(key).or_default() += ends;
            if never_ran(end) {
                *self.start_errors.entry((kind, "RunContainerError".to_owned())).or_default() += ends;
                failed = ends;
            }
        }
        let mounts: Vec<&VolumeMount> = image_mounts(spec, &after.name).collect();
        self.image_volumes.all += starts * mounts.len() as u64;
        let named = |mount: &&&VolumeMount| {
            let message = last_end(after).and_then(|end| end.message.as_deref());
            message.is_some_and(|message| message.contains(&mount.mount_path))
        };
        self.image_volumes.failed += failed * mounts.iter().filter(named).count() as u64;
        waits || failed > 0
    }

    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let mut started =
            Family::counter("kubelet_started_containers_total", "[ALPHA] Cumulative number of containers started");
        for kind in KINDS {
            started.sample(&[("container_type", kind)], self.started.get(kind).copied().unwrap_or(0));
        }
        let mut errors = Family::counter(
            "kubelet_started_containers_errors_total",
            "[ALPHA] Cumulative number of errors when starting containers",
        );
        for ((kind, code), count) in &self.start_errors {
            errors.sample(&[("code", code), ("container_type", kind)], count);
        }
        let mut terminated = Family::counter(
            "kubelet_terminated_containers_total",
            "[ALPHA] Cumulative number of container terminations.",
        );
        for ((kind, code, reason), count) in &self.terminated {
            let labels = [("container_type", *kind), ("exit_code", &code.to_string()), ("reason", reason)];
            terminated.sample(&labels, count);
        }
        let mut rejected = Family::counter(
            "kubelet_admission_rejections_total",
            "[ALPHA] Cumulative number pod admission rejections by the Kubelet.",
        );
        self.rejected.iter().for_each(|(reason, count)| rejected.sample(&[("reason", reason)], count));
        let (volumes, spaced) = (&self.image_volumes, &self.user_namespaced);
        vec![
            one("kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started", self.pods.all),
            one(
                "kubelet_started_pods_errors_total",
                "[ALPHA] Cumulative number of errors when starting pods",
                self.pods.failed,
            ),
            one(
                "kubelet_started_user_namespaced_pods_total",
                "[ALPHA] Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.",
                spaced.all,
            ),
            one(
                "kubelet_started_user_namespaced_pods_errors_total",
                "[ALPHA] Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.",
                spaced.failed,
            ),
            started,
            errors,
            terminated,
            rejected,
            one("kubelet_image_volume_requested_total", "[BETA] Number of requested image volumes.", volumes.all),
            one(
                "kubelet_image_volume_mounted_succeed_total",
                "[BETA] Number of successful image volume mounts.",
                volumes.all.saturating_sub(volumes.failed),
            ),
            one(
                "kubelet_image_volume_mounted_errors_total",
                "[BETA] Number of failed image volume mounts.",
                volumes.failed,
            ),
            self.seen_to_running.family(
                "kubelet_pod_start_duration_seconds",
                "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
            ),
            self.made_to_running.family(
                "kubelet_pod_start_total_duration_seconds",
                "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers",
            ),
        ]
    }
}

fn one(name: &'static str, help: &str, value: u64) -> Family {
    let mut family = Family::counter(name, help);
    family.sample(&[], value);
    family
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_server::prometheus;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}))
            .expect("a pod")
    }

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).expect("a status")
    }

    /// Lines of the counters that are not 0 and begin with `name`.
    fn lines(tally: &Tally, name: &str) -> Vec<String> {
        let text = prometheus::text(tally.families());
        let wanted = |line: &&str| line.starts_with(name) && !line.ends_with(" 0");
        text.lines().filter(wanted).map(str::to_owned).collect()
    }

    fn main_container(restarts: u32, state: Value, last: Value) -> PodStatus {
        let phase = if state.get("waiting").is_some() && last == json!({}) { "Pending" } else { "Running" };
        status(json!({"phase": phase, "startTime": "2026-01-01T00:00:02Z", "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last,
        }]}))
    }

    fn ended(code: i32, reason: &str, message: &str) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
    }

    #[test]
    fn a_life_with_two_restarts() {
        let of = pod(json!({"containers": [{"name": "c"}], "hostUsers": false}));
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:07Z"}});
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let mut tally = Tally::default();
        let mut before = None;
        for after in [
            main_container(0, json!({"waiting": {"reason": "ContainerCreating"}}), json!({})),
            main_container(0, json!({"waiting": {"reason": "CreateContainerConfigError"}}), json!({})),
            main_container(0, running.clone(), json!({})),
            main_container(0, back_off.clone(), ended(139, "Error", "")),
            // It was back and had ended again before anybody looked.
            main_container(1, back_off, ended(3, "Error", "")),
            main_container(2, running, ended(3, "Error", "")),
            main_container(2, ended(0, "Completed", ""), ended(3, "Error", "")),
        ] {
            tally.observe(&of, before.as_ref(), &after);
            // The same once more is nothing new.
            tally.observe(&of, Some(&after), &after);
            before = Some(after);
        }
        assert_eq!(
            lines(&tally, "kubelet_terminated_containers_total"),
            [
                r#"kubelet_terminated_containers_total{container_type="container",exit_code="0",reason="Completed"} 1"#,
                r#"kubelet_terminated_containers_total{container_type="container",exit_code="3",reason="Error"} 1"#,
                r#"kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 1"#,
            ]
        );
        assert_eq!(
            lines(&tally, "kubelet_started_"),
            [
                "kubelet_started_pods_total 1",
                "kubelet_started_user_namespaced_pods_total 1",
                "kubelet_started_user_namespaced_pods_errors_total 1",
                r#"kubelet_started_containers_total{container_type="container"} 4"#,
                r#"kubelet_started_containers_errors_total{code="CreateContainerConfigError",container_type="container"} 1"#,
            ]
        );
        assert_eq!(
            lines(&tally, "kubelet_pod_start_duration_seconds_sum"),
            ["kubelet_pod_start_duration_seconds_sum 5"]
        );
        let total = "kubelet_pod_start_total_duration_seconds";
        assert_eq!(lines(&tally, &format!("{total}_sum")), [format!("{total}_sum 7")]);
        assert_eq!(
            lines(&tally, &format!("{total}_bucket"))[0],
            format!("{total}_bucket{{le=\"8\"}} 1"),
            "the first bucket that holds it"
        );
    }

    #[test]
    fn what_the_api_had_before_is_not_counted_again() {
        let of = pod(json!({"containers": [{"name": "c"}]}));
        let had = main_container(4, ended(1, "Error", ""), json!({}));
        let mut tally = Tally::default();
        tally.observe(&of, Some(&had), &had);
        assert!(lines(&tally, "kubelet_").is_empty(), "{:?}", lines(&tally, "kubelet_"));
    }

    #[test]
    fn a_sandbox_that_fails_and_pods_that_are_refused() {
        let of = pod(json!({"containers": [{"name": "c"}], "hostUsers": false}));
        let failed = status(json!({"phase": "Failed", "reason": "CreatePodSandboxError", "message": "no TUN"}));
        let refused =
            |reason: &str| status(json!({"phase": "Failed", "reason": reason, "message": "Pod was rejected: because"}));
        let mut tally = Tally::default();
        tally.observe(&of, None, &failed);
        tally.observe(&of, None, &refused("NodePorts"));
        assert_eq!(
            lines(&tally, "kubelet_started_"),
            [
                "kubelet_started_pods_total 1",
                "kubelet_started_pods_errors_total 1",
                "kubelet_started_user_namespaced_pods_total 1",
                "kubelet_started_user_namespaced_pods_errors_total 1",
            ]
        );
        let rejections = "kubelet_admission_rejections_total";
        assert_eq!(lines(&tally, rejections), [format!("{rejections}{{reason=\"NodePorts\"}} 1")]);
    }

    #[test]
    fn image_volumes_are_counted_by_mount() {
        let of = pod(json!({
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "v", "mountPath": "/data"}, {"name": "v", "mountPath": "/more"}, {"name": "e", "mountPath": "/e"},
            ]}],
            "volumes": [{"name": "v", "image": {"reference": "x"}}, {"name": "e", "emptyDir": {}}],
        }));
        let mut tally = Tally::default();
        tally.observe(&of, None, &main_container(0, ended(0, "Completed", ""), json!({})));
        tally.observe(
            &of,
            None,
            &main_container(0, ended(128, "StartError", "cannot mount /data: no such file"), json!({})),
        );
        assert_eq!(
            lines(&tally, "kubelet_image_volume"),
            [
                "kubelet_image_volume_requested_total 4",
                "kubelet_image_volume_mounted_succeed_total 3",
                "kubelet_image_volume_mounted_errors_total 1",
            ]
        );
    }
}
