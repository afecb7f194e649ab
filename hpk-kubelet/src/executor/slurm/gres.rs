//! Slurm's generic resources and Kubernetes' extended resources: one table of which is which.
//!
//! | Slurm | Kubernetes |
//! |---|---|
//! | `gpu`, `gpu:a100` | `nvidia.com/gpu` |
//! | `gpu:mi250` | `amd.com/gpu` |
//! | `gpu:pvc` | `gpu.intel.com/i915` |
//! | `gpu:1g.5gb`, `gpu:a100_1g.5gb` | `nvidia.com/mig-1g.5gb` |
//! | `shard` | `nvidia.com/gpu.shared` |
//! | any other `kind` | `slurm.hpk.io/kind` |

use super::capacity::Capacity;
use crate::quantity;
use hpk_api::nodes::{Vendor, is_label};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, BTreeSet};

/// A generic resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gres {
    /// `gpu`
    pub kind: String,
    /// Slurm's type: `a100`.
    pub model: Option<String>,
    pub count: u64,
}

/// Resources of the table's last line.
const OTHER: &str = "slurm.hpk.io/";
const SHARED: &str = "nvidia.com/gpu.shared";
const MIG: &str = "nvidia.com/mig-";
/// The annotation by which a pod names the type of its GPUs.
pub(crate) const MODEL: &str = "slurm-job.hpk.io/gpu-type";
/// Labels of Nodes that name the product, as the vendors' own labellers set them.
pub(crate) const PRODUCTS: [&str; 2] = ["nvidia.com/gpu.product", "amd.com/gpu.product-name"];

/// Reads `gpu:a100:4(S:0-1),nic:2`.
#[must_use]
pub(crate) fn list(text: &str) -> Vec<Gres> {
    if text == "(null)" || text.is_empty() {
        return Vec::new();
    }
    let mut depth = 0_u32;
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let one = |item: &str| {
        let parts: Vec<&str> = item.split(':').collect();
        let (kind, rest) = parts.split_first().filter(|(kind, _)| !kind.is_empty())?;
        let (model, count) = match rest {
            [] => (None, 1),
            // A count may have a suffix: `bandwidth:10G`.
            [one] => number(one).map_or((Some(*one), 1), |n| (None, n)),
            [model, count, ..] => (Some(*model), number(count).unwrap_or(1)),
        };
        Some(Gres { kind: (*kind).to_owned(), model: model.map(str::to_owned), count })
    };
    plain.split(',').filter_map(one).collect()
}

/// `4`, `10K`, `2G`.
fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Who made the GPUs of this type, where it tells.
fn vendor_of(model: &str) -> Option<Vendor> {
    let model = model.to_ascii_lowercase();
    let begins = |with: &[&str]| with.iter().any(|w| model.starts_with(w));
    let instinct = model.strip_prefix("mi").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if instinct || begins(&["amd", "gfx", "radeon", "instinct"]) {
        Some(Vendor::Amd)
    } else if begins(&["intel", "pvc", "max1", "flex", "i915"]) {
        Some(Vendor::Intel)
    } else if begins(&[
        "nvidia", "tesla", "a1", "a3", "a4", "b1", "b2", "gb", "gh", "h1", "h2", "l4", "p1", "rtx", "t4", "v1",
    ]) {
        Some(Vendor::Nvidia)
    } else {
        None
    }
}

fn resource_of(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Nvidia => "nvidia.com/gpu",
        Vendor::Amd => "amd.com/gpu",
        Vendor::Intel => "gpu.intel.com/i915",
    }
}

/// Whether a resource is whole GPUs.
#[must_use]
pub(crate) fn is_gpu(resource: &str) -> bool {
    vendor_named(resource).is_some()
}

fn vendor_named(resource: &str) -> Option<Vendor> {
    match resource {
        "nvidia.com/gpu" => Some(Vendor::Nvidia),
        "amd.com/gpu" => Some(Vendor::Amd),
        "gpu.intel.com/i915" | "gpu.intel.com/xe" => Some(Vendor::Intel),
        _ => None,
    }
}

/// The profile of a MIG slice in a type: `1g.5gb` of `a100_1g.5gb`.
fn profile(model: &str) -> Option<&str> {
    let part = model.rsplit(['_', '-']).next()?;
    let (slices, memory) = part.split_once("g.")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(slices) && memory.strip_suffix("gb").is_some_and(digits)).then_some(part)
}

