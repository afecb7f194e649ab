//! The watches that feed the controller: pods of this node, services, links.

use crate::controller::{Event, Sender};
use crate::nodes::Nodes;
use futures::{StreamExt, TryStreamExt};
use hpk_api::ids::PodUid;
use hpk_link::server::LinkEvent;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::error::SendError;

/// Pods bound to our Nodes, for ever. Those of a list come oldest first, as upstream's kubelet takes them: after a start, what only
/// one can have (a port of the Node) is the older pod's.
pub(crate) async fn pods(client: Client, nodes: Arc<Nodes>, tx: Sender) {
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&nodes.selector());
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed: Vec<Arc<Pod>> = Vec::new();
    while let Some(event) = events.next().await {
        let sent = match event {
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) | watcher::Event::Delete(pod))
                if nodes.of_pod(&pod).is_none() =>
            {
                Ok(())
            }
            Ok(watcher::Event::Init) => {
                listed.clear();
                Ok(())
            }
            Ok(watcher::Event::InitApply(pod)) => {
                listed.push(Arc::new(pod));
                Ok(())
            }
            Ok(watcher::Event::InitDone) => tell_list(&tx, std::mem::take(&mut listed)).await,
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

async fn tell_list(tx: &Sender, mut pods: Vec<Arc<Pod>>) -> Result<(), SendError<Event>> {
    let uids = pods.iter().filter_map(|pod| pod.uid()).map(PodUid::from).collect();
    pods.sort_by(|a, b| age(a).cmp(&age(b)));
    for pod in pods {
        tx.send(Event::Applied(pod)).await?;
    }
    tx.send(Event::Listed(uids)).await
}

/// Ascending from the oldest; names decide between pods of one second.
fn age(pod: &Pod) -> impl Ord {
    (pod.creation_timestamp(), pod.namespace(), pod.name_any())
}

/// All objects of a kind, kept up to date.
#[must_use]
pub(crate) fn all<K>(client: Client, task: &'static str) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let stream =
        watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff().reflect(writer).applied_objects();
    hpk_link::lasting::spawn(task, async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "{task}"),
            }
        }
    });
    reader
}

/// All PodGroups, kept up to date; `changed` hears of each change.
#[must_use]
pub(crate) fn pod_groups(client: Client, changed: UnboundedSender<()>) -> Store<PodGroup> {
    let (reader, writer) = reflector::store();
    let stream = watcher(Api::<PodGroup>::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    hpk_link::lasting::spawn("watch of PodGroups", async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(_)) => drop(changed.send(())),
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "watch of PodGroups"),
            }
        }
    });
    reader
}

/// Links' events to the controller.
pub(crate) async fn links(mut events: tokio::sync::mpsc::Receiver<LinkEvent>, tx: Sender) {
    while let Some(event) = events.recv().await {
        if tx.send(Event::Link(event)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_list_is_told_oldest_first_and_then_as_a_whole() {
        let pod = |name: &str, second: u8| {
            let created = format!("2026-11-27T07:00:{second:02}Z");
            let metadata = json!({"name": name, "namespace": "d", "uid": name, "creationTimestamp": created});
            Arc::new(serde_json::from_value::<Pod>(json!({"metadata": metadata})).unwrap())
        };
        let (tx, mut events) = tokio::sync::mpsc::channel(8);
        tell_list(&tx, vec![pod("young", 9), pod("b", 5), pod("old", 1), pod("a", 5)]).await.unwrap();
        drop(tx);
        let mut told = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Applied(pod) => told.push(pod.name_any()),
                Event::Listed(all) => assert_eq!(all.len(), told.len()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, ["old", "a", "b", "young"]);
    }
}
