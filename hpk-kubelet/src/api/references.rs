//! Watches on the objects that pods refer to: one for each configMap or secret, however many pods refer to it, as
//! upstream's kubelet has them (its Node authorizer lets it watch nothing wider).
//!
//! One task owns the [`Table`]. It sees metadata only, so no secret's data stays in memory here; who is told of a
//! change reads the object anew.
//!
//! ```text
//! claim(uid, versions read) ──▶ ┌───────┐ ◀──seen(key, version)── watch of one object
//! release(uid) ───────────────▶ │ Table │
//!        changed(uid) ◀──────── └───────┘ ──▶ watches begin with the first claim and end with the last
//! ```

use crate::render::sources::{Kind, ObjectKey, Version, Versions, joint_version};
use futures::StreamExt;
use hpk_api::ids::PodUid;
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use std::collections::{BTreeMap, HashMap};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// What the owner of the table is told.
enum Message {
    Claim { uid: PodUid, versions: Versions },
    Release { uid: PodUid },
    Seen { key: ObjectKey, version: Version },
}

/// Asks for news of references; clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Watches {
    messages: mpsc::UnboundedSender<Message>,
}

impl Watches {
    /// Starts the task that owns the watches. It calls `changed` with the UID of each pod that has read another
    /// version of an object than there is now. `node`: the Node's name.
    pub(crate) fn start<F, R>(client: Client, node: String, changed: F) -> Self
    where
        F: Fn(PodUid) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (messages, inbox) = mpsc::unbounded_channel();
        hpk_link::lasting::spawn("references", own(client, node, messages.downgrade(), inbox, changed));
        Self { messages }
    }

    /// The pod refers to these objects (and to no others) and has read these versions of them.
    pub(crate) fn claim(&self, uid: &PodUid, versions: Versions) {
        let _ = self.messages.send(Message::Claim { uid: uid.clone(), versions });
    }

    /// The pod needs no news any more.
    pub(crate) fn release(&self, uid: &PodUid) {
        let _ = self.messages.send(Message::Release { uid: uid.clone() });
    }
}

/// [`Watches`] of several Nodes: each may watch what its own pods refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodesWatches {
    of: HashMap<String, Watches>,
}

impl NodesWatches {
    /// Adds a Node's.
    pub(crate) fn add(&mut self, node: String, watches: Watches) {
        self.of.insert(node, watches);
    }

    /// As [`Watches::claim`], of a pod on this Node.
    pub(crate) fn claim(&self, node: Option<&str>, uid: &PodUid, versions: Versions) {
        if let Some(watches) = node.and_then(|n| self.of.get(n)) {
            watches.claim(uid, versions);
        }
    }

    /// As [`Watches::release`], wherever the pod is.
    pub(crate) fn release(&self, uid: &PodUid) {
        self.of.values().for_each(|watches| watches.release(uid));
    }
}

async fn own<F, R>(
    client: Client,
    node: String,
    messages: mpsc::WeakUnboundedSender<Message>,
    mut inbox: mpsc::UnboundedReceiver<Message>,
    changed: F,
) where
    F: Fn(PodUid) -> R,
    R: Future<Output = ()>,
{
    let mut table = Table::default();
    let mut running: HashMap<ObjectKey, AbortHandle> = HashMap::new();
    while let Some(message) = inbox.recv().await {
        let outcome = match message {
            Message::Claim { uid, versions } => table.claim(&uid, versions),
            Message::Release { uid } => table.claim(&uid, Versions::new()),
            Message::Seen { key, version } => table.seen(&key, version),
        };
        for key in outcome.stop {
            if let Some(watch) = running.remove(&key) {
                watch.abort();
            }
        }
        for key in outcome.start {
            let Some(messages) = messages.upgrade() else { return };
            let watch = tokio::spawn(watch(client.clone(), node.clone(), key.clone(), messages));
            running.insert(key, watch.abort_handle());
        }
        for uid in outcome.changed {
            changed(uid).await;
        }
    }
}

