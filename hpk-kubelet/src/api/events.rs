//! Events on pods, as a kubelet posts them: same source, same words, repeated ones counted.
//!
//! One task posts; whoever records never waits. A queue that is full drops the event: the status tells the same.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that wait to be posted.
const QUEUE: usize = 4096;
/// Repeats of an event within this time are counted on the same object (upstream: an hour).
const SAME: Duration = Duration::from_secs(3600);

/// One thing to tell.
#[derive(Clone, Debug)]
pub struct Note {
    /// Warning instead of Normal.
    pub warning: bool,
    /// `Pulled`, `FailedMount`, …
    pub reason: String,
    /// Text, as upstream words it.
    pub message: String,
    /// Container concerned.
    pub container: Option<String>,
    /// When; None: now.
    pub at: Option<Timestamp>,
}

impl Note {
    /// A Normal event.
    pub fn normal(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { warning: false, reason: reason.into(), message: message.into(), container: None, at: None }
    }

    /// A Warning event.
    pub fn warning(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::normal(reason, message) }
    }

    /// About one container.
    #[must_use]
    pub fn of(mut self, container: &str) -> Self {
        self.container = Some(container.to_owned());
        self
    }
}

/// An event on its way.
type Told = (ObjectReference, Note, Option<String>);

/// Takes events; clones are one recorder.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// Starts the task that posts. `node`: the first Node's name.
    #[must_use]
    pub fn start(client: Client, node: String) -> Self {
        let (queue, incoming) = mpsc::channel(QUEUE);
        hpk_link::lasting::spawn("events", post_all(client, node, incoming));
        Self { queue }
    }

    /// Tells something about a pod.
    pub fn pod(&self, pod: &Pod, note: Note) {
        let reference = pod_reference(pod, note.container.as_deref());
        self.send((reference, note, pod.spec.as_ref().and_then(|s| s.node_name.clone())));
    }

    /// Tells something about any object, as the first Node.
    pub fn tell(&self, about: ObjectReference, note: Note) {
        self.send((about, note, None));
    }

    fn send(&self, told: Told) {
        if self.queue.try_send(told).is_err() {
            tracing::warn!("events come faster than the API server takes them: one is dropped");
        }
    }
}

fn pod_reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let meta = &pod.metadata;
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: container.map(|name| field_path(pod, name)),
    }
}

/// `spec.containers{name}`, or the list that the container is in.
fn field_path(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).is_some_and(|l| l.iter().any(|c| c.name == name));
    let ephemeral =
        spec.and_then(|s| s.ephemeral_containers.as_ref()).is_some_and(|l| l.iter().any(|c| c.name == name));
    let list = match (init, ephemeral) {
        (true, _) => "initContainers",
        (_, true) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{name}}}")
}

type Key = (Option<String>, Option<String>, bool, String, String);

struct Posted {
    name: String,
    count: i32,
    last: std::time::Instant,
}

async fn post_all(client: Client, first: String, mut incoming: mpsc::Receiver<Told>) {
    let mut known: HashMap<Key, Posted> = HashMap::new();
    let mut serial: u64 = 0;
    while let Some((about, note, node)) = incoming.recv().await {
        known.retain(|_, p| p.last.elapsed() < SAME);
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key =
            (about.uid.clone(), about.field_path.clone(), note.warning, note.reason.clone(), note.message.clone());
        let at = Time(note.at.unwrap_or_else(Timestamp::now));
        if let Some(posted) = known.get_mut(&key) {
            posted.count += 1;
            posted.last = std::time::Instant::now();
            let patch = serde_json::json!({"count": posted.count, "lastTimestamp": at});
            match api.patch(&posted.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => continue,
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!(%error, "event not counted");
                    continue;
                }
            }
        }
        serial += 1;
        let stamp = u128::try_from(at.0.as_nanosecond()).unwrap_or_default();
        let name = format!("{}.{:x}{:x}", about.name.as_deref().unwrap_or("event"), stamp, serial % 4096);
        match post(&api, &namespace, node.as_ref().unwrap_or(&first), &name, &about, &note, &at).await {
            Ok(()) => {
                known.insert(key, Posted { name, count: 1, last: std::time::Instant::now() });
            }
            Err(error) => tracing::debug!(%error, reason = %note.reason, "event not posted"),
        }
    }
}

async fn post(
    api: &Api<Event>,
    namespace: &str,
    node: &str,
    name: &str,
    about: &ObjectReference,
    note: &Note,
    at: &Time,
) -> Result<(), Error> {
    let event = Event {
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at.clone()),
        involved_object: about.clone(),
        // The API refuses longer ones.
        message: Some(note.message.chars().take(1024).collect()),
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        reason: Some(note.reason.clone()),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    };
    // A few tries: the API server may be starting again.
    let mut wait = Duration::from_millis(500);
    loop {
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => return Ok(()),
            Err(error @ Error::Api(_)) => return Err(error),
            Err(error) if wait > Duration::from_secs(10) => return Err(error),
            Err(_) => {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_name_the_list() {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}],
            "ephemeralContainers": [{"name": "e"}]}}))
            .expect("pod");
        assert_eq!(field_path(&pod, "i"), "spec.initContainers{i}");
        assert_eq!(field_path(&pod, "c"), "spec.containers{c}");
        assert_eq!(field_path(&pod, "e"), "spec.ephemeralContainers{e}");
    }
}
