//! hpk-kubelet: the daemon that turns pods into Slurm jobs.

use anyhow::{Context as _, Result};
use clap::Parser;
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use hpk_api::link::LinkCredentials;
use hpk_api::net::NetworkMode;
use hpk_api::plan::{LauncherChoice, Settings};
use hpk_images::{ImageStore, Layout, Limits, Registries, StoreConfig};
use hpk_kubelet::api::events::{Note, Recorder};
use hpk_kubelet::api::node::{self, NodeFacts};
use hpk_kubelet::backend::Kubelet;
use hpk_kubelet::carrier::Carriers;
use hpk_kubelet::controller::context::Context;
use hpk_kubelet::controller::{Controller, Event, Pods};
use hpk_kubelet::descriptors;
use hpk_kubelet::executor::local::Local;
use hpk_kubelet::executor::slurm::client::Client as Slurm;
use hpk_kubelet::executor::slurm::request::Defaults;
use hpk_kubelet::executor::{Executor, Times};
use hpk_kubelet::gangs;
use hpk_kubelet::gangs::keeper::Gangs;
use hpk_kubelet::gangs::seam::WithGangs;
use hpk_kubelet::home::{Home, Install};
use hpk_kubelet::link_port;
use hpk_kubelet::nodes::{Clients, Nodes};
use hpk_kubelet::provisioner;
use hpk_kubelet::watch;
use hpk_link::lasting;
use hpk_link::server::LinkServer;
use hpk_server::{ServerConfig, TlsFiles};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Slurm's MessageTimeout where the site does not say, seconds: rather too long than too short.
const MESSAGE_TIMEOUT: u32 = 60;

/// Runs a node's pods as Slurm jobs, or on this machine. Started by `hpk up`.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The cluster's description, written by `hpk up`.
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// Unix socket on which the API server's connections to pods are taken.
    #[arg(long, value_name = "PATH")]
    egress: Option<PathBuf>,
    /// Log filter: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: tracing::Level,
}

