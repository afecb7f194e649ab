//! What is asked of `hpk up` beside what was chosen for this cluster before: a choice stays until it is given again.

use crate::cli::{self, DefaultMemory, DefaultTime, Scratch};
use crate::decide::{ControlPlane, Families};
use crate::json::{need_json, read_json};
use crate::progress::Progress;
use crate::site;
use crate::state::place;
use anyhow::{Context, Result, anyhow, bail};
use hpk_api::cluster::{ClusterConfig, ContainerLogs, ExecutorKind};
use hpk_api::images::ImageRules;
use hpk_api::nodes::{Chosen, Partitions, Vendor};
use hpk_api::plan::UserIds;
use hpk_api::pod_flags::PodFlags;
use hpk_layout::Home;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is asked of a control plane that runs must be what it runs with.
pub(super) fn refuse_changes(args: &cli::Up, runs: &ClusterConfig) -> Result<()> {
    if args.encryption.is_some_and(|e| runs.plaintext != (e == cli::Encryption::Off)) {
        bail!("--encryption: the control plane is running with the other setting: run hpk down first");
    }
    if args.ip_families.is_some_and(|f| f != Families::decide(None, Some(runs))) {
        bail!("--ip-families: the control plane is running with the other setting: run hpk down first");
    }
    if args.network.as_ref().is_some_and(|n| (runs.network_mode, &runs.cni_network) != (n.mode, &n.name)) {
        bail!("--network: the control plane is running with another one: run hpk down first");
    }
    if args.gpu_vendor.is_some_and(|choice| Vendor::from(choice) != runs.gpu_vendor) {
        bail!("--gpu-vendor: the control plane is running with another one: run hpk down first");
    }
    if args.user_ids.is_some_and(|choice| UserIds::from(choice) != runs.user_ids) {
        bail!("--user-ids: the control plane is running with the other setting: run hpk down first");
    }
    if args.pod_flags.is_some_and(|choice| PodFlags::from(choice) != runs.pod_flags) {
        bail!("--pod-flags: the control plane is running with the other setting: run hpk down first");
    }
    let real = |folder: &PathBuf| folder.canonicalize().unwrap_or_else(|_| folder.clone());
    if args.scratch.as_ref().is_some_and(|Scratch(folder)| folder.as_ref().map(real) != runs.scratch) {
        bail!("--scratch: the control plane is running with another one: run hpk down first");
    }
    if args.default_memory.is_some_and(|DefaultMemory(bytes)| bytes != runs.default_memory) {
        bail!("--default-memory: the control plane is running with another one: run hpk down first");
    }
    if args.local_cpus.is_some() && args.local_cpus != runs.local_cpus {
        bail!("--local-cpus: the control plane is running with another number: run hpk down first");
    }
    if args.default_time.is_some_and(|DefaultTime(minutes)| minutes != runs.default_time) {
        bail!("--default-time: the control plane is running with another one: run hpk down first");
    }
    if priority_classes(args, runs.priority_classes.clone()) != runs.priority_classes {
        bail!("--priority-class: the control plane is running with other flags: run hpk down first");
    }
    let asked = partitions(args, &runs.partitions);
    for (flag, same) in [
        ("--partitions", args.node_per_partition || asked.chosen == runs.partitions.chosen),
        ("--node-per-partition", !args.node_per_partition || asked.chosen == runs.partitions.chosen),
        ("--partition-taint", asked.untainted == runs.partitions.untainted),
    ] {
        if !same {
            bail!("{flag}: the control plane is running with another one: run hpk down first");
        }
    }
    if args.feature_gates.as_ref().is_some_and(|choice| choice.0 != runs.feature_gates) {
        bail!("--feature-gates: the control plane is running with other ones: run hpk down first");
    }
    let logs = container_logs(args, runs.container_logs);
    let images = images(args, &runs.images)?;
    for (flag, same) in [
        ("--local-images", images.local == runs.images.local),
        ("--image-max-size", images.max_bytes == runs.images.max_bytes),
        ("--image-max-files", images.max_files == runs.images.max_files),
        ("--image-layout", images.layout == runs.images.layout),
        ("--container-log-max-size", logs.max_bytes == runs.container_logs.max_bytes),
        ("--container-log-max-files", logs.max_files == runs.container_logs.max_files),
    ] {
        if !same {
            bail!("{flag}: the control plane is running with another one: run hpk down first");
        }
    }
    Ok(())
}

/// The same of the place of etcd's data.
pub(super) fn refuse_move(args: &cli::Up, home: &Home) -> Result<()> {
    let Some(choice) = &args.etcd_data else { return Ok(()) };
    let runs: ControlPlane = need_json(&home.control_plane_json())?;
    if place::choose(home, Some(choice))? != runs.etcd_base {
        bail!("--etcd-data: the control plane is running with another place: run hpk down first");
    }
    Ok(())
}

