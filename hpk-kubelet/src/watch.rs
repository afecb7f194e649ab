//! The watches that feed the controller: pods of this node, services, links.

use crate::controller::{Event, Sender};
use futures::{StreamExt, TryStreamExt};
use hpk_link::server::LinkEvent;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use std::collections::HashSet;
use std::sync::Arc;

/// Pods bound to `node`, for ever.
pub async fn pods(client: Client, node: String, tx: Sender) {
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        let sent = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                Ok(())
            }
            Ok(watcher::Event::InitApply(pod)) => {
                listed.extend(pod.uid());
                tx.send(Event::Applied(Arc::new(pod))).await
            }
            Ok(watcher::Event::InitDone) => tx.send(Event::Listed(std::mem::take(&mut listed))).await,
            Ok(watcher::Event::Apply(pod)) => tx.send(Event::Applied(Arc::new(pod))).await,
            Ok(watcher::Event::Delete(pod)) => tx.send(Event::Deleted(Arc::new(pod))).await,
            Err(error) => {
                tracing::warn!(%error, "watch of pods");
                Ok(())
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// All services, kept up to date.
#[must_use]
pub fn services(client: Client) -> Store<Service> {
    let (reader, writer) = reflector::store();
    let stream = watcher(Api::<Service>::all(client), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "watch of services"),
            }
        }
    });
    reader
}

/// Links' events to the controller.
pub async fn links(mut events: tokio::sync::mpsc::Receiver<LinkEvent>, tx: Sender) {
    while let Some(event) = events.recv().await {
        if tx.send(Event::Link(event)).await.is_err() {
            return;
        }
    }
}
