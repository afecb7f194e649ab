//! The objects that a pod refers to, as they were found, in one place for the pure renderers.

use super::certificate::{CertificateKey, Certificates};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, PodCertificateProjection, Secret,
};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Objects of the pod's namespace by name. A name that is missing here does not exist.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sources {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
    /// All of the cluster's, when the pod refers to any.
    pub trust_bundles: Vec<ClusterTrustBundle>,
    /// Service-account tokens that were requested for the pod.
    pub tokens: BTreeMap<TokenKey, String>,
    /// Certificates that were asked for the pod.
    pub certificates: Certificates,
    /// PersistentVolumeClaims with their volumes.
    pub claims: BTreeMap<String, FoundClaim>,
    /// Service variables (see [`super::services`]).
    pub service_variables: BTreeMap<String, String>,
}

/// A claim as it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FoundClaim {
    pub claim: PersistentVolumeClaim,
    /// The PersistentVolume that it is bound to.
    pub volume: Option<PersistentVolume>,
}

/// Which token: audience (empty: the API server's) and lifetime in seconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    /// Audience; empty for the default one.
    pub audience: String,
    /// expirationSeconds.
    pub expiration_seconds: i64,
}

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
    /// All ClusterTrustBundles together: which of them a pod means can change with their labels. Namespace and name of
    /// the key are empty.
    TrustBundles,
    /// PodCertificateRequest.
    CertificateRequest,
}

/// One object that pods refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// resourceVersion of an object; None: there is no such object. Of many objects: [`joint_version`].
pub(crate) type Version = Option<String>;

/// One version for the names and versions of many objects: another one when any of them changes, comes or goes.
#[must_use]
pub(crate) fn joint_version(objects: &BTreeMap<String, Version>) -> Version {
    let mut hasher = DefaultHasher::new();
    objects.hash(&mut hasher);
    Some(format!("{:016x}", hasher.finish()))
}

/// What was read of each reference.
pub(crate) type Versions = BTreeMap<ObjectKey, Version>;

impl Sources {
    /// The versions of `references` that these sources hold.
    #[must_use]
    pub(crate) fn versions(&self, namespace: &str, references: &References) -> Versions {
        let key = |kind, name: &String| ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() };
        let config_maps = references.config_maps.iter().map(|name| {
            let version = self.config_maps.get(name).and_then(|o| o.metadata.resource_version.clone());
            (key(Kind::ConfigMap, name), version)
        });
        let secrets = references.secrets.iter().map(|name| {
            let version = self.secrets.get(name).and_then(|o| o.metadata.resource_version.clone());
            (key(Kind::Secret, name), version)
        });
        let bundles = references.trust_bundles.then(|| {
            let each = self.trust_bundles.iter().map(|b| (b.name_any(), b.metadata.resource_version.clone()));
            let key = ObjectKey { kind: Kind::TrustBundles, namespace: String::new(), name: String::new() };
            (key, joint_version(&each.collect()))
        });
        let requests = references.certificates.keys().filter_map(|name| {
            let asked = self.certificates.request(name)?;
            Some((key(Kind::CertificateRequest, &asked.name), asked.version.clone()))
        });
        config_maps.chain(secrets).chain(bundles).chain(requests).collect()
    }
}

/// Names that a pod refers to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct References {
    /// ConfigMap names.
    pub config_maps: BTreeSet<String>,
    /// Secret names, image pull secrets included.
    pub secrets: BTreeSet<String>,
    pub tokens: BTreeSet<TokenKey>,
    /// PersistentVolumeClaim names.
    pub claims: BTreeSet<String>,
    /// Any ClusterTrustBundle.
    pub trust_bundles: bool,
    pub certificates: BTreeMap<CertificateKey, PodCertificateProjection>,
}

/// What a projected token lives when the pod does not say (upstream's default).
pub(crate) const DEFAULT_TOKEN_SECONDS: i64 = 3600;
