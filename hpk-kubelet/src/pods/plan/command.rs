//! A container's command, made of its own `command` and `args` and of the image's ENTRYPOINT and CMD.

use crate::render::env::Environment;
use crate::render::expand::expand;
use crate::render::sources::Sources;
use hpk_images::ImageConfig;
use k8s_openapi::api::core::v1::Container;
use std::collections::BTreeSet;

/// command replaces ENTRYPOINT and CMD; args alone replace CMD.
pub(super) fn argv(
    container: &Container,
    image: &ImageConfig,
    environment: &Environment,
    sources: &Sources,
) -> Vec<String> {
    let names = own_names(container, sources);
    let lookup = |name: &str| environment.get(name).filter(|_| names.contains(name));
    let expanded = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        let list = list.as_ref().filter(|l| !l.is_empty())?;
        Some(list.iter().map(|text| expand(text, lookup)).collect())
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    match (command, args) {
        (Some(mut command), args) => {
            command.extend(args.unwrap_or_default());
            command
        }
        (None, args) => {
            let mut list = image.entrypoint.clone();
            list.extend(args.unwrap_or_else(|| image.cmd.clone()));
            list
        }
    }
}

/// Names that `$(VAR)` in command and args may refer to: the container's own and the services', not the image's.
fn own_names(container: &Container, sources: &Sources) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = sources.service_variables.keys().cloned().collect();
    names.extend(container.env.iter().flatten().map(|e| e.name.clone()));
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let map =
            source.config_map_ref.as_ref().and_then(|r| sources.config_maps.get(&r.name)).and_then(|m| m.data.as_ref());
        names.extend(map.into_iter().flatten().map(|(k, _)| format!("{prefix}{k}")));
        let secret =
            source.secret_ref.as_ref().and_then(|r| sources.secrets.get(&r.name)).and_then(|s| s.data.as_ref());
        names.extend(secret.into_iter().flatten().map(|(k, _)| format!("{prefix}{k}")));
    }
    names
}
