//! Where a container's volumes are mounted.

use crate::render::env::Environment;
use crate::render::expand::try_expand;
use hpk_api::plan::MountPlan;
use k8s_openapi::api::core::v1::Container;
use thiserror::Error;

/// A `subPath` or `subPathExpr` that cannot be mounted, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum SubPathError {
    #[error("missing value for {0:?}")]
    NoValue(String),
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Parent(String),
}

pub(super) fn mounts(container: &Container, environment: &Environment) -> Result<Vec<MountPlan>, SubPathError> {
    let mut list = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let mut sub_path = mount.sub_path.clone().filter(|p| !p.is_empty());
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            let path = try_expand(expression, |name| match environment.get(name).filter(|v| !v.is_empty()) {
                Some(value) => Ok(Some(value)),
                None => Err(SubPathError::NoValue(name.to_owned())),
            })?;
            sub_path = Some(path).filter(|p| !p.is_empty());
        }
        if let Some(path) = &sub_path {
            if path.starts_with('/') {
                return Err(SubPathError::Absolute(path.clone()));
            }
            if path.split('/').any(|part| part == "..") {
                return Err(SubPathError::Parent(path.clone()));
            }
        }
        let path =
            if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
        list.push(MountPlan {
            volume: mount.name.clone(),
            path,
            read_only: mount.read_only == Some(true),
            sub_path,
            propagation: mount.mount_propagation.clone(),
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        });
    }
    // Outer mounts first, whatever the order of the spec: a mount must not hide another below it.
    list.sort_by_key(|m| m.path.split('/').filter(|p| !p.is_empty()).count());
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sub_paths_are_checked() {
        for (mount, message) in [
            (json!({"name": "d", "mountPath": "/m", "subPathExpr": "$(NOPE)"}), "missing value for \"NOPE\""),
            (
                json!({"name": "d", "mountPath": "/m", "subPath": "/abs"}),
                "error SubPath `/abs` must not be an absolute path",
            ),
            (
                json!({"name": "d", "mountPath": "/m", "subPath": "a/../b"}),
                "unable to provision SubPath `a/../b`: must not contain '..'",
            ),
        ] {
            let container = serde_json::from_value(json!({"name": "c", "volumeMounts": [mount]})).expect("container");
            let error = mounts(&container, &Environment::default()).expect_err("error");
            assert_eq!(error.to_string(), message);
        }
    }
}
