//! Trust anchors of a projected volume, out of the cluster's ClusterTrustBundles (KEP-3257).

use super::sources::Sources;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::core::{Selector, SelectorExt as _};
use pem::{EncodeConfig, LineEnding, Pem};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Why there are no anchors.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum TrustError {
    /// By name.
    #[error("clustertrustbundle {0:?} not found")]
    NoBundle(String),
    /// By signer.
    #[error("combination of signerName {0:?} and labelSelector matched zero ClusterTrustBundles")]
    NoMatch(String),
    /// The API server checks bundles, so this is another server's.
    #[error("clustertrustbundle {name:?} is no PEM: {cause}")]
    Pem { name: String, cause: String },
}

/// The PEM file that `wanted` describes: each certificate once. Their order says nothing, but does not change, so that
/// an unchanged bundle writes no file anew. Empty: nothing was found and that is allowed.
///
/// # Errors
/// Nothing was found, and the projection is not optional.
pub(crate) fn anchors(wanted: &ClusterTrustBundleProjection, sources: &Sources) -> Result<String, TrustError> {
    let optional = wanted.optional == Some(true);
    let bundles: Vec<_> = match (&wanted.name, &wanted.signer_name) {
        (Some(name), _) => match sources.trust_bundles.iter().find(|b| b.metadata.name.as_ref() == Some(name)) {
            None if !optional => return Err(TrustError::NoBundle(name.clone())),
            found => found.into_iter().collect(),
        },
        (None, signer) => {
            let found: Vec<_> = sources.trust_bundles.iter().filter(|b| matches(b, wanted)).collect();
            if found.is_empty() && !optional {
                return Err(TrustError::NoMatch(signer.clone().unwrap_or_default()));
            }
            found
        }
    };
    let mut certificates = BTreeSet::new();
    for bundle in bundles {
        let blocks = pem::parse_many(&bundle.spec.trust_bundle).map_err(|cause| TrustError::Pem {
            name: bundle.metadata.name.clone().unwrap_or_default(),
            cause: cause.to_string(),
        })?;
        certificates.extend(blocks.into_iter().map(Pem::into_contents));
    }
    let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let text = certificates.into_iter().map(|der| pem::encode_config(&Pem::new("CERTIFICATE", der), form));
    Ok(text.collect())
}

/// Of this signer and chosen by the labels. Without a selector nothing is, with an empty one everything.
fn matches(bundle: &ClusterTrustBundle, wanted: &ClusterTrustBundleProjection) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let labels = bundle.metadata.labels.as_ref().unwrap_or(&NONE);
    let selector = wanted.label_selector.clone().and_then(|selector| Selector::try_from(selector).ok());
    bundle.spec.signer_name == wanted.signer_name && selector.is_some_and(|selector| selector.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn block(der: &str) -> String {
        pem::encode_config(&Pem::new("CERTIFICATE", der), EncodeConfig::new().set_line_ending(LineEnding::LF))
    }

    fn found(wanted: Value) -> Result<String, TrustError> {
        let bundle = |name: &str, signer: Option<&str>, alive: &str, text: String| {
            let spec = json!({"signerName": signer, "trustBundle": text});
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"alive": alive}}, "spec": spec}))
                .unwrap()
        };
        let sources = Sources {
            trust_bundles: vec![
                bundle("root", None, "no", format!("of the root\n{}{}", block("b"), block("a"))),
                bundle("one:1", Some("x/one"), "yes", block("c") + &block("d")),
                bundle("one:2", Some("x/one"), "no", block("d") + &block("e")),
                bundle("two", Some("x/two"), "yes", block("f")),
            ],
            ..Sources::default()
        };
        anchors(&serde_json::from_value(wanted).unwrap(), &sources)
    }

    #[test]
    fn by_name() {
        assert_eq!(found(json!({"path": "p", "name": "root"})), Ok(block("a") + &block("b")));
        assert_eq!(found(json!({"path": "p", "name": "no"})), Err(TrustError::NoBundle("no".into())));
        assert_eq!(found(json!({"path": "p", "name": "no", "optional": true})), Ok(String::new()));
    }

    #[test]
    fn by_signer_and_labels_each_certificate_once() {
        let all = json!({"path": "p", "signerName": "x/one", "labelSelector": {}});
        assert_eq!(found(all), Ok(block("c") + &block("d") + &block("e")));
        let alive = json!({"path": "p", "signerName": "x/one", "labelSelector": {"matchLabels": {"alive": "yes"}}});
        assert_eq!(found(alive), Ok(block("c") + &block("d")));
        let none = json!({"path": "p", "signerName": "x/one"});
        assert_eq!(found(none), Err(TrustError::NoMatch("x/one".into())), "no selector: nothing");
        let optional = json!({"path": "p", "signerName": "x/no", "labelSelector": {}, "optional": true});
        assert_eq!(found(optional), Ok(String::new()));
    }
}