/// Follows one object for ever.
async fn watch(client: Client, node: String, key: ObjectKey, messages: mpsc::UnboundedSender<Message>) {
    let named = format!("metadata.name={}", key.name);
    match key.kind {
        Kind::ConfigMap => {
            follow::<PartialObjectMeta<ConfigMap>>(Api::namespaced(client, &key.namespace), &named, key, messages)
                .await;
        }
        Kind::Secret => {
            follow::<PartialObjectMeta<Secret>>(Api::namespaced(client, &key.namespace), &named, key, messages).await;
        }
        Kind::CertificateRequest => {
            let api: Api<PartialObjectMeta<PodCertificateRequest>> = Api::namespaced(client, &key.namespace);
            // What the Node authorizer lets a node see of them.
            follow(api, &format!("{named},spec.nodeName={node}"), key, messages).await;
        }
        Kind::TrustBundles => {
            follow_all::<PartialObjectMeta<ClusterTrustBundle>>(Api::all(client), key, messages).await;
        }
    }
}

async fn follow<K>(api: Api<K>, fields: &str, key: ObjectKey, messages: mpsc::UnboundedSender<Message>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(fields);
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = events.next().await {
        let version = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = object.resource_version();
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(object)) => object.resource_version(),
            Ok(watcher::Event::Delete(_)) => None,
            Err(error) => {
                // A pod that was bound a moment ago is unknown to the Node authorizer yet: the watch tries again.
                tracing::debug!(name = %key.name, %error, "watch of a reference");
                continue;
            }
        };
        if messages.send(Message::Seen { key: key.clone(), version }).is_err() {
            return;
        }
    }
}

/// As [`follow`], of all objects of a kind: their joint version.
async fn follow_all<K>(api: Api<K>, key: ObjectKey, messages: mpsc::UnboundedSender<Message>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut objects = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                objects.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                objects.insert(object.name_any(), object.resource_version());
                continue;
            }
            Ok(watcher::Event::InitDone) => {}
            Ok(watcher::Event::Apply(object)) => {
                objects.insert(object.name_any(), object.resource_version());
            }
            Ok(watcher::Event::Delete(object)) => {
                objects.remove(&object.name_any());
            }
            Err(error) => {
                tracing::debug!(kind = ?key.kind, %error, "watch of references");
                continue;
            }
        }
        if messages.send(Message::Seen { key: key.clone(), version: joint_version(&objects) }).is_err() {
            return;
        }
    }
}

/// Who refers to what, and which versions they have read. No I/O.
#[derive(Debug, Default)]
struct Table {
    objects: HashMap<ObjectKey, Object>,
    pods: HashMap<PodUid, Versions>,
}

#[derive(Debug, Default)]
struct Object {
    /// Pods that refer to it.
    users: Vec<PodUid>,
    /// What its watch saw last; None: nothing yet.
    seen: Option<Version>,
}

/// What follows from one message.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    start: Vec<ObjectKey>,
    stop: Vec<ObjectKey>,
    /// Pods that must read again.
    changed: Vec<PodUid>,
}

impl Table {
    /// Replaces a pod's claims; no claims: the pod is forgotten.
    fn claim(&mut self, uid: &PodUid, versions: Versions) -> Outcome {
        let mut outcome = Outcome::default();
        let former = self.pods.remove(uid).unwrap_or_default();
        for key in former.keys().filter(|key| !versions.contains_key(*key)) {
            let Some(object) = self.objects.get_mut(key) else { continue };
            object.users.retain(|user| user != uid);
            if object.users.is_empty() {
                self.objects.remove(key);
                outcome.stop.push(key.clone());
            }
        }
        let mut behind = false;
        for (key, version) in &versions {
            if !self.objects.contains_key(key) {
                outcome.start.push(key.clone());
            }
            let object = self.objects.entry(key.clone()).or_default();
            if !former.contains_key(key) {
                object.users.push(uid.clone());
            }
            // It changed between the pod's reading and this claim. (Or the watch lags behind the reading: then the
            // pod reads once more in vain.)
            behind |= object.seen.as_ref().is_some_and(|seen| seen != version);
        }
        if behind {
            outcome.changed.push(uid.clone());
        }
        if !versions.is_empty() {
            self.pods.insert(uid.clone(), versions);
        }
        outcome
    }

