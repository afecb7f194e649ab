//! A container's environment: the image's, then `envFrom`, `env` and service variables, resolved and expanded.

use super::downward::{self, Facts, FieldError};
use super::expand::expand;
use super::sources::Sources;
use hpk_api::plan::{FileKey, file_key_placeholder};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, FileKeySelector, Pod};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why a container's environment cannot be made; the texts are upstream's and become the message of
/// `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum EnvError {
    /// A configMap that does not exist.
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    /// A secret that does not exist.
    #[error("secret {0:?} not found")]
    NoSecret(String),
    /// A key that the configMap lacks.
    #[error("couldn't find key {key} in ConfigMap {object}")]
    NoConfigMapKey {
        key: String,
        /// `<namespace>/<name>`
        object: String,
    },
    /// A key that the secret lacks.
    #[error("couldn't find key {key} in Secret {object}")]
    NoSecretKey {
        key: String,
        /// `<namespace>/<name>`
        object: String,
    },
    /// A secret value that is no text.
    #[error("the value of key {key} in Secret {object} is not UTF-8 text: mount it as a volume instead")]
    NotText {
        key: String,
        /// `<namespace>/<name>`
        object: String,
    },
    /// A reference of the downward API.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A source that this release does not know.
    #[error("env {0:?}: valueFrom names no source that HPK knows")]
    Unknown(String),
}

/// An environment, and the texts of `InvalidEnvironmentVariableNames` events for keys that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// In final order.
    pub variables: Vec<(String, String)>,
    /// What the supervisor reads at the start: where the variables hold [`file_key_placeholder`] of an index into this.
    pub file_keys: Vec<FileKey>,
    /// For events.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Value of a variable.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Variables by name that remember the order of their first appearance.
#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(&at) => self.list[at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.list[at].1.as_str())
    }
}

/// Makes the environment of `container`.
///
/// # Errors
/// The first reference that cannot be resolved.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    image_env: &[(String, String)],
    sources: &Sources,
    facts: &Facts,
) -> Result<Environment, EnvError> {
    let mut own = Ordered::default();
    let mut file_keys = Vec::new();
    let mut warnings = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut bad = Vec::new();
        let mut take = |own: &mut Ordered, key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if name.is_empty() || name.contains(['=', '\0']) {
                bad.push(name);
            } else {
                own.set(&name, value);
            }
        };
        let described = if let Some(reference) = &source.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        take(&mut own, key, value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
            format!("ConfigMap {}", object(pod, &reference.name))
        } else if let Some(reference) = &source.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        take(&mut own, key, text(pod, &reference.name, key, &value.0)?);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
            format!("Secret {}", object(pod, &reference.name))
        } else {
            continue;
        };
        if !bad.is_empty() {
            warnings.push(format!(
                "Keys [{}] from the EnvFrom {described} were skipped since they are considered invalid environment variable names.",
                bad.join(", ")
            ));
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let lookup =
                    |name: &str| own.get(name).or_else(|| sources.service_variables.get(name).map(String::as_str));
                Some(expand(variable.value.as_deref().unwrap_or_default(), lookup))
            }
            Some(EnvVarSource { file_key_ref: Some(reference), .. }) => {
                let image =
                    || image_env.iter().find(|(name, _)| *name == variable.name).map(|(_, value)| value.as_str());
                let service = || sources.service_variables.get(&variable.name).map(String::as_str);
                let otherwise = own.get(&variable.name).or_else(service).or_else(image);
                file_keys.push(file_key(&variable.name, reference, otherwise));
                Some(file_key_placeholder(file_keys.len() - 1))
            }
            Some(source) => from_source(pod, container, &variable.name, source, sources, facts)?,
        };
        if let Some(value) = value {
            own.set(&variable.name, value);
        }
    }
    let mut all = Ordered::default();
    for (name, value) in image_env {
        all.set(name, value.clone());
    }
    for (name, value) in &own.list {
        all.set(name, value.clone());
    }
    for (name, value) in &sources.service_variables {
        if own.get(name).is_none() {
            all.set(name, value.clone());
        }
    }
    Ok(Environment { variables: all.list, file_keys, warnings })
}

fn file_key(variable: &str, reference: &FileKeySelector, otherwise: Option<&str>) -> FileKey {
    FileKey {
        variable: variable.to_owned(),
        volume: reference.volume_name.clone(),
        path: reference.path.clone(),
        key: reference.key.clone(),
        optional: reference.optional == Some(true),
        otherwise: otherwise.map(str::to_owned),
    }
}

fn object(pod: &Pod, name: &str) -> String {
    format!("{}/{name}", pod.metadata.namespace.as_deref().unwrap_or_default())
}

