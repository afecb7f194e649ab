//! `hpk up`: decides, makes keys and files, starts the detached supervisor, waits until everything serves.
//! Also `hpk supervise`, the other half.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use crate::cli::{self, DefaultMemory, DefaultTime, Scratch};
use crate::components::{self, Layout};
use crate::decide::{self, ControlPlane, Families, Programs};
use crate::gates;
use crate::home::{Home, Install, replace_file};
use crate::kubeconfig::{self, Kubeconfig};
use crate::pki;
use crate::progress::Progress;
use crate::site;
use crate::supervise::control::{self, Client, ControlError, Holder, Phase, Request, Snapshot};
use crate::supervise::driver::Supervisor;
use crate::supervise::strays;
use anyhow::{Context, Result, anyhow, bail};
use hpk_api::cluster::{ClusterConfig, ContainerLogs, ExecutorKind};
use hpk_api::images::ImageRules;
use hpk_api::net::NetworkMode;
use hpk_api::nodes::{Chosen, Partitions, Vendor};
use hpk_api::pod_flags::PodFlags;
use hpk_sys::ports::Hold;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::SignalKind;

/// What the supervisor writes to its first standard output once its socket is there.
const LISTENING: &[u8] = b"listening\n";
/// How often a lock that another has is tried.
const LOCK_AGAIN: Duration = Duration::from_millis(100);
/// How long a supervisor that was told to stop, and has closed its socket, may take to be gone.
const SUPERVISOR_ENDS: Duration = Duration::from_secs(5);

/// `hpk up`.
pub(crate) async fn run(args: cli::Up) -> Result<ExitCode> {
    let home = Home::from_env()?;
    home.create()?;
    let progress = Progress::new();
    let host = site::hostname()?;
    let timeout = Duration::from_secs(args.timeout);

    let _lock = lock_command(&home, &progress, timeout).await?;

    match running(&home, &host, &progress).await {
        Ok(client) => {
            let runs = need_json(&home.cluster_json())?;
            executor(&args, &home, Some(&runs))?;
            refuse_changes(&args, &runs)?;
            progress.done("the control plane is running already");
            return finish(&home, client, &progress, timeout).await;
        }
        Err(ControlError::NotRunning) => {}
        Err(e) => return Err(e.into()),
    }
    // The supervisor's own lock says it surely: it may have closed its socket and not ended yet.
    drop(lock_supervisor(&home, &host).await?);
    let strays = strays::end(home.root());
    if strays > 0 {
        progress.done(&format!("{strays} programs of a supervisor that was killed ended"));
    }

    // Held until the supervisor holds them.
    let (layout, _held) = prepare(&home, &args, &host, &progress)?;
    if layout.cluster.executor == ExecutorKind::Local {
        progress.done("pods run on this machine, without Slurm");
    }
    progress.done(&format!(
        "cluster {}, node {}, API server {}",
        layout.cluster.cluster_name, layout.cluster.node_name, layout.cluster.apiserver_url
    ));
    if let Some(name) = &layout.cluster.cni_network {
        progress.done(&format!("network {name} is the site's: NetworkPolicies are not enforced by HPK in it"));
    }
    start_supervisor(&home)?;
    let client = Client::ask(&home, &host, Request::Watch).await?;
    finish(&home, client, &progress, timeout).await
}

/// For the life of this command; waits while another hpk up or down is at work.
pub(crate) async fn lock_command(home: &Home, progress: &Progress, patience: Duration) -> Result<File> {
    let path = home.command_lock();
    let lock = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path)?;
    let give_up = tokio::time::Instant::now() + patience;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() >= give_up => {
                bail!("another hpk up or down is still at work ({} is locked)", path.display())
            }
            Err(TryLockError::WouldBlock) if !std::mem::replace(&mut told, true) => {
                progress.done("waiting for another hpk up or down to end");
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_AGAIN).await,
        }
    }
}

/// A control plane that runs and is to stay. One that is being stopped is waited for.
async fn running(home: &Home, host: &str, progress: &Progress) -> Result<Client, ControlError> {
    let mut client = Client::ask(home, host, Request::Watch).await?;
    if client.peek().await?.is_some_and(|s| !s.stopping) {
        return Ok(client);
    }
    progress.done("the control plane is being stopped; waiting for its end");
    while client.next().await?.is_some() {}
    Err(ControlError::NotRunning)
}

