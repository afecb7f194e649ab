//! What a pod asks of Slurm: CPUs, memory, time, generic resources.

use super::capacity::Capacity;
use super::flags;
use super::gres::{self, Unknown};
use super::limits::{Limits, SiteMemory, TimeLimit};
use crate::executor::script::quote;
use crate::executor::{Asked, Asking};
use crate::pods::step;
use crate::quantity::{self, amounts};
use hpk_api::nodes::Vendor;
use hpk_api::pod_flags;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use thiserror::Error;

/// MiB of a container that says nothing of memory, unless `hpk up --default-memory` says otherwise.
pub(crate) const DEFAULT_MEMORY: u64 = 1024;
/// MiB that every job has beyond its containers': for the supervisor, hpk-netns, Apptainer and the network's helper (some
/// 30), and for the page cache of what containers read, without which a pod near its limit thrashes.
pub(crate) const ROOM: u64 = 64;

/// Numbers that a site can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// MiB of a container that says nothing, as the user has chosen. None: [`DEFAULT_MEMORY`], and the job never has less
    /// than Slurm gives one that asks for nothing.
    pub memory_mib: Option<u64>,
    /// Minutes of a pod that has no deadline. None: what the partition gives.
    pub time_minutes: Option<u64>,
    /// Seconds that a job is given beyond its pod's grace period to finish by itself.
    pub margin_seconds: u64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { memory_mib: None, time_minutes: None, margin_seconds: 10 }
    }
}

/// A pod's needs, added up by Kubernetes' rule for init containers and sidecars.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Whole CPUs, at least 1.
    pub cpus: u64,
    /// MiB.
    pub memory_mib: u64,
    /// gres, `gpu` or `gpu:a100` → count.
    pub gres: BTreeMap<String, u64>,
    /// Extended resources that no gres is known for.
    pub unknown: Vec<String>,
    /// Resources that more than one type could be meant by, and these types.
    pub ambiguous: Vec<(String, Vec<String>)>,
}

/// What the site has, as far as a request depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Has<'a> {
    /// Memory of jobs that ask for none.
    pub memory: SiteMemory,
    /// Of the partition.
    pub capacity: &'a Capacity,
    /// Who made the GPUs whose type does not tell.
    pub vendor: Vendor,
}

pub(crate) type Amounts = BTreeMap<String, u64>;

/// Adds up what each container counts for: the larger of (containers + sidecars) and each init container together with the
/// sidecars before it.
pub(crate) fn added_up(spec: &PodSpec, counts: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &counts(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = counts(container);
        add(&mut now, &sidecars);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &counts(container));
        }
        largest(&mut peak, &now);
    }
    add(&mut total, &sidecars);
    largest(&mut total, &peak);
    total
}

/// What a pod needs. Of CPUs and devices that is its requests; pod-level requests take precedence; overhead is added.
#[must_use]
pub(crate) fn needs(pod: &Pod, defaults: &Defaults, has: Has<'_>) -> Needs {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut total = added_up(spec, |c| requests(c.resources.as_ref()));
    total.extend(requests(spec.resources.as_ref()));
    let overhead = amounts(spec.overhead.as_ref());
    add(&mut total, &overhead);

    let mut needs = Needs { cpus: 1, ..Needs::default() };
    for (name, amount) in total {
        match name.as_str() {
            "cpu" => needs.cpus = amount.div_ceil(1000).max(1),
            _ if amount > 0 && is_extended(&name) => {
                match gres::of_resource(&name, gres::wanted(pod), has.capacity, has.vendor) {
                    Ok((kind, model)) => {
                        let gres = model.map_or_else(|| kind.clone(), |model| format!("{kind}:{model}"));
                        *needs.gres.entry(gres).or_default() += amount;
                    }
                    Err(Unknown::Resource) => needs.unknown.push(name),
                    Err(Unknown::Which(types)) => needs.ambiguous.push((name, types)),
                }
            }
            _ => {}
        }
    }
    let bytes = overhead.get(MEMORY).copied().unwrap_or(0);
    needs.memory_mib = memory(spec, bytes, defaults, has.memory.of(needs.cpus));
    needs
}

const MEMORY: &str = "memory";

/// MiB of the job. Slurm's `--mem` is a limit: so each container counts with its limit, else with its request, else with the
/// default. `site`: MiB that Slurm gives a job of this size that asks for nothing.
fn memory(spec: &PodSpec, overhead: u64, defaults: &Defaults, site: u64) -> u64 {
    let given = |r: Option<&ResourceRequirements>| {
        let of = |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|m| m.get(MEMORY)).map(quantity::value_of);
        (of(r.and_then(|r| r.limits.as_ref())), of(r.and_then(|r| r.requests.as_ref())))
    };
    let sum = |silent: u64| {
        let counts = |c: &Container| {
            let (limit, request) = given(c.resources.as_ref());
            Amounts::from([(MEMORY.to_owned(), limit.or(request).unwrap_or(silent))])
        };
        added_up(spec, counts).remove(MEMORY).unwrap_or(0)
    };
    let silent = |c: &Container| given(c.resources.as_ref()) == (None, None);
    let default = defaults.memory_mib.unwrap_or(DEFAULT_MEMORY).saturating_mul(1 << 20);
    let (containers, least) = match given(spec.resources.as_ref()) {
        (Some(limit), _) => (limit, 0),
        (None, Some(request)) => (request.max(sum(0)), 0),
        (None, None) if spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(silent) => {
            (sum(default), if defaults.memory_mib.is_none() { site } else { 0 })
        }
        (None, None) => (sum(0), 0),
    };
    containers.saturating_add(overhead).div_ceil(1 << 20).saturating_add(ROOM).max(least)
}

