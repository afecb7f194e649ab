//! Builds the kubelet from its parts. This is the one place that knows them all and how they are joined.
//!
//! ```text
//!  cluster.json ─▶ Outside: API server, executor, images
//!                     │
//!          gangs, links ─▶ Context ─▶ kubelet API
//!                   │          └─────▶ controller ◀─ pods, links, references
//!                   └─▶ network facts
//! ```

use crate::api::events::{Note, Recorder};
use crate::api::node::{self, NodeFacts};
use crate::backend::Kubelet;
use crate::carrier::Carriers;
use crate::controller::context::Context;
use crate::controller::{Controller, Event, Pods};
use crate::descriptors;
use crate::executor::local::Local;
use crate::executor::slurm::client::Client as Slurm;
use crate::executor::slurm::request::Defaults;
use crate::executor::{Executor, Times};
use crate::gangs::keeper::{Gangs, Parts};
use crate::gangs::seam::WithGangs;
use crate::home;
use crate::link_port;
use crate::nodes::{Clients, Nodes};
use crate::provisioner;
use crate::watch;
use anyhow::{Context as _, Result};
use hpk_api::cluster::{ClusterConfig, ExecutorKind};
use hpk_api::link::LinkCredentials;
use hpk_api::net::NetworkMode;
use hpk_api::plan::{LauncherChoice, Settings};
use hpk_images::{ImageStore, Layout, Limits, Registries, StoreConfig};
use hpk_layout::{Home, Install, pki};
use hpk_link::lasting;
use hpk_link::server::{Events as LinkEvents, LinkServer};
use hpk_server::{ServerConfig, TlsFiles};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::fcntl::Flock;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Slurm's MessageTimeout where the site does not say, seconds: rather too long than too short.
const MESSAGE_TIMEOUT: u32 = 60;
/// Events that wait for the controller.
const QUEUE: usize = 4096;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's description, written by `hpk up`.
    pub cluster: PathBuf,
    /// Unix socket on which the API server's connections to pods are taken.
    pub egress: Option<PathBuf>,
}

/// A kubelet that is ready to run.
pub struct App {
    controller: Controller,
    events: mpsc::Receiver<Event>,
    /// No other kubelet runs for this home.
    _lock: Flock<File>,
}

/// What the kubelet works with that is not its own.
struct Outside {
    nodes: Arc<Nodes>,
    clients: Clients,
    executor: Arc<dyn Executor>,
    /// The same, where it is Slurm.
    slurm: Option<Slurm>,
    times: Times,
    images: ImageStore,
    install: Install,
}

impl App {
    /// Opens everything that the kubelet needs and starts its lasting tasks.
    ///
    /// # Errors
    /// Something is missing without which it is of no use: which, and what to do.
    pub async fn build(options: Options) -> Result<Self> {
        let cluster = read_cluster(&options.cluster)?;
        let home = Home::of_cluster_file(&options.cluster);
        let lock = home::lock(&home)?;
        let mut outside = Outside::open(&cluster, &home).await?;
        let recorder = Recorder::start(outside.clients.first().clone(), cluster.node_name.clone());
        let (links, link_events) = open_links(&cluster, &home, &recorder)?;
        let facts = NodeFacts::measure(&*outside.executor).await;
        for node in outside.nodes.iter() {
            let all = facts.part(Some(node)).all;
            tracing::info!(node = %node.name, cpus = all.cpus, memory_mib = all.memory_mib, nodes = all.nodes, "starts");
        }
        let (facts_sender, node) = tokio::sync::watch::channel(facts);
        let (tx, events) = mpsc::channel(QUEUE);
        let (seen, pods) = tokio::sync::watch::channel(Pods::default());
        let gangs = outside.start_gangs(&cluster, &home, node.clone(), pods.clone(), tx.clone())?;
        let ctx = context(&cluster, home, &outside, gangs, links.clone(), recorder.clone(), node);
        serve(&ctx, pods, options.egress.as_deref())?;
        let (ways_out, way_out) = tokio::sync::watch::channel(BTreeMap::new());
        let controller = Controller::new(ctx.clone(), tx.clone(), seen, ways_out)
            .context("it cannot be told which pods have jobs, and to go on would submit them again")?;
        lasting::spawn("images", collect_images(outside.images.clone(), ctx.home.clone()));
        let Outside { nodes, clients, executor, images, .. } = outside;
        let client = clients.first().clone();
        let kept = node::keep(clients, (*nodes).clone(), cluster.clone(), executor, images, facts_sender, way_out);
        lasting::spawn("nodes", kept);
        if let Some(news) = ctx.executor.news() {
            lasting::spawn("news of runs", tell_news(news, tx.clone()));
        }
        lasting::spawn("watch of links", watch::links(link_events.links, tx.clone()));
        let volumes = ctx.home.volumes();
        lasting::spawn("provisioner", provisioner::run(client.clone(), recorder.clone(), volumes));
        let (notices, heard) = mpsc::unbounded_channel();
        lasting::spawn("notices", tell_notices(heard, recorder));
        lasting::spawn(
            "network facts",
            hpk_netfacts::run(hpk_netfacts::Config {
                client: client.clone(),
                links,
                events: link_events.net,
                pod_cidr: cluster.pod_cidr.clone(),
                direct: cluster.network_mode == NetworkMode::Cni,
                node_ips: cluster.node_ips(),
                notices,
                member: ctx.home.member_link(),
            }),
        );
        lasting::spawn("watch of pods", watch::pods(client, nodes, tx));
        Ok(Self { controller, events, _lock: lock })
    }

