//! What a pod asks of Slurm: CPUs, memory, time, generic resources.

use crate::quantity;
use hpk_api::plan::PodRef;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers that a site can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `--mem` of a pod that asks for no memory, MiB.
    pub memory_mib: u64,
    /// Least `--mem`: below it the supervisor itself would not fit, MiB.
    pub least_memory_mib: u64,
    /// Extended resources and the gres that serves them.
    pub gres: BTreeMap<String, String>,
    /// Seconds that a job is given beyond its pod's grace period to finish by itself.
    pub margin_seconds: u64,
}

impl Default for Defaults {
    fn default() -> Self {
        let gres = [("nvidia.com/gpu", "gpu"), ("amd.com/gpu", "gpu"), ("gpu.intel.com/i915", "gpu")];
        Self {
            memory_mib: 128,
            least_memory_mib: 64,
            gres: gres.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            margin_seconds: 10,
        }
    }
}

/// A pod's needs, added up by Kubernetes' rule for init containers and sidecars.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whole CPUs, at least 1.
    pub cpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// gres name → count.
    pub gres: BTreeMap<String, u64>,
    /// Extended resources that no gres is known for.
    pub unknown: Vec<String>,
}

type Amounts = BTreeMap<String, u64>;

/// Adds a pod's requests up: the larger of (containers + sidecars) and each init container together with the
/// sidecars before it; pod-level requests take precedence; overhead is added.
#[must_use]
pub fn needs(pod: &Pod, defaults: &Defaults) -> Needs {
    let Some(spec) = pod.spec.as_ref() else {
        return Needs { cpus: 1, memory_mib: defaults.memory_mib, ..Needs::default() };
    };
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &requests(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = requests(container);
        add(&mut now, &sidecars);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &requests(container));
        }
        largest(&mut peak, &now);
    }
    add(&mut total, &sidecars);
    largest(&mut total, &peak);
    if let Some(resources) = &spec.resources {
        let merged = merged(resources.requests.as_ref(), resources.limits.as_ref());
        total.extend(merged);
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));

    let mut needs = Needs { cpus: 1, memory_mib: defaults.memory_mib, ..Needs::default() };
    for (name, amount) in total {
        match name.as_str() {
            "cpu" => needs.cpus = amount.div_ceil(1000).max(1),
            "memory" if amount > 0 => needs.memory_mib = amount.div_ceil(1 << 20).max(defaults.least_memory_mib),
            _ if amount > 0 && is_extended(&name) => match defaults.gres.get(&name) {
                Some(gres) => *needs.gres.entry(gres.clone()).or_default() += amount,
                None => needs.unknown.push(name),
            },
            _ => {}
        }
    }
    needs
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/")
}

fn requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    merged(resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref()))
}

/// A limit stands for a request that is not given, as the API server's defaulting has it.
fn merged(requests: Option<&BTreeMap<String, Quantity>>, limits: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let mut all = amounts(limits);
    all.extend(amounts(requests));
    all
}

