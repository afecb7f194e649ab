//! The Node objects and their leases: a Slurm cluster, or a partition of it, as one node each.

mod extended;
mod lease;
mod object;
mod status;

use crate::executor::Executor;
use crate::executor::slurm::cluster::{Cluster, Part};
use crate::executor::slurm::limits::Site;
use crate::nodes::{Clients, Nodes, VirtualNode};
use hpk_api::cluster::ClusterConfig;
use hpk_images::{ImageStore, StoredImage};
use hpk_link::lasting;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::Error;
use kube::api::{Api, DeleteParams, GetParams, Patch, PatchParams, PostParams};
use object::Registration;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Version of Kubernetes whose kubelet this one stands for; tests and tools parse it.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.37.2-hpk", env!("CARGO_PKG_VERSION"));
/// Renewal of the lease, and of the status when something changed (upstream's numbers).
const RENEW: Duration = Duration::from_secs(10);
/// Status even when nothing changed (upstream's nodeStatusReportFrequency).
const REPORT: Duration = Duration::from_secs(300);
/// How often sinfo is asked.
const MEASURE: Duration = Duration::from_secs(30);
/// How often the partitions' limits are asked for.
const LIMITS: Duration = Duration::from_secs(300);

pub(crate) use object::EPHEMERAL_KIB;

/// What a pod can ask the kubelet about its Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// What Slurm has.
    pub cluster: Cluster,
    /// Limits and defaults of its partitions.
    pub site: Site,
    /// `1.4.5`
    pub apptainer: String,
}

impl NodeFacts {
    /// Asks Slurm and Apptainer.
    pub async fn measure(executor: &dyn Executor) -> Self {
        let cluster = executor.cluster().await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the cluster's size is not known");
            Cluster::default()
        });
        Self {
            cluster,
            site: limits(executor).await.unwrap_or_default(),
            apptainer: apptainer_version().await.unwrap_or_else(|| "unknown".to_owned()),
        }
    }

    /// What a Node has.
    #[must_use]
    pub fn part(&self, node: Option<&VirtualNode>) -> Part {
        self.cluster.part(node.and_then(|n| n.measured.as_deref()))
    }
}

async fn limits(executor: &dyn Executor) -> Option<Site> {
    let site = executor.site().await;
    site.unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the partitions' limits are not known");
        None
    })
}

async fn apptainer_version() -> Option<String> {
    let program = which::which("apptainer").or_else(|_| which::which("singularity")).ok()?;
    let output = tokio::process::Command::new(program).arg("version").output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // Debian appends its own revision.
    Some(text.trim().split('-').next().unwrap_or_default().to_owned()).filter(|v| !v.is_empty())
}

/// Asks Slurm again from time to time, and tells the facts when they have changed.
async fn measure_again(executor: Arc<dyn Executor>, facts: watch::Sender<NodeFacts>) {
    let mut limits_at = Instant::now();
    let mut tick = tokio::time::interval(MEASURE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick comes at once, and the facts are new.
    tick.tick().await;
    loop {
        tick.tick().await;
        let cluster = match executor.cluster().await {
            Ok(cluster) if !cluster.is_empty() => Some(cluster),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the cluster's size is not known");
                None
            }
        };
        let mut site = None;
        if limits_at.elapsed() >= LIMITS {
            limits_at = Instant::now();
            site = limits(&*executor).await;
        }
        // What is not known this time stays as it was.
        facts.send_if_modified(|old| {
            let fresh = NodeFacts {
                cluster: cluster.unwrap_or_else(|| old.cluster.clone()),
                site: site.unwrap_or_else(|| old.site.clone()),
                apptainer: old.apptainer.clone(),
            };
            let changed = *old != fresh;
            *old = fresh;
            changed
        });
    }
}

/// Keeps the Nodes and their leases for ever. The facts go to `facts` as they change.
pub(crate) async fn keep(
    clients: Clients,
    nodes: Nodes,
    cluster: ClusterConfig,
    executor: Arc<dyn Executor>,
    images: ImageStore,
    facts: watch::Sender<NodeFacts>,
    way_out: watch::Receiver<BTreeMap<String, bool>>,
) {
    let mut known = facts.subscribe();
    lasting::spawn("size of the cluster", measure_again(executor, facts));
    let system = status::system_info();
    let mut kept: Vec<Kept> = Vec::new();
    for node in nodes.iter() {
        let client = clients.of(&node.name).clone();
        lasting::spawn("lease of a node", lease::keep(client.clone(), node.name.clone()));
        kept.push(Kept::new(node.clone(), Api::all(client)));
    }
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let stored = images.list().unwrap_or_default();
        let facts = known.borrow_and_update().clone();
        let way_out = way_out.borrow().clone();
        for node in &mut kept {
            let told = status::Told { cluster: &cluster, facts: &facts, system: &system, way_out: &way_out };
            node.tell(told, &stored).await;
        }
    }
}

