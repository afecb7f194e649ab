//! One allocation for all members: a plain job of equal places, or a heterogeneous job ([`super::split`]). Pure.

use super::split::{Shape, split};
use crate::executor::slurm::cluster::Cluster;
use crate::executor::slurm::limits::Site;
use crate::executor::slurm::request::{Defaults, Has, Needs, needs, time};
use crate::executor::slurm::{flags, gres};
use crate::nodes::OtherPartition;
use hpk_api::gang::{Component, Place};
use hpk_api::nodes::Vendor;
use hpk_api::pod_flags::PodFlags;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::path::Path;
use thiserror::Error;

/// What the site has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    pub site: &'a Site,
    pub there: &'a Cluster,
    /// Who made the GPUs whose type does not tell.
    pub vendor: Vendor,
}

/// Why there can be no allocation of these members.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ShapeError {
    #[error(
        "resource {name}: this site has the types {types}, and Slurm is asked for one; name it by the annotation {}",
        gres::MODEL
    )]
    Ambiguous { name: String, types: String },
    #[error("{0}; in a gang only flags that say where and when a job runs: sizes are the pods' requests")]
    Flag(String),
    #[error(transparent)]
    Partition(#[from] OtherPartition),
}

/// What is asked of sbatch for a gang, and of srun for each member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Arguments of sbatch, without the script; those of components are separated by `:`.
    pub arguments: Vec<String>,
    /// The components: one, or several of a heterogeneous job.
    pub components: Vec<Component>,
    /// The component of each member.
    pub of_members: Vec<u32>,
}

