//! The provisioner: gives claims of our storage classes a folder, and takes the folder back when the claim is gone.
//!
//! One task owns what was seen of classes, claims and PersistentVolumes ([`decide::World`], pure) and which steps are under
//! way. Steps are tasks of their own: they make folders ([`folders`]) and speak to the API server. It works as upstream's
//! external provisioners do: the API's controllers ask by an annotation and bind the volume themselves.

mod class;
mod decide;
mod folders;
mod objects;

use crate::api::events::{Note, Recorder};
use decide::{ClaimKey, ForClaim, ForVolume, Provision, World};
use futures::stream::{BoxStream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Our name in StorageClasses.
pub const PROVISIONER: &str = "volumes.hpk.io";
/// On a claim: the folder in `.deleted` that it is to have.
pub const ANNOTATION_RESTORE: &str = "volumes.hpk.io/restore";
/// On a volume: its folder is kept under another name.
const ANNOTATION_ARCHIVE: &str = "volumes.hpk.io/archive-on-delete";
/// On a volume: who has made it.
const ANNOTATION_BY: &str = "pv.kubernetes.io/provisioned-by";
/// External provisioners' own.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// A volume that was deleted can be brought back for so long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Between two looks for volumes whose time is over.
const SWEEP: Duration = Duration::from_secs(600);
/// Between attempts of a step that failed: the first pause, doubled up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the task is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(ClaimKey),
    Volume(String),
}

/// What was seen in the API.
enum Seen {
    Class(Box<watcher::Event<StorageClass>>),
    Claim(Box<watcher::Event<PersistentVolumeClaim>>),
    Volume(Box<watcher::Event<PersistentVolume>>),
}

type StepError = Box<dyn std::error::Error + Send + Sync>;

