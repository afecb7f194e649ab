//! The cluster's own storage classes: `hpk-home`, the default, and `hpk-scratch` where the user has named a folder.
//!
//! They are made when they are missing, and otherwise left as the user has them. A class' parameters cannot be changed, so
//! `hpk-scratch` is made anew when its folder is another.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::path::Path;

/// The provisioner in hpk-kubelet.
const PROVISIONER: &str = "volumes.hpk.io";
const SCRATCH: &str = "hpk-scratch";

/// A class of ours. `folder`: None for HPK_HOME's own.
fn class(name: &str, labels: &Value, folder: Option<&Path>, default: bool) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name, "labels": labels, "annotations": {
            "storageclass.kubernetes.io/is-default-class": if default { "true" } else { "false" },
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
    let listed = api.list(&ListParams::default()).await;
    let classes = listed.map_err(|source| ("hpk-home".to_owned(), Box::new(source)))?.items;
    // A default of the user's own is not overruled.
    create(&api, class("hpk-home", labels, None, !classes.iter().any(is_default))).await?;
    let at = |source| (SCRATCH.to_owned(), Box::new(source));
    let there = classes.into_iter().find(|class| class.metadata.name.as_deref() == Some(SCRATCH));
    let path = there.as_ref().and_then(|c| c.parameters.as_ref()).and_then(|p| p.get("path")).map(Path::new);
    let ours = there.as_ref().is_some_and(|c| c.provisioner == PROVISIONER && is_labelled(c, labels));
    if ours && path != scratch {
        api.delete(SCRATCH, &DeleteParams::default()).await.map_err(at)?;
    }
    match scratch {
        Some(folder) => create(&api, class(SCRATCH, labels, Some(folder), false)).await,
        None => Ok(()),
    }
}

fn is_default(class: &StorageClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get("storageclass.kubernetes.io/is-default-class")).is_some_and(|v| v == "true")
}

/// Whether it has our labels: another one of this name is the user's.
fn is_labelled(class: &StorageClass, labels: &Value) -> bool {
    let has = |key: &str| class.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    labels.as_object().is_none_or(|labels| labels.iter().all(|(key, value)| has(key) == value.as_str()))
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
            let wanted = class("x", &json!({"by": "hpk"}), folder, default == "true");
            let typed: StorageClass = serde_json::from_value(wanted.clone()).unwrap();
            assert_eq!(typed.parameters.as_ref().unwrap().get("path").map(Path::new), folder);
            assert_eq!(is_default(&typed), default == "true");
            assert!(is_labelled(&typed, &json!({"by": "hpk"})) && !is_labelled(&typed, &json!({"by": "another"})));
        }
    }
}
