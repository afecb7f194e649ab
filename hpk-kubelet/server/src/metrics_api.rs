//! The resource metrics API, `metrics.k8s.io/v1beta1`, for `kubectl top` and autoscalers where no
//! metrics-server is installed. The API server's aggregator sends it here.
//!
//! CPU use is the difference of two samples. The earlier one is what a former request left behind; when there
//! is none of a fitting age, two are taken one second apart. Without requests nothing is sampled.

use crate::backend::{Backend, PodSample};
use crate::respond::{Body, json, method_not_allowed, text, with_type};
use crate::route::{Query, decode};
use crate::{selector, stats};
use hpk_api::control::Usage;
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::SelectorExt as _;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// API group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";

/// Two samples must lie this far apart to be compared.
const SHORTEST: Duration = Duration::from_secs(1);
/// An earlier sample older than this says nothing about now.
const LONGEST: Duration = Duration::from_secs(60);
/// The earlier sample is replaced when it is older than this, so that many askers do not shorten the window.
const RENEW: Duration = Duration::from_secs(15);

/// Whether a path belongs to this API.
pub(crate) fn is_path(path: &str) -> bool {
    path == "/apis" || path.starts_with("/apis/")
}

/// Resource, namespace and name that a path is about; None for discovery and for paths that are not served.
pub(crate) fn resource(path: &str) -> Option<(String, String, String)> {
    match parse(path)? {
        Path::Nodes(name) => Some(("nodes".to_owned(), String::new(), name.unwrap_or_default())),
        Path::Pods(namespace, name) => {
            Some(("pods".to_owned(), namespace.unwrap_or_default(), name.unwrap_or_default()))
        }
        Path::Groups | Path::Group | Path::Resources => None,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Groups,
    Group,
    Resources,
    Nodes(Option<String>),
    Pods(Option<String>, Option<String>),
}

fn parse(path: &str) -> Option<Path> {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let owned = |s: &str| Some(s.to_owned());
    match segments.as_slice() {
        ["apis"] => Some(Path::Groups),
        ["apis", GROUP] => Some(Path::Group),
        ["apis", GROUP, VERSION] => Some(Path::Resources),
        ["apis", GROUP, VERSION, "nodes"] => Some(Path::Nodes(None)),
        ["apis", GROUP, VERSION, "nodes", name] => Some(Path::Nodes(owned(name))),
        ["apis", GROUP, VERSION, "pods"] => Some(Path::Pods(None, None)),
        ["apis", GROUP, VERSION, "namespaces", namespace, "pods"] => Some(Path::Pods(owned(namespace), None)),
        ["apis", GROUP, VERSION, "namespaces", namespace, "pods", name] => {
            Some(Path::Pods(owned(namespace), owned(name)))
        }
        _ => None,
    }
}

/// Earlier samples.
#[derive(Default)]
pub(crate) struct MetricsApi {
    /// Held while sampling: askers at the same time wait and share what the first one finds.
    last: Mutex<Option<(Instant, Vec<PodSample>)>>,
}

impl MetricsApi {
    pub(crate) async fn serve<B: Backend>(
        &self,
        nodes: &[String],
        backend: &Arc<B>,
        method: &str,
        path: &str,
        query: &Query,
    ) -> Response<Body> {
        if method != "GET" {
            return method_not_allowed("GET");
        }
        let Some(path) = parse(path) else { return text(StatusCode::NOT_FOUND, "404 page not found\n") };
        let selector = match selector::parse(query.get("labelSelector").unwrap_or_default()) {
            Ok(selector) => selector,
            Err(error) => return failure(StatusCode::BAD_REQUEST, "BadRequest", &error.to_string()),
        };
        match path {
            Path::Groups => json(&groups()),
            Path::Group => json(&group()),
            Path::Resources => json(&resources()),
            Path::Nodes(name) => {
                let samples = self.sample(backend).await;
                match name {
                    None => json(&list("NodeMetricsList", nodes.iter().map(|n| node(n, nodes, &samples)).collect())),
                    Some(name) if nodes.contains(&name) => json(&node(&name, nodes, &samples)),
                    Some(name) => not_found("nodes", &name),
                }
            }
            Path::Pods(namespace, name) => {
                let samples = self.sample(backend).await;
                let fits = |pod: &Pod| {
                    let meta = &pod.metadata;
                    namespace.as_ref().is_none_or(|n| meta.namespace.as_ref() == Some(n))
                        && name.as_ref().is_none_or(|n| meta.name.as_ref() == Some(n))
                        && selector.matches(meta.labels.as_ref().unwrap_or(&BTreeMap::new()))
                };
                let mut found: Vec<Value> =
                    samples.iter().filter(|m| fits(&m.now.pod)).filter_map(Measured::pod).collect();
                match name {
                    None => json(&list("PodMetricsList", found)),
                    Some(name) => match found.pop() {
                        Some(pod) => json(&pod),
                        None => not_found("pods", &format!("{}/{name}", namespace.unwrap_or_default())),
                    },
                }
            }
        }
    }

    async fn sample<B: Backend>(&self, backend: &Arc<B>) -> Vec<Measured> {
        let mut last = self.last.lock().await;
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() > LONGEST) {
            *last = Some((Instant::now(), stats::collect(backend).await));
        }
        if let Some((at, _)) = last.as_ref() {
            tokio::time::sleep(SHORTEST.saturating_sub(at.elapsed())).await;
        }
        let taken = Instant::now();
        let now = stats::collect(backend).await;
        let before = last.as_ref().map(|(_, samples)| samples.clone()).unwrap_or_default();
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() > RENEW) {
            *last = Some((taken, now.clone()));
        }
        let mut earlier: BTreeMap<String, PodSample> =
            before.into_iter().filter_map(|s| Some((s.pod.metadata.uid.clone()?, s))).collect();
        now.into_iter()
            .map(|now| {
                let before = now.pod.metadata.uid.as_ref().and_then(|uid| earlier.remove(uid));
                Measured { before, now }
            })
            .collect()
    }
}

