//! One allocation for all members: equal places, each as large as the largest member. Pure.

use crate::executor::slurm::cluster::Cluster;
use crate::executor::slurm::limits::Site;
use crate::executor::slurm::request::{Defaults, Has, Needs, needs, time};
use crate::executor::slurm::{flags, gres};
use hpk_api::nodes::Vendor;
use hpk_api::pod_flags::PodFlags;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::path::Path;
use thiserror::Error;

/// What the site has.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    pub site: &'a Site,
    pub there: &'a Cluster,
    /// Who made the GPUs whose type does not tell.
    pub vendor: Vendor,
}

/// Why there can be no allocation of these members.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    #[error(
        "the members of the gang are of unlike size ({small} and {large} for {what}): each place of its allocation is as large \
         as the largest, and more than a third of it would be idle. Give them requests nearer to each other"
    )]
    Unlike { what: String, small: String, large: String },
    #[error(
        "the members of the gang ask for different devices: {one} has {first}, {other} has {second}; make them equal"
    )]
    Devices { one: String, first: String, other: String, second: String },
    #[error(
        "the members of the gang have different flags of Slurm: {one} has {first:?}, {other} has {second:?}; an allocation has \
         one set of them"
    )]
    Flags { one: String, first: String, other: String, second: String },
    #[error(
        "resource {name}: this site has the types {types}, and Slurm is asked for one; name it by the annotation {}",
        gres::MODEL
    )]
    Ambiguous { name: String, types: String },
    #[error("{0}; in a gang only flags that say where and when a job runs: sizes are the pods' requests")]
    Flag(String),
}

/// What is asked of sbatch for a gang, and of srun for each member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Arguments of sbatch, without the script.
    pub arguments: Vec<String>,
    /// Those of them that say what the job takes.
    pub asked: Vec<String>,
    /// Flags of srun of each member's step.
    pub step: Vec<String>,
    /// What members' owners should know: reason and message of a Warning event each.
    pub warnings: Vec<(&'static str, String)>,
}

/// What the allocation is called.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The gang's id.
    pub id: &'a str,
    /// `ns/name`: its job's name.
    pub name: &'a str,
    pub folder: &'a Path,
}

/// The user's flags for a member's job: of its priority class, then its own.
///
/// # Errors
/// Flags that cannot be given in a gang.
pub fn flags_of(pod: &Pod, policy: PodFlags, classes: &BTreeMap<String, String>) -> Result<Vec<String>, ShapeError> {
    let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()).unwrap_or_default();
    let refused = |error: flags::FlagsError| ShapeError::Flag(error.to_string());
    let mut list = match classes.get(class) {
        Some(text) => flags::of_class(class, text).map_err(refused)?,
        None => Vec::new(),
    };
    let policy = if policy == PodFlags::Allow { PodFlags::List } else { policy };
    list.extend(flags::of_job(pod.metadata.annotations.as_ref(), policy).map_err(refused)?);
    Ok(list)
}

/// The members, each with its flags ([`flags_of`]), as one allocation. `all`: what ends one of its nodes ends all of it.
///
/// # Errors
/// They do not fit together.
pub fn request(
    members: &[(&Pod, Vec<String>)],
    names: &Names<'_>,
    all: bool,
    defaults: &Defaults,
    ground: Ground<'_>,
) -> Result<Request, ShapeError> {
    let given = same_flags(members)?;
    let partition = flags::value(given, "partition");
    let limits = ground.site.limits(partition);
    let capacity = ground.there.part(partition.or_else(|| ground.site.usual())).all;
    let has = || Has { memory: limits.memory, capacity: &capacity, vendor: ground.vendor };
    let sizes: Vec<(&Pod, Needs)> = members.iter().map(|(pod, _)| (*pod, needs(pod, defaults, has()))).collect();
    if let Some((name, types)) = sizes.iter().find_map(|(_, needs)| needs.ambiguous.first()) {
        return Err(ShapeError::Ambiguous { name: name.clone(), types: types.join(", ") });
    }
    let cpus = largest(&sizes, "CPUs", |n| n.cpus)?;
    let memory = largest(&sizes, "MiB of memory", |n| n.memory_mib)?;
    let devices = same_devices(&sizes)?;
    let mut warnings = Vec::new();
    let mut minutes = Some(0);
    let mut warning = 0;
    for (pod, _) in members {
        let time = time(pod, defaults, limits, given, &mut warnings);
        // As long as the longest; one that has no end has none.
        minutes = minutes.zip(time.minutes).map(|(most, own)| most.max(own));
        warning = warning.max(time.warning);
    }
    let mut step = vec![format!("--cpus-per-task={cpus}"), format!("--mem-per-cpu={}M", memory.div_ceil(cpus))];
    if !devices.is_empty() {
        let list: Vec<String> = devices.iter().map(|(name, count)| format!("gres/{name}:{count}")).collect();
        step.push(format!("--tres-per-task={}", list.join(",")));
    }
    let mut asked = vec![format!("--ntasks={}", members.len())];
    asked.extend(step.iter().cloned());
    asked.extend(minutes.filter(|m| *m > 0).map(|m| format!("--time={m}")));
    asked.extend(given.iter().cloned());
    if !all {
        // A node that fails takes the members on it, not the allocation.
        asked.push("--no-kill".to_owned());
    }
    let output = names.folder.join(hpk_layout::pod::JOB_OUTPUT).display().to_string();
    let mut arguments = vec!["--no-requeue".to_owned(), "--propagate=NONE".to_owned()];
    arguments.extend(asked.iter().cloned());
    arguments.extend([
        "--parsable".to_owned(),
        format!("--job-name={}", names.name),
        format!("--comment={}", names.id),
        format!("--chdir={}", names.folder.display()),
        "--input=/dev/null".to_owned(),
        format!("--output={output}"),
        format!("--error={output}"),
        "--open-mode=append".to_owned(),
        "--export=ALL".to_owned(),
        // To the steps, not to the process that waits for them.
        format!("--signal=TERM@{warning}"),
    ]);
    Ok(Request { arguments, asked, step, warnings })
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn same_flags<'a>(members: &'a [(&Pod, Vec<String>)]) -> Result<&'a [String], ShapeError> {
    let Some((first, flags)) = members.first() else { return Ok(&[]) };
    match members.iter().find(|(_, other)| other != flags) {
        None => Ok(flags),
        Some((pod, other)) => Err(ShapeError::Flags {
            one: name(first),
            first: flags.join(" "),
            other: name(pod),
            second: other.join(" "),
        }),
    }
}