/// What the allocation is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
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
pub(crate) fn flags_of(
    pod: &Pod,
    policy: PodFlags,
    classes: &BTreeMap<String, String>,
) -> Result<Vec<String>, ShapeError> {
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

/// What one member asks for.
///
/// # Errors
/// Slurm cannot be asked for it.
fn shape(pod: &Pod, flags: &[String], defaults: &Defaults, ground: Ground<'_>) -> Result<Shape, ShapeError> {
    let partition = flags::value(flags, "partition");
    let limits = ground.site.limits(partition);
    let capacity = ground.there.part(partition.or_else(|| ground.site.usual())).all;
    let needs = needs(pod, defaults, Has { memory: limits.memory, capacity: &capacity, vendor: ground.vendor });
    if let Some((name, types)) = needs.ambiguous.first() {
        return Err(ShapeError::Ambiguous { name: name.clone(), types: types.join(", ") });
    }
    let Needs { cpus, memory_mib, gres, .. } = needs;
    Ok(Shape { flags: flags.to_vec(), devices: gres, cpus: cpus.max(1), memory_mib })
}

/// Whether the pod has room in such a place.
#[must_use]
pub(crate) fn fits(pod: &Pod, flags: &[String], place: &Place, defaults: &Defaults, ground: Ground<'_>) -> bool {
    shape(pod, flags, defaults, ground).is_ok_and(|shape| {
        shape.cpus <= place.cpus && shape.memory_mib <= place.memory_mib && shape.devices == place.devices
    })
}

/// The members, each with its flags ([`flags_of`]), as one allocation. `all`: what ends one of its nodes ends all of it.
///
/// # Errors
/// Slurm cannot be asked for a member's size.
pub(crate) fn request(
    members: &[(&Pod, Vec<String>)],
    names: &Names<'_>,
    all: bool,
    defaults: &Defaults,
    ground: Ground<'_>,
) -> Result<Request, ShapeError> {
    let shapes = members.iter().map(|(pod, flags)| shape(pod, flags, defaults, ground));
    let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
    let mut request = Request { of_members: vec![0; members.len()], ..Request::default() };
    for (number, part) in split(&shapes).into_iter().enumerate() {
        let Some(shape) = part.members.first().and_then(|n| shapes.get(*n)) else { continue };
        let place = Place { cpus: part.cpus, memory_mib: part.memory_mib, devices: shape.devices.clone() };
        let own: Vec<&Pod> = part.members.iter().filter_map(|n| Some(members.get(*n)?.0)).collect();
        // The first component has the batch script, with whose end all ends.
        let timed = if number == 0 { members.iter().map(|(pod, _)| *pod).collect() } else { own.clone() };
        let step = step(&place);
        let mut asked = vec![format!("--ntasks={}", own.len())];
        asked.extend(step.iter().cloned());
        let (minutes, warning) = longest(&timed, defaults, ground, &shape.flags);
        asked.extend(minutes.filter(|m| *m > 0).map(|m| format!("--time={m}")));
        asked.extend(shape.flags.iter().cloned());
        if !all {
            // A node that fails takes the members on it, not the allocation.
            asked.push("--no-kill".to_owned());
        }
        if number > 0 {
            request.arguments.push(":".to_owned());
        }
        request.arguments.extend(arguments(asked, names, warning));
        if number == 0 {
            request.arguments.extend(of_the_script(names));
        }
        for member in &part.members {
            if let Some(component) = request.of_members.get_mut(*member) {
                *component = u32::try_from(number).unwrap_or(u32::MAX);
            }
        }
        let slots = u32::try_from(own.len()).unwrap_or(u32::MAX);
        request.components.push(Component { slots, step, place: Some(place) });
    }
    Ok(request)
}

/// Flags of srun for a step that has such a place, and of sbatch for a task that is one.
fn step(place: &Place) -> Vec<String> {
    let memory = place.memory_mib.div_ceil(place.cpus.max(1));
    let mut step = vec![format!("--cpus-per-task={}", place.cpus), format!("--mem-per-cpu={memory}M")];
    if !place.devices.is_empty() {
        let list: Vec<String> = place.devices.iter().map(|(name, count)| format!("gres/{name}:{count}")).collect();
        step.push(format!("--tres-per-task={}", list.join(",")));
    }
    step
}

/// The time limit of these members' job, minutes, and how long before it their end begins, seconds.
fn longest(members: &[&Pod], defaults: &Defaults, ground: Ground<'_>, given: &[String]) -> (Option<u64>, u64) {
    let limits = ground.site.limits(flags::value(given, "partition"));
    let (mut minutes, mut warning) = (Some(0), 0);
    for pod in members {
        // What it warns of is said where the pod is prepared.
        let time = time(pod, defaults, limits, given, &mut Vec::new());
        // As long as the longest; one that has no end has none.
        minutes = minutes.zip(time.minutes).map(|(most, own)| most.max(own));
        warning = warning.max(time.warning);
    }
    (minutes, warning)
}

/// Arguments of sbatch for the component in which the batch script runs; of others they would hold for the first (sbatch(1)).
fn of_the_script(names: &Names<'_>) -> Vec<String> {
    let output = names.folder.join(hpk_layout::pod::JOB_OUTPUT).display().to_string();
    vec![
        "--parsable".to_owned(),
        "--input=/dev/null".to_owned(),
        format!("--output={output}"),
        format!("--error={output}"),
        "--open-mode=append".to_owned(),
    ]
}

/// Arguments of sbatch for one component.
fn arguments(asked: Vec<String>, names: &Names<'_>, warning: u64) -> Vec<String> {
    let mut arguments = vec!["--no-requeue".to_owned(), "--propagate=NONE".to_owned()];
    arguments.extend(asked);
    arguments.extend([
        format!("--job-name={}", names.name),
        format!("--comment={}", names.id),
        format!("--chdir={}", names.folder.display()),
        "--export=ALL".to_owned(),
        // To the steps, not to the process that waits for them.
        format!("--signal=TERM@{warning}"),
    ]);
    arguments
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

    fn shape_of(pods: &[Pod], all: bool) -> Result<Request, ShapeError> {
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

    /// What is asked of sbatch for each component, without what says nothing of its size.
    fn asked(request: &Request) -> Vec<Vec<&str>> {
        let sizes = [
            "--ntasks=",
            "--cpus-per-task=",
            "--mem-per-cpu=",
            "--tres-per-task=",
            "--time=",
            "--no-kill",
            "--partition=",
        ];
        let is_size = |flag: &&str| sizes.iter().any(|size| flag.starts_with(size));
        let components = request.arguments.split(|argument| argument == ":");
        components.map(|list| list.iter().map(String::as_str).filter(is_size).collect()).collect()
    }

    #[test]
    fn equal_places_of_the_largest() {
        let pods = [pod("a", "2", "1000Mi", 0, ""), pod("b", "3", "1136Mi", 0, "")];
        let request = shape_of(&pods, false).unwrap();
        assert_eq!(asked(&request), [["--ntasks=2", "--cpus-per-task=3", "--mem-per-cpu=400M", "--no-kill"]]);
        assert_eq!(request.components.len(), 1);
        assert_eq!(request.components[0].step, ["--cpus-per-task=3", "--mem-per-cpu=400M"]);
        assert_eq!((request.components[0].slots, request.of_members.as_slice()), (2, &[0, 0][..]));
        let has = |flag: &str| request.arguments.iter().any(|a| a == flag);
        assert!(has("--comment=g") && has("--chdir=/h/gangs/g") && has("--job-name=ns/gang"), "{request:?}");
        assert!(has("--signal=TERM@15"), "{request:?}");
        assert!(!shape_of(&pods, true).unwrap().arguments.contains(&"--no-kill".to_owned()));
    }

    #[test]
    fn devices_are_each_members_own() {
        let pods = [pod("a", "1", "64Mi", 1, "--partition=gpu"), pod("b", "1", "64Mi", 1, "-p gpu")];
        let request = shape_of(&pods, true).unwrap();
        assert_eq!(request.components.len(), 1);
        assert!(request.components[0].step.contains(&"--tres-per-task=gres/gpu:1".to_owned()), "{request:?}");
        assert!(request.arguments.contains(&"--partition=gpu".to_owned()), "{request:?}");
    }

    #[test]
    fn unlike_members_are_components_of_a_heterogeneous_job() {
        let client = |name: &str| pod(name, "1", "64Mi", 0, "");
        let pods = [client("a"), pod("server", "8", "512Mi", 0, ""), client("b"), client("c")];
        let request = shape_of(&pods, true).unwrap();
        let of = |request: &Request| asked(request).iter().map(|list| list[..2].join(" ")).collect::<Vec<_>>();
        assert_eq!(of(&request), ["--ntasks=1 --cpus-per-task=8", "--ntasks=3 --cpus-per-task=1"]);
        assert_eq!(request.of_members, [1, 0, 1, 1]);
        let count = |flag: &str| request.arguments.iter().filter(|argument| argument.starts_with(flag)).count();
        for each in ["--comment=g", "--chdir=", "--job-name=ns/gang", "--no-requeue", "--signal="] {
            assert_eq!(count(each), 2, "{each} of each component");
        }
        assert_eq!(count("--output="), 1, "of the first component alone");
        for (other, want) in [
            (pod("gpu", "1", "64Mi", 1, ""), "--tres-per-task=gres/gpu:1"),
            (pod("far", "1", "64Mi", 0, "--partition=far"), "--partition=far"),
        ] {
            let request = shape_of(&[client("a"), other], true).unwrap();
            let with = asked(&request).iter().filter(|list| list.contains(&want)).count();
            assert_eq!((request.components.len(), with), (2, 1), "{want}: {request:?}");
        }
    }

    #[test]
    fn the_component_with_the_batch_script_lasts_as_long_as_any() {
        let with = |mut pod: Pod, seconds: i64| {
            pod.spec.as_mut().unwrap().active_deadline_seconds = Some(seconds);
            pod
        };
        let (server, client) = (pod("s", "8", "64Mi", 0, ""), pod("c", "1", "64Mi", 0, ""));
        let times = |pods: &[Pod]| {
            let request = shape_of(pods, true).unwrap();
            let time = |list: &Vec<&str>| list.iter().find(|flag| flag.starts_with("--time=")).map(|f| (*f).to_owned());
            asked(&request).iter().map(time).collect::<Vec<_>>()
        };
        let both = times(&[with(server.clone(), 600), with(client.clone(), 6000)]);
        assert_eq!(both[0], both[1], "{both:?}");
        let shorter = times(&[with(server.clone(), 6000), with(client.clone(), 600)]);
        assert!(shorter[1].is_some() && shorter[0] != shorter[1], "{shorter:?}");
        assert_eq!(times(&[with(server, 600), client]), [None, None]);
    }

    #[test]
    fn one_more_must_fit_into_a_place() {
        let place = Place { cpus: 2, memory_mib: 256, devices: BTreeMap::new() };
        for (pod, want) in [
            (pod("same", "2", "128Mi", 0, ""), true),
            (pod("cpus", "3", "128Mi", 0, ""), false),
            (pod("memory", "1", "512Mi", 0, ""), false),
            (pod("device", "1", "64Mi", 1, ""), false),
        ] {
            let ground = Ground { site: &Site::default(), there: &Cluster::default(), vendor: Vendor::Nvidia };
            assert_eq!(fits(&pod, &[], &place, &Defaults::default(), ground), want, "{:?}", pod.metadata.name);
        }
    }

    #[test]
    fn flags_that_say_how_large_are_refused() {
        let pods = [pod("a", "1", "64Mi", 0, ""), pod("b", "1", "64Mi", 0, "--ntasks=4")];
        let error = shape_of(&pods, false).unwrap_err().to_string();
        assert!(error.contains("sizes are the pods' requests"), "{error}");
    }
}
