//! The part of an OCI image configuration that decides how a container runs.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `config` of the OCI image configuration (image-spec, config.md). Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, rename = "Entrypoint", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, rename = "Cmd", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    #[serde(default, rename = "Env", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; may be empty (root).
    #[serde(default, rename = "User", deserialize_with = "or_default")]
    pub user: String,
    /// WORKDIR; may be empty (`/`).
    #[serde(default, rename = "WorkingDir", deserialize_with = "or_default")]
    pub working_dir: String,
    /// STOPSIGNAL as written, `SIGQUIT` or a number.
    #[serde(default, rename = "StopSignal")]
    pub stop_signal: Option<String>,
    /// Paths declared by VOLUME.
    #[serde(default, rename = "Volumes", deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Ports declared by EXPOSE, such as `80/tcp`.
    #[serde(default, rename = "ExposedPorts", deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// LABEL.
    #[serde(default, rename = "Labels", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// Tools write `null` for an absent list.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A set is `{"name": {}}` in the image, a list in our own file.
fn keys<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Set {
        Map(BTreeMap<String, serde_json::Value>),
        List(Vec<String>),
    }
    Ok(match Option::<Set>::deserialize(d)? {
        Some(Set::Map(map)) => map.into_keys().collect(),
        Some(Set::List(list)) => list,
        None => Vec::new(),
    })
}

impl ImageConfig {
    /// Reads the configuration blob of an image.
    pub(crate) fn from_blob(blob: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Blob {
            #[serde(default)]
            config: Option<ImageConfig>,
        }
        Ok(serde_json::from_slice::<Blob>(blob)?.config.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_docker_configuration_with_nulls_and_sets() {
        let config = ImageConfig::from_blob(
            br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Entrypoint":null,
                "Env":["PATH=/bin"],"User":"1000:1000","WorkingDir":"","Volumes":{"/data":{}},
                "ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        assert_eq!(config.cmd, ["sh"]);
        assert!(config.entrypoint.is_empty());
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        let again: ImageConfig = serde_json::from_slice(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn an_image_without_config_is_empty() {
        assert_eq!(ImageConfig::from_blob(b"{}").unwrap(), ImageConfig::default());
        assert!(ImageConfig::from_blob(b"[").is_err());
    }
}