/// What is asked of a control plane that runs must be what it runs with.
fn refuse_changes(args: &cli::Up, runs: &ClusterConfig) -> Result<()> {
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

/// Pods that one executor runs mean nothing to another.
fn executor(args: &cli::Up, home: &Home, before: Option<&ClusterConfig>) -> Result<ExecutorKind> {
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
fn priority_classes(args: &cli::Up, former: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut classes = former;
    classes.extend(args.priority_class.iter().cloned());
    classes.retain(|_, flags| !flags.is_empty());
    classes
}

/// As asked for, else as they were.
fn partitions(args: &cli::Up, former: &Partitions) -> Partitions {
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
fn find_partitions(cluster: &mut ClusterConfig) -> Result<()> {
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
fn container_logs(args: &cli::Up, former: ContainerLogs) -> ContainerLogs {
    ContainerLogs {
        max_bytes: args.container_log_max_size.unwrap_or(former.max_bytes),
        max_files: args.container_log_max_files.unwrap_or(former.max_files),
    }
}

/// The folder for hpk-scratch, made where it is missing.
fn scratch(folder: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(folder) = folder else { return Ok(None) };
    std::fs::create_dir_all(folder).with_context(|| format!("--scratch {}", folder.display()))?;
    Ok(Some(folder.canonicalize().with_context(|| format!("--scratch {}", folder.display()))?))
}

/// As asked for, else as it was.
fn images(args: &cli::Up, former: &ImageRules) -> Result<ImageRules> {
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

/// Apptainer takes paths in lists separated by these.
const NOT_IN_A_PATH: [char; 2] = [',', ':'];

/// Decides and writes everything that the supervisor reads.
fn prepare(home: &Home, args: &cli::Up, host: &str, progress: &Progress) -> Result<(Layout, Vec<Hold>)> {
    if home.root().display().to_string().contains(NOT_IN_A_PATH) {
        bail!("HPK_HOME {}: its path must not contain a comma or a colon", home.root().display());
    }
    let install = Install::from_env()?;
    let former: Option<ControlPlane> = match read_json(&home.control_plane_json()) {
        Ok(former) => former,
        Err(error) => {
            progress.done(&format!("{error:#}: ports are chosen anew"));
            None
        }
    };
    let programs = programs(args, &install)?;
    let kubelet = if args.no_kubelet {
        None
    } else {
        let path = install.kubelet();
        if !path.exists() {
            bail!(
                "hpk-kubelet is not installed at {}: install it, or start without it by --no-kubelet",
                path.display()
            );
        }
        Some(path)
    };
    // What the user has set in cluster.json (the network's mode) stays.
    let before = choices(home, progress)?;
    let executor = executor(args, home, before.as_ref())?;
    let cluster_name = match &args.cluster_name {
        Some(name) => name.clone(),
        // A machine's name may change.
        None if executor == ExecutorKind::Local => {
            before.as_ref().map_or_else(|| host.to_owned(), |cluster| cluster.cluster_name.clone())
        }
        None => site::cluster_name()?,
    };
    let node_ip = site::node_ip(args.node_ip, executor)?;
    let uid = nix::unistd::geteuid().as_raw();
    let (ports, held) = decide::ports(former.as_ref().map(|f| &f.ports), node_ip, uid)?;
    let families = Families::decide(args.ip_families, before.as_ref());
    let mut cluster = decide::cluster(&cluster_name, node_ip, families, &ports, &home.pki());
    cluster.executor = executor;
    if let Some(former) = before {
        if former.node_name != cluster.node_name {
            bail!(
                "{} is the home of cluster {}, this is {}: set HPK_HOME to another folder for this cluster",
                home.root().display(),
                former.cluster_name,
                cluster.cluster_name
            );
        }
        if families == Families::Ipv4 && Families::decide(None, Some(&former)) == Families::Dual {
            bail!(
                "--ip-families ipv4: this cluster has both, and Kubernetes takes no family of Services back: \
                 begin a new one in another HPK_HOME"
            );
        }
        cluster.local_cpus = former.local_cpus;
        cluster.network_mode = former.network_mode;
        cluster.cni_network = former.cni_network;
        cluster.plaintext = former.plaintext;
        cluster.container_logs = former.container_logs;
        cluster.pod_flags = former.pod_flags;
        cluster.default_memory = former.default_memory;
        cluster.default_time = former.default_time;
        cluster.priority_classes = former.priority_classes;
        cluster.images = former.images;
        cluster.partitions = former.partitions;
        cluster.scratch = former.scratch;
        cluster.gpu_vendor = former.gpu_vendor;
        cluster.feature_gates = former.feature_gates;
    }
    cluster.partitions = partitions(args, &cluster.partitions);
    cluster.gpu_vendor = args.gpu_vendor.map_or(cluster.gpu_vendor, Into::into);
    find_partitions(&mut cluster)?;
    cluster.local_cpus = args.local_cpus.or(cluster.local_cpus);
    cluster.container_logs = container_logs(args, cluster.container_logs);
    if let Err(why) = cluster.container_logs.check() {
        bail!("cluster.json: container_logs: {why}: give --container-log-max-size and --container-log-max-files");
    }
    if let Some(encryption) = args.encryption {
        cluster.plaintext = encryption == cli::Encryption::Off;
    }
    cluster.priority_classes = priority_classes(args, cluster.priority_classes);
    if let Some(DefaultMemory(bytes)) = args.default_memory {
        cluster.default_memory = bytes;
    }
    if let Some(DefaultTime(minutes)) = args.default_time {
        cluster.default_time = minutes;
    }
    cluster.images = images(args, &cluster.images)?;
    if let Some(Scratch(folder)) = &args.scratch {
        cluster.scratch = scratch(folder.as_deref())?;
    }
    if let Some(gates) = &args.feature_gates {
        cluster.feature_gates.clone_from(&gates.0);
    }
    if let Some(choice) = args.pod_flags {
        cluster.pod_flags = choice.into();
    }
    if let Some(network) = &args.network {
        cluster.network_mode = network.mode;
        cluster.cni_network.clone_from(&network.name);
    }
    if cluster.network_mode == NetworkMode::Cni && cluster.cni_network.is_none() {
        bail!("cluster.json: network_mode is cni without cni_network: give hpk up --network cni:NAME");
    }
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let control_plane = ControlPlane {
        ports,
        programs,
        kubelet,
        egress: decide::socket(home.egress().join("kubelet.sock")),
        nameservers: decide::nameservers(&resolv),
        dns_sign: decide::DnsSign::new(random()?),
        apiserver_flags: args.apiserver_flag.clone(),
    };
    let layout = Layout { home: home.clone(), cluster, control_plane };
    if !layout.cluster.feature_gates.is_empty() {
        gates::check(&layout.control_plane.programs, &layout.cluster)?;
    }
    if let Some(text) = gates::without(&layout.cluster) {
        progress.done(&text);
    }

    let leaves = pki::spec::leaves(&pki::spec::Subject {
        node_name: &layout.cluster.node_name,
        node_ip,
        hostname: host,
        apiserver_service_ip: layout.cluster.apiserver_service_ip,
        domain: &layout.cluster.cluster_domain,
    });
    let ensured = pki::store::ensure(&home.pki(), &leaves, SystemTime::now())?;
    if !ensured.made.is_empty() {
        progress.done(&format!("{} keys and certificates made", ensured.made.len()));
    }
    write_kubeconfigs(&layout)?;
    for (name, content) in components::config_files(&layout) {
        replace_file(&home.config().join(name), content.as_bytes())?;
    }
    write_json(&home.control_plane_json(), &layout.control_plane)?;
    write_json(&home.cluster_json(), &layout.cluster)?;
    write_json(&home.cluster_copy(), &layout.cluster)?;
    Ok((layout, held))
}

fn programs(args: &cli::Up, install: &Install) -> Result<Programs> {
    if let Some(dir) = &args.kubernetes_bin {
        let path = dir.canonicalize().with_context(|| format!("--kubernetes-bin {}", dir.display()))?;
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns"] {
            if !path.join(name).exists() {
                bail!(
                    "--kubernetes-bin {}: no {name} in it (images/control-plane/build.sh --kubernetes-bin DIR adds what is missing)",
                    path.display()
                );
            }
        }
        return Ok(Programs::Folder { path });
    }
    let given = args.image.clone().unwrap_or_else(|| install.image());
    let image = given.canonicalize().with_context(|| {
        format!("control plane image {}: install it, or give --image or --kubernetes-bin", given.display())
    })?;
    let apptainer = which::which("apptainer")
        .context("no apptainer command: load the site's module for it, or give --kubernetes-bin")?;
    Ok(Programs::Image { apptainer, image })
}

/// What nobody can guess.
fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes)
}

/// The kubeconfigs of the components, beside their keys, and the user's.
fn write_kubeconfigs(layout: &Layout) -> Result<()> {
    let pki = layout.home.pki();
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let ca = read("ca.crt")?;
    let user = layout.home.kubeconfig();
    let files = [
        ("admin", user),
        ("controller-manager", pki.join("controller-manager.kubeconfig")),
        ("scheduler", pki.join("scheduler.kubeconfig")),
        ("coredns", pki.join("coredns.kubeconfig")),
        ("kubelet", pki.join("kubelet.kubeconfig")),
    ];
    for (name, path) in files {
        let key_path = pki.join(format!("{name}.key"));
        let key = String::from_utf8(read(&format!("{name}.key"))?)
            .ok()
            .and_then(|pem| kubeconfig::sec1(&rcgen::KeyPair::from_pem(&pem).ok()?))
            .with_context(|| format!("{}: not a key of the curve P-256", key_path.display()))?;
        let text = Kubeconfig {
            server: &layout.cluster.apiserver_url,
            cluster: &layout.cluster.node_name,
            user: name,
            ca: &ca,
            cert: &read(&format!("{name}.crt"))?,
            key: key.as_bytes(),
        }
        .render();
        replace_file(&path, text.as_bytes())?;
    }
    Ok(())
}

/// Starts `hpk supervise` and returns when its socket is there.
fn start_supervisor(home: &Home) -> Result<()> {
    let log_path = home.log().join("supervisor.log");
    let log = File::options().create(true).append(true).mode(0o600).open(&log_path)?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("supervise")
        .arg("--home")
        .arg(home.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .context("starting the supervisor")?;
    let mut said = Vec::new();
    if let Some(out) = &mut child.stdout {
        // It closes its end when it listens, or when it dies.
        out.read_to_end(&mut said)?;
    }
    if said != LISTENING {
        bail!("the supervisor did not start: see the end of {}", log_path.display());
    }
    Ok(())
}

/// `hpk supervise`: detaches from the terminal and runs until told to stop.
pub(crate) async fn supervise(home: Home) -> Result<ExitCode> {
    // Not a session leader only when started by hand from a shell; that is fine too.
    let _ = nix::unistd::setsid();
    let hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
    let host = site::hostname()?;
    let _lock = lock_supervisor(&home, &host).await?;

    let layout = Layout {
        cluster: need_json(&home.cluster_json())?,
        control_plane: need_json(&home.control_plane_json())?,
        home: home.clone(),
    };
    // To the end: its servers come and go beside.
    let _ports = layout.control_plane.ports.hold(layout.cluster.node_ip)?;
    let hpk = std::env::current_exe()?;
    let listener = control::listen(&home, &host)?;
    tell_parent()?;
    let result = Supervisor::new(components::all(&layout, &hpk), home.clone(), hpk, host).run(listener, hangup).await;
    // Best effort: a record that stays is recognised as stale by its socket.
    let _ = std::fs::remove_file(home.supervisor_json());
    result?;
    Ok(ExitCode::SUCCESS)
}

/// Held by the supervisor for its life.
async fn lock_supervisor(home: &Home, host: &str) -> Result<File> {
    let path = home.supervisor_lock();
    let give_up = tokio::time::Instant::now() + SUPERVISOR_ENDS;
    loop {
        match Holder::lock(&path, host).with_context(|| path.display().to_string())? {
            Some(lock) => return Ok(lock),
            None if tokio::time::Instant::now() < give_up => tokio::time::sleep(LOCK_AGAIN).await,
            None => bail!("another supervisor holds {}: run hpk down, which ends it", path.display()),
        }
    }
}

/// Says [`LISTENING`] on standard output and closes it.
fn tell_parent() -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    // Nobody may listen: then this was started by hand.
    let _ = out.write_all(LISTENING).and_then(|()| out.flush());
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Waits until everything serves and the Node is Ready, and says what to do next.
async fn finish(home: &Home, mut client: Client, progress: &Progress, timeout: Duration) -> Result<ExitCode> {
    let mut last = None;
    match tokio::time::timeout(timeout, wait(home, &mut client, progress, &mut last)).await {
        Ok(done) => done?,
        Err(_) => bail!(
            "not ready after {} s{}\nit goes on in the background: see hpk status",
            timeout.as_secs(),
            why(last.as_ref())
        ),
    }
    let config = home.kubeconfig();
    progress.done("ready");
    println!("Kubernetes is up. Next:\n  export KUBECONFIG={}\n  kubectl get nodes\n  hpk status", config.display());
    Ok(ExitCode::SUCCESS)
}

async fn wait(home: &Home, client: &mut Client, progress: &Progress, last: &mut Option<Snapshot>) -> Result<()> {
    let mut said = HashSet::new();
    let has_kubelet = loop {
        let snapshot = client.must().await?;
        for c in &snapshot.components {
            if matches!(c.phase, Phase::Ready | Phase::Done) && said.insert(c.name.clone()) {
                progress.done(&format!("{} {}", c.name, c.phase));
            }
            // Once per count of restarts, not at every change.
            if c.phase == Phase::Backoff && said.insert(format!("{} {}", c.name, c.restarts)) {
                progress.done(&format!("{} ended and will be started again: {}", c.name, c.message));
            }
        }
        let missing: Vec<_> = snapshot
            .components
            .iter()
            .filter(|c| !matches!(c.phase, Phase::Ready | Phase::Done))
            .map(|c| c.name.clone())
            .collect();
        progress.waiting(format!("waiting for {}", missing.join(", ")));
        let (ready, stopping) = (snapshot.ready, snapshot.stopping);
        let has_kubelet = snapshot.components.iter().any(|c| c.name == "hpk-kubelet");
        *last = Some(snapshot);
        if stopping {
            bail!("the control plane is being stopped");
        }
        if ready {
            break has_kubelet;
        }
    };
    let client = crate::bootstrap::client(home).await?;
    if has_kubelet {
        node_ready(home, &client, progress).await?;
    }
    default_account(client, progress).await
}

/// Without the default service account the API server refuses every pod; the controller manager makes it some seconds
/// after the first start.
async fn default_account(client: kube::Client, progress: &Progress) -> Result<()> {
    progress.waiting("waiting for the default service account".to_owned());
    let accounts: kube::Api<ServiceAccount> = kube::Api::namespaced(client, "default");
    kube::runtime::wait::await_condition(accounts, "default", |a: Option<&ServiceAccount>| a.is_some()).await?;
    Ok(())
}

async fn node_ready(home: &Home, client: &kube::Client, progress: &Progress) -> Result<()> {
    let cluster: ClusterConfig = need_json(&home.cluster_json())?;
    let nodes: kube::Api<Node> = kube::Api::all(client.clone());
    let ready = |node: Option<&Node>| {
        node.and_then(|n| n.status.as_ref()?.conditions.as_ref())
            .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    for name in std::iter::once(&cluster.node_name).chain(cluster.partitions.nodes.iter().map(|n| &n.name)) {
        progress.waiting(format!("waiting for node {name} to be Ready"));
        kube::runtime::wait::await_condition(nodes.clone(), name, ready).await?;
        progress.done(&format!("node {name} Ready"));
    }
    Ok(())
}

/// What the components that do not serve say.
fn why(snapshot: Option<&Snapshot>) -> String {
    let mut text = String::new();
    for c in snapshot.iter().flat_map(|s| &s.components) {
        if !matches!(c.phase, Phase::Ready | Phase::Done | Phase::Waiting) {
            text.push_str(&format!("\n  {}: {} {}", c.name, c.phase, c.message));
        }
    }
    text
}

/// What was chosen for this cluster; None: it is new. Damaged, it is refused: the choices would be lost without a word.
fn choices(home: &Home, progress: &Progress) -> Result<Option<ClusterConfig>> {
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

/// None: there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => {
            let read = serde_json::from_slice(&text);
            read.map(Some).with_context(|| format!("{} is damaged", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// What an earlier `hpk up` wrote.
pub(crate) fn need_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let context = || format!("{}: run hpk up", path.display());
    serde_json::from_slice(&std::fs::read(path).with_context(context)?).with_context(context)
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    replace_file(path, &json)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let home = Home::at("/h".into());
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