/// A pod's samples, the earlier one when the pod was there.
struct Measured {
    before: Option<PodSample>,
    now: PodSample,
}

impl Measured {
    /// Billionths of a CPU between the samples, or on average since the start.
    fn rate(&self, now: Usage, before: Option<Usage>, started_at: Option<Timestamp>) -> u64 {
        let at = self.now.stats.at.unwrap_or_else(Timestamp::now);
        let then = before.and_then(|b| Some((b.cpu_nanos, self.before.as_ref()?.stats.at?)));
        let (used, since) = match then {
            Some((cpu, then)) if cpu <= now.cpu_nanos => (now.cpu_nanos - cpu, then),
            // Started (again) after the earlier sample.
            _ => (now.cpu_nanos, started_at.unwrap_or(at)),
        };
        match u64::try_from(at.duration_since(since).as_millis()) {
            Ok(ms @ 1..) => used.saturating_mul(1000) / ms,
            _ => 0,
        }
    }

    fn total(&self) -> (u64, u64) {
        self.now.stats.containers.iter().fold((0, 0), |(cpu, memory), c| {
            let before = self.container_before(&c.name);
            (cpu + self.rate(c.usage, before, c.started_at), memory + c.usage.memory_bytes)
        })
    }

    fn container_before(&self, name: &str) -> Option<Usage> {
        self.before.as_ref()?.stats.containers.iter().find(|c| c.name == name).map(|c| c.usage)
    }

    /// PodMetrics; None while no container runs.
    fn pod(&self) -> Option<Value> {
        let meta = &self.now.pod.metadata;
        let containers: Vec<Value> = self
            .now
            .stats
            .containers
            .iter()
            .filter(|c| c.started_at.is_some())
            .map(|c| {
                let cpu = self.rate(c.usage, self.container_before(&c.name), c.started_at);
                value!({"name": c.name, "usage": usage(cpu, c.usage.memory_bytes)})
            })
            .collect();
        if containers.is_empty() {
            return None;
        }
        let at = self.now.stats.at.unwrap_or_else(Timestamp::now);
        let window =
            self.before.as_ref().and_then(|b| Some(at.duration_since(b.stats.at?))).map_or(0.0, |d| d.as_secs_f64());
        Some(value!({
            "kind": "PodMetrics",
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "metadata": {"name": meta.name, "namespace": meta.namespace, "labels": meta.labels, "creationTimestamp": at.to_string()},
            "timestamp": at.to_string(),
            "window": format!("{:.3}s", window.max(1.0)),
            "containers": containers,
        }))
    }
}