pub(crate) fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.starts_with("kubernetes.io/")
}

/// A limit stands for a request that is not given, as the API server's defaulting has it.
pub(crate) fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let mut all = amounts(resources.and_then(|r| r.limits.as_ref()));
    all.extend(amounts(resources.and_then(|r| r.requests.as_ref())));
    all
}

pub(crate) fn add(total: &mut Amounts, more: &Amounts) {
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

/// The site has several types of a resource, and the pod does not say which it wants.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "resource {name}: this site has the types {}, and Slurm is asked for one; name it by the annotation {}, or choose a node by nodeSelector nvidia.com/gpu.product",
    types.join(", "),
    gres::MODEL
)]
pub(crate) struct NoType {
    name: String,
    types: Vec<String>,
}

/// Makes the request: what the pod's fields ask for; then `given`, the user's flags, which win over it; then what HPK itself
/// needs, which nothing wins over.
///
/// # Errors
/// The pod does not say which of several types it wants.
pub(crate) fn request(asking: &Asking<'_>, given: &[String]) -> Result<Asked, NoType> {
    let Asking { pod, who, folder, defaults, site, avoid, .. } = *asking;
    let partition = flags::value(given, "partition");
    let limits = site.limits(partition);
    let measured = partition.or_else(|| asking.node.and_then(|n| n.measured.as_deref())).or_else(|| site.usual());
    let capacity = asking.there.part(measured).all;
    let has = Has { memory: limits.memory, capacity: &capacity, vendor: asking.cluster.gpu_vendor };
    let needs = needs(pod, defaults, has);
    if let Some((name, types)) = needs.ambiguous.first().filter(|_| !flags::has(given, "gres")) {
        return Err(NoType { name: name.clone(), types: types.clone() });
    }
    let has = |names: &[&str]| names.iter().any(|name| flags::has(given, name));
    let mut warnings = Vec::new();
    let mut asked = Vec::new();
    // sbatch refuses some flags beside others, so what is told in other words is left out.
    // What an MPI step asks for is one rank's, and how many there are is the user's to say.
    let step = step::container(pod).is_some();
    if !has(&["nodes"]) && !step {
        asked.push("--nodes=1".to_owned());
    }
    let counted = has(&["ntasks", "ntasks-per-node", "tasks-per-node", "ntasks-per-gpu"]) || (step && has(&["nodes"]));
    if !counted {
        asked.push("--ntasks=1".to_owned());
    }
    if !has(&["cpus-per-task", "cpus-per-gpu", "tres-per-task"]) {
        asked.push(format!("--cpus-per-task={}", needs.cpus));
    }
    if !has(&["mem", "mem-per-cpu", "mem-per-gpu"]) {
        asked.push(if step {
            // It goes with the rank's CPUs, on whichever node.
            format!("--mem-per-cpu={}M", needs.memory_mib.div_ceil(needs.cpus))
        } else {
            format!("--mem={}M", needs.memory_mib)
        });
    }
    let time = time(pod, defaults, limits, given, &mut warnings);
    if let Some(minutes) = time.minutes {
        asked.push(format!("--time={minutes}"));
    }
    asked.extend(given.iter().filter(|a| !a.starts_with("--gres=") && !a.starts_with("--exclude=")).cloned());
    if let Some(nodes) = excluded(given, avoid) {
        asked.push(format!("--exclude={nodes}"));
    }
    if let Some(gres) = joined(&needs.gres, flags::value(given, "gres")) {
        asked.push(format!("--gres={gres}"));
    }
    warnings.extend(idle_tasks(pod, given).map(|text| ("SlurmTasksIdle", text)));
    warnings.extend(needs.unknown.iter().map(|name| ("Unsupported", unknown(name))));

    let output = folder.join(hpk_layout::pod::JOB_OUTPUT).display().to_string();
    let mut arguments = vec!["--no-requeue".to_owned(), "--propagate=NONE".to_owned()];
    arguments.extend(asked.iter().cloned());
    arguments.extend([
        "--parsable".to_owned(),
        format!("--job-name={}/{}", who.namespace, who.name),
        format!("--comment={}", who.uid),
        format!("--chdir={}", folder.display()),
        "--input=/dev/null".to_owned(),
        format!("--output={output}"),
        format!("--error={output}"),
        "--open-mode=append".to_owned(),
        "--export=ALL".to_owned(),
        format!("--signal=B:TERM@{}", time.warning),
    ]);
    let asked: Vec<String> = asked.iter().map(|word| quote(word)).collect();
    Ok(Asked { arguments, asked: asked.join(" "), warnings })
}

