//! Which of a job's GPUs each container sees. Pure: [`shares`] and [`Gpus::of`] are functions of the plan, of what Slurm says
//! in the job's environment, and of the GPUs' device nodes that are there.
//!
//! Slurm numbers the job's GPUs in variables, one item for each. Containers that ask for GPUs have items of their own, in the
//! order of the plan; one that asks for none, beside others that do, has none. Where no container asks (the job's GPUs come by
//! the pod's flags) each has all of them.

use hpk_api::plan::{ContainerPlan, RestartPolicy, SandboxPlan};
use std::collections::HashMap;
use std::ops::Range;

/// Variables by which Slurm numbers the job's GPUs for programs.
const NUMBERED: [&str; 4] = ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"];
/// What NVIDIA's own container tools go by. Images set it to `all`.
const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";
/// Numbers of the GPUs on the node, whatever the cgroup hides: of the step where the pod is one (in a gang), else of the job.
const ON_NODE: [&str; 2] = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];
/// NVIDIA's device nodes below /dev, less the number.
const NODE: &str = "nvidia";

/// The job's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gpus {
    /// Variable → items.
    items: Vec<(&'static str, Vec<String>)>,
    on_node: Vec<String>,
    /// Numbers of the device nodes that are there: where the site's cgroup hides none, those of other jobs too.
    there: Vec<u32>,
}

/// What one container sees of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// For its environment; they win over its image's.
    pub env: Vec<(String, String)>,
    /// Names below /dev that it does not get.
    pub hidden: Vec<String>,
}

impl Gpus {
    /// From the job's environment, and the names below /dev.
    #[must_use]
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>, devices: impl Iterator<Item = String>) -> Self {
        let list = |name: &str| {
            let text = variable(name).filter(|text| text != "NoDevFiles")?;
            let items: Vec<String> = text.split(',').filter(|i| !i.is_empty()).map(str::to_owned).collect();
            (!items.is_empty()).then_some(items)
        };
        let items = NUMBERED.iter().filter_map(|name| Some((*name, list(name)?))).collect();
        let mut there: Vec<u32> = devices.filter_map(|name| name.strip_prefix(NODE)?.parse().ok()).collect();
        there.sort_unstable();
        Self { items, on_node: ON_NODE.iter().find_map(|name| list(name)).unwrap_or_default(), there }
    }

    /// What a container sees that has this share of them; None: all of them.
    #[must_use]
    pub(crate) fn seen(&self, share: Option<&Range<usize>>) -> Seen {
        let mut seen = Seen::default();
        // Device nodes are told apart by their numbers, which Slurm knows as the node's.
        let numbers: Option<Vec<u32>> = self.on_node.iter().map(|n| n.parse().ok()).collect();
        let numbers = numbers.filter(|n| !n.is_empty());
        for (name, items) in &self.items {
            let own = share.map_or(&items[..], |share| part(items, share));
            // Of nodes that are hidden the libraries do not know: they number the others from 0.
            let renumbered = *name == "CUDA_VISIBLE_DEVICES"
                && numbers.as_ref().is_some_and(|n| n.len() == items.len())
                && own.iter().all(|i| i.parse::<u32>().is_ok());
            let value = if renumbered { numbered(own.len()) } else { own.join(",") };
            seen.env.push(((*name).to_owned(), value));
        }
        let cuda = self.items.iter().find(|(name, _)| *name == "CUDA_VISIBLE_DEVICES");
        if let Some((_, items)) = cuda {
            let own = share.map_or(&items[..], |share| part(items, share));
            let value = if own.is_empty() { "void".to_owned() } else { own.join(",") };
            seen.env.push((NVIDIA.to_owned(), value));
        }
        if let Some(numbers) = numbers {
            let own = share.map_or(&numbers[..], |share| part(&numbers, share));
            let others = self.there.iter().filter(|number| !own.contains(number));
            seen.hidden = others.map(|number| format!("{NODE}{number}")).collect();
        }
        seen
    }
}

/// Whether a container says itself which GPUs it sees; an image's word that it wants all of them is not one that counts.
#[must_use]
pub(crate) fn says(container: &ContainerPlan, name: &str) -> bool {
    container.env.iter().any(|(own, value)| own == name && value != "all")
}

fn part<'a, T>(items: &'a [T], share: &Range<usize>) -> &'a [T] {
    &items[share.start.min(items.len())..share.end.min(items.len())]
}