fn main() -> ExitCode {
    // The image helper enters a user namespace: it must run before there is any thread.
    if std::env::args_os().nth(1).is_some_and(|a| a == "image-helper") {
        return hpk_images::helper::main();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == hpk_images::UNPACK) {
        return hpk_images::unpack_main();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == provisioner::copy::COMMAND) {
        return provisioner::copy::main();
    }
    let args = Args::parse();
    // What is made without a mode of its own is nobody else's.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    log_to_stderr(args.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => {
            tracing::info!("ends; jobs go on");
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Our own crates at `level`; libraries only when they warn.
fn log_to_stderr(level: tracing::Level) {
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let ours = ["hpk_kubelet", "hpk_images", "hpk_server", "hpk_link", "hpk_netfacts"];
    let filter =
        Targets::new().with_default(tracing::Level::WARN.min(level)).with_targets(ours.map(|name| (name, level)));
    // What cannot be written, because the home is full, is lost. By default it would be told by eprintln!, which panics.
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr).log_internal_errors(false);
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

async fn run(args: Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let text = std::fs::read_to_string(&args.cluster)
        .with_context(|| format!("cannot read {}: run hpk up", args.cluster.display()))?;
    let cluster: ClusterConfig =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged: run hpk up", args.cluster.display()))?;
    if let Err(why) = cluster.container_logs.check() {
        anyhow::bail!(
            "{}: container_logs: {why}: run hpk up with --container-log-max-size and --container-log-max-files",
            args.cluster.display()
        );
    }
    let home = Home::of_cluster_file(&args.cluster);
    let (images_home, volumes) = (home.clone(), home.volumes());
    let _lock = home.lock()?;
    let program = std::env::current_exe().context("cannot tell where hpk-kubelet is installed")?;
    let install = Install::find(std::env::var_os("HPK_PREFIX").map(PathBuf::from), &program);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let nodes = Arc::new(Nodes::of(&cluster));
    let clients = Clients::new(&api_config(&cluster).await?, &nodes)?;
    let client = clients.first().clone();
    let (plain, slurm) = executor(&cluster, &home)?;
    let images = ImageStore::new(StoreConfig {
        root: home.images(),
        helper: hpk_images::helper::command_of(program.as_os_str()),
        registries: Registries::load(&home.registries())?,
        limits: Limits::from(&cluster.images),
        layout: Layout::of(cluster.images.layout, &home.images()),
    })?;
    let (links, link_events) = LinkServer::start(cluster.link_addr, &home.pki())?;
    let taken = link_port::open(&links, cluster.link_addr, last_link_address(&home))?;
    let times = plain.times().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "Slurm's times are not known: usual ones are assumed");
        Times::default()
    });
    let facts = NodeFacts::measure(&*plain).await;
    for node in nodes.iter() {
        let all = facts.part(Some(node)).all;
        tracing::info!(node = %node.name, cpus = all.cpus, memory_mib = all.memory_mib, nodes = all.nodes, "starts");
    }
    let (facts_sender, node) = tokio::sync::watch::channel(facts);
    let recorder = Recorder::start(client.clone(), cluster.node_name.clone());
    if let Some(taken) = taken {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(cluster.node_name.clone()),
            uid: Some(cluster.node_name.clone()),
            ..ObjectReference::default()
        };
        tracing::warn!("{taken}");
        recorder.tell(about, Note::warning("LinkPortTaken", taken.to_string()));
        tokio::spawn(link_port::regain(links.clone(), cluster.link_addr));
    }
    let member_link = home.member_link();
    let defaults = Arc::new(Defaults {
        time_minutes: cluster.default_time,
        memory_mib: cluster.default_memory.map(|b| b.div_ceil(1 << 20)),
        ..Defaults::default()
    });
    let (tx, events) = tokio::sync::mpsc::channel::<Event>(4096);
    let (seen, pods) = tokio::sync::watch::channel(Pods::default());
    let (changed, changes) = tokio::sync::mpsc::unbounded_channel();
    // Without Slurm there is no allocation that pods could share.
    let parts = slurm.clone().map(|slurm| gangs::keeper::Parts {
        slurm,
        home: home.clone(),
        install: install.clone(),
        cluster: cluster.clone(),
        defaults: defaults.clone(),
        node: node.clone(),
        pods: pods.clone(),
        groups: cluster.has_pod_groups().then(|| watch::pod_groups(client.clone(), changed)),
        changes,
        nodes: nodes.clone(),
        tx: tx.clone(),
    });
    let gangs = parts.map(Gangs::start).transpose();
    let gangs = gangs.with_context(|| format!("cannot read the gangs in {}", home.gangs().display()))?;
    let executor: Arc<dyn Executor> = match slurm.zip(gangs.clone()) {
        Some((slurm, gangs)) => Arc::new(WithGangs::new(slurm, gangs, home.clone())),
        None => plain,
    };
    let carriers = Carriers::start(links.clone(), executor.clone(), install.netns.clone());
    let ctx = Context {
        recorder: recorder.clone(),
        services: watch::all(client.clone(), "watch of services"),
        node_objects: watch::all(client.clone(), "watch of nodes"),
        clients: clients.clone(),
        nodes: nodes.clone(),
        install,
        executor: executor.clone(),
        images: images.clone(),
        links: links.clone(),
        carriers,
        node,
        defaults,
        gangs,
        settings: Arc::new(settings(times, &cluster)),
        message_timeout: Duration::from_secs(times.message_timeout.unwrap_or(MESSAGE_TIMEOUT).into()),
        home,
        cluster: cluster.clone(),
    };
    let pki = PathBuf::from(&cluster.pki_dir);
    let api = listen(cluster.kubelet_addr)
        .with_context(|| format!("cannot serve the kubelet API on {}", cluster.kubelet_addr))?;
    let server = ServerConfig {
        nodes: nodes.iter().map(|n| n.name.clone()).collect(),
        tls: TlsFiles {
            certificate: pki.join("kubelet-server.crt"),
            key: pki.join("kubelet-server.key"),
            client_ca: pki.join("ca.crt"),
            front_proxy_ca: Some(pki.join("front-proxy-ca.crt")),
        },
        client: client.clone(),
    };
    let backend = Arc::new(Kubelet::new(ctx.clone(), pods));
    if let Some(path) = &args.egress {
        hpk_server::egress::start(path, backend.clone())
            .with_context(|| format!("cannot listen on {}", path.display()))?;
    }
    hpk_server::start(api, server, backend)?;
    if let Some(news) = executor.news() {
        lasting::spawn("news of runs", tell_news(news, tx.clone()));
    }
    let controller = Controller::new(ctx, tx.clone(), seen)
        .context("it cannot be told which pods have jobs, and to go on would submit them again")?;
    lasting::spawn("provisioner", provisioner::run(client.clone(), recorder.clone(), volumes));
    lasting::spawn("images", collect_images(images.clone(), images_home));
    let (outward, way_out) = tokio::sync::watch::channel(BTreeMap::new());
    let kept = node::keep(clients, (*nodes).clone(), cluster.clone(), executor, images, facts_sender, way_out);
    lasting::spawn("nodes", kept);
    lasting::spawn("watch of links", watch::links(link_events.links, tx.clone()));
    let (notices, heard) = tokio::sync::mpsc::unbounded_channel();
    lasting::spawn("notices", tell_notices(heard, recorder));
    lasting::spawn(
        "network facts",
        hpk_netfacts::run(hpk_netfacts::Config {
            client: client.clone(),
            links,
            events: link_events.net,
            pod_cidr: cluster.pod_cidr.clone(),
            direct: cluster.network_mode == NetworkMode::Cni,
            node_ip: cluster.node_ip,
            notices,
            outward,
            member: member_link,
        }),
    );
    lasting::spawn("watch of pods", watch::pods(client, nodes, tx));
    controller.run(events, stop).await;
    Ok(())
}

