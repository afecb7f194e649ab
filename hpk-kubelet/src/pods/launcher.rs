//! Who makes a pod's containers, where the pod says so by annotation.

use hpk_api::plan::LauncherChoice;
use k8s_openapi::api::core::v1::Pod;

/// `auto`, `native` or `apptainer`; without it the kubelet's setting holds.
pub(crate) const ANNOTATION: &str = "runtime.hpk.io/launcher";

/// What the pod asks for; Err: no such launcher.
///
/// # Errors
/// The annotation's value.
pub(crate) fn asked(pod: &Pod) -> Result<Option<LauncherChoice>, &str> {
    let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    value.map(|value| LauncherChoice::parse(value).ok_or(value.as_str())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table() {
        for (annotations, expected) in [
            (json!({}), Ok(None)),
            (json!({ANNOTATION: "auto"}), Ok(Some(LauncherChoice::Auto))),
            (json!({ANNOTATION: "native"}), Ok(Some(LauncherChoice::Native))),
            (json!({ANNOTATION: "apptainer"}), Ok(Some(LauncherChoice::Apptainer))),
            (json!({ANNOTATION: "runc"}), Err("runc")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).expect("pod");
            assert_eq!(asked(&pod), expected);
        }
    }
}