/// Quantities: billionths of a CPU, KiB.
fn usage(cpu_nanos: u64, memory_bytes: u64) -> Value {
    value!({"cpu": format!("{cpu_nanos}n"), "memory": format!("{}Ki", memory_bytes.div_ceil(1024))})
}

/// NodeMetrics: what the pods on one of `nodes` use together.
fn node(name: &str, nodes: &[String], samples: &[Measured]) -> Value {
    let bound = |m: &&Measured| m.now.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name);
    let here = samples.iter().filter(|m| nodes.len() == 1 || bound(m));
    let (cpu, memory) = here.map(Measured::total).fold((0, 0), |(c, m), (cpu, mem)| (c + cpu, m + mem));
    let at = Timestamp::now().to_string();
    value!({
        "kind": "NodeMetrics",
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {"name": name, "creationTimestamp": at},
        "timestamp": at,
        "window": "15s",
        "usage": usage(cpu, memory),
    })
}

fn list(kind: &str, items: Vec<Value>) -> Value {
    value!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items})
}

fn groups() -> Value {
    let mut group = group();
    if let Some(fields) = group.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    value!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
}

fn group() -> Value {
    let version = value!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    value!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, namespaced: bool| value!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    value!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)],
    })
}

fn not_found(resource: &str, name: &str) -> Response<Body> {
    failure(StatusCode::NOT_FOUND, "NotFound", &format!("{resource}.{GROUP} \"{name}\" not found"))
}

fn failure(status: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let body = value!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16(),
    });
    with_type(status, "application/json", body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::control::{ContainerStats, PodStats};

    #[test]
    fn paths_name_their_resources() {
        assert_eq!(resource("/apis/metrics.k8s.io/v1beta1"), None);
        let at = |p: &str| resource(&format!("/apis/metrics.k8s.io/v1beta1/{p}")).unwrap();
        assert_eq!(at("nodes/n"), ("nodes".to_owned(), String::new(), "n".to_owned()));
        assert_eq!(at("namespaces/a/pods/b"), ("pods".to_owned(), "a".to_owned(), "b".to_owned()));
        assert!(is_path("/apis") && !is_path("/apisx") && parse("/apis/apps/v1").is_none());
    }

    fn sample(second: i64, cpu_nanos: u64) -> PodSample {
        let pod: Pod =
            serde_json::from_value(value!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let usage = Usage { cpu_nanos, memory_bytes: 2049, ..Usage::default() };
        let started_at = Some(Timestamp::from_second(1000).unwrap());
        let container = ContainerStats { name: "c".to_owned(), started_at, usage, ..ContainerStats::default() };
        let at = Some(Timestamp::from_second(second).unwrap());
        PodSample {
            pod: Arc::new(pod),
            stats: PodStats { at, pod: usage, containers: vec![container], volumes: Vec::new() },
        }
    }

    #[test]
    fn cpu_is_the_difference_of_two_samples_or_the_average() {
        let cpu = |before: Option<PodSample>, now: PodSample| {
            Measured { before, now }.pod().unwrap()["containers"][0]["usage"]["cpu"].clone()
        };
        assert_eq!(cpu(Some(sample(1010, 1_000_000_000)), sample(1020, 6_000_000_000)), "500000000n");
        assert_eq!(cpu(None, sample(1020, 2_000_000_000)), "100000000n");
        // Restarted in between: its counter began anew.
        assert_eq!(cpu(Some(sample(1010, 9_000_000_000)), sample(1020, 2_000_000_000)), "100000000n");
        let pod = Measured { before: None, now: sample(1020, 1) }.pod().unwrap();
        assert_eq!(pod["containers"][0]["usage"]["memory"], "3Ki");
    }
}
