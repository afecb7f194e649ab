//! The edge: watches and links in, pushes out. One task owns the [`World`].

use crate::balancer::{Balancer, Notice};
use crate::holds::Holds;
use crate::policies::{Labels, PodInfo};
use crate::services;
use crate::unenforced::Unenforced;
use crate::world::{Push, To, World};
use futures::StreamExt;
use futures::stream::BoxStream;
use hpk_api::link::{MEMBER, NetQuestion};
use hpk_link::server::{LinkServer, NetEvent};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long changes of pods and policies are gathered before policies are compiled anew.
const GATHER: Duration = Duration::from_millis(50);
/// How often relays without a use are dropped.
const TIDY: Duration = Duration::from_secs(600);
/// How long links of running pods may take to come back after a start: longer than their longest pause.
const SETTLE: Duration = Duration::from_secs(20);

/// What it runs with.
pub struct Config {
    /// A client that may list and watch services, EndpointSlices, NetworkPolicies, pods and namespaces.
    pub client: Client,
    pub links: LinkServer,
    pub events: mpsc::Receiver<NetEvent>,
    /// Range of pod addresses.
    pub pod_cidr: String,
    /// Pods are in the site's own network (mode cni), where nothing of ours enforces policies.
    pub direct: bool,
    /// The login node's addresses: where NodePort and LoadBalancer listen.
    pub node_ips: Vec<IpAddr>,
    /// What users should hear.
    pub notices: mpsc::UnboundedSender<Notice>,
    /// Where the control plane's member finds its link's credentials (`HPK_HOME/run/member-link.json`).
    pub member: PathBuf,
}

enum Change {
    Service(Box<Service>, bool),
    Slice(Box<EndpointSlice>, bool),
    Policy(Box<NetworkPolicy>, bool),
    Namespace(Box<Namespace>, bool),
    Pod(Box<Pod>, bool),
}

/// Keeps the pods' datapaths informed, until the links end.
pub async fn run(config: Config) {
    let Config { client, links, mut events, pod_cidr, direct, node_ips, notices, member } = config;
    links.adopt(
        MEMBER,
        member,
        hpk_api::net::ranges(&pod_cidr).iter().flatten().map(hpk_api::net::first_host).collect(),
    );
    let mut world = World::new(&pod_cidr, node_ips.clone()).direct(direct);
    let mut unenforced = direct.then(|| Unenforced::new(notices.clone()));
    let mut balancer = Balancer::new(client.clone(), node_ips, notices);
    let mut holds = Holds::default();
    let mut changes = futures::stream::select_all([
        changes::<Service>(client.clone(), |o, live| Change::Service(Box::new(o), live)),
        changes::<EndpointSlice>(client.clone(), |o, live| Change::Slice(Box::new(o), live)),
        changes::<NetworkPolicy>(client.clone(), |o, live| Change::Policy(Box::new(o), live)),
        changes::<Namespace>(client.clone(), |o, live| Change::Namespace(Box::new(o), live)),
        changes::<Pod>(client, |o, live| Change::Pod(Box::new(o), live)),
    ]);
    let mut compile_at = None;
    let mut tidy = tokio::time::interval(TIDY);
    let mut settled = false;
    let settle = tokio::time::sleep(SETTLE);
    tokio::pin!(settle);
    loop {
        let due = compile_at.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        let pushes = tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    match &event {
                        NetEvent::Asked { uid, question } => {
                            balancer.heard(&world, uid, question);
                            if let (MEMBER, NetQuestion::Listened { has, .. }) = (uid.as_str(), question) {
                                holds.listened(has);
                            }
                        }
                        NetEvent::Up { .. } | NetEvent::Subscribed { .. } | NetEvent::Down { .. } => {}
                    }
                    let pushes = on_link(&mut world, &event);
                    if world.policies_due() && compile_at.is_none() {
                        compile_at = Some(tokio::time::Instant::now() + GATHER);
                    }
                    pushes
                }
                None => return,
            },
            Some(change) = changes.next() => {
                if let Change::Service(service, live) = &change {
                    balancer.service(service, *live);
                }
                if let (Change::Policy(policy, live), Some(unenforced)) = (&change, &mut unenforced) {
                    unenforced.policy(policy, *live);
                }
                on_change(&mut world, change)
            }
            () = tokio::time::sleep_until(due), if compile_at.is_some() => {
                compile_at = None;
                world.policies()
            }
            () = &mut settle, if !settled => {
                settled = true;
                world.settle();
                Vec::new()
            }
            _ = tidy.tick() => {
                world.tidy();
                Vec::new()
            }
        };
        if world.policies_due() && compile_at.is_none() {
            compile_at = Some(tokio::time::Instant::now() + GATHER);
        }
        for Push { to, mut facts } in pushes {
            holds.mark(&mut facts);
            match to {
                To::All => links.broadcast(&facts).await,
                To::One(uid) => links.push(&uid, &facts).await,
            }
        }
    }
}