/// What runs the pods.
fn executor(cluster: &ClusterConfig, home: &Home) -> Result<(Arc<dyn Executor>, Option<Slurm>)> {
    let open_files = descriptors::raise();
    Ok(match cluster.executor {
        ExecutorKind::Slurm => {
            let slurm = Slurm::find()?.with_open_files(open_files);
            (Arc::new(slurm.clone()), Some(slurm))
        }
        ExecutorKind::Local => {
            let local = Local::start(home.root(), cluster.local_cpus, open_files);
            (Arc::new(local.context("it cannot be told which pods run on this machine")?), None)
        }
    })
}

/// Has the controller ask the executor at once when it has news.
async fn tell_news(mut news: tokio::sync::watch::Receiver<u64>, tx: tokio::sync::mpsc::Sender<Event>) {
    while news.changed().await.is_ok() && tx.send(Event::RunsChanged).await.is_ok() {}
}

/// What the network's part has to say, as events.
async fn tell_notices(mut heard: tokio::sync::mpsc::UnboundedReceiver<hpk_netfacts::Notice>, recorder: Recorder) {
    while let Some(hpk_netfacts::Notice { about, warning, reason, message }) = heard.recv().await {
        let note = if warning { Note::warning(reason, message) } else { Note::normal(reason, message) };
        recorder.tell(about, note);
    }
}

/// Beside the control plane's supervisor, which holds the port so that nobody else gets it.
fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::from_std(hpk_sys::ports::listen_beside(at)?)
}

/// Where pods' links came when a kubelet ran here last.
fn last_link_address(home: &Home) -> Option<SocketAddr> {
    let text = std::fs::read(home.member_link()).ok()?;
    serde_json::from_slice::<LinkCredentials>(&text).ok().map(|credentials| credentials.address)
}

/// What user and site have chosen that pods are to know.
fn settings(times: Times, cluster: &ClusterConfig) -> Settings {
    let logs = cluster.container_logs;
    let mut settings = Settings { log_max_bytes: logs.max_bytes, log_max_files: logs.max_files, ..Settings::default() };
    if let Ok(text) = std::env::var("HPK_LAUNCHER") {
        match LauncherChoice::parse(&text) {
            Some(choice) => settings.launcher = choice,
            None => {
                tracing::warn!(HPK_LAUNCHER = text, "no such launcher: write auto, native or apptainer; auto is used")
            }
        }
    }
    settings.kill_wait_seconds = times.kill_wait.unwrap_or(settings.kill_wait_seconds);
    settings
}

/// Removes images that no pod has used for a week.
async fn collect_images(images: ImageStore, home: Home) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(6 * 3600));
    // The first tick comes at once: at the start there are more urgent things.
    tick.tick().await;
    loop {
        tick.tick().await;
        match images.collect(&|| hpk_images::uses(&home.pods()), std::time::Duration::from_secs(7 * 24 * 3600)).await {
            Ok(gone) if gone.images.is_empty() => {}
            Ok(gone) => tracing::info!(images = gone.images.len(), "unused images removed"),
            Err(error) => tracing::warn!(%error, "unused images not removed"),
        }
    }
}

async fn api_config(cluster: &ClusterConfig) -> Result<Config> {
    let path = PathBuf::from(&cluster.pki_dir).join("kubelet.kubeconfig");
    let kubeconfig =
        Kubeconfig::read_from(&path).with_context(|| format!("cannot read {}: run hpk up", path.display()))?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