/// The nodes that the job keeps away from: those of the user's own flag, and those where the pod's sandbox was not made. Of nodes
/// that the user has named none is left out.
fn excluded(given: &[String], avoid: &[String]) -> Option<String> {
    let avoid = avoid.iter().map(String::as_str).filter(|_| !flags::has(given, "nodelist"));
    let all: Vec<&str> = flags::value(given, "exclude").into_iter().chain(avoid).collect();
    (!all.is_empty()).then(|| all.join(","))
}

/// The devices that the pod's resources ask for, and those of the user's own flag: one flag, since the last one holds. A
/// device in both is the flag's.
fn joined(needed: &BTreeMap<String, u64>, given: Option<&str>) -> Option<String> {
    let name = |entry: &str| entry.split([':', '=']).next().unwrap_or_default().to_owned();
    let told: Vec<String> = given.into_iter().flat_map(|g| g.split(',')).map(name).collect();
    let ours =
        needed.iter().filter(|(gres, _)| !told.contains(&name(gres))).map(|(name, count)| format!("{name}:{count}"));
    let all: Vec<String> = ours.chain(given.map(str::to_owned)).collect();
    (!all.is_empty()).then(|| all.join(","))
}

fn unknown(name: &str) -> String {
    format!("resource {name} is not known to Slurm here; ask for it by the annotation {} (--gres=…)", pod_flags::FLAGS)
}

pub(crate) struct Time {
    /// Of `--time`, when the pod's deadline or the user's default asks for it.
    pub(crate) minutes: Option<u64>,
    /// Seconds before the limit that Slurm gives notice.
    pub(crate) warning: u64,
}

/// The job's time limit, and how long before it the pod is to end.
pub(crate) fn time(
    pod: &Pod,
    defaults: &Defaults,
    limits: Limits,
    given: &[String],
    warnings: &mut Vec<(&'static str, String)>,
) -> Time {
    let spec = pod.spec.as_ref();
    let grace = spec.and_then(|s| s.termination_grace_period_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
    let deadline = spec.and_then(|s| s.active_deadline_seconds).and_then(|s| u64::try_from(s).ok());
    // Slurm may send the signal up to a minute early and reads the number as 16 bits.
    let wanted = (grace + defaults.margin_seconds).min(65_000);
    let own = flags::value(given, "time");
    // The supervisor keeps the exact deadline; Slurm's limit, in whole minutes, only backs it.
    let asked = deadline.filter(|_| own.is_none()).map(|d| d.saturating_add(wanted).saturating_add(60).div_ceil(60));
    let asked = asked.or(defaults.time_minutes.filter(|_| own.is_none()));
    let (minutes, limit) = match (asked, limits.most_time) {
        // Beyond the partition's limit the job would wait for ever.
        (Some(minutes), Some(TimeLimit::Seconds(most))) if minutes.saturating_mul(60) > most => {
            if deadline.is_some_and(|d| d > most) {
                let text = format!(
                    "spec.activeDeadlineSeconds is {}, and a job of this partition may run for {most} s: Slurm ends the pod then",
                    deadline.unwrap_or(0)
                );
                warnings.push(("SlurmTimeLimit", text));
            }
            (Some((most / 60).max(1)), Some(most))
        }
        // With a deadline the pod's end begins before the limit, else at the limit.
        (Some(minutes), _) => (Some(minutes), deadline.is_none().then_some(minutes.saturating_mul(60))),
        (None, _) => {
            let limit = own.and_then(TimeLimit::parse).or(limits.usual_time);
            (None, limit.and_then(|l| if let TimeLimit::Seconds(s) = l { Some(s) } else { None }))
        }
    };
    // Of a short time most is the pod's life, not its end: Slurm's early minute, then half of what is left.
    let room = limit.map_or(wanted, |limit| (limit.saturating_sub(60) / 2).max(1));
    if let Some(limit) = limit.filter(|_| room < grace) {
        let text = format!(
            "spec.terminationGracePeriodSeconds is {grace}, and the job's time limit {limit} s: when it comes, the pod has {room} s for its end"
        );
        warnings.push(("SlurmTimeLimit", text));
    }
    Time { minutes, warning: wanted.min(room) }
}

/// What a pod without MPI steps asks for and cannot use.
fn idle_tasks(pod: &Pod, given: &[String]) -> Option<String> {
    if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(pod_flags::MPI_FLAGS)) {
        return None;
    }
    // `2-4`: at least two.
    let count = |name: &str| flags::value(given, name)?.split('-').next()?.parse::<u64>().ok();
    let more = ["nodes", "ntasks", "ntasks-per-node", "tasks-per-node"].iter().find(|name| count(name) > Some(1))?;
    Some(format!(
        "--{more} in the pod's flags: the containers run once, on the job's first node, and start no tasks; other nodes stay idle. \
         For more CPUs on one node write requests.cpu or --cpus-per-task; for MPI steps the annotation {}",
        pod_flags::MPI_FLAGS
    ))
}

#[cfg(test)]
mod tests;