    /// An object is now of this version.
    fn seen(&mut self, key: &ObjectKey, version: Version) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = self.objects.get_mut(key) else { return outcome };
        for uid in &object.users {
            let read = self.pods.get_mut(uid).and_then(|versions| versions.get_mut(key));
            if let Some(read) = read.filter(|read| **read != version) {
                // Told once; what the pod reads then comes with its next claim.
                read.clone_from(&version);
                outcome.changed.push(uid.clone());
            }
        }
        object.seen = Some(version);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::ConfigMap, namespace: "n".into(), name: name.into() }
    }

    fn versions(list: &[(&str, Option<&str>)]) -> Versions {
        list.iter().map(|(name, version)| (key(name), version.map(str::to_owned))).collect()
    }

    fn uid(text: &str) -> PodUid {
        PodUid::from(text)
    }

    fn v(version: &str) -> Version {
        Some(version.to_owned())
    }

    #[test]
    fn one_watch_for_all_users_of_an_object() {
        let mut table = Table::default();
        assert_eq!(table.claim(&uid("a"), versions(&[("x", Some("1"))])).start, [key("x")]);
        assert_eq!(table.claim(&uid("b"), versions(&[("x", Some("1"))])), Outcome::default());
        assert_eq!(table.seen(&key("x"), v("1")), Outcome::default());
        assert_eq!(table.seen(&key("x"), v("2")).changed, [uid("a"), uid("b")]);
        assert_eq!(table.seen(&key("x"), v("2")), Outcome::default(), "a list after a broken watch");
        assert_eq!(table.claim(&uid("a"), Versions::new()), Outcome::default());
        assert_eq!(table.claim(&uid("b"), Versions::new()).stop, [key("x")]);
        assert!(table.objects.is_empty() && table.pods.is_empty());
    }

    #[test]
    fn what_changed_before_the_claim_is_told_at_once() {
        let mut table = Table::default();
        table.claim(&uid("a"), versions(&[("x", None)]));
        assert_eq!(table.seen(&key("x"), v("5")).changed, [uid("a")], "an object that did not exist");
        assert_eq!(table.claim(&uid("b"), versions(&[("x", Some("4"))])).changed, [uid("b")]);
        assert_eq!(table.claim(&uid("b"), versions(&[("x", Some("5"))])), Outcome::default());
        assert_eq!(table.seen(&key("x"), None).changed, [uid("a"), uid("b")], "deleted");
    }

    #[test]
    fn claims_are_replaced() {
        let mut table = Table::default();
        table.claim(&uid("a"), versions(&[("x", Some("1")), ("y", Some("1"))]));
        let outcome = table.claim(&uid("a"), versions(&[("y", Some("1")), ("z", None)]));
        assert_eq!((outcome.start, outcome.stop), (vec![key("z")], vec![key("x")]));
        assert_eq!(table.seen(&key("x"), v("9")), Outcome::default());
    }

    proptest! {
        /// Watches are exactly those of the claimed objects, and whoever read something old is told.
        #[test]
        fn watches_follow_the_claims(steps in proptest::collection::vec(
            (0..4usize, 0..3usize, proptest::collection::btree_set(0..4usize, 0..4)), 1..40)) {
            let mut table = Table::default();
            let mut running = BTreeSet::new();
            let mut claims: BTreeMap<PodUid, BTreeSet<usize>> = BTreeMap::new();
            for (kind, number, set) in steps {
                let uid = PodUid::from(format!("u{number}"));
                let outcome = if kind == 0 {
                    table.seen(&key(&number.to_string()), v("2"))
                } else {
                    claims.insert(uid.clone(), set.clone());
                    table.claim(&uid, set.iter().map(|n| (key(&n.to_string()), v("1"))).collect())
                };
                for k in outcome.start { prop_assert!(running.insert(k)); }
                for k in outcome.stop { prop_assert!(running.remove(&k)); }
                let wanted: BTreeSet<ObjectKey> = claims.values().flatten().map(|n| key(&n.to_string())).collect();
                prop_assert_eq!(&running, &wanted);
                if kind > 0 {
                    let stale = set.iter().any(|n| table.objects[&key(&n.to_string())].seen.is_some());
                    prop_assert_eq!(outcome.changed.contains(&uid), stale);
                }
            }
        }
    }
}
