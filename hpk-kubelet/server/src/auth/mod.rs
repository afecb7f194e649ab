//! Who calls (authn) and whether they may (authz), as upstream's kubelet decides with webhook modes:
//! client certificates of the cluster's CA or bearer tokens by TokenReview, then SubjectAccessReview.
//! Nobody is anonymous. Decisions are remembered for upstream's default times.

mod cache;

use crate::route;
use cache::Cache;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;

/// authentication.webhook.cacheTTL
const AUTHENTICATED_FOR: Duration = Duration::from_secs(120);
/// A token that the API server refused is not asked about again for this long (upstream's failure cache).
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// authorization.webhook.cacheAuthorizedTTL
const ALLOWED_FOR: Duration = Duration::from_secs(300);
/// authorization.webhook.cacheUnauthorizedTTL
const DENIED_FOR: Duration = Duration::from_secs(30);

/// An authenticated caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// Why a caller is turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 401.
    Unauthorized,
    /// 403 with this text.
    Forbidden(String),
    /// 500: the API server could not be asked.
    Unknown(String),
}

/// Asks the API server and remembers.
pub(crate) struct Auth {
    client: Client,
    node_name: String,
    tokens: Cache<String, Option<User>>,
    decisions: Cache<(User, &'static str, &'static str), bool>,
}

impl Auth {
    pub(crate) fn new(client: Client, node_name: String) -> Self {
        Self { client, node_name, tokens: Cache::new(1024), decisions: Cache::new(4096) }
    }

    /// The caller, from the certificate's subject or the bearer token.
    pub(crate) async fn authenticate(
        &self,
        subject: Option<&(String, Vec<String>)>,
        authorization: Option<&str>,
    ) -> Result<User, Refusal> {
        if let Some((name, groups)) = subject {
            let mut groups = groups.clone();
            groups.push("system:authenticated".to_owned());
            return Ok(User { name: name.clone(), groups, ..User::default() });
        }
        let token = authorization.and_then(bearer).ok_or(Refusal::Unauthorized)?;
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return known.ok_or(Refusal::Unauthorized);
        }
        let user = self.review_token(token).await?;
        let keep = if user.is_some() { AUTHENTICATED_FOR } else { REFUSED_FOR };
        self.tokens.put(token.to_owned(), user.clone(), keep);
        user.ok_or(Refusal::Unauthorized)
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, Refusal> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| {
                tracing::warn!("TokenReview failed: {e}");
                Refusal::Unauthorized
            })?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let mut groups = user.groups.unwrap_or_default();
        if !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".to_owned());
        }
        Ok(Some(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups,
            extra: user.extra.unwrap_or_default(),
        }))
    }

    /// Whether the caller may do this; any allowed subresource will do.
    pub(crate) async fn authorize(&self, user: &User, method: &str, path: &str) -> Result<(), Refusal> {
        let verb = route::verb(method);
        let subresources = route::subresources(path);
        for subresource in subresources {
            if self.allowed(user, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        )))
    }

    async fn allowed(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Refusal> {
        let key = (user.clone(), verb, subresource);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| {
                Refusal::Unknown(format!(
                    "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource}): {e}",
                    user.name
                ))
            })?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.decisions.put(key, allowed, if allowed { ALLOWED_FOR } else { DENIED_FOR });
        Ok(allowed)
    }
}

/// The token of `Authorization: Bearer …`; the scheme's case does not matter.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_taken_from_the_header() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        for bad in ["", "Bearer", "Bearer ", "Basic abc", "abc"] {
            assert_eq!(bearer(bad), None, "{bad:?}");
        }
    }
}
