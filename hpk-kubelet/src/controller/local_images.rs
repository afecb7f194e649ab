//! Which of the user's files a pod's `image` may name: by `hpk up --local-images` and the PodSecurity level that the pod's
//! namespace enforces. An image in a file gives its reader that file; a namespace that refuses hostPath must not give it
//! another way.

use super::context::Context;
use hpk_api::images::ImageRules;
use hpk_images::LocalImages;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::Api;

const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// What holds for a pod.
pub(super) async fn of(ctx: &Context, pod: &Pod) -> LocalImages {
    let name = pod.metadata.namespace.as_deref().unwrap_or("default");
    match Api::<Namespace>::all(ctx.clients.first().clone()).get_metadata(name).await {
        Ok(namespace) => {
            let level = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(ENFORCE));
            allowed(&ctx.cluster.images, level.map(String::as_str))
        }
        Err(error) => {
            LocalImages::Nowhere(format!("the labels of namespace {name} cannot be read, and they decide: {error}"))
        }
    }
}

/// By the rules of the cluster and the level that the namespace enforces.
fn allowed(rules: &ImageRules, level: Option<&str>) -> LocalImages {
    match (level, &rules.local) {
        (None | Some("privileged"), None) => LocalImages::Anywhere,
        (None | Some("privileged" | "baseline"), Some(folders)) if !folders.is_empty() => {
            LocalImages::Below(folders.clone())
        }
        (None | Some("privileged"), Some(_)) => {
            LocalImages::Nowhere("images come from registries alone (`hpk up --local-images none`)".to_owned())
        }
        (Some("baseline"), _) => LocalImages::Nowhere(format!(
            "the namespace enforces PodSecurity baseline ({ENFORCE}): images may come from a registry, or from files below \
             a folder that `hpk up --local-images DIR` names, and none is named"
        )),
        // The API server takes a level that it does not know for restricted too.
        (Some(level), _) => LocalImages::Nowhere(format!(
            "the namespace enforces PodSecurity {level} ({ENFORCE}): images come from registries alone"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespaces_level_and_the_clusters_folders_decide() {
        let rules = |local: Option<&[&str]>| ImageRules {
            local: local.map(|folders| folders.iter().map(Into::into).collect()),
            ..ImageRules::default()
        };
        let (any, none, folder) = (rules(None), rules(Some(&[])), rules(Some(&["/images"])));
        let below = LocalImages::Below(vec!["/images".into()]);
        let is_refused = |rules, level| matches!(allowed(rules, level), LocalImages::Nowhere(why) if !why.is_empty());
        for level in [None, Some("privileged")] {
            assert_eq!(allowed(&any, level), LocalImages::Anywhere);
            assert_eq!(allowed(&folder, level), below);
            assert!(is_refused(&none, level));
        }
        assert_eq!(allowed(&folder, Some("baseline")), below);
        assert!(is_refused(&any, Some("baseline")) && is_refused(&none, Some("baseline")));
        for level in ["restricted", "nonsense", ""] {
            for rules in [&any, &none, &folder] {
                assert!(is_refused(rules, Some(level)), "{level}");
            }
        }
    }
}