fn same_devices(sizes: &[(&Pod, Needs)]) -> Result<BTreeMap<String, u64>, ShapeError> {
    let Some((first, needs)) = sizes.first() else { return Ok(BTreeMap::new()) };
    let text = |gres: &BTreeMap<String, u64>| {
        let list: Vec<String> = gres.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        if list.is_empty() { "none".to_owned() } else { list.join(",") }
    };
    match sizes.iter().find(|(_, other)| other.gres != needs.gres) {
        None => Ok(needs.gres.clone()),
        Some((pod, other)) => Err(ShapeError::Devices {
            one: name(first),
            first: text(&needs.gres),
            other: name(pod),
            second: text(&other.gres),
        }),
    }
}

/// The largest member's, if not more than a third of the allocation is idle by it.
fn largest(sizes: &[(&Pod, Needs)], what: &str, of: impl Fn(&Needs) -> u64) -> Result<u64, ShapeError> {
    let by_size = |(_, needs): &&(&Pod, Needs)| of(needs);
    let (Some(most), Some(least)) = (sizes.iter().max_by_key(by_size), sizes.iter().min_by_key(by_size)) else {
        return Ok(1);
    };
    let sum: u64 = sizes.iter().map(|(_, needs)| of(needs)).sum();
    let places = of(&most.1).saturating_mul(sizes.len() as u64);
    if places.saturating_mul(2) > sum.saturating_mul(3) {
        let told = |(pod, needs): &(&Pod, Needs)| format!("{} has {}", name(pod), of(needs));
        return Err(ShapeError::Unlike { what: what.to_owned(), small: told(least), large: told(most) });
    }
    Ok(of(&most.1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::pod_flags::FLAGS;
    use serde_json::json;

    fn pod(name: &str, cpu: &str, memory: &str, gpus: u32, flags: &str) -> Pod {
        let mut limits = json!({"cpu": cpu, "memory": memory});
        if gpus > 0 {
            limits["nvidia.com/gpu"] = json!(gpus.to_string());
        }
        let container = json!({"name": "c", "resources": {"limits": limits}});
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "annotations": {FLAGS: flags}},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 5},
        }))
        .unwrap()
    }

    fn shape(pods: &[Pod], all: bool) -> Result<Request, ShapeError> {
        let names = Names { id: "g", name: "ns/gang", folder: Path::new("/h/gangs/g") };
        let members = pods
            .iter()
            .map(|pod| Ok((pod, flags_of(pod, PodFlags::Allow, &BTreeMap::new())?)))
            .collect::<Result<Vec<_>, ShapeError>>()?;
        request(
            &members,
            &names,
            all,
            &Defaults::default(),
            Ground { site: &Site::default(), there: &Cluster::default(), vendor: Vendor::Nvidia },
        )
    }

    #[test]
    fn equal_places_of_the_largest() {
        let pods = [pod("a", "2", "1000Mi", 0, ""), pod("b", "3", "1136Mi", 0, "")];
        let request = shape(&pods, false).unwrap();
        let want = ["--ntasks=2", "--cpus-per-task=3", "--mem-per-cpu=400M", "--no-kill"];
        assert_eq!(request.asked, want);
        assert_eq!(request.step, ["--cpus-per-task=3", "--mem-per-cpu=400M"]);
        let has = |flag: &str| request.arguments.iter().any(|a| a == flag);
        assert!(has("--comment=g") && has("--chdir=/h/gangs/g") && has("--job-name=ns/gang"), "{request:?}");
        assert!(has("--signal=TERM@15"), "{request:?}");
        assert!(!shape(&pods, true).unwrap().asked.contains(&"--no-kill".to_owned()));
    }

    #[test]
    fn devices_are_each_members_own() {
        let pods = [pod("a", "1", "64Mi", 1, "--partition=gpu"), pod("b", "1", "64Mi", 1, "-p gpu")];
        let request = shape(&pods, true).unwrap();
        assert!(request.step.contains(&"--tres-per-task=gres/gpu:1".to_owned()), "{request:?}");
        assert!(request.asked.contains(&"--partition=gpu".to_owned()), "{request:?}");
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        let plain = || pod("a", "1", "64Mi", 0, "");
        for (other, said) in [
            (pod("b", "8", "64Mi", 0, ""), "b has 8 for CPUs"),
            (pod("b", "1", "64Gi", 0, ""), "MiB of memory"),
            (pod("b", "1", "64Mi", 1, ""), "a has none, b has gpu:1"),
            (pod("b", "1", "64Mi", 0, "--qos=high"), "b has \"--qos=high\""),
            (pod("b", "1", "64Mi", 0, "--ntasks=4"), "sizes are the pods' requests"),
        ] {
            let error = shape(&[plain(), other], false).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