    /// Runs until `stop`. Jobs go on without it.
    pub async fn run(self, stop: CancellationToken) {
        self.controller.run(self.events, stop).await;
    }
}

fn read_cluster(file: &Path) -> Result<ClusterConfig> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}: run hpk up", file.display()))?;
    let cluster: ClusterConfig =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged: run hpk up", file.display()))?;
    if let Err(why) = cluster.container_logs.check() {
        anyhow::bail!(
            "{}: container_logs: {why}: run hpk up with --container-log-max-size and --container-log-max-files",
            file.display()
        );
    }
    Ok(cluster)
}

impl Outside {
    async fn open(cluster: &ClusterConfig, home: &Home) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell where hpk-kubelet is installed")?;
        let install = Install::find(std::env::var_os("HPK_PREFIX").map(PathBuf::from), &program);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nodes = Arc::new(Nodes::of(cluster));
        let clients = Clients::new(&api_config(cluster).await?, &nodes)?;
        let (executor, slurm) = executor(cluster, home)?;
        let images = ImageStore::new(StoreConfig {
            root: home.images(),
            helper: hpk_images::helper::command_of(program.as_os_str()),
            registries: Registries::load(&home.registries())?,
            limits: Limits::from(&cluster.images),
            layout: Layout::of(cluster.images.layout, &home.images()),
        })?;
        let times = executor.times().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "Slurm's times are not known: usual ones are assumed");
            Times::default()
        });
        Ok(Self { nodes, clients, executor, slurm, times, images, install })
    }

    /// Has pods begin together from now on. None: without Slurm there is no allocation that pods could share.
    fn start_gangs(
        &mut self,
        cluster: &ClusterConfig,
        home: &Home,
        node: tokio::sync::watch::Receiver<NodeFacts>,
        pods: tokio::sync::watch::Receiver<Pods>,
        tx: mpsc::Sender<Event>,
    ) -> Result<Option<Gangs>> {
        let Some(slurm) = self.slurm.clone() else { return Ok(None) };
        let (changed, changes) = mpsc::unbounded_channel();
        let client = self.clients.first().clone();
        let gangs = Gangs::start(Parts {
            slurm: slurm.clone(),
            home: home.clone(),
            install: self.install.clone(),
            cluster: cluster.clone(),
            defaults: Arc::new(defaults(cluster)),
            node,
            pods,
            groups: cluster.has_pod_groups().then(|| watch::pod_groups(client, changed)),
            changes,
            nodes: self.nodes.clone(),
            tx,
        })
        .with_context(|| format!("cannot read the gangs in {}", home.gangs().display()))?;
        self.executor = Arc::new(WithGangs::new(slurm, gangs.clone(), home.clone()));
        Ok(Some(gangs))
    }
}

