//! Whether a process that is killed for memory takes its container along, where the pod says so by annotation.

use k8s_openapi::api::core::v1::Pod;

/// `true`: it does not, as with upstream's kubelet setting `singleProcessOOMKill`.
pub(crate) const ANNOTATION: &str = "runtime.hpk.io/single-process-oom-kill";

/// What the pod asks for; Err: neither `true` nor `false`.
///
/// # Errors
/// The annotation's value.
pub(crate) fn single_process(pod: &Pod) -> Result<bool, &str> {
    let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    value.map_or(Ok(false), |value| value.parse().map_err(|_| value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table() {
        for (annotations, expected) in [
            (json!({}), Ok(false)),
            (json!({ANNOTATION: "true"}), Ok(true)),
            (json!({ANNOTATION: "false"}), Ok(false)),
            (json!({ANNOTATION: "yes"}), Err("yes")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).expect("pod");
            assert_eq!(single_process(&pod), expected);
        }
    }
}
