//! What one event costs the controller, and one look-up the kubelet API, with 50 and with 5,000 pods: it must be the same.
//!
//! The controller is the real one. Its surroundings are stubs: [`StubExecutor`] says of every job that it runs, [`stub_server`]
//! is an API server that takes everything.

#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement ends where it fails")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hpk_api::cluster::ClusterConfig;
use hpk_api::plan::{PodRef, Settings};
use hpk_api::state::PodState;
use hpk_images::{ImageStore, Layout, Limits, Registries, StoreConfig};
use hpk_kubelet::parts::{
    Answer, AskError, Asked, Asking, Carriers, Clients, Cluster, Context, Controller, Event, Executor, ExecutorError,
    Folder, Kind, Kubelet, Made, NodeFacts, Nodes, Past, Pods, Progress, Record, Recorder, Run, RunPhase, Sender, Site,
    Submission, Times, Words, words,
};
use hpk_layout::{Home, Install};
use hpk_link::server::LinkServer;
use hpk_server::Backend;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longer than any number of events that wait.
const QUEUE: usize = 4096;

/// A stub: every job runs, and nothing can be begun or ended.
#[derive(Debug)]
struct StubExecutor;

fn never<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(ExecutorError::new(std::io::Error::other("a stub"), false, true)) })
}

impl Executor for StubExecutor {
    fn words(&self) -> &'static Words {
        words::of(Kind::Slurm)
    }
    fn ask(&self, _: &Asking<'_>) -> Result<Asked, AskError> {
        Err(std::io::Error::other("a stub").into())
    }
    fn submit<'a>(&'a self, _: Submission<'a>) -> Answer<'a, Made> {
        never()
    }
    fn query<'a>(&'a self, ids: Option<&'a [String]>) -> Answer<'a, Vec<Run>> {
        let run = |id: &String| Run { phase: RunPhase::Running, ..Run::lost(id, &format!("u{id}")) };
        Box::pin(async move { Ok(ids.unwrap_or_default().iter().map(run).collect()) })
    }
    fn remembered<'a>(&'a self, _: Past<'a>) -> Answer<'a, Option<Vec<Run>>> {
        Box::pin(async { Ok(None) })
    }
    fn cancel<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        never()
    }
    fn terminate<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        never()
    }
    fn step(&self, _: &str, _: &Path, _: &Path) -> Result<tokio::process::Child, ExecutorError> {
        Err(ExecutorError::new(std::io::Error::other("a stub"), false, true))
    }
    fn cluster(&self) -> Answer<'_, Cluster> {
        never()
    }
    fn site(&self) -> Answer<'_, Option<Site>> {
        never()
    }
    fn times(&self) -> Answer<'_, Times> {
        never()
    }
}

/// A stub of an API server, on a thread of its own: it takes everything and knows of no object. Gives its address.
fn stub_server() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(stream));
        }
    });
    format!("http://{address}")
}

fn serve(stream: std::net::TcpStream) {
    let mut to = stream.try_clone().unwrap();
    let mut from = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        for line in head.lines() {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).unwrap();
        let status = if head.starts_with("PATCH") { "200 OK" } else { "404 Not Found" };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{{\"metadata\":{{}}}}"
        );
        if to.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn cluster(root: &Path) -> ClusterConfig {
    serde_json::from_value(json!({
        "version": 1, "cluster_name": "c", "node_name": "n", "node_ip": "127.0.0.1", "apiserver_url": "https://127.0.0.1:1",
        "service_cidr": "10.96.0.0/12", "apiserver_service_ip": "10.96.0.1", "dns_service_ip": "10.96.0.10",
        "dns_addr": "127.0.0.1:53", "pod_cidr": "10.244.0.0/16", "cluster_domain": "cluster.local",
        "link_addr": "127.0.0.1:0", "kubelet_addr": "127.0.0.1:0", "network_mode": "host", "pki_dir": root,
    }))
    .unwrap()
}

fn pod(number: usize) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "d", "name": format!("p{number}"), "uid": format!("u{number}"), "generation": 1,
            "labels": {"app": "web", "pod-template-hash": "7d4f8c9b6"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(600)},
        },
        "spec": {
            "hostNetwork": true,
            "containers": (0..2).map(|n| json!({
                "name": format!("c{n}"), "image": "registry.example/web:1",
                "env": (0..12).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "some value"})).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        },
    }))
    .unwrap()
}