/// Pods that one executor runs mean nothing to another.
pub(super) fn executor(args: &cli::Up, home: &Home, before: Option<&ClusterConfig>) -> Result<ExecutorKind> {
    let asked = args.executor.map(ExecutorKind::from);
    match (asked, before.map(|cluster| cluster.executor)) {
        (Some(asked), Some(had)) if asked != had => bail!(
            "--executor {}: the pods of {} are run by the executor {}: set HPK_HOME to another folder for another cluster",
            asked.name(),
            home.root().display(),
            had.name()
        ),
        (asked, had) => Ok(asked.or(had).unwrap_or_default()),
    }
}

/// As asked for, else as they were; a class without flags goes.
pub(super) fn priority_classes(args: &cli::Up, former: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut classes = former;
    classes.extend(args.priority_class.iter().cloned());
    classes.retain(|_, flags| !flags.is_empty());
    classes
}

/// As asked for, else as they were.
pub(super) fn partitions(args: &cli::Up, former: &Partitions) -> Partitions {
    let mut partitions = former.clone();
    if args.node_per_partition {
        partitions.chosen = Chosen::All;
    }
    if let Some(chosen) = &args.partitions {
        partitions.chosen.clone_from(chosen);
    }
    if let Some(taint) = args.partition_taint {
        partitions.untainted = taint == cli::Switch::Off;
    }
    partitions
}

/// The Nodes of the partitions that are chosen, by what Slurm has now.
pub(super) fn find_partitions(cluster: &mut ClusterConfig) -> Result<()> {
    if cluster.executor == ExecutorKind::Local && cluster.partitions.chosen != Chosen::None {
        bail!(
            "--partitions, --node-per-partition: with --executor local this machine is the one Node, and no partition is"
        );
    }
    let (all, usual) = if cluster.partitions.chosen == Chosen::None { (Vec::new(), None) } else { site::partitions()? };
    let found = cluster.partitions.resolve(&cluster.node_name, &all, usual.as_deref());
    found.map_err(|why| anyhow!("--partitions: {why}"))
}

/// As asked for, else as it was.
pub(super) fn container_logs(args: &cli::Up, former: ContainerLogs) -> ContainerLogs {
    ContainerLogs {
        max_bytes: args.container_log_max_size.unwrap_or(former.max_bytes),
        max_files: args.container_log_max_files.unwrap_or(former.max_files),
    }
}

/// The folder for hpk-scratch, made where it is missing.
pub(super) fn scratch(folder: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(folder) = folder else { return Ok(None) };
    std::fs::create_dir_all(folder).with_context(|| format!("--scratch {}", folder.display()))?;
    Ok(Some(folder.canonicalize().with_context(|| format!("--scratch {}", folder.display()))?))
}

/// As asked for, else as it was.
pub(super) fn images(args: &cli::Up, former: &ImageRules) -> Result<ImageRules> {
    let asked = ImageRules::local_of(&args.local_images).map_err(|why| anyhow!("--local-images: {why}"))?;
    for folder in asked.iter().flatten().flatten() {
        if !folder.is_dir() {
            bail!("--local-images {}: there is no such folder", folder.display());
        }
    }
    Ok(ImageRules {
        local: asked.unwrap_or_else(|| former.local.clone()),
        max_bytes: args.image_max_size.unwrap_or(former.max_bytes),
        max_files: args.image_max_files.unwrap_or(former.max_files),
        layout: args.image_layout.map_or(former.layout, Into::into),
    })
}

