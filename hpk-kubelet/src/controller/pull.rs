//! Gets a pod's images, with the events and waiting reasons of upstream's image manager.

use super::backoff::Backoff;
use super::context::Context;
use super::local_images;
use crate::api::events::Note;
use crate::pods::ephemeral::as_container;
use crate::pods::plan::Image;
use crate::volumes::{PodVolume, VolumeSource};
use hpk_api::go_duration;
use hpk_api::plan::{Blocked, ImageRef};
use hpk_images::{Keyring, LocalImages, PullPolicy, PulledImage, Source};
use k8s_openapi::api::core::v1::{Pod, Secret};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
const SHOW_ERROR: Duration = Duration::from_millis(1500);

/// Images by container, and by volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Images {
    /// By container name.
    pub containers: BTreeMap<String, Result<Image, Blocked>>,
    /// By volume name.
    pub volumes: BTreeMap<String, ImageRef>,
    /// A volume's image that cannot be had.
    pub volume_blocked: Option<Blocked>,
    /// Something failed just now: look again after this long.
    pub retry: Option<Duration>,
}

struct Want {
    /// Container or volume name.
    name: String,
    is_volume: bool,
    image: String,
    policy: PullPolicy,
}

fn wants(pod: &Pod) -> Vec<Want> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(as_container);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers).cloned().chain(ephemeral);
    let mut list: Vec<Want> = containers
        .map(|c| {
            let image = c.image.clone().unwrap_or_default();
            Want {
                policy: PullPolicy::of(c.image_pull_policy.as_deref(), &image),
                name: c.name,
                is_volume: false,
                image,
            }
        })
        .collect();
    for volume in PodVolume::all(pod) {
        if let VolumeSource::Image(source) = volume.source {
            let image = source.reference.clone().unwrap_or_default();
            let policy = PullPolicy::of(source.pull_policy.as_deref(), &image);
            list.push(Want { name: volume.name.to_owned(), is_volume: true, image, policy });
        }
    }
    list
}

/// Credentials of the pod's imagePullSecrets; unreadable ones are told and left out, as upstream does.
fn keyring(ctx: &Context, pod: &Pod, secrets: &BTreeMap<String, Secret>) -> Keyring {
    let mut keyring = Keyring::default();
    let wanted = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    for reference in wanted {
        let Some(secret) = secrets.get(&reference.name) else {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                reference.name
            );
            ctx.recorder.pod(pod, Note::warning("FailedToRetrieveImagePullSecret", text));
            continue;
        };
        let data = secret.data.clone().unwrap_or_default();
        let added = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
            (Some(json), _) => keyring.add_docker_config_json(&json.0),
            (_, Some(json)) => keyring.add_dockercfg(&json.0),
            _ => continue,
        };
        if let Err(error) = added {
            ctx.recorder.pod(
                pod,
                Note::warning(
                    "FailedToRetrieveImagePullSecret",
                    format!("imagePullSecret {}: {error}", reference.name),
                ),
            );
        }
    }
    keyring
}

/// Gets every image of the pod that is not in back-off.
pub(super) async fn pull(
    ctx: &Context,
    pod: &Pod,
    secrets: &BTreeMap<String, Secret>,
    skip: &BTreeMap<String, Image>,
    backoff: &mut Backoff,
) -> Images {
    let keyring = keyring(ctx, pod, secrets);
    let mut images = Images::default();
    let mut pulls = Vec::new();
    for want in wants(pod) {
        if let Some(known) = skip.get(&want.name).filter(|_| !want.is_volume) {
            images.containers.insert(want.name, Ok(known.clone()));
        } else if let Some(blocked) = backoff.blocked(&want.image, Instant::now()) {
            if blocked.reason == "ImagePullBackOff" {
                ctx.recorder.pod(
                    pod,
                    Note::normal("BackOff", format!("Back-off pulling image {:?}", want.image)).of(&want.name),
                );
                ctx.recorder.pod(pod, Note::warning("Failed", "Error: ImagePullBackOff").of(&want.name));
            }
            put(&mut images, &want, Err(blocked));
        } else {
            pulls.push(want);
        }
    }
    let local = match pulls.iter().any(|want| Source::parse(&want.image).is_ok_and(|source| source.is_local())) {
        true => local_images::of(ctx, pod).await,
        false => LocalImages::Nowhere("no image of the pod is in a file".to_owned()),
    };
    let pulls = pulls.into_iter().map(|want| pull_one(ctx, pod, want, &keyring, &local));
    for (want, result) in futures::future::join_all(pulls).await {
        match result {
            Ok(pulled) => {
                backoff.worked(&want.image);
                put(&mut images, &want, Ok(Image { image_ref: pulled.image_ref, config: pulled.config }));
            }
            Err((reason, message)) => {
                backoff.failed(&want.image, reason, message.clone(), Instant::now());
                images.retry = Some(SHOW_ERROR);
                put(&mut images, &want, Err(Blocked { reason: reason.to_owned(), message }));
            }
        }
    }
    if images.retry.is_none() {
        images.retry = backoff.retry_after(Instant::now());
    }
    images
}

fn put(images: &mut Images, want: &Want, result: Result<Image, Blocked>) {
    match (want.is_volume, result) {
        (false, result) => {
            images.containers.insert(want.name.clone(), result);
        }
        (true, Ok(image)) => {
            images.volumes.insert(want.name.clone(), image.image_ref);
        }
        (true, Err(blocked)) => images.volume_blocked = Some(blocked),
    }
}

async fn pull_one(
    ctx: &Context,
    pod: &Pod,
    want: Want,
    keyring: &Keyring,
    local: &LocalImages,
) -> (Want, Result<PulledImage, (&'static str, String)>) {
    let started = Instant::now();
    let here = match want.policy {
        PullPolicy::Always => None,
        _ => ctx.images.present(&want.image, keyring, local).await,
    };
    let tell = |note: Note| ctx.recorder.pod(pod, if want.is_volume { note } else { note.of(&want.name) });
    if let Some(image) = here {
        tell(Note::normal("Pulled", present_text(&want.image)));
        return (want, Ok(image));
    }
    if want.policy != PullPolicy::Never {
        tell(Note::normal("Pulling", format!("Pulling image {:?}", want.image)));
    }
    match ctx.images.pull(&want.image, want.policy, keyring, local, &|_| {}).await {
        Ok(image) => {
            let took = go_duration::format(Duration::from_millis(
                u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ));
            let text = if image.already_present && want.policy != PullPolicy::Always {
                present_text(&want.image)
            } else {
                format!(
                    "Successfully pulled image {:?} in {took} ({took} including waiting). Image size: {} bytes.",
                    want.image, image.size
                )
            };
            tell(Note::normal("Pulled", text));
            (want, Ok(image))
        }
        Err(error) => {
            let (reason, message) = (error.reason(), error.to_string());
            match reason {
                "InvalidImageName" => {
                    tell(Note::warning(
                        "InspectFailed",
                        format!("Failed to apply default image tag {:?}: {message}", want.image),
                    ));
                }
                "ErrImageNeverPull" => tell(Note::warning("ErrImageNeverPull", message.clone())),
                _ => tell(Note::warning("Failed", format!("Failed to pull image {:?}: {message}", want.image))),
            }
            tell(Note::warning("Failed", format!("Error: {reason}")));
            (want, Err((reason, message)))
        }
    }
}

fn present_text(image: &str) -> String {
    format!("Container image {image:?} already present on machine")
}