fn report(number: usize, sequence: u64) -> Event {
    let state = PodState {
        job_id: Some(number.to_string()),
        started_at: Some(Timestamp::UNIX_EPOCH),
        sequence,
        ..PodState::default()
    };
    Event::Report { uid: format!("u{number}").into(), state: Box::new(state) }
}

/// A controller with pods that run, and what speaks to it.
struct Rig {
    tx: Sender,
    kubelet: Kubelet,
    pods: usize,
    sequence: u64,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new(pods: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::of_cluster_file(&folder.path().join("cluster.json"));
        for number in 0..pods {
            let uid = format!("u{number}");
            let who = PodRef { namespace: "d".into(), name: format!("p{number}"), uid: uid.clone() };
            let mut record = Record::new(who, Timestamp::UNIX_EPOCH);
            (record.progress, record.job_id) = (Progress::Submitted, Some(number.to_string().into()));
            let folder = home.pod(&uid);
            std::fs::create_dir_all(&folder).unwrap();
            // As `Folder::write_record`, without its fsync: 5,000 of them take minutes.
            std::fs::write(Folder::at(folder).path().join("kubelet.json"), serde_json::to_vec(&record).unwrap())
                .unwrap();
        }
        let cluster = cluster(folder.path());
        let nodes = Arc::new(Nodes::of(&cluster));
        let config = kube::Config::new(stub_server().parse().unwrap());
        let clients = Clients::new(&config, &nodes).unwrap();
        let executor: Arc<dyn Executor> = Arc::new(StubExecutor);
        let images = ImageStore::new(StoreConfig {
            root: home.images(),
            helper: hpk_images::helper::command_of("/bin/false".as_ref()),
            registries: Registries::default(),
            limits: Limits::from(&cluster.images),
            layout: Layout::of(cluster.images.layout, &home.images()),
        })
        .unwrap();
        let (links, _events) = LinkServer::start(cluster.link_addr, &home.pki()).unwrap();
        let install = Install::find(None, Path::new("/usr/bin/hpk-kubelet"));
        let ctx = Context {
            recorder: Recorder::start(clients.first().clone(), "n".to_owned()),
            services: kube::runtime::reflector::store().0,
            carriers: Carriers::start(links.clone(), executor.clone(), install.netns()),
            clients,
            nodes,
            node_objects: kube::runtime::reflector::store().0,
            cluster,
            home,
            install,
            executor,
            images,
            links,
            node: tokio::sync::watch::channel(NodeFacts::default()).1,
            gangs: None,
            defaults: Arc::default(),
            settings: Arc::new(Settings::default()),
            message_timeout: Duration::from_secs(60),
        };
        let (tx, events) = mpsc::channel(QUEUE);
        let (seen, published) = tokio::sync::watch::channel(Pods::default());
        let kubelet = Kubelet::new(ctx.clone(), published);
        let controller =
            Controller::new(ctx, tx.clone(), seen, tokio::sync::watch::channel(BTreeMap::new()).0).unwrap();
        tokio::spawn(controller.run(events, CancellationToken::new()));
        let mut rig = Self { tx, kubelet, pods, sequence: 0, _folder: folder };
        for number in 0..pods {
            rig.tx.send(Event::Applied(Arc::new(pod(number)))).await.unwrap();
        }
        let all = (0..pods).map(|number| format!("u{number}").into()).collect();
        rig.tx.send(Event::Listed(all)).await.unwrap();
        rig.reports(pods).await;
        // Until the stub has taken every status.
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.drained().await;
        rig
    }

    /// Until the controller has taken all events: on one thread it is done with one when it waits for the next.
    async fn drained(&self) {
        while self.tx.capacity() < QUEUE {
            tokio::task::yield_now().await;
        }
    }

    /// So many supervisors report that nothing has changed.
    async fn reports(&mut self, count: usize) {
        for n in 0..count {
            self.sequence += 1;
            self.tx.send(report(n * 7 % self.pods, self.sequence)).await.unwrap();
        }
        self.drained().await;
    }
}

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("controller");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    for pods in [50, 5_000] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut rig = runtime.block_on(Rig::new(pods));
        group.bench_function(BenchmarkId::new("report", pods), |b| {
            b.iter_custom(|count| {
                let began = Instant::now();
                runtime.block_on(rig.reports(usize::try_from(count).unwrap()));
                began.elapsed()
            });
        });
        group.bench_function(BenchmarkId::new("find_pod", pods), |b| {
            let name = format!("p{}", pods / 2);
            b.iter(|| runtime.block_on(rig.kubelet.find_pod("d", &name)).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