/// Works for ever. `home`: where the volumes of classes without a path are.
pub async fn run(client: Client, recorder: Recorder, home: PathBuf) {
    let mut seen = seen(&client);
    let mut sweep = tokio::time::interval(SWEEP);
    let mut task = Provisioner {
        client,
        recorder,
        world: World { home, ..World::default() },
        steps: JoinSet::new(),
        busy: HashSet::new(),
        again: HashSet::new(),
        failures: HashMap::new(),
        refused: HashMap::new(),
        sweeping: false,
    };
    loop {
        let due = task.failures.values().map(|f| f.at).min();
        tokio::select! {
            Some(event) = seen.next() => task.see(event),
            Some(ended) = task.steps.join_next() => {
                if let Ok(ended) = ended { task.ended(ended); }
            }
            () = wait_until(due) => task.retry(Instant::now()),
            _ = sweep.tick() => task.sweep(),
        }
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn seen(client: &Client) -> BoxStream<'static, Seen> {
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

/// A step that failed.
#[derive(Debug)]
struct Failure {
    at: Instant,
    pause: Duration,
}

/// What the steps say at their end.
enum Ended {
    Step(Key, Result<(), StepError>),
    Swept,
}

struct Provisioner {
    client: Client,
    recorder: Recorder,
    world: World,
    steps: JoinSet<Ended>,
    /// Of these a step is under way.
    busy: HashSet<Key>,
    /// They have changed meanwhile.
    again: HashSet<Key>,
    failures: HashMap<Key, Failure>,
    /// What was told of claims that get no volume.
    refused: HashMap<ClaimKey, String>,
    sweeping: bool,
}

impl Provisioner {
    fn see(&mut self, seen: Seen) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match seen {
            Seen::Class(event) => match *event {
                Apply(class) | InitApply(class) => self.class(class),
                Delete(class) => {
                    self.world.classes.remove(&class.name_any());
                }
                // A list after a broken watch: what is gone is not in it.
                Init => self.world.classes.clear(),
                InitDone => {}
            },
            Seen::Claim(event) => match *event {
                Apply(claim) | InitApply(claim) => {
                    let key = claim_key(&claim);
                    self.world.claims.insert(key.clone(), claim);
                    self.look(Key::Claim(key));
                }
                Delete(claim) => {
                    let key = claim_key(&claim);
                    self.world.claims.remove(&key);
                    self.refused.remove(&key);
                    self.failures.remove(&Key::Claim(key));
                }
                Init => self.world.claims.clear(),
                InitDone => self.look_at_claims(|_| true),
            },
            Seen::Volume(event) => match *event {
                Apply(volume) | InitApply(volume) => {
                    let name = volume.name_any();
                    self.world.volumes.insert(name.clone(), volume);
                    self.look(Key::Volume(name));
                }
                Delete(volume) => {
                    let name = volume.name_any();
                    self.world.volumes.remove(&name);
                    self.failures.remove(&Key::Volume(name));
                }
                Init => self.world.volumes.clear(),
                // What stands in one list is decided by what is in the others, too.
                InitDone => self.look_at_claims(|_| true),
            },
        }
    }

    fn class(&mut self, class: StorageClass) {
        let name = class.name_any();
        self.world.classes.insert(name.clone(), class);
        self.look_at_claims(|claim| claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref()) == Some(&name));
    }

    fn look_at_claims(&mut self, wanted: impl Fn(&PersistentVolumeClaim) -> bool) {
        let keys = self.world.claims.iter().filter(|(_, claim)| wanted(claim)).map(|(key, _)| key.clone());
        for key in keys.collect::<Vec<_>>() {
            self.look(Key::Claim(key));
        }
    }

    /// Decides about one object and begins the step.
    fn look(&mut self, key: Key) {
        if self.busy.contains(&key) {
            self.again.insert(key);
            return;
        }
        if self.failures.get(&key).is_some_and(|f| f.at > Instant::now()) {
            return;
        }
        match &key {
            Key::Claim(of) => {
                let Some(claim) = self.world.claims.get(of).cloned() else { return };
                match self.world.for_claim(&claim) {
                    ForClaim::Nothing => {
                        self.failures.remove(&key);
                    }
                    ForClaim::Refuse(why) => self.refuse(&claim, why.to_string()),
                    ForClaim::Provision(made) => {
                        let step = provision(self.client.clone(), self.recorder.clone(), claim, *made);
                        self.begin(key, step);
                    }
                    ForClaim::Expand { volume, size } => {
                        let step = expand(self.client.clone(), self.recorder.clone(), claim, volume, size);
                        self.begin(key, step);
                    }
                }
            }
            Key::Volume(name) => {
                let Some(volume) = self.world.volumes.get(name).cloned() else { return };
                match self.world.for_volume(&volume) {
                    ForVolume::Nothing => {
                        self.failures.remove(&key);
                    }
                    ForVolume::LetGo => {
                        let client = self.client.clone();
                        self.begin(key, async move { let_go(&client, &volume).await });
                    }
                    ForVolume::Remove { place, archive } => {
                        let client = self.client.clone();
                        self.begin(key, async move {
                            let now = Timestamp::now().as_second();
                            blocking(move || folders::put_aside(&place, archive, now)).await?;
                            let_go(&client, &volume).await?;
                            delete(&client, &volume).await
                        });
                    }
                }
            }
        }
    }

    fn begin(&mut self, key: Key, step: impl Future<Output = Result<(), StepError>> + Send + 'static) {
        self.busy.insert(key.clone());
        self.steps.spawn(async move { Ended::Step(key, step.await) });
    }

    fn ended(&mut self, ended: Ended) {
        let Ended::Step(key, result) = ended else {
            self.sweeping = false;
            return;
        };
        self.busy.remove(&key);
        match result {
            Ok(()) => {
                self.failures.remove(&key);
                if self.again.remove(&key) {
                    self.look(key);
                }
            }
            Err(error) => {
                self.again.remove(&key);
                self.tell_failure(&key, &error.to_string());
                let pause = self.failures.get(&key).map_or(PAUSES.0, |f| (f.pause * 2).min(PAUSES.1));
                self.failures.insert(key, Failure { at: Instant::now() + pause, pause });
            }
        }
    }

    fn retry(&mut self, now: Instant) {
        let due = self.failures.iter().filter(|(_, f)| f.at <= now).map(|(key, _)| key.clone());
        for key in due.collect::<Vec<_>>() {
            if let Some(failure) = self.failures.get_mut(&key) {
                // Not due again before this attempt has ended.
                failure.at = now;
            }
            let gone = match &key {
                Key::Claim(of) => !self.world.claims.contains_key(of),
                Key::Volume(name) => !self.world.volumes.contains_key(name),
            };
            self.look(key.clone());
            // Nothing is under way: somebody else has settled it.
            if gone || !self.busy.contains(&key) {
                self.failures.remove(&key);
            } else if let Some(failure) = self.failures.get_mut(&key) {
                failure.at = now + PAUSES.1;
            }
        }
    }

    fn refuse(&mut self, claim: &PersistentVolumeClaim, why: String) {
        let key = claim_key(claim);
        if self.refused.get(&key) != Some(&why) {
            self.recorder.tell(about_claim(claim), Note::warning("ProvisioningFailed", why.clone()));
            self.refused.insert(key, why);
        }
    }

    fn tell_failure(&self, key: &Key, why: &str) {
        tracing::warn!(?key, why, "provisioner");
        match key {
            Key::Claim(of) => {
                if let Some(claim) = self.world.claims.get(of) {
                    self.recorder.tell(about_claim(claim), Note::warning("ProvisioningFailed", why));
                }
            }
            Key::Volume(name) => {
                if let Some(volume) = self.world.volumes.get(name) {
                    self.recorder.tell(about_volume(volume), Note::warning("VolumeFailedDelete", why));
                }
            }
        }
    }

    /// Removes the volumes whose time in `.deleted` is over.
    fn sweep(&mut self) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        let classes = self.world.classes.values().filter(|c| class::is_ours(c));
        let mut roots: Vec<PathBuf> =
            classes.filter_map(|c| class::Class::read(c).ok()?.root).chain([self.world.home.clone()]).collect();
        roots.sort();
        roots.dedup();
        let before = Timestamp::now().as_second() - i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX);
        self.steps.spawn(async move {
            let swept = tokio::task::spawn_blocking(move || roots.iter().for_each(|root| sweep(root, before)));
            let _ = swept.await;
            Ended::Swept
        });
    }
}