/// The extended resource that a Node publishes for a generic resource. `usual`: the vendor of GPUs whose type does not tell.
#[must_use]
pub(crate) fn resource(kind: &str, model: Option<&str>, usual: Vendor) -> String {
    match (kind, model.and_then(profile)) {
        ("gpu", Some(profile)) => format!("{MIG}{profile}"),
        ("gpu", None) => resource_of(model.and_then(vendor_of).unwrap_or(usual)).to_owned(),
        ("shard", _) => SHARED.to_owned(),
        _ => format!("{OTHER}{kind}"),
    }
}

/// All extended resources of a capacity.
#[must_use]
pub(crate) fn resources(capacity: &Capacity, usual: Vendor) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for ((kind, model), count) in &capacity.gres {
        *all.entry(resource(kind, model.as_deref(), usual)).or_default() += count;
    }
    all
}

/// Why a resource cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// No line of the table has it.
    Resource,
    /// The site has several types that could be meant.
    Which(Vec<String>),
}

/// The kind and type of what a pod asks for by `name`. `wanted`: the type that the pod names; `has`: what is there.
///
/// # Errors
/// [`Unknown`].
pub(crate) fn of_resource(
    name: &str,
    wanted: Option<&str>,
    has: &Capacity,
    usual: Vendor,
) -> Result<(String, Option<String>), Unknown> {
    let models = |kind: &str| has.gres.keys().filter(|(k, _)| k == kind).map(|(_, m)| m.as_deref()).collect::<Vec<_>>();
    if let Some(other) = name.strip_prefix(OTHER).filter(|rest| !rest.is_empty()) {
        return Ok((other.to_owned(), None));
    }
    if let Some(asked) = name.strip_prefix(MIG) {
        let there = models("gpu").into_iter().flatten().find(|m| profile(m) == Some(asked));
        return Ok(("gpu".to_owned(), Some(there.unwrap_or(asked).to_owned())));
    }
    let kind = if name == SHARED { "shard" } else { "gpu" };
    let vendor = if name == SHARED { None } else { Some(vendor_named(name).ok_or(Unknown::Resource)?) };
    if let Some(wanted) = wanted {
        return Ok((kind.to_owned(), Some(model_named(wanted, &models("gpu")).unwrap_or(wanted).to_owned())));
    }
    let all = models(kind);
    let fits = |m: &&Option<&str>| vendor.is_none_or(|v| resource(kind, **m, usual) == resource_of(v));
    let fitting: Vec<Option<&str>> = all.iter().filter(fits).copied().collect();
    match fitting[..] {
        // Slurm takes any, and all that it has are fit.
        _ if fitting.len() == all.len() => Ok((kind.to_owned(), None)),
        [Some(one)] => Ok((kind.to_owned(), Some(one.to_owned()))),
        // Slurm says that there is none.
        [] => Ok((kind.to_owned(), None)),
        _ => Err(Unknown::Which(fitting.into_iter().flatten().map(str::to_owned).collect())),
    }
}

/// The type that a product's name means: all words of the type are in the name, and of several types that with the most
/// words. `NVIDIA-A100-SXM4-40GB` is `a100`, or `a100_40gb` where there is one.
fn model_named<'a>(product: &str, models: &[Option<&'a str>]) -> Option<&'a str> {
    let words = |text: &str| -> BTreeSet<String> {
        text.split(['-', '_', ' ']).filter(|w| !w.is_empty()).map(str::to_ascii_lowercase).collect()
    };
    let wanted = words(product);
    let fitting = models.iter().flatten().filter(|m| words(m).is_subset(&wanted));
    fitting.max_by_key(|m| words(m).len()).copied()
}

/// The type of GPUs that a pod names: by its annotation, else by a nodeSelector of the product, else by a required affinity
/// to one product.
#[must_use]
pub(crate) fn wanted(pod: &Pod) -> Option<&str> {
    let annotated = pod.metadata.annotations.as_ref().and_then(|a| a.get(MODEL));
    let spec = pod.spec.as_ref();
    let selected = || {
        let selector = spec?.node_selector.as_ref()?;
        PRODUCTS.iter().find_map(|label| selector.get(*label))
    };
    let affine = || {
        let affinity = spec?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let [term] = &terms[..] else { return None };
        let one = term.match_expressions.iter().flatten().find(|e| {
            PRODUCTS.contains(&e.key.as_str()) && e.operator == "In" && e.values.as_ref().is_some_and(|v| v.len() == 1)
        });
        one?.values.as_ref()?.first()
    };
    annotated.or_else(selected).or_else(affine).map(String::as_str).filter(|m| !m.is_empty())
}

