//! Fetches what a pod refers to: configMaps, secrets, service-account tokens and certificates by name, ClusterTrustBundles all
//! at once.

use super::certificates;
use super::failed::{FetchError, failed};
use crate::render::certificate::{CertificateError, Certificates};
use crate::render::services;
use crate::render::sources::{FoundClaim, References, Sources, TokenKey, Versions};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Between attempts to renew a token.
const AGAIN: Duration = Duration::from_secs(30);

/// A token and its times.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    /// When it was given.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

impl Token {
    /// Whether it is time for a new one.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.as_second() >= self.renew_at()
    }

    /// When it is, in seconds of Unix time. Upstream's rule: at 80 % of its life, or after 24 hours.
    fn renew_at(&self) -> i64 {
        let life = self.expires.as_second() - self.issued.as_second();
        self.issued.as_second() + (life * 4 / 5 + i64::from(life * 4 % 5 > 0)).min(24 * 3600)
    }
}

/// A pod's tokens, kept between renewals.
pub(crate) type Tokens = BTreeMap<TokenKey, Token>;

/// When the first of the tokens and certificates must be renewed; None: there are none. A renewal that failed is tried
/// again after [`AGAIN`].
#[must_use]
pub(crate) fn renewal(kept: &Kept, now: Timestamp) -> Option<Duration> {
    let times = kept.tokens.values().map(Token::renew_at).chain(kept.certificates.due().map(Timestamp::as_second));
    let wait = |at: i64| Duration::from_secs(u64::try_from(at - now.as_second()).unwrap_or(0));
    times.min().map(|at| wait(at).max(AGAIN))
}

/// What is remembered between two readings of a pod's references.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub tokens: Tokens,
    pub certificates: Certificates,
    /// What was read of the references.
    pub versions: Versions,
    /// Renewals of certificates that were refused since the last reading, to be told.
    pub refusals: Vec<CertificateError>,
}

/// Fetches everything that `pod` refers to. Tokens and certificates that are not stale are kept.
///
/// # Errors
/// An object that could not be asked for. One that does not exist is left out instead.
pub(crate) async fn sources(
    client: &Client,
    pod: &Pod,
    all_services: &[Arc<Service>],
    kept: &mut Kept,
) -> Result<Sources, FetchError> {
    let Kept { tokens, certificates, versions, refusals } = kept;
    let references = References::of(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut found = Sources::default();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    (found.config_maps, found.secrets) = futures::try_join!(
        get_all(&config_maps, "configmap", &references.config_maps),
        get_all(&secrets, "secret", &references.secrets)
    )?;
    found.claims = claims(client, namespace, &references.claims).await?;
    if references.trust_bundles {
        let all: Api<ClusterTrustBundle> = Api::all(client.clone());
        let listed = all.list(&ListParams::default()).await;
        found.trust_bundles = listed.map_err(|e| failed("clustertrustbundles", "", e))?.items;
    }
    refusals.extend(certificates::advance(client, pod, &references.certificates, certificates).await?);
    found.certificates.clone_from(certificates);
    *versions = found.versions(namespace, &references);
    let now = Timestamp::now();
    tokens.retain(|key, _| references.tokens.contains(key));
    for key in &references.tokens {
        if tokens.get(key).is_none_or(|t| t.is_stale(now)) {
            match request_token(client, pod, key).await {
                Ok(token) => {
                    tokens.insert(key.clone(), token);
                }
                // The old one serves as long as it is valid.
                Err(error) if tokens.get(key).is_some_and(|t| t.expires > now) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "token not renewed");
                }
                Err(error) => return Err(error),
            }
        }
    }
    found.tokens = tokens.iter().map(|(k, t)| (k.clone(), t.text.clone())).collect();
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    found.service_variables = services::variables(all_services.iter().map(AsRef::as_ref), namespace, links);
    Ok(found)
}

/// The objects of these names; those that do not exist are left out.
async fn get_all<K>(
    api: &Api<K>,
    kind: &'static str,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, K>, FetchError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let gets = names.iter().map(|name| async move {
        let object = api.get_opt(name).await.map_err(|e| failed(kind, name, e))?;
        Ok(object.map(|object| (name.clone(), object)))
    });
    let found = futures::future::try_join_all(gets).await?;
    Ok(found.into_iter().flatten().collect())
}

/// The claims of these names with the volumes that they are bound to.
async fn claims(
    client: &Client,
    namespace: &str,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, FoundClaim>, FetchError> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = get_all(&claims, "persistentvolumeclaim", names).await?;
    let volume = |claim: &PersistentVolumeClaim| claim.spec.as_ref().and_then(|s| s.volume_name.clone());
    let wanted = found.values().filter_map(volume).filter(|name| !name.is_empty()).collect();
    let mut volumes = get_all(&Api::<PersistentVolume>::all(client.clone()), "persistentvolume", &wanted).await?;
    let both = found.into_iter().map(|(name, claim)| {
        let volume = volume(&claim).and_then(|name| volumes.remove(&name));
        (name, FoundClaim { claim, volume })
    });
    Ok(both.collect())
}

async fn request_token(client: &Client, pod: &Pod, key: &TokenKey) -> Result<Token, FetchError> {
    let meta = &pod.metadata;
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(key.audience.clone()).filter(|a| !a.is_empty()).map(|a| vec![a]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
            expiration_seconds: Some(key.expiration_seconds),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or("default"));
    let issued = Timestamp::now();
    let answer = api
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|e| failed("token of service account", account, e))?;
    let status = answer.status.unwrap_or_default();
    let expires = status.expiration_timestamp.map_or(issued, |t| t.0);
    Ok(Token { text: status.token.unwrap_or_default(), issued, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_in_time() {
        let at = |s| Timestamp::from_second(s).expect("time");
        let token = |life| Token { text: String::new(), issued: at(0), expires: at(life) };
        assert!(!token(3607).is_stale(at(2885)));
        assert!(token(3607).is_stale(at(2886)));
        assert!(!token(1_000_000).is_stale(at(86_399)));
        assert!(token(1_000_000).is_stale(at(86_400)));
        let key = |audience: &str| TokenKey { audience: audience.into(), expiration_seconds: 0 };
        let tokens: Tokens = [(key("a"), token(3607)), (key("b"), token(1_000_000))].into();
        let kept = Kept { tokens, ..Kept::default() };
        assert_eq!(renewal(&kept, at(0)), Some(Duration::from_secs(2886)));
        assert_eq!(renewal(&kept, at(2880)), Some(AGAIN), "due, or its renewal failed");
        assert_eq!(renewal(&Kept::default(), at(0)), None);
    }
}