fn sweep(root: &Path, before: i64) {
    for path in folders::old(root, before) {
        match folders::remove_tree(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "deleted volume removed"),
            Err(error) => tracing::warn!(%error, "deleted volume not removed"),
        }
    }
}

async fn blocking<E>(work: impl FnOnce() -> Result<(), E> + Send + 'static) -> Result<(), StepError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    Ok(tokio::task::spawn_blocking(work).await??)
}

async fn provision(
    client: Client,
    recorder: Recorder,
    claim: PersistentVolumeClaim,
    made: Provision,
) -> Result<(), StepError> {
    let api: Api<PersistentVolume> = Api::all(client);
    let (place, origin) = (made.place.clone(), made.origin.clone());
    blocking(move || folders::make(&place, &origin)).await?;
    match api.create(&PostParams::default(), &objects::volume(&made, &claim)).await {
        // Made by an earlier attempt whose answer was lost.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => {
            other?;
        }
    }
    let text = format!("Successfully provisioned volume {}: {}", made.volume, made.place.path().display());
    recorder.tell(about_claim(&claim), Note::normal("ProvisioningSucceeded", text));
    Ok(())
}

async fn expand(
    client: Client,
    recorder: Recorder,
    claim: PersistentVolumeClaim,
    volume: String,
    size: Quantity,
) -> Result<(), StepError> {
    let params = PatchParams::default();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    volumes.patch(&volume, &params, &Patch::Merge(objects::grown(&size))).await?;
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client, claim.metadata.namespace.as_deref().unwrap_or_default());
    claims.patch_status(&claim.name_any(), &params, &Patch::Merge(objects::told(&size))).await?;
    recorder.tell(about_claim(&claim), Note::normal("VolumeResizeSuccessful", format!("Resized volume to {}", size.0)));
    Ok(())
}

async fn let_go(client: &Client, volume: &PersistentVolume) -> Result<(), StepError> {
    if !volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER) {
        return Ok(());
    }
    let api: Api<PersistentVolume> = Api::all(client.clone());
    found(api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(objects::let_go(volume))).await)
}

async fn delete(client: &Client, volume: &PersistentVolume) -> Result<(), StepError> {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let uid = volume.metadata.uid.clone();
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid, ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    found(api.delete(&volume.name_any(), &params).await)
}

/// What is not there need not be changed.
fn found<T>(answer: kube::Result<T>) -> Result<(), StepError> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}

fn claim_key(claim: &PersistentVolumeClaim) -> ClaimKey {
    (claim.namespace().unwrap_or_default(), claim.name_any())
}

fn about_claim(claim: &PersistentVolumeClaim) -> ObjectReference {
    about("PersistentVolumeClaim", &claim.metadata)
}

fn about_volume(volume: &PersistentVolume) -> ObjectReference {
    about("PersistentVolume", &volume.metadata)
}

fn about(kind: &str, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}