/// How many GPUs each container asks for, by its name, when the pod asks for any. None: it does not, or they cannot be told
/// apart by their number (parts of cards that several share).
#[must_use]
pub(crate) fn shares(pod: &Pod) -> Option<BTreeMap<String, u32>> {
    let spec = pod.spec.as_ref()?;
    let asked = |container: &Container, fits: &dyn Fn(&str) -> bool| -> u64 {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref().or(r.requests.as_ref()));
        limits.into_iter().flatten().filter(|(name, _)| fits(name)).map(|(_, q)| quantity::value_of(q)).sum()
    };
    let whole = |name: &str| vendor_named(name).is_some() || name.starts_with(MIG);
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    if containers().any(|c| asked(c, &|name| name == SHARED) > 0) {
        return None;
    }
    let count = |c: &Container| u32::try_from(asked(c, &whole)).unwrap_or(u32::MAX);
    let shares: BTreeMap<String, u32> = containers().map(|c| (c.name.clone(), count(c))).collect();
    shares.values().any(|n| *n > 0).then_some(shares)
}

/// Labels of a Node that say which types it has: of a single type of GPU also the vendor's own label.
#[must_use]
pub(crate) fn labels(capacity: &Capacity, usual: Vendor) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (kind, model) in capacity.gres.keys() {
        let name = model.as_ref().map_or_else(|| kind.clone(), |m| format!("{kind}.{m}"));
        all.insert(format!("gres.{OTHER}{name}"), "true".to_owned());
    }
    let mut gpus = capacity.gres.keys().filter(|(kind, _)| kind == "gpu");
    if let (Some((_, Some(model))), None) = (gpus.next(), gpus.next()) {
        let vendor = vendor_of(model).unwrap_or(usual);
        let label = match vendor {
            Vendor::Nvidia => Some(PRODUCTS[0]),
            Vendor::Amd => Some(PRODUCTS[1]),
            Vendor::Intel => None,
        };
        all.extend(label.map(|l| (l.to_owned(), model.clone())));
    }
    all.retain(|key, value| is_label(key) && is_label(value));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn has(text: &str) -> Capacity {
        let gres = list(text).into_iter().map(|g| ((g.kind, g.model), g.count)).collect();
        Capacity { gres, ..Capacity::default() }
    }

    #[test]
    fn lists_of_slurm() {
        let gres = |kind: &str, model: Option<&str>, count| Gres {
            kind: kind.to_owned(),
            model: model.map(str::to_owned),
            count,
        };
        assert_eq!(list("gpu:a100:4(S:0-1),nic:2"), [gres("gpu", Some("a100"), 4), gres("nic", None, 2)]);
        assert_eq!(list("gpu"), [gres("gpu", None, 1)]);
        assert_eq!(list("gpu:a100"), [gres("gpu", Some("a100"), 1)]);
        assert_eq!(list("gpu:1g.5gb:7(S:0),bw:10G"), [gres("gpu", Some("1g.5gb"), 7), gres("bw", None, 10 << 30)]);
        assert!(list("(null)").is_empty() && list("").is_empty() && list(",:").is_empty());
    }

    #[test]
    fn each_card_has_its_vendors_name() {
        let all = resources(&has("gpu:a100:4,gpu:mi250:2,gpu:a100_1g.5gb:7,gpu:2,shard:16,nic:1"), Vendor::Nvidia);
        let wanted = [
            ("nvidia.com/gpu", 6),
            ("amd.com/gpu", 2),
            ("nvidia.com/mig-1g.5gb", 7),
            ("nvidia.com/gpu.shared", 16),
            ("slurm.hpk.io/nic", 1),
        ];
        assert_eq!(all, wanted.map(|(name, n)| (name.to_owned(), n)).into());
        assert_eq!(resources(&has("gpu:2"), Vendor::Amd), [("amd.com/gpu".to_owned(), 2)].into());
    }

    #[test]
    fn resources_become_types() {
        let mixed = has("gpu:a100:4,gpu:mi250:2,gpu:h100:1,gpu:a100_1g.5gb:7");
        let one = has("gpu:a100:4");
        let of = |name: &str, wanted: Option<&str>, has: &Capacity| match of_resource(name, wanted, has, Vendor::Nvidia)
        {
            Ok((kind, None)) => kind,
            Ok((kind, Some(model))) => format!("{kind}:{model}"),
            Err(why) => format!("{why:?}"),
        };
        for (name, wanted, has, gres) in [
            ("nvidia.com/gpu", None, &one, "gpu"),
            ("nvidia.com/gpu", Some("NVIDIA-A100-SXM4-40GB"), &one, "gpu:a100"),
            ("nvidia.com/gpu", Some("h100"), &mixed, "gpu:h100"),
            ("nvidia.com/gpu", Some("b200"), &mixed, "gpu:b200"),
            ("amd.com/gpu", None, &mixed, "gpu:mi250"),
            ("nvidia.com/gpu", None, &mixed, "Which([\"a100\", \"h100\"])"),
            ("nvidia.com/mig-1g.5gb", None, &mixed, "gpu:a100_1g.5gb"),
            ("nvidia.com/mig-2g.10gb", None, &one, "gpu:2g.10gb"),
            ("nvidia.com/gpu.shared", None, &one, "shard"),
            ("slurm.hpk.io/mps", None, &one, "mps"),
            ("nvidia.com/gpu", None, &Capacity::default(), "gpu"),
            ("example.com/fpga", None, &one, "Resource"),
        ] {
            assert_eq!(of(name, wanted, has), gres, "{name} {wanted:?}");
        }
        assert_eq!(model_named("A100-80GB", &[Some("a100"), Some("a100_80gb"), Some("v100")]), Some("a100_80gb"));
    }

    #[test]
    fn a_pod_names_a_type_in_three_ways() {
        let pod = |value| serde_json::from_value::<Pod>(value).expect("pod");
        let product = "nvidia.com/gpu.product";
        let annotated = pod(json!({"metadata": {"annotations": {MODEL: "a100"}},
            "spec": {"containers": [], "nodeSelector": {product: "h100"}}}));
        assert_eq!(wanted(&annotated), Some("a100"));
        let selected = pod(json!({"spec": {"containers": [], "nodeSelector": {product: "h100"}}}));
        assert_eq!(wanted(&selected), Some("h100"));
        let affine = |values: &[&str]| {
            let terms = json!([{"matchExpressions": [{"key": product, "operator": "In", "values": values}]}]);
            pod(json!({"spec": {"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}}))
        };
        assert_eq!(wanted(&affine(&["v100"])), Some("v100"));
        assert_eq!(wanted(&affine(&["v100", "a100"])), None);
    }

    #[test]
    fn containers_that_ask_have_shares() {
        let of = |first: serde_json::Value, second: serde_json::Value| {
            let containers = json!([{"name": "a", "resources": first}, {"name": "b", "resources": second}]);
            shares(&serde_json::from_value(json!({"spec": {"containers": containers}})).expect("pod"))
        };
        let gpus = |n: u32| json!({"limits": {"nvidia.com/gpu": n.to_string(), "cpu": "3"}});
        assert_eq!(of(json!({}), json!({"limits": {"cpu": "1"}})), None);
        assert_eq!(of(gpus(2), json!({})), Some([("a".to_owned(), 2), ("b".to_owned(), 0)].into()));
        assert_eq!(of(gpus(1), json!({"limits": {SHARED: "1"}})), None);
        let slice = json!({"limits": {"nvidia.com/mig-1g.5gb": "1"}});
        assert_eq!(of(gpus(1), slice), Some([("a".to_owned(), 1), ("b".to_owned(), 1)].into()));
    }

    #[test]
    fn labels_of_a_node() {
        let one = labels(&has("gpu:a100:4,nic:2"), Vendor::Nvidia);
        let wanted = [
            ("gres.slurm.hpk.io/gpu.a100", "true"),
            ("gres.slurm.hpk.io/nic", "true"),
            ("nvidia.com/gpu.product", "a100"),
        ];
        assert_eq!(one, wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(!labels(&has("gpu:a100:4,gpu:h100:1"), Vendor::Nvidia).contains_key("nvidia.com/gpu.product"));
        assert!(labels(&has("gpu:bad name:1"), Vendor::Nvidia).is_empty());
    }
}