/// Millicores of `cpu`, units of everything else.
pub(crate) fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    map.into_iter()
        .flatten()
        .map(|(name, q)| (name.clone(), if name == "cpu" { quantity::milli_of(q) } else { quantity::value_of(q) }))
        .collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn largest(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// Arguments of sbatch for a pod, without the script: what the pod's fields ask for; then `extra`, the user's flags, which
/// win over it; then what HPK itself needs, which nothing wins over.
#[must_use]
pub fn arguments(pod: &Pod, who: &PodRef, folder: &Path, defaults: &Defaults, extra: &[String]) -> Vec<String> {
    let needs = needs(pod, defaults);
    let spec = pod.spec.as_ref();
    let mut list = vec![
        "--no-requeue".to_owned(),
        "--nodes=1".to_owned(),
        "--ntasks=1".to_owned(),
        format!("--cpus-per-task={}", needs.cpus),
        format!("--mem={}M", needs.memory_mib),
    ];
    let grace = spec.and_then(|s| s.termination_grace_period_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
    // Slurm may send the signal up to a minute early and reads the number as 16 bits.
    let warning = (grace + defaults.margin_seconds).min(65_000);
    if let Some(deadline) = spec.and_then(|s| s.active_deadline_seconds).and_then(|s| u64::try_from(s).ok()) {
        // The supervisor keeps the exact deadline; Slurm's limit, in whole minutes, only backs it.
        let minutes = deadline.saturating_add(warning).saturating_add(60).div_ceil(60);
        list.push(format!("--time={minutes}"));
    }
    if !needs.gres.is_empty() {
        let gres: Vec<String> = needs.gres.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        list.push(format!("--gres={}", gres.join(",")));
    }
    list.extend_from_slice(extra);
    let output = folder.join(hpk_api::files::JOB_OUTPUT);
    list.extend([
        "--parsable".to_owned(),
        format!("--job-name={}/{}", who.namespace, who.name),
        format!("--comment={}", who.uid),
        format!("--chdir={}", folder.display()),
        "--input=/dev/null".to_owned(),
        format!("--output={}", output.display()),
        format!("--error={}", output.display()),
        "--open-mode=append".to_owned(),
        "--export=ALL".to_owned(),
        format!("--signal=B:TERM@{warning}"),
    ]);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: serde_json::Value) -> Needs {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod");
        needs(&pod, &Defaults::default())
    }

    #[test]
    fn added_up_as_the_scheduler_does() {
        let request = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}});
        let cases = [
            (json!({"containers": [{"name": "a"}]}), 1, 128),
            (json!({"containers": [{"name": "a", "resources": request("100m", "1Mi")}]}), 1, 64),
            (
                json!({"containers": [{"name": "a", "resources": request("1500m", "100Mi")}, {"name": "b", "resources": request("600m", "0.5Gi")}]}),
                3,
                612,
            ),
            (json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "2", "memory": "100M"}}}]}), 2, 96),
            // An init container counts alone …
            (
                json!({"initContainers": [{"name": "i", "resources": request("4", "1Gi")}],
                    "containers": [{"name": "a", "resources": request("1", "2Gi")}]}),
                4,
                2048,
            ),
            // … with the sidecars started before it.
            (
                json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": request("1", "1Gi")},
                                       {"name": "i", "resources": request("4", "1Gi")}],
                    "containers": [{"name": "a", "resources": request("1", "512Mi")}]}),
                5,
                2048,
            ),
            (
                json!({"overhead": {"cpu": "250m"}, "resources": {"requests": {"cpu": "3"}},
                    "containers": [{"name": "a", "resources": request("1", "512Mi")}]}),
                4,
                512,
            ),
        ];
        for (spec, cpus, memory) in cases {
            let needs = of(spec.clone());
            assert_eq!((needs.cpus, needs.memory_mib), (cpus, memory), "{spec}");
        }
    }

    #[test]
    fn gpus() {
        let needs = of(
            json!({"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": "2", "example.com/foo": "1"}}}]}),
        );
        assert_eq!(needs.gres, [("gpu".to_owned(), 2)].into());
        assert_eq!(needs.unknown, ["example.com/foo"]);
    }

    #[test]
    fn command_line() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"activeDeadlineSeconds": 100,
            "terminationGracePeriodSeconds": 20, "containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}))
        .expect("pod");
        let who = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u-1".into() };
        let list = arguments(
            &pod,
            &who,
            Path::new("/home/a/.hpk/pods/u-1"),
            &Defaults::default(),
            &["--partition=debug".into()],
        );
        assert_eq!(
            list,
            [
                "--no-requeue",
                "--nodes=1",
                "--ntasks=1",
                "--cpus-per-task=1",
                "--mem=128M",
                "--time=4",
                "--gres=gpu:1",
                "--partition=debug",
                "--parsable",
                "--job-name=ns/p",
                "--comment=u-1",
                "--chdir=/home/a/.hpk/pods/u-1",
                "--input=/dev/null",
                "--output=/home/a/.hpk/pods/u-1/job.out",
                "--error=/home/a/.hpk/pods/u-1/job.out",
                "--open-mode=append",
                "--export=ALL",
                "--signal=B:TERM@30",
            ]
        );
    }
}
