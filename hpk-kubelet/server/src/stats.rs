//! Resource use: `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`, from samples that the
//! supervisors take. The rendering is pure; collecting asks every running pod at the same time.

use crate::backend::{Backend, NodeStats, PodSample, add};
use crate::prometheus::{self, Family};
use futures::StreamExt;
use hpk_api::control::{Answer, PodStats, Request, Usage, VolumeStats};
use hpk_control::stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A supervisor that does not answer within this is left out of the sample.
const PATIENCE: Duration = Duration::from_secs(3);
/// Supervisors asked at the same time.
const PARALLEL: usize = 64;

/// Asks all running pods.
pub(crate) async fn collect<B: Backend>(backend: &Arc<B>) -> Vec<PodSample> {
    let wanted = |pod: &Pod| is_running(pod);
    let answers = ask_all(backend, wanted, &Request::Stats, |answer| match answer {
        Answer::Stats(stats) => Some(shown(stats)),
        _ => None,
    });
    answers.await.into_iter().map(|(pod, stats)| PodSample { pod, stats }).collect()
}

/// Asks the supervisors of those pods that are wanted; those that do not answer in time are left out.
pub(crate) async fn ask_all<B: Backend, T>(
    backend: &Arc<B>,
    wanted: impl Fn(&Pod) -> bool,
    request: &Request,
    read: impl Fn(Answer) -> Option<T>,
) -> Vec<(Arc<Pod>, T)> {
    let pods = backend.pods().await;
    let read = &read;
    futures::stream::iter(pods.into_iter().filter(|p| wanted(p)).map(|pod| async move {
        let answer = tokio::time::timeout(PATIENCE, ask(backend, &pod, request)).await.ok()??;
        Some((pod, read(answer)?))
    }))
    .buffer_unordered(PARALLEL)
    .filter_map(std::future::ready)
    .collect()
    .await
}

/// Phase Running.
pub(crate) fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
}

async fn ask<B: Backend>(backend: &Arc<B>, pod: &Pod, request: &Request) -> Option<Answer> {
    let connection = backend.open_supervisor(pod.metadata.uid.as_deref()?).await.ok()?;
    match stream::request(connection, request).await {
        Ok((answer, ..)) => Some(answer),
        Err(e) => {
            tracing::debug!(pod = pod.metadata.name, "no answer: {e}");
            None
        }
    }
}

/// Whoever reads these figures (metrics-server drops a whole pod for it) takes a zero for a failure to
/// measure. A process that runs has used some CPU, however little of the clock's ticks, and holds some memory.
fn shown(mut stats: PodStats) -> PodStats {
    let floor = |usage: &mut Usage| {
        if usage.processes > 0 || usage.rss_bytes > 0 {
            usage.cpu_nanos = usage.cpu_nanos.max(1000);
            if usage.memory_bytes == 0 {
                usage.memory_bytes = usage.rss_bytes;
            }
        }
    };
    floor(&mut stats.pod);
    stats.containers.iter_mut().for_each(|c| floor(&mut c.usage));
    stats
}

/// Remembers the last sample of each container, for the momentary CPU use.
#[derive(Default)]
pub(crate) struct Rates {
    last: Mutex<HashMap<String, (Timestamp, u64)>>,
}

impl Rates {
    /// CPU use since the sample before, in billionths of a CPU; None for the first sample.
    fn rate(&self, key: String, at: Timestamp, cpu_nanos: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() > 100_000 {
            last.clear();
        }
        let (then, before) = last.insert(key, (at, cpu_nanos))?;
        let elapsed = u64::try_from(at.duration_since(then).as_millis()).ok().filter(|ms| *ms > 0)?;
        Some(cpu_nanos.saturating_sub(before) * 1000 / elapsed)
    }
}

/// CPU time of the node: what all pods have used since this kubelet began, those that have ended since included. The sum
/// over those that run now would go back with every pod that ends, and a counter that goes back is taken for a restart.
#[derive(Default)]
pub(crate) struct NodeCpu {
    /// By pod UID what was counted of it, and the sum.
    counted: Mutex<(HashMap<String, u64>, u64)>,
}

impl NodeCpu {
    /// The node's CPU time with what these samples add, nanoseconds.
    pub(crate) fn nanos(&self, samples: &[PodSample]) -> u64 {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, sum) = &mut *counted;
        if of.len() > 2 * samples.len() + 10_000 {
            of.retain(|uid, _| samples.iter().any(|s| s.pod.metadata.uid.as_ref() == Some(uid)));
        }
        for PodSample { pod, stats } in samples {
            let before = of.entry(name(pod).2.to_owned()).or_default();
            // Less than before: its job was requeued, and this one counts anew.
            *sum += stats.pod.cpu_nanos.checked_sub(*before).unwrap_or(stats.pod.cpu_nanos);
            *before = stats.pod.cpu_nanos;
        }
        *sum
    }
}

