//! Objects of ours are applied by the API server; fields that others own stay theirs.

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;

/// Why the objects are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    /// cluster.json.
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The user's kubeconfig.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// An object of ours is not what it should be.
    #[error("object: {0}")]
    Object(#[from] serde_json::Error),
    /// The API server.
    #[error("applying {name}: {source}")]
    Api {
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("client of the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Server-side apply: fields that others own stay theirs.
pub(crate) async fn apply<K>(api: &Api<K>, object: Value) -> Result<(), BootstrapError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    // Through the type: a misspelt field of ours is lost here and seen in the tests.
    let object: K = serde_json::from_value(object)?;
    let name = object.name_any();
    let params = PatchParams::apply("hpk").force();
    api.patch(&name, &params, &Patch::Apply(&object))
        .await
        .map(|_| ())
        .map_err(|source| BootstrapError::Api { name, source: Box::new(source) })
}
