//! What is seen of the API: classes, claims and PersistentVolumes.

use super::decide::ClaimKey;
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::collections::HashSet;

/// What the task is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Class(String),
    Claim(ClaimKey),
    Volume(String),
}

/// What was seen in the API.
pub(super) enum Seen {
    Class(Box<watcher::Event<StorageClass>>),
    Claim(Box<watcher::Event<PersistentVolumeClaim>>),
    Volume(Box<watcher::Event<PersistentVolume>>),
}

pub(super) fn seen(client: &Client) -> BoxStream<'static, Seen> {
    fn all<K>(client: &Client, wrap: fn(Box<watcher::Event<K>>) -> Seen) -> BoxStream<'static, Seen>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
        let told = events.filter_map(move |event| {
            let event = event.inspect_err(|error| tracing::debug!(%error, "watch for the provisioner"));
            std::future::ready(event.ok().map(Box::new).map(wrap))
        });
        told.boxed()
    }
    let claims = all(client, Seen::Claim);
    let volumes = all(client, Seen::Volume);
    futures::stream::select_all([all(client, Seen::Class), claims, volumes]).boxed()
}

/// Whether what is known is whole: a decision from a part of it would be wrong.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) classes: List,
    pub(super) claims: List,
    pub(super) volumes: List,
}

impl Lists {
    pub(super) fn whole(&self) -> bool {
        self.classes.whole && self.claims.whole && self.volumes.whole
    }
}

/// A list that is being read, anew after a broken watch.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) whole: bool,
    /// What it had so far; what is gone is not in it at its end.
    pub(super) has: HashSet<Key>,
}

impl List {
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    pub(super) fn end(&mut self) -> HashSet<Key> {
        self.whole = true;
        std::mem::take(&mut self.has)
    }
}