pub(crate) fn name(pod: &Pod) -> (&str, &str, &str) {
    let m = &pod.metadata;
    (
        m.namespace.as_deref().unwrap_or_default(),
        m.name.as_deref().unwrap_or_default(),
        m.uid.as_deref().unwrap_or_default(),
    )
}

fn cpu(at: &str, usage: &Usage, rate: Option<u64>) -> Value {
    let mut cpu = json!({"time": at, "usageCoreNanoSeconds": usage.cpu_nanos});
    if let Some(rate) = rate {
        cpu["usageNanoCores"] = rate.into();
    }
    cpu
}

fn memory(at: &str, usage: &Usage) -> Value {
    json!({"time": at, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.memory_bytes,
        "rssBytes": usage.rss_bytes})
}

fn volume(at: &str, namespace: &str, stats: &VolumeStats) -> Value {
    let mut volume = json!({
        "name": stats.name, "time": at,
        "pvcRef": {"name": stats.claim, "namespace": namespace},
        "capacityBytes": stats.capacity, "availableBytes": stats.available,
        "inodes": stats.inodes, "inodesFree": stats.inodes_free,
    });
    if let Some(used) = stats.used {
        volume["usedBytes"] = used.bytes.into();
        volume["inodesUsed"] = used.inodes.into();
    }
    volume
}

/// Use of claims' volumes, for `/metrics`: only pods that have some are asked.
pub(crate) async fn volumes<B: Backend>(backend: &Arc<B>) -> String {
    let wanted = |pod: &Pod| is_running(pod) && has_claims(pod);
    let answers = ask_all(backend, wanted, &Request::Stats, |answer| match answer {
        Answer::Stats(stats) => Some(stats),
        _ => None,
    });
    let answers = answers.await;
    volume_metrics(answers.iter().map(|(pod, stats)| (name(pod).0, stats.volumes.as_slice())))
}

fn has_claims(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.into_iter().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some())
}

/// By namespace. A claim of several pods is told once.
fn volume_metrics<'a>(volumes: impl Iterator<Item = (&'a str, &'a [VolumeStats])>) -> String {
    let of: BTreeMap<(&str, &str), &VolumeStats> =
        volumes.flat_map(|(namespace, list)| list.iter().map(move |v| ((namespace, v.claim.as_str()), v))).collect();
    let family = |name, help, value: fn(&VolumeStats) -> Option<u64>| {
        let mut family = Family::gauge(name, help);
        for ((namespace, claim), stats) in &of {
            let labels = [("namespace", *namespace), ("persistentvolumeclaim", *claim)];
            value(stats).into_iter().for_each(|value| family.sample(&labels, value));
        }
        family
    };
    prometheus::text([
        family("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", |v| Some(v.capacity)),
        family("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", |v| {
            Some(v.available)
        }),
        family("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", |v| {
            v.used.map(|u| u.bytes)
        }),
        family("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", |v| Some(v.inodes)),
        family("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", |v| {
            Some(v.inodes_free)
        }),
        family("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", |v| {
            v.used.map(|u| u.inodes)
        }),
    ])
}

