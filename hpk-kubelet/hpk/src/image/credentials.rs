//! The user's own credentials for registries, from where Podman, Docker and Apptainer keep them.

use anyhow::{Context, Result};
use hpk_images::Keyring;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// All that there are. A file that cannot be understood is an error: without it a pull would fail for another reason.
pub(super) fn keyring() -> Result<Keyring> {
    let mut keyring = Keyring::default();
    for path in files(|name| std::env::var_os(name)) {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        keyring.add_docker_config_json(&text).with_context(|| path.display().to_string())?;
    }
    Ok(keyring)
}

/// Where they may be, as containers-auth.json(5) and the manuals of docker and apptainer have it. Pure.
fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = folder("HOME");
    let at = |base: Option<PathBuf>, rest: &str| base.map(|base| base.join(rest));
    let config = folder("XDG_CONFIG_HOME").or_else(|| at(home.clone(), ".config"));
    [
        variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
        at(folder("XDG_RUNTIME_DIR"), "containers/auth.json"),
        at(config, "containers/auth.json"),
        at(folder("DOCKER_CONFIG").or_else(|| at(home.clone(), ".docker")), "config.json"),
        at(folder("APPTAINER_CONFIGDIR").or_else(|| at(home, ".apptainer")), "docker-config.json"),
    ]
    .into_iter()
    .flatten()
    .filter(|path| path != Path::new(""))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_places_by_their_variables() {
        let of = |pairs: &[(&str, &str)]| {
            let found = files(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()));
            found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            of(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")]),
            [
                "/run/user/7/containers/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
                "/h/.apptainer/docker-config.json"
            ]
        );
        assert_eq!(of(&[("REGISTRY_AUTH_FILE", "/a.json"), ("DOCKER_CONFIG", "/d")]), ["/a.json", "/d/config.json"]);
        assert!(of(&[]).is_empty());
    }
}
