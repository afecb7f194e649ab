//! The cluster's own storage classes: `hpk-home`, the default, and `hpk-scratch` where the user has named a folder.
//!
//! They are made when they are missing, and otherwise left as the user has them. A class' parameters cannot be changed, so
//! `hpk-scratch` is made anew when its folder is another.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::path::Path;

/// The provisioner in hpk-kubelet.
const PROVISIONER: &str = "volumes.hpk.io";
const SCRATCH: &str = "hpk-scratch";

/// A class of ours. `folder`: None for HPK_HOME's own.
fn class(name: &str, labels: &Value, folder: Option<&Path>) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name, "labels": labels, "annotations": {
            "storageclass.kubernetes.io/is-default-class": if folder.is_none() { "true" } else { "false" },
        }},
        "provisioner": PROVISIONER,
        "parameters": folder.map_or_else(|| json!({}), |folder| json!({"path": folder})),
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": true,
    })
}

/// Makes what is missing.
///
/// # Errors
/// The API server's, with the name of the class.
pub(crate) async fn ensure(
    client: &Client,
    labels: &Value,
    scratch: Option<&Path>,
) -> Result<(), (String, Box<kube::Error>)> {
    let api: Api<StorageClass> = Api::all(client.clone());
    create(&api, class("hpk-home", labels, None)).await?;
    let at = |source| (SCRATCH.to_owned(), Box::new(source));
    let there = api.get_opt(SCRATCH).await.map_err(at)?;
    let path = there.as_ref().and_then(|c| c.parameters.as_ref()).and_then(|p| p.get("path")).map(Path::new);
    let ours = there.as_ref().is_some_and(|c| c.provisioner == PROVISIONER);
    if ours && path != scratch {
        api.delete(SCRATCH, &DeleteParams::default()).await.map_err(at)?;
    }
    match scratch {
        Some(folder) => create(&api, class(SCRATCH, labels, Some(folder))).await,
        None => Ok(()),
    }
}

async fn create(api: &Api<StorageClass>, class: Value) -> Result<(), (String, Box<kube::Error>)> {
    let name = class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let class = match serde_json::from_value(class) {
        Ok(class) => class,
        Err(error) => return Err((name, Box::new(kube::Error::SerdeError(error)))),
    };
    match api.create(&PostParams::default(), &class).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err((name, Box::new(error))),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_is_the_default() {
        for (folder, default) in [(None, "true"), (Some(Path::new("/scratch/alice")), "false")] {
            let wanted = class("x", &json!({}), folder);
            let typed: StorageClass = serde_json::from_value(wanted.clone()).unwrap();
            assert_eq!(typed.parameters.as_ref().unwrap().get("path").map(Path::new), folder);
            let annotations = typed.metadata.annotations.unwrap();
            assert_eq!(annotations["storageclass.kubernetes.io/is-default-class"], default);
        }
    }
}