/// One Node that is kept.
struct Kept {
    node: VirtualNode,
    api: Api<Node>,
    posted: Option<NodeStatus>,
    posted_at: Instant,
    /// Labels, and whether it is open, as the API has them.
    given: Option<(BTreeMap<String, String>, Option<bool>)>,
}

impl Kept {
    fn new(node: VirtualNode, api: Api<Node>) -> Self {
        Self { node, api, posted: None, posted_at: Instant::now(), given: None }
    }

    async fn tell(&mut self, told: status::Told<'_>, images: &[StoredImage]) {
        let part = told.facts.part(Some(&self.node));
        self.report(told, &part, images).await;
        let ours = object::resources(&part.all, told.cluster.gpu_vendor);
        if let Err(error) = self.follow(&ours).await {
            tracing::warn!(node = %self.node.name, %error, "resources that were added to the node are not allocatable yet");
        }
    }

    /// Makes allocatable what others have added to the Node's capacity.
    async fn follow(&self, ours: &BTreeMap<String, String>) -> Result<(), Error> {
        // Out of the API server's cache, as upstream: this is asked every ten seconds.
        let node = match self.api.get_with(&self.node.name, &GetParams::any()).await {
            Err(Error::Api(answer)) if answer.code == 404 => return Ok(()),
            node => node?,
        };
        let Some(list) = node.status.and_then(|status| extended::follow(&status, ours)) else { return Ok(()) };
        let patch = json!({"status": {"allocatable": list}});
        self.api.patch_status(&self.node.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
    }

    async fn report(&mut self, told: status::Told<'_>, part: &Part, images: &[StoredImage]) {
        let body = status::status(&self.node, told, part, images, self.posted.as_ref());
        let registration = Registration::new(&self.node, told.cluster, part);
        let same = self.posted.as_ref().is_some_and(|old| status::same_but_times(old, &body));
        let settled =
            self.given.as_ref().is_some_and(|(l, open)| (l, open) == (&registration.labels, &registration.open));
        if same && settled && self.posted_at.elapsed() < REPORT {
            return;
        }
        match self.post(&registration, &body).await {
            Ok(()) => {
                self.posted = serde_json::from_value(body).ok();
                self.posted_at = Instant::now();
            }
            Err(error) => {
                tracing::warn!(node = %self.node.name, %error, "node status not posted");
                return;
            }
        }
        if !settled {
            match self.complete(&registration).await {
                Ok(()) => self.given = Some((registration.labels, registration.open)),
                Err(error) => tracing::warn!(node = %self.node.name, %error, "the node's labels are not up to date"),
            }
        }
    }

    async fn post(&self, registration: &Registration, status: &Value) -> Result<(), Error> {
        let name = &self.node.name;
        let mut patch = json!({"status": status});
        if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
            // The merge tells addresses apart by their type, and two may be of one.
            addresses.push(json!({"$patch": "replace"}));
        }
        match self.api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => return Ok(()),
            Err(Error::Api(answer)) if answer.code == 404 => {}
            Err(error) => return Err(error),
        }
        self.api.create(&PostParams::default(), &registration.object()?).await?;
        tracing::info!(node = %name, "node registered");
        self.api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await.map(|_| ())
    }

    /// Gives a Node that was registered earlier what it lacks.
    async fn complete(&self, registration: &Registration) -> Result<(), Error> {
        let node = self.api.get(&self.node.name).await?;
        let Some(patch) = registration.missing(&node, self.given.as_ref().map(|(labels, _)| labels)) else {
            return Ok(());
        };
        self.api.patch(&self.node.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
    }
}

/// Deletes a pod's object: with no grace left, and only this very one.
///
/// # Errors
/// The API server's answer, but an object that is gone already is no error.
pub(crate) async fn delete_pod(
    pods: &Api<k8s_openapi::api::core::v1::Pod>,
    name: &str,
    uid: &str,
) -> Result<(), Error> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(kube::api::Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        // Gone, or another pod of the same name.
        Err(Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