/// What runs the pods; and the same, where it is Slurm.
fn executor(cluster: &ClusterConfig, home: &Home) -> Result<(Arc<dyn Executor>, Option<Slurm>)> {
    let open_files = descriptors::raise();
    Ok(match cluster.executor {
        ExecutorKind::Slurm => {
            let slurm = Slurm::find()?.with_open_files(open_files);
            (Arc::new(slurm.clone()), Some(slurm))
        }
        ExecutorKind::Local => {
            let local = Local::start(home, cluster.local_cpus, open_files);
            (Arc::new(local.context("it cannot be told which pods run on this machine")?), None)
        }
    })
}

/// What a pod that does not say so asks of Slurm.
fn defaults(cluster: &ClusterConfig) -> Defaults {
    Defaults {
        time_minutes: cluster.default_time,
        memory_mib: cluster.default_memory.map(|b| b.div_ceil(1 << 20)),
        ..Defaults::default()
    }
}

/// Has the controller ask the executor at once when it has news.
async fn tell_news(mut news: tokio::sync::watch::Receiver<u64>, tx: mpsc::Sender<Event>) {
    while news.changed().await.is_ok() && tx.send(Event::RunsChanged).await.is_ok() {}
}

/// Listens for pods' links; that another program has their port is told.
fn open_links(cluster: &ClusterConfig, home: &Home, recorder: &Recorder) -> Result<(LinkServer, LinkEvents)> {
    let (links, events) = LinkServer::start(cluster.link_addr, &home.pki())?;
    if let Some(taken) = link_port::open(&links, cluster.link_addr, last_link_address(home))? {
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
    Ok((links, events))
}

fn context(
    cluster: &ClusterConfig,
    home: Home,
    outside: &Outside,
    gangs: Option<Gangs>,
    links: LinkServer,
    recorder: Recorder,
    node: tokio::sync::watch::Receiver<NodeFacts>,
) -> Context {
    let Outside { nodes, clients, executor, slurm: _, times, images, install } = outside;
    let client = clients.first();
    Context {
        carriers: Carriers::start(links.clone(), executor.clone(), install.netns()),
        services: watch::all(client.clone(), "watch of services"),
        node_objects: watch::all(client.clone(), "watch of nodes"),
        clients: clients.clone(),
        nodes: nodes.clone(),
        executor: executor.clone(),
        images: images.clone(),
        install: install.clone(),
        links,
        recorder,
        node,
        defaults: Arc::new(defaults(cluster)),
        gangs,
        settings: Arc::new(settings(*times, cluster)),
        message_timeout: Duration::from_secs(times.message_timeout.unwrap_or(MESSAGE_TIMEOUT).into()),
        home,
        cluster: cluster.clone(),
    }
}

/// Serves the kubelet API, and with `egress` the API server's connections to pods.
fn serve(ctx: &Context, pods: tokio::sync::watch::Receiver<Pods>, egress: Option<&Path>) -> Result<()> {
    let cluster = &ctx.cluster;
    let folder = PathBuf::from(&cluster.pki_dir);
    let api = listen(cluster.kubelet_addr)
        .with_context(|| format!("cannot serve the kubelet API on {}", cluster.kubelet_addr))?;
    let server = ServerConfig {
        nodes: ctx.nodes.iter().map(|node| node.name.clone()).collect(),
        tls: TlsFiles {
            certificate: pki::certificate(&folder, pki::KUBELET_SERVER),
            key: pki::key(&folder, pki::KUBELET_SERVER),
            client_ca: pki::certificate(&folder, pki::CA),
            front_proxy_ca: Some(pki::certificate(&folder, pki::FRONT_PROXY_CA)),
        },
        client: ctx.clients.first().clone(),
    };
    let backend = Arc::new(Kubelet::new(ctx.clone(), pods));
    if let Some(path) = egress {
        hpk_server::egress::start(path, backend.clone())
            .with_context(|| format!("cannot listen on {}", path.display()))?;
    }
    hpk_server::start(api, server, backend)?;
    Ok(())
}

/// What the network's part has to say, as events.
async fn tell_notices(mut heard: mpsc::UnboundedReceiver<hpk_netfacts::Notice>, recorder: Recorder) {
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
    let path = pki::kubeconfig(cluster.pki_dir.as_ref(), pki::KUBELET);
    let kubeconfig =
        Kubeconfig::read_from(&path).with_context(|| format!("cannot read {}: run hpk up", path.display()))?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}