fn text(pod: &Pod, name: &str, key: &str, bytes: &[u8]) -> Result<String, EnvError> {
    match std::str::from_utf8(bytes) {
        // A NUL ends a C string: the variable would silently be cut.
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(EnvError::NotText { key: key.to_owned(), object: object(pod, name) }),
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    variable: &str,
    source: &EnvVarSource,
    sources: &Sources,
    facts: &Facts,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::field(pod, &field.field_path, facts)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        let of = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => downward::container(pod, name)?,
            None => container,
        };
        return Ok(Some(downward::resource(pod, of, selector, facts)?));
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = sources.config_maps.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(EnvError::NoConfigMap(reference.name.clone())) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMapKey { key: reference.key.clone(), object: object(pod, &reference.name) }),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = sources.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(EnvError::NoSecret(reference.name.clone())) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => text(pod, &reference.name, &reference.key, &value.0).map(Some),
            None if optional => Ok(None),
            None => Err(EnvError::NoSecretKey { key: reference.key.clone(), object: object(pod, &reference.name) }),
        };
    }
    Err(EnvError::Unknown(variable.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": []}}))
            .expect("pod")
    }

    fn sources() -> Sources {
        Sources {
            config_maps: [(
                "cm".to_owned(),
                serde_json::from_value(json!({"data": {"k": "v", "A": "from-map", "b=d": "x"}})).expect("cm"),
            )]
            .into(),
            secrets: [(
                "s".to_owned(),
                serde_json::from_value(json!({"data": {"pw": "c2VjcmV0", "bin": "/w=="}})).expect("secret"),
            )]
            .into(),
            service_variables: [("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())].into(),
            ..Sources::default()
        }
    }

    fn render(container: serde_json::Value) -> Result<Vec<String>, EnvError> {
        let container: Container = serde_json::from_value(container).expect("container");
        let image = [("PATH".to_owned(), "/bin".to_owned()), ("A".to_owned(), "image".to_owned())];
        let facts = Facts { pod_ips: vec!["10.244.0.9".into()], ..Facts::default() };
        environment(&pod(), &container, &image, &sources(), &facts)
            .map(|e| e.variables.iter().map(|(k, v)| format!("{k}={v}")).collect())
    }

    #[test]
    fn order_and_precedence() {
        let got = render(json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "P_", "configMapRef": {"name": "cm"}}],
            "env": [{"name": "X", "value": "$(A)-$(KUBERNETES_SERVICE_HOST)-$(LATER)-$(PATH)"},
                    {"name": "k", "value": "over"},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                    {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y", "optional": true}}},
                    {"name": "LATER", "value": "1"}]}))
        .expect("environment");
        assert_eq!(
            got,
            [
                "PATH=/bin",
                "A=from-map",
                "k=over",
                "P_A=from-map",
                "P_k=v",
                "X=from-map-10.96.0.1-$(LATER)-$(PATH)",
                "IP=10.244.0.9",
                "PW=secret",
                "LATER=1",
                "KUBERNETES_SERVICE_HOST=10.96.0.1",
            ]
        );
    }

    #[test]
    fn what_files_hold_is_marked_for_the_supervisor() {
        let file =
            |key: &str| json!({"fileKeyRef": {"volumeName": "v", "path": "p", "key": key, "optional": key == "b"}});
        let container = json!({"name": "c", "env": [
            {"name": "A", "valueFrom": file("b")}, {"name": "B", "valueFrom": file("c")}, {"name": "C", "value": "$(B)!"}]});
        let container: Container = serde_json::from_value(container).expect("container");
        let image = [("A".to_owned(), "image".to_owned())];
        let made =
            environment(&pod(), &container, &image, &Sources::default(), &Facts::default()).expect("environment");
        let [a, b] = [0, 1].map(file_key_placeholder);
        let variables = [("A".to_owned(), a), ("B".to_owned(), b.clone()), ("C".to_owned(), format!("{b}!"))];
        assert_eq!(made.variables, variables);
        let told: Vec<_> =
            made.file_keys.iter().map(|k| (k.variable.as_str(), k.optional, k.otherwise.as_deref())).collect();
        assert_eq!(told, [("A", true, Some("image")), ("B", false, None)]);
    }

    #[test]
    fn errors_read_as_upstream() {
        for (env, text) in [
            (
                json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]),
                "configmap \"no\" not found",
            ),
            (
                json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no"}}}]),
                "couldn't find key no in ConfigMap ns/cm",
            ),
            (
                json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k"}}}]),
                "secret \"no\" not found",
            ),
            (
                json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no"}}}]),
                "couldn't find key no in Secret ns/s",
            ),
        ] {
            assert_eq!(render(json!({"name": "c", "env": env})).expect_err("an error").to_string(), text);
        }
    }
}
