//! securityContext of pod and container merged with the image's USER.

use hpk_api::plan::{Seccomp, SecurityPlan};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use thiserror::Error;

/// A combination that is refused; becomes `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum SecurityError {
    /// runAsNonRoot and runAsUser 0.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsUserRoot {
        /// `<name>_<namespace>(<uid>)`
        pod: String,
        container: String,
    },
    /// runAsNonRoot and an image whose USER is root.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRoot {
        /// `<name>_<namespace>(<uid>)`
        pod: String,
        container: String,
    },
    /// runAsNonRoot and an image whose USER is a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NonNumeric {
        /// USER of the image.
        user: String,
        /// `<name>_<namespace>(<uid>)`
        pod: String,
        container: String,
    },
    /// An id that is none.
    #[error("securityContext.{field}: {value} is not a user or group id of Linux (0 to 4294967294)")]
    BadId { field: &'static str, value: i64 },
    /// A seccomp profile of the node.
    #[error(
        "securityContext.seccompProfile: type Localhost ({0}) is not supported by HPK; use RuntimeDefault or Unconfined"
    )]
    LocalhostSeccomp(String),
}

/// Merges; container settings win over the pod's. `keep`: where nobody names a user, it is not root.
///
/// # Errors
/// A combination that upstream or HPK refuses.
pub(crate) fn security(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    keep: bool,
) -> Result<SecurityPlan, SecurityError> {
    let outer = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own.and_then(|s| s.run_as_user).or_else(|| outer.and_then(|s| s.run_as_user));
    let group = own.and_then(|s| s.run_as_group).or_else(|| outer.and_then(|s| s.run_as_group));
    let non_root = own.and_then(|s| s.run_as_non_root).or_else(|| outer.and_then(|s| s.run_as_non_root)) == Some(true);
    let user = user.map(|u| id("runAsUser", u)).transpose()?;
    let group = group.map(|g| id("runAsGroup", g)).transpose()?;

    let (image_name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user, None),
    };
    let name = match user {
        Some(uid) => uid.to_string(),
        None if image_name.is_empty() => "0".to_owned(),
        None => image_name.to_owned(),
    };
    if non_root {
        let pod_name = format_pod(pod);
        let container = container.name.clone();
        match (user, name.parse::<u32>()) {
            (Some(0), _) => return Err(SecurityError::RunAsUserRoot { pod: pod_name, container }),
            (None, Ok(0)) if !keep => return Err(SecurityError::ImageRoot { pod: pod_name, container }),
            (None, Err(_)) => return Err(SecurityError::NonNumeric { user: name, pod: pod_name, container }),
            _ => {}
        }
    }
    let group_asked = group.is_some();
    // With runAsUser the image's group no longer applies; the user's own one is looked up in the image.
    let group = group.map(|g| g.to_string()).or_else(|| image_group.filter(|_| user.is_none()).map(str::to_owned));
    let seccomp =
        own.and_then(|s| s.seccomp_profile.as_ref()).or_else(|| outer.and_then(|s| s.seccomp_profile.as_ref()));
    let privileged = own.and_then(|s| s.privileged) == Some(true);
    let caps = own.and_then(|s| s.capabilities.as_ref());
    Ok(SecurityPlan {
        uid: name.parse().unwrap_or(0),
        gid: group.as_deref().and_then(|g| g.parse().ok()).unwrap_or(0),
        user_name: Some(match group {
            Some(group) => format!("{name}:{group}"),
            None => name,
        }),
        user_asked: user.is_some(),
        group_asked,
        non_root,
        privileged,
        cap_add: caps.and_then(|c| c.add.clone()).unwrap_or_default(),
        cap_drop: caps.and_then(|c| c.drop.clone()).unwrap_or_default(),
        read_only_rootfs: own.and_then(|s| s.read_only_root_filesystem) == Some(true),
        allow_privilege_escalation: own.and_then(|s| s.allow_privilege_escalation).unwrap_or(true),
        seccomp: if privileged { Seccomp::Unconfined } else { profile(seccomp)? },
        unmasked_proc: privileged || own.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
    })
}

fn profile(profile: Option<&SeccompProfile>) -> Result<Seccomp, SecurityError> {
    match profile {
        None => Ok(Seccomp::Unconfined),
        Some(p) => match p.type_.as_str() {
            "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
            "Localhost" => Err(SecurityError::LocalhostSeccomp(p.localhost_profile.clone().unwrap_or_default())),
            _ => Ok(Seccomp::Unconfined),
        },
    }
}

pub(crate) fn id(field: &'static str, value: i64) -> Result<u32, SecurityError> {
    u32::try_from(value).ok().filter(|v| *v != u32::MAX).ok_or(SecurityError::BadId { field, value })
}

/// `<name>_<namespace>(<uid>)`, as upstream prints pods.
#[must_use]
pub(crate) fn format_pod(pod: &Pod) -> String {
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merge(pod: serde_json::Value, own: serde_json::Value, image: &str) -> Result<SecurityPlan, String> {
        let container = json!({"name": "c", "securityContext": own});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [container]}}))
        .expect("pod");
        let container = pod.spec.as_ref().expect("spec").containers[0].clone();
        security(&pod, &container, image, false).map_err(|e| e.to_string())
    }

    #[test]
    fn users() {
        for (pod, own, image, expected) in [
            (json!({}), json!({}), "", "0"),
            (json!({}), json!({}), "nobody", "nobody"),
            (json!({}), json!({}), "1000:www", "1000:www"),
            (json!({"runAsUser": 5}), json!({}), "1000:7", "5"),
            (json!({"runAsUser": 5, "runAsGroup": 6}), json!({"runAsUser": 8}), "", "8:6"),
            (json!({}), json!({"runAsGroup": 6}), "nobody:x", "nobody:6"),
        ] {
            assert_eq!(merge(pod, own, image).expect("plan").user_name.as_deref(), Some(expected));
        }
    }

    #[test]
    fn non_root() {
        for (own, image, part) in [
            (
                json!({"runAsNonRoot": true, "runAsUser": 0}),
                "5",
                "container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)",
            ),
            (json!({"runAsNonRoot": true}), "", "container has runAsNonRoot and image will run as root"),
            (json!({"runAsNonRoot": true}), "web", "image has non-numeric user (web)"),
        ] {
            let error = merge(json!({}), own, image).expect_err("refused");
            assert!(error.contains(part), "{error}");
        }
        assert!(merge(json!({"runAsNonRoot": true}), json!({}), "5").is_ok());
        assert!(merge(json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), "").is_ok());
        assert!(merge(json!({"runAsUser": -1}), json!({}), "").is_err());
    }
}