/// `stats/v1alpha1 Summary`.
pub(crate) fn summary(
    node_name: &str,
    node: &NodeStats,
    samples: &[PodSample],
    (rates, node_cpu): (&Rates, &NodeCpu),
    now: Timestamp,
) -> Value {
    let mut total = Usage::default();
    let pods: Vec<Value> = samples
        .iter()
        .map(|PodSample { pod, stats }| {
            let (namespace, pod_name, uid) = name(pod);
            let taken = stats.at.unwrap_or(now);
            let at = taken.to_string();
            add(&mut total, stats.pod);
            let containers: Vec<Value> = stats
                .containers
                .iter()
                .map(|c| {
                    let rate = rates.rate(format!("{uid}/{}", c.name), taken, c.usage.cpu_nanos);
                    json!({
                        "name": c.name,
                        "startTime": c.started_at.unwrap_or(taken).to_string(),
                        "cpu": cpu(&at, &c.usage, rate),
                        "memory": memory(&at, &c.usage),
                        "rootfs": {"time": at, "usedBytes": c.rootfs_bytes},
                        "logs": {"time": at, "usedBytes": c.log_bytes},
                    })
                })
                .collect();
            let ephemeral: u64 = stats.containers.iter().map(|c| c.rootfs_bytes + c.log_bytes).sum();
            let volumes: Vec<Value> = stats.volumes.iter().map(|v| volume(&at, namespace, v)).collect();
            json!({
                "podRef": {"name": pod_name, "namespace": namespace, "uid": uid},
                "startTime": pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or_else(|| at.clone(), |t| t.0.to_string()),
                "containers": containers,
                "cpu": cpu(&at, &stats.pod, rates.rate(uid.to_owned(), taken, stats.pod.cpu_nanos)),
                "memory": memory(&at, &stats.pod),
                "ephemeral-storage": {"time": at, "usedBytes": ephemeral},
                "volume": volumes,
                "process_stats": {"process_count": stats.pod.processes},
            })
        })
        .collect();
    total.cpu_nanos = node_cpu.nanos(samples);
    let at = now.to_string();
    let mut memory = memory(&at, &total);
    memory["availableBytes"] = node.memory_capacity_bytes.saturating_sub(total.memory_bytes).into();
    json!({
        "node": {
            "nodeName": node_name,
            "startTime": node.started_at.unwrap_or(now).to_string(),
            "cpu": cpu(&at, &total, rates.rate("node".to_owned(), now, total.cpu_nanos)),
            "memory": memory,
        },
        "pods": pods,
    })
}

/// Exact below 2^53, which no counter here exceeds in a pod's life.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