fn on_link(world: &mut World, event: &NetEvent) -> Vec<Push> {
    match event {
        NetEvent::Up { hello } => world.up(hello),
        NetEvent::Subscribed { uid } => world.subscribed(uid),
        NetEvent::Asked { uid, question } => world.asked(uid, question).into_iter().collect(),
        NetEvent::Down { uid } => {
            world.down(uid);
            Vec::new()
        }
    }
}

fn on_change(world: &mut World, change: Change) -> Vec<Push> {
    match change {
        Change::Service(s, true) => world.service(*s),
        Change::Service(s, false) => {
            world.service_gone(&services::key(s.namespace().as_deref(), s.metadata.name.as_deref()))
        }
        Change::Slice(s, true) => world.slice(*s),
        Change::Slice(s, false) => world.slice_gone(&s),
        Change::Policy(p, live) => {
            if live {
                world.policy(*p);
            } else {
                world.policy_gone(&services::key(p.namespace().as_deref(), p.metadata.name.as_deref()));
            }
            Vec::new()
        }
        Change::Namespace(n, live) => {
            if live {
                world.namespace(&n.name_any(), n.labels().clone());
            } else {
                world.namespace_gone(&n.name_any());
            }
            Vec::new()
        }
        Change::Pod(pod, live) => {
            let uid = pod.uid().unwrap_or_default();
            if live {
                world.pod(&uid, pod_info(&pod));
                return Vec::new();
            }
            world.pod_gone(&uid)
        }
    }
}

fn pod_info(pod: &Pod) -> PodInfo {
    let labels: Labels = pod.labels().clone();
    let status = pod.status.as_ref();
    let over = status.and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    let ips = status.and_then(|s| s.pod_ips.as_ref()).filter(|_| !over);
    let ips = ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
        Some((p.name.clone()?, services::protocol(p.protocol.as_deref())?, u16::try_from(p.container_port).ok()?))
    });
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    PodInfo { namespace, name, labels, ips, ports: ports.collect() }
}

/// Additions and deletions of one kind, for ever; what vanished while a watch was broken counts as deleted.
fn changes<K>(client: Client, wrap: fn(K, bool) -> Change) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let events = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
    let state = (Box::pin(events), Known::<K>::default());
    futures::stream::unfold(state, |(mut events, mut known)| async move {
        let event = events.next().await?;
        let changes = known.apply(event);
        Some((changes, (events, known)))
    })
    .flat_map(move |changes| futures::stream::iter(changes.into_iter().map(move |(object, live)| wrap(object, live))))
    .boxed()
}

/// What a watch has seen: to find what is missing after a new list.
struct Known<K> {
    seen: HashMap<String, K>,
    listed: Option<HashMap<String, K>>,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { seen: HashMap::new(), listed: None }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Known<K> {
    fn apply(&mut self, event: watcher::Result<watcher::Event<K>>) -> Vec<(K, bool)> {
        match event {
            Ok(watcher::Event::Init) => {
                self.listed = Some(HashMap::new());
                Vec::new()
            }
            Ok(watcher::Event::InitApply(mut object)) => {
                trim(&mut object);
                let key = identity(&object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(key, object.clone());
                }
                vec![(object, true)]
            }
            Ok(watcher::Event::InitDone) => {
                let listed = self.listed.take().unwrap_or_default();
                let before = std::mem::replace(&mut self.seen, listed);
                before
                    .into_iter()
                    .filter(|(key, _)| !self.seen.contains_key(key))
                    .map(|(_, object)| (object, false))
                    .collect()
            }
            Ok(watcher::Event::Apply(mut object)) => {
                trim(&mut object);
                self.seen.insert(identity(&object), object.clone());
                vec![(object, true)]
            }
            Ok(watcher::Event::Delete(object)) => {
                self.seen.remove(&identity(&object));
                vec![(object, false)]
            }
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch");
                Vec::new()
            }
        }
    }
}

/// By name, as the world knows them; pods by UID, since one that was deleted and made again is another.
fn identity<K: Resource<DynamicType = ()>>(object: &K) -> String {
    if K::kind(&()) == "Pod" {
        return object.meta().uid.clone().unwrap_or_default();
    }
    services::key(object.meta().namespace.as_deref(), object.meta().name.as_deref())
}

fn trim<K: Resource<DynamicType = ()>>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    object.meta_mut().annotations = None;
}