fn numbered(count: usize) -> String {
    (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

/// The share of each container, by its name; a container that is not in it has all. Sidecars and containers run together, so
/// their shares are apart; an init container takes what its sidecars leave, and gives it back.
#[must_use]
pub(crate) fn shares(plan: &SandboxPlan) -> HashMap<String, Range<usize>> {
    let mut shares = HashMap::new();
    let mut next = 0;
    for container in &plan.init_containers {
        let Some(count) = count(container) else { continue };
        shares.insert(container.name.clone(), next..next + count);
        if container.restart_policy == Some(RestartPolicy::Always) {
            next += count;
        }
    }
    for container in &plan.containers {
        let Some(count) = count(container) else { continue };
        shares.insert(container.name.clone(), next..next + count);
        next += count;
    }
    shares
}

fn count(container: &ContainerPlan) -> Option<usize> {
    usize::try_from(container.gpus?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::net::NetworkPlan;
    use serde_json::json;

    fn gpus(variables: &[(&str, &str)]) -> Gpus {
        let there = ["null", "nvidia3", "nvidia0", "nvidia1", "nvidia2", "nvidiactl"].map(str::to_owned);
        Gpus::of(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()), there.into_iter())
    }

    fn value(seen: &Seen, name: &str) -> Option<String> {
        seen.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn containers_have_gpus_of_their_own() {
        let container = |name: &str, gpus: Option<u32>, sidecar: bool| {
            json!({"name": name, "image": "i", "image_ref": {"folder": "f", "id": "d"}, "argv": ["a"], "env": [], "gpus": gpus,
                "restart_policy": sidecar.then_some("Always")})
        };
        let plan: SandboxPlan = serde_json::from_value(json!({
            "version": 1, "pod": {"namespace": "n", "name": "p", "uid": "u"}, "hostname": "p",
            "restart_policy": "Never", "termination_grace_period_seconds": 1, "network": NetworkPlan::default(),
            "init_containers": [container("first", Some(2), false), container("side", Some(1), true),
                                container("second", Some(2), false)],
            "containers": [container("a", Some(2), false), container("none", Some(0), false), container("b", Some(1), false)],
        }))
        .unwrap();
        let shares = shares(&plan);
        for (name, share) in
            [("first", 0..2), ("side", 0..1), ("second", 1..3), ("a", 1..3), ("none", 3..3), ("b", 3..4)]
        {
            assert_eq!(shares.get(name), Some(&share), "{name}");
        }
    }

    #[test]
    fn a_share_is_told_and_the_rest_is_hidden() {
        let constrained = gpus(&[("CUDA_VISIBLE_DEVICES", "0,1,2"), ("SLURM_JOB_GPUS", "1,2,3")]);
        let all = constrained.seen(None);
        assert_eq!(value(&all, "CUDA_VISIBLE_DEVICES").as_deref(), Some("0,1,2"));
        assert_eq!(all.hidden, ["nvidia0"], "of another job, where the cgroup does not hide it");
        let free = gpus(&[("CUDA_VISIBLE_DEVICES", "2,3"), ("SLURM_JOB_GPUS", "2,3")]).seen(None);
        assert_eq!(value(&free, "CUDA_VISIBLE_DEVICES").as_deref(), Some("0,1"));
        assert_eq!(free.hidden, ["nvidia0", "nvidia1"]);
        let last = constrained.seen(Some(&(1..3)));
        assert_eq!(value(&last, "CUDA_VISIBLE_DEVICES").as_deref(), Some("0,1"));
        assert_eq!(value(&last, NVIDIA).as_deref(), Some("1,2"));
        assert_eq!(last.hidden, ["nvidia0", "nvidia1"]);
        let none = constrained.seen(Some(&(3..3)));
        assert_eq!(value(&none, "CUDA_VISIBLE_DEVICES").as_deref(), Some(""));
        assert_eq!(value(&none, NVIDIA).as_deref(), Some("void"));
        assert_eq!(none.hidden, ["nvidia0", "nvidia1", "nvidia2", "nvidia3"]);
    }

    #[test]
    fn a_step_has_its_own_of_the_jobs() {
        let step = gpus(&[("CUDA_VISIBLE_DEVICES", "1"), ("SLURM_JOB_GPUS", "0,1"), ("SLURM_STEP_GPUS", "1")]);
        let seen = step.seen(Some(&(0..1)));
        // Of one node that is there the libraries know as 0.
        assert_eq!(value(&seen, "CUDA_VISIBLE_DEVICES").as_deref(), Some("0"));
        assert_eq!(seen.hidden, ["nvidia0", "nvidia2", "nvidia3"]);
    }

    #[test]
    fn what_has_no_number_is_told_by_its_name() {
        let slices = gpus(&[("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")]);
        let one = slices.seen(Some(&(1..2)));
        assert_eq!((value(&one, "CUDA_VISIBLE_DEVICES").as_deref(), one.hidden.len()), (Some("MIG-b"), 0));
        let amd = gpus(&[("ROCR_VISIBLE_DEVICES", "0,1"), ("SLURM_JOB_GPUS", "0,1")]);
        let two = amd.seen(Some(&(1..2)));
        assert_eq!((value(&two, "ROCR_VISIBLE_DEVICES").as_deref(), value(&two, NVIDIA)), (Some("1"), None));
        assert_eq!(gpus(&[("CUDA_VISIBLE_DEVICES", "NoDevFiles")]).seen(None), Seen::default());
        // A share beyond what Slurm gave is what there is.
        assert_eq!(value(&slices.seen(Some(&(1..9))), NVIDIA).as_deref(), Some("MIG-b"));
    }
}