/// What was chosen for this cluster; None: it is new. Damaged, it is refused: the choices would be lost without a word.
pub(super) fn choices(home: &Home, progress: &Progress) -> Result<Option<ClusterConfig>> {
    let (path, copy) = (home.cluster_json(), home.cluster_copy());
    match read_json(&path) {
        Ok(Some(cluster)) => Ok(Some(cluster)),
        Ok(None) => {
            let cluster = read_json(&copy)?;
            if cluster.is_some() {
                progress.done(&format!("{} is gone: taken from {}", path.display(), copy.display()));
            }
            Ok(cluster)
        }
        Err(error) => Err(error.context(format!(
            "this cluster's choices (its network, its address families, …) cannot be read: put {copy} in the place of \
             {path}, or remove both and give the choices again",
            copy = copy.display(),
            path = path.display(),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide;
    use crate::json::write_json;
    use clap::Parser;

    #[test]
    fn choices_are_never_reset_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().to_owned());
        let progress = Progress::new();
        assert_eq!(choices(&home, &progress).unwrap(), None, "a new cluster");
        let mut cluster = decide::tests::layout().cluster;
        cluster.plaintext = true;
        write_json(&home.cluster_json(), &cluster).unwrap();
        write_json(&home.cluster_copy(), &cluster).unwrap();
        assert_eq!(choices(&home, &progress).unwrap(), Some(cluster.clone()));
        for damage in ["", "{", "{\"version\": 1}"] {
            std::fs::write(home.cluster_json(), damage).unwrap();
            let refused = format!("{:#}", choices(&home, &progress).unwrap_err());
            assert!(refused.contains("cluster.json.copy") && refused.contains("is damaged"), "{refused}");
        }
        std::fs::remove_file(home.cluster_json()).unwrap();
        assert_eq!(choices(&home, &progress).unwrap(), Some(cluster));
    }

    fn up(flags: &[&str]) -> cli::Up {
        let cli = cli::Cli::try_parse_from(["hpk", "up"].iter().chain(flags)).unwrap();
        let cli::Command::Up(up) = cli.command else { panic!("{cli:?}") };
        *up
    }

    #[test]
    fn the_executor_is_chosen_once() {
        let home = Home::at("/h");
        let mut cluster = decide::tests::layout().cluster;
        let of = |flags: &[&str], before: Option<&ClusterConfig>| executor(&up(flags), &home, before).ok();
        assert_eq!(of(&[], None), Some(ExecutorKind::Slurm));
        assert_eq!(of(&["--executor=local"], None), Some(ExecutorKind::Local));
        assert_eq!(of(&["--executor=local"], Some(&cluster)), None, "it is Slurm's");
        cluster.executor = ExecutorKind::Local;
        assert_eq!(of(&[], Some(&cluster)), Some(ExecutorKind::Local));
        assert_eq!(of(&["--executor=slurm"], Some(&cluster)), None);
    }

    #[test]
    fn flags_of_priority_classes_stay_until_their_class_is_given_again() {
        let two =
            priority_classes(&up(&["--priority-class=a=--nice=1", "--priority-class=b=--qos=b"]), BTreeMap::new());
        let list = [("a".to_owned(), "--nice=1".to_owned()), ("b".to_owned(), "--qos=b".to_owned())];
        assert_eq!(two, list.clone().into());
        assert_eq!(priority_classes(&up(&["--priority-class=b="]), two), list.into_iter().take(1).collect());
    }

    #[test]
    fn partitions_stay_until_they_are_given_again() {
        let all = partitions(&up(&["--node-per-partition"]), &Partitions::default());
        assert_eq!(all.chosen, Chosen::All);
        assert_eq!(partitions(&up(&[]), &all), all);
        let two = partitions(&up(&["--partitions=a,b", "--partition-taint=off"]), &all);
        assert_eq!(two.chosen, Chosen::Listed(vec!["a".to_owned(), "b".to_owned()]));
        assert!(two.untainted && partitions(&up(&[]), &two).untainted);
        assert_eq!(partitions(&up(&["--partitions=none"]), &two).chosen, Chosen::None);
        let mut runs = decide::tests::layout().cluster;
        runs.partitions = two;
        assert!(refuse_changes(&up(&["--partitions=a,b", "--partition-taint=off"]), &runs).is_ok());
        for flag in ["--partitions=a", "--node-per-partition", "--partition-taint=on"] {
            let refused = refuse_changes(&up(&[flag]), &runs).unwrap_err().to_string();
            assert!(refused.starts_with(flag.split('=').next().unwrap()) && refused.contains("hpk down"), "{refused}");
        }
    }

    #[test]
    fn sizes_of_logs_stay_until_they_are_given_again() {
        let asked = container_logs(&up(&["--container-log-max-size=1Mi"]), ContainerLogs::default());
        assert_eq!(asked, ContainerLogs { max_bytes: 1 << 20, max_files: 5 });
        assert_eq!(container_logs(&up(&[]), asked), asked);
        let files = container_logs(&up(&["--container-log-max-files=2"]), asked);
        assert_eq!(files, ContainerLogs { max_bytes: 1 << 20, max_files: 2 });
    }

    #[test]
    fn rules_for_images_are_kept_until_they_are_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().display().to_string();
        let asked = images(&up(&["--local-images", &dir, "--image-max-size=2Gi"]), &ImageRules::default()).unwrap();
        assert_eq!((asked.local.as_deref(), asked.max_bytes), (Some(&[folder.path().to_owned()][..]), 2 << 30));
        assert_eq!(images(&up(&[]), &asked).unwrap(), asked);
        assert_eq!(images(&up(&["--local-images=any"]), &asked).unwrap().local, None);
        let missing = images(&up(&["--local-images", &format!("{dir}/none")]), &asked).unwrap_err().to_string();
        assert!(missing.contains("/none: there is no such folder"), "{missing}");
        assert!(images(&up(&["--local-images=any", "--local-images", &dir]), &asked).is_err());
    }

    #[test]
    fn a_control_plane_that_runs_takes_no_other_sizes_of_logs() {
        let runs = decide::tests::layout().cluster;
        assert!(refuse_changes(&up(&["--container-log-max-size=10Mi", "--container-log-max-files=5"]), &runs).is_ok());
        assert!(refuse_changes(&up(&["--pod-flags=allow", "--default-memory=site"]), &runs).is_ok());
        for flag in [
            "--container-log-max-size=1Mi",
            "--container-log-max-files=3",
            "--pod-flags=list",
            "--user-ids=keep",
            "--default-memory=2Gi",
            "--default-time=1-12",
            "--gpu-vendor=amd",
            "--priority-class=a=--nice",
            "--feature-gates=A=true",
        ] {
            let refused = refuse_changes(&up(&[flag]), &runs).unwrap_err().to_string();
            assert!(refused.starts_with(flag.split('=').next().unwrap()) && refused.contains("hpk down"), "{refused}");
        }
    }
}
