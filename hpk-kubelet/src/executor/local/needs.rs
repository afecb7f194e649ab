//! What a pod takes of this machine, by Kubernetes' own rule: its requests; and where its limits are. Pure.
//!
//! A Slurm job has whole CPUs and all of its memory to itself. Here pods share the machine: one that asks for nothing takes
//! nothing but the room of its supervisor.

use super::queue::Size;
use crate::executor::slurm::gres;
use crate::executor::slurm::request::{Amounts, Defaults, ROOM, add, added_up, is_extended, requests};
use crate::quantity::{amounts, value_of};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

const MEMORY: &str = "memory";
const CPU: &str = "cpu";
const MIB: u64 = 1 << 20;

/// What is asked for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub size: Size,
    /// What the pod may use at most. None: some container has no limit.
    pub limits: Limits,
}

/// Bounds of a run's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub memory_mib: Option<u64>,
    pub milli_cpu: Option<u64>,
}

/// Adds up a pod. Resources that this machine cannot have come second.
#[must_use]
pub(crate) fn needs(pod: &Pod, defaults: &Defaults) -> (Needs, Vec<String>) {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let silent = defaults.memory_mib.unwrap_or(0).saturating_mul(MIB);
    let asked = |container: &Container| {
        let mut all = requests(container.resources.as_ref());
        all.entry(MEMORY.to_owned()).or_insert(silent);
        all
    };
    let mut total = added_up(spec, asked);
    total.extend(requests(spec.resources.as_ref()));
    let overhead = amounts(spec.overhead.as_ref());
    add(&mut total, &overhead);
    let mut size = Size { memory_mib: ROOM, ..Size::default() };
    let mut unknown = Vec::new();
    for (name, amount) in total {
        match name.as_str() {
            CPU => size.milli_cpu = amount,
            MEMORY => size.memory_mib = amount.div_ceil(MIB).saturating_add(ROOM),
            _ if amount == 0 || !is_extended(&name) => {}
            _ if gres::is_gpu(&name) => {
                size.gpus = size.gpus.saturating_add(amount);
            }
            _ => unknown.push(name),
        }
    }
    let limit = |name: &str| limit(spec, name).map(|sum| sum.saturating_add(overhead.get(name).copied().unwrap_or(0)));
    let limits = Limits {
        memory_mib: limit(MEMORY).map(|bytes| bytes.div_ceil(MIB).saturating_add(ROOM)),
        milli_cpu: limit(CPU),
    };
    (Needs { size, limits }, unknown)
}

/// The pod's limit of one resource: its own, else the sum of its containers', if each has one.
fn limit(spec: &PodSpec, name: &str) -> Option<u64> {
    let of = |r: Option<&ResourceRequirements>| {
        let quantity = r?.limits.as_ref()?.get(name)?;
        Some(if name == CPU { crate::quantity::milli_of(quantity) } else { value_of(quantity) })
    };
    if let Some(own) = of(spec.resources.as_ref()) {
        return Some(own);
    }
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if !all.all(|c| of(c.resources.as_ref()).is_some()) {
        return None;
    }
    let counts = |c: &Container| Amounts::from([(name.to_owned(), of(c.resources.as_ref()).unwrap_or(0))]);
    added_up(spec, counts).remove(name)
}

impl Needs {
    /// In words that people read and [`Self::parse`] takes back.
    #[must_use]
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = vec![format!("cpu={}m", self.size.milli_cpu), format!("memory={}Mi", self.size.memory_mib)];
        if self.size.gpus > 0 {
            words.push(format!("gpu={}", self.size.gpus));
        }
        words.extend(self.limits.milli_cpu.map(|milli| format!("cpu-limit={milli}m")));
        words.extend(self.limits.memory_mib.map(|mib| format!("memory-limit={mib}Mi")));
        words
    }

    /// None: these are not words of ours.
    #[must_use]
    pub(crate) fn parse(words: &[String]) -> Option<Self> {
        let mut needs = Self::default();
        for word in words {
            let (name, value) = word.split_once('=')?;
            let number = |unit: &str| value.strip_suffix(unit)?.parse::<u64>().ok();
            match name {
                "cpu" => needs.size.milli_cpu = number("m")?,
                "memory" => needs.size.memory_mib = number("Mi")?,
                "gpu" => needs.size.gpus = number("")?,
                "cpu-limit" => needs.limits.milli_cpu = Some(number("m")?),
                "memory-limit" => needs.limits.memory_mib = Some(number("Mi")?),
                _ => return None,
            }
        }
        Some(needs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn of(spec: &Value, defaults: &Defaults) -> (String, Vec<String>) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a pod");
        let (needs, unknown) = needs(&pod, defaults);
        (needs.words().join(" "), unknown)
    }

    #[test]
    fn requests_are_taken_and_limits_bound() {
        let container = |resources: Value| json!({"name": "c", "resources": resources});
        let small = container(json!({"requests": {"cpu": "100m", "memory": "10Mi"}}));
        let bound = container(json!({"limits": {"cpu": "2", "memory": "1Gi", "nvidia.com/gpu": "1"}}));
        let foreign = container(json!({"requests": {"x.io/fpga": "1"}}));
        let chosen = Defaults { memory_mib: Some(512), ..Defaults::default() };
        let usual = Defaults::default();
        for (spec, defaults, words, unknown) in [
            (json!({"containers": [container(json!({}))]}), &usual, "cpu=0m memory=64Mi", 0),
            (json!({"containers": [container(json!({}))]}), &chosen, "cpu=0m memory=576Mi", 0),
            (json!({"containers": [small, small]}), &chosen, "cpu=200m memory=84Mi", 0),
            (json!({"containers": [small, bound]}), &usual, "cpu=2100m memory=1098Mi gpu=1", 0),
            (
                json!({"containers": [bound]}),
                &usual,
                "cpu=2000m memory=1088Mi gpu=1 cpu-limit=2000m memory-limit=1088Mi",
                0,
            ),
            (json!({"containers": [foreign]}), &usual, "cpu=0m memory=64Mi", 1),
        ] {
            let (said, others) = of(&spec, defaults);
            assert_eq!((said.as_str(), others.len()), (words, unknown), "{spec}");
        }
    }

    proptest! {
        #[test]
        fn words_are_taken_back(cpu in 0_u64..100_000, memory in 0_u64..1 << 40, gpus in 0_u64..9,
                                milli in proptest::option::of(0_u64..9999), mib in proptest::option::of(0_u64..9999)) {
            let size = Size { milli_cpu: cpu, memory_mib: memory, gpus };
            let needs = Needs { size, limits: Limits { memory_mib: mib, milli_cpu: milli } };
            prop_assert_eq!(Needs::parse(&needs.words()), Some(needs));
        }
    }

    #[test]
    fn words_of_others_are_refused() {
        for word in ["--mem=5M", "cpu", "cpu=5", "memory=1Gi", "disk=1"] {
            assert_eq!(Needs::parse(&[word.to_owned()]), None, "{word}");
        }
    }
}