/// `/metrics/resource`: what metrics-server reads.
pub(crate) fn resource(node_cpu: &NodeCpu, samples: &[PodSample], now: Timestamp) -> String {
    let mut container_cpu = Family::counter(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    let mut container_memory =
        Family::gauge("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes");
    let mut container_start = Family::gauge(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
    );
    let mut node_seconds = Family::counter(
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    );
    let mut node_memory =
        Family::gauge("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes");
    let mut pod_cpu = Family::counter(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    );
    let mut pod_memory =
        Family::gauge("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes");
    let mut total = Usage::default();
    for PodSample { pod, stats } in samples {
        let (namespace, pod_name, _) = name(pod);
        let of_pod = [("namespace", namespace), ("pod", pod_name)];
        let at = stats.at.unwrap_or(now);
        add(&mut total, stats.pod);
        for c in &stats.containers {
            let labels = [("container", c.name.as_str()), of_pod[0], of_pod[1]];
            container_cpu.sample_at(&labels, float(c.usage.cpu_nanos) / 1e9, at);
            container_memory.sample_at(&labels, float(c.usage.memory_bytes), at);
            if let Some(start) = c.started_at {
                let millis = u64::try_from(start.as_millisecond()).unwrap_or(0);
                container_start.sample(&labels, float(millis) / 1e3);
            }
        }
        pod_cpu.sample_at(&of_pod, float(stats.pod.cpu_nanos) / 1e9, at);
        pod_memory.sample_at(&of_pod, float(stats.pod.memory_bytes), at);
    }
    node_seconds.sample_at(&[], float(node_cpu.nanos(samples)) / 1e9, now);
    node_memory.sample_at(&[], float(total.memory_bytes), now);
    let no_error = |name, stage| {
        let help = format!("[{stage}] 1 if there was an error while getting container metrics, 0 otherwise");
        let mut family = Family::gauge(name, &help);
        family.sample(&[], 0);
        family
    };
    prometheus::text([
        container_cpu,
        container_memory,
        container_start,
        node_seconds,
        node_memory,
        pod_cpu,
        pod_memory,
        no_error("resource_scrape_error", "STABLE"),
        no_error("scrape_error", "ALPHA"),
    ])
}

/// `/metrics/cadvisor`: the few series that dashboards ask for.
pub(crate) fn cadvisor(node: &NodeStats, samples: &[PodSample], now: Timestamp) -> String {
    let mut cpu = Family::counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.");
    let mut working_set = Family::gauge("container_memory_working_set_bytes", "Current working set in bytes.");
    let mut rss = Family::gauge("container_memory_rss", "Size of RSS in bytes.");
    let mut processes = Family::gauge("container_processes", "Number of processes running inside the container.");
    let mut machine = Family::gauge("machine_memory_bytes", "Amount of memory installed on the machine.");
    for PodSample { pod, stats } in samples {
        let (namespace, pod_name, uid) = name(pod);
        let at = stats.at.unwrap_or(now);
        for c in &stats.containers {
            let id = format!("/{uid}/{}", c.name);
            let labels = [("container", c.name.as_str()), ("id", &id), ("namespace", namespace), ("pod", pod_name)];
            cpu.sample_at(&labels, float(c.usage.cpu_nanos) / 1e9, at);
            working_set.sample_at(&labels, float(c.usage.memory_bytes), at);
            rss.sample_at(&labels, float(c.usage.rss_bytes), at);
            processes.sample_at(&labels, float(c.usage.processes), at);
        }
    }
    machine.sample(&[], float(node.memory_capacity_bytes));
    prometheus::text([cpu, working_set, rss, processes, machine])
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::control::ContainerStats;

    fn sample() -> PodSample {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p\"", "namespace": "n", "uid": "u"}, "status": {"phase": "Running"}}),
        )
        .unwrap();
        let usage = Usage { cpu_nanos: 1_500_000_000, memory_bytes: 1 << 20, rss_bytes: 1 << 19, processes: 2 };
        let at = Some("2026-01-01T00:00:00Z".parse().unwrap());
        let container = ContainerStats { name: "c".to_owned(), started_at: at, usage, rootfs_bytes: 10, log_bytes: 5 };
        PodSample {
            pod: Arc::new(pod),
            stats: PodStats { at, pod: usage, containers: vec![container], volumes: Vec::new() },
        }
    }

    #[test]
    fn resource_metrics_carry_the_samples_time_and_escape_labels() {
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let text = resource(&NodeCpu::default(), &[sample()], now);
        for line in [
            r#"container_cpu_usage_seconds_total{container="c",namespace="n",pod="p\""} 1.5 1767225600000"#,
            r#"pod_memory_working_set_bytes{namespace="n",pod="p\""} 1048576 1767225600000"#,
            r#"container_start_time_seconds{container="c",namespace="n",pod="p\""} 1767225600"#,
            "node_cpu_usage_seconds_total 1.5 1767225605000",
            "# TYPE node_memory_working_set_bytes gauge",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn the_summary_has_rates_from_the_second_sample_on() {
        let of = (&Rates::default(), &NodeCpu::default());
        let node = NodeStats { started_at: None, memory_capacity_bytes: 4 << 20 };
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let first = summary("hpk", &node, &[sample()], of, now);
        assert!(first["pods"][0]["containers"][0]["cpu"].get("usageNanoCores").is_none());
        let mut later = sample();
        later.stats.at = Some("2026-01-01T00:00:10Z".parse().unwrap());
        later.stats.containers[0].usage.cpu_nanos += 5_000_000_000;
        let second = summary("hpk", &node, &[later], of, now);
        assert_eq!(second["pods"][0]["containers"][0]["cpu"]["usageNanoCores"], 500_000_000);
        assert_eq!(second["node"]["memory"]["availableBytes"], 3 << 20);
        assert_eq!(second["pods"][0]["podRef"]["namespace"], "n");
    }

    #[test]
    fn a_claim_is_told_once_and_without_what_could_not_be_counted() {
        let used = Some(hpk_api::control::VolumeUse { bytes: 7, inodes: 3 });
        let of = |claim: &str, used| {
            [VolumeStats { name: "v".into(), claim: claim.into(), used, capacity: 100, ..VolumeStats::default() }]
        };
        let (small, large) = (of("small", used), of("large", None));
        let text = volume_metrics([("n", &small[..]), ("n", &small[..]), ("n", &large[..])].into_iter());
        let lines = |name: &str| text.lines().filter(|l| l.starts_with(name)).collect::<Vec<_>>();
        let small = r#"kubelet_volume_stats_used_bytes{namespace="n",persistentvolumeclaim="small"} 7"#;
        assert_eq!(lines("kubelet_volume_stats_used_bytes"), [small]);
        assert_eq!(lines("kubelet_volume_stats_capacity_bytes").len(), 2);
        assert_eq!(volume("t", "n", &of("small", used)[0])["pvcRef"], json!({"name": "small", "namespace": "n"}));
    }

    #[test]
    fn the_nodes_cpu_time_never_goes_back() {
        let node = NodeCpu::default();
        let used = |uid: &str, nanos: u64| {
            let mut of = sample();
            Arc::make_mut(&mut of.pod).metadata.uid = Some(uid.to_owned());
            of.stats.pod.cpu_nanos = nanos;
            of
        };
        assert_eq!(node.nanos(&[used("a", 5), used("b", 7)]), 12);
        assert_eq!(node.nanos(&[used("a", 6)]), 13, "b has ended");
        assert_eq!(node.nanos(&[used("a", 6), used("c", 1)]), 14);
        assert_eq!(node.nanos(&[]), 14);
        assert_eq!(node.nanos(&[used("a", 2)]), 16, "its job was requeued");
    }
}
