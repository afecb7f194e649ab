//! The provisioner: gives claims of our storage classes a folder, and takes the folder back when the claim is gone.
//!
//! One task owns what was seen of classes, claims and PersistentVolumes ([`decide::World`], pure) and which steps are under
//! way. Steps are tasks of their own: they make folders ([`folders`]) and speak to the API server. It works as upstream's
//! external provisioners do: the API's controllers ask by an annotation and bind the volume themselves.

mod class;
pub(crate) mod copy;
mod decide;
mod folders;
mod names;
mod objects;
mod seen;
mod steps;

pub(crate) use names::{ANNOTATION_BY, PROVISIONER};

use crate::api::events::{Note, Recorder};
use decide::{ClaimKey, ForClaim, ForVolume, Place, World};
use futures::stream::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use seen::{Key, Lists, Seen, seen};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use steps::{StepError, about_claim, about_volume, blocking, delete, expand, let_go, provision, sweep};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A volume that was deleted can be brought back for so long.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Between two looks for volumes whose time is over.
const SWEEP: Duration = Duration::from_secs(600);
/// Between attempts of a step that failed: the first pause, doubled up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Copies at a time: each keeps the login node's disk busy for as long as it takes.
const COPIES: usize = 2;
/// Other steps at a time, of the threads that the kubelet has for what blocks.
const STEPS: usize = 32;

