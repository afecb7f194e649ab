//! All objects that a pod refers to: by its containers' environment, its image pull secrets and its volumes.

use super::PodVolume;
use crate::render::sources::References;
use k8s_openapi::api::core::v1::Pod;

impl References {
    /// Collects every reference of the pod.
    #[must_use]
    pub(crate) fn of(pod: &Pod) -> Self {
        let mut all = Self::default();
        let Some(spec) = pod.spec.as_ref() else { return all };
        for secret in spec.image_pull_secrets.iter().flatten() {
            all.secrets.insert(secret.name.clone());
        }
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let env = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|c| (&c.env, &c.env_from))
            .chain(ephemeral.map(|c| (&c.env, &c.env_from)));
        for (env, env_from) in env {
            for source in env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
                all.config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
                all.secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
            }
            for source in env_from.iter().flatten() {
                all.config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
                all.secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
            }
        }
        PodVolume::all(pod).for_each(|volume| volume.references(&mut all));
        all.config_maps.remove("");
        all.secrets.remove("");
        all
    }
}
