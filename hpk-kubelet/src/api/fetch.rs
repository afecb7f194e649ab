//! Fetches what a pod refers to: configMaps, secrets and service-account tokens, by name.

use crate::render::services;
use crate::render::sources::{References, Sources, TokenKey};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error as ThisError;

/// An object could not be asked for (which is not the same as its not being there).
#[derive(Debug, ThisError)]
#[error("cannot read {kind} {name:?}: {source}")]
pub struct FetchError {
    /// `configmap`, `secret`, `token of service account`.
    pub kind: &'static str,
    /// Name.
    pub name: String,
    /// Cause.
    #[source]
    pub source: Box<Error>,
}

/// A token and its times.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub text: String,
    /// When it was given.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

impl Token {
    /// Upstream's rule: older than 80 % of its life, or than 24 hours.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        let age = now.as_second() - self.issued.as_second();
        let life = self.expires.as_second() - self.issued.as_second();
        age * 5 >= life * 4 || age >= 24 * 3600
    }
}

/// A pod's tokens, kept between renewals.
pub type Tokens = BTreeMap<TokenKey, Token>;

/// Fetches everything that `pod` refers to. Tokens that are not stale are kept.
///
/// # Errors
/// An object that could not be asked for. One that does not exist is left out instead.
pub async fn sources(
    client: &Client,
    pod: &Pod,
    all_services: &[Arc<Service>],
    tokens: &mut Tokens,
) -> Result<Sources, FetchError> {
    let references = References::of(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut found = Sources::default();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in &references.config_maps {
        let object = config_maps.get_opt(name).await.map_err(|e| failed("configmap", name, e))?;
        found.config_maps.extend(object.map(|o| (name.clone(), o)));
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in &references.secrets {
        let object = secrets.get_opt(name).await.map_err(|e| failed("secret", name, e))?;
        found.secrets.extend(object.map(|o| (name.clone(), o)));
    }
    let now = Timestamp::now();
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

fn failed(kind: &'static str, name: &str, source: Error) -> FetchError {
    FetchError { kind, name: name.to_owned(), source: Box::new(source) }
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
    fn renewal() {
        let at = |s| Timestamp::from_second(s).expect("time");
        let token = |life| Token { text: String::new(), issued: at(0), expires: at(life) };
        assert!(!token(3607).is_stale(at(2885)));
        assert!(token(3607).is_stale(at(2886)));
        assert!(!token(1_000_000).is_stale(at(86_399)));
        assert!(token(1_000_000).is_stale(at(86_400)));
    }
}