/// Works for ever. `home`: where the volumes of classes without a path are.
pub(crate) async fn run(client: Client, recorder: Recorder, home: PathBuf) {
    let mut seen = seen(&client);
    // Not at once: after a long stop there is time to bring a volume back.
    let mut sweep = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
    let mut task = Provisioner {
        client,
        recorder,
        world: World { home, ..World::default() },
        steps: JoinSet::new(),
        busy: HashSet::new(),
        again: HashSet::new(),
        failures: HashMap::new(),
        refused: HashMap::new(),
        places: HashMap::new(),
        lists: Lists::default(),
        copies: Arc::new(Semaphore::new(COPIES)),
        others: Arc::new(Semaphore::new(STEPS)),
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
    /// Of claims that have no volume in the API yet: what it will be called, and its folder.
    places: HashMap<Key, (String, Place)>,
    lists: Lists,
    copies: Arc<Semaphore>,
    others: Arc<Semaphore>,
    sweeping: bool,
}

impl Provisioner {
    fn see(&mut self, seen: Seen) {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        match seen {
            Seen::Class(event) => match *event {
                Apply(class) => self.class(class),
                InitApply(class) => {
                    self.lists.classes.has.insert(Key::Class(class.name_any()));
                    self.class(class);
                }
                Delete(class) => {
                    self.world.classes.remove(&class.name_any());
                }
                Init => self.lists.classes.begin(),
                InitDone => {
                    let has = self.lists.classes.end();
                    self.world.classes.retain(|name, _| has.contains(&Key::Class(name.clone())));
                    self.look_at_all();
                }
            },
            Seen::Claim(event) => match *event {
                Apply(claim) => self.claim(claim),
                InitApply(claim) => {
                    self.lists.claims.has.insert(Key::Claim(claim_key(&claim)));
                    self.claim(claim);
                }
                Delete(claim) => self.claim_gone(claim_key(&claim)),
                Init => self.lists.claims.begin(),
                InitDone => {
                    let has = self.lists.claims.end();
                    let gone = self.world.claims.keys().filter(|key| !has.contains(&Key::Claim((*key).clone())));
                    for key in gone.cloned().collect::<Vec<_>>() {
                        self.claim_gone(key);
                    }
                    self.look_at_all();
                }
            },
            Seen::Volume(event) => match *event {
                Apply(volume) => self.volume(volume),
                InitApply(volume) => {
                    self.lists.volumes.has.insert(Key::Volume(volume.name_any()));
                    self.volume(volume);
                }
                Delete(volume) => {
                    let name = volume.name_any();
                    self.world.volumes.remove(&name);
                    self.failures.remove(&Key::Volume(name));
                }
                Init => self.lists.volumes.begin(),
                InitDone => {
                    let has = self.lists.volumes.end();
                    self.world.volumes.retain(|name, _| has.contains(&Key::Volume(name.clone())));
                    self.look_at_all();
                }
            },
        }
    }

    fn claim(&mut self, claim: PersistentVolumeClaim) {
        let key = claim_key(&claim);
        self.world.claims.insert(key.clone(), claim);
        self.look(Key::Claim(key.clone()));
        self.look_at_copies_of(&key);
    }

    fn claim_gone(&mut self, of: ClaimKey) {
        self.world.claims.remove(&of);
        self.refused.remove(&of);
        let key = Key::Claim(of);
        self.failures.remove(&key);
        if !self.busy.contains(&key) {
            self.abandon(key);
        }
    }

    fn volume(&mut self, volume: PersistentVolume) {
        let (name, holder) = (volume.name_any(), decide::holder(&volume));
        self.world.volumes.insert(name.clone(), volume);
        self.look(Key::Volume(name));
        if let Some(holder) = holder {
            self.look_at_copies_of(&holder);
        }
    }

    /// A claim whose content is to be this one's may have waited for it.
    fn look_at_copies_of(&mut self, of: &ClaimKey) {
        let (namespace, name) = of;
        self.look_at_claims(|claim| {
            claim.namespace().as_deref() == Some(namespace) && decide::source(claim) == Some(name)
        });
    }

    fn look_at_all(&mut self) {
        self.look_at_claims(|_| true);
        for name in self.world.volumes.keys().cloned().collect::<Vec<_>>() {
            self.look(Key::Volume(name));
        }
    }

    /// Its claim is gone, and the API never knew of a volume for it.
    fn abandon(&mut self, key: Key) {
        if let Some((volume, place)) = self.places.remove(&key) {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            self.begin(key, async move {
                // The answer to its making may have been lost: then it is the volume's to say what becomes of the folder.
                if api.get_opt(&volume).await?.is_some() {
                    return Ok(());
                }
                let now = Timestamp::now().as_second();
                blocking(move || folders::abandon(&place, now)).await
            });
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
        if !self.lists.whole() {
            return;
        }
        if self.busy.contains(&key) {
            self.again.insert(key);
            return;
        }
        if self.failures.get(&key).is_some_and(|f| f.at > Instant::now()) {
            return;
        }
        match &key {
            Key::Class(_) => {}
            Key::Claim(of) => {
                let Some(claim) = self.world.claims.get(of).cloned() else { return };
                match self.world.for_claim(&claim) {
                    ForClaim::Nothing => {
                        self.failures.remove(&key);
                        self.places.remove(&key);
                    }
                    ForClaim::Refuse(why) => self.refuse(&claim, why.to_string()),
                    ForClaim::Provision(made) => {
                        self.places.insert(key.clone(), (made.volume.clone(), made.place.clone()));
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
        let copies = self.places.contains_key(&key) && self.is_copy(&key);
        let gate = if copies { self.copies.clone() } else { self.others.clone() };
        self.steps.spawn(async move {
            let _turn = gate.acquire_owned().await;
            // A task of its own: a panic in it ends this step, and is told like another failure.
            let result = tokio::spawn(step).await.unwrap_or_else(|panic| Err(panic.into()));
            Ended::Step(key, result)
        });
    }

    fn is_copy(&self, key: &Key) -> bool {
        let Key::Claim(of) = key else { return false };
        self.world.claims.get(of).is_some_and(|claim| decide::source(claim).is_some())
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
                self.places.remove(&key);
                if self.again.remove(&key) {
                    self.look(key);
                }
            }
            Err(error) => {
                self.again.remove(&key);
                self.tell_failure(&key, &error.to_string());
                if matches!(&key, Key::Claim(of) if !self.world.claims.contains_key(of)) {
                    self.abandon(key);
                    return;
                }
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
                Key::Class(_) => true,
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
            Key::Class(_) => {}
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
        let roots = self.world.roots();
        let before = Timestamp::now().as_second() - i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX);
        self.steps.spawn(async move {
            let swept = tokio::task::spawn_blocking(move || roots.iter().for_each(|root| sweep(root, before)));
            let _ = swept.await;
            Ended::Swept
        });
    }
}

fn claim_key(claim: &PersistentVolumeClaim) -> ClaimKey {
    (claim.namespace().unwrap_or_default(), claim.name_any())
}
