//! Who calls (authn) and whether they may (authz), as upstream's kubelet decides with webhook modes:
//! client certificates of the cluster's CA or bearer tokens by TokenReview, then SubjectAccessReview.
//! Nobody is anonymous. Decisions are remembered for upstream's default times.

mod cache;

use crate::metrics_api;
use crate::route;
use crate::tls::Holder;
use cache::Cache;
use hyper::header::HeaderMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Semaphore;

/// authentication.webhook.cacheTTL
const AUTHENTICATED_FOR: Duration = Duration::from_secs(120);
/// A token that the API server refused is not asked about again for this long (upstream's failure cache).
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Tokens that are asked about at once: what strangers with made-up ones can make the API server do. Holders of client
/// certificates do not wait for these.
const REVIEWS: usize = 16;
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
    reviews: Semaphore,
    decisions: Cache<(User, Question), bool>,
}

impl Auth {
    pub(crate) fn new(client: Client, node_name: String) -> Self {
        Self {
            client,
            node_name,
            tokens: Cache::new(1024),
            reviews: Semaphore::new(REVIEWS),
            decisions: Cache::new(4096),
        }
    }

    /// The caller: the certificate's subject, whom the aggregator names, or the bearer token's owner.
    pub(crate) async fn authenticate(
        &self,
        holder: Option<&Holder>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<User, Refusal> {
        match holder {
            Some(Holder::User { name, groups }) => {
                let mut groups = groups.clone();
                groups.push("system:authenticated".to_owned());
                return Ok(User { name: name.clone(), groups, ..User::default() });
            }
            Some(Holder::FrontProxy) if metrics_api::is_path(path) => {
                return named_by_proxy(headers).ok_or(Refusal::Unauthorized);
            }
            Some(Holder::FrontProxy) => return Err(Refusal::Unauthorized),
            None => {}
        }
        let authorization = headers.get(hyper::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = authorization.and_then(bearer).ok_or(Refusal::Unauthorized)?;
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return known.ok_or(Refusal::Unauthorized);
        }
        // Never closed.
        let _turn = self.reviews.acquire().await.map_err(|_| Refusal::Unauthorized)?;
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
        if metrics_api::is_path(path) {
            return self.authorize_metrics(user, path).await;
        }
        let verb = route::verb(method);
        let subresources = route::subresources(path);
        for subresource in subresources {
            let question = Question {
                verb: verb.to_owned(),
                version: "v1".to_owned(),
                resource: "nodes".to_owned(),
                subresource: (*subresource).to_owned(),
                name: self.node_name.clone(),
                ..Question::default()
            };
            if self.allowed(user, question).await? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        )))
    }

    /// The metrics API is asked about by its own resources; its discovery is for everyone who is known.
    async fn authorize_metrics(&self, user: &User, path: &str) -> Result<(), Refusal> {
        let Some((resource, namespace, name)) = metrics_api::resource(path) else { return Ok(()) };
        let question = Question {
            verb: if name.is_empty() { "list" } else { "get" }.to_owned(),
            group: metrics_api::GROUP.to_owned(),
            version: metrics_api::VERSION.to_owned(),
            resource,
            namespace,
            name,
            ..Question::default()
        };
        let text = format!("Forbidden (user={}, verb={}, resource={})\n", user.name, question.verb, question.resource);
        if self.allowed(user, question).await? { Ok(()) } else { Err(Refusal::Forbidden(text)) }
    }

    async fn allowed(&self, user: &User, question: Question) -> Result<bool, Refusal> {
        let key = (user.clone(), question);
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let question = &key.1;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: some(&user.uid),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: some(&question.verb),
                    group: some(&question.group),
                    version: some(&question.version),
                    resource: some(&question.resource),
                    subresource: some(&question.subresource),
                    namespace: some(&question.namespace),
                    name: some(&question.name),
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
                    "Authorization error (user={}, verb={}, resource={}, subresource={}): {e}",
                    user.name, question.verb, question.resource, question.subresource
                ))
            })?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.decisions.put(key, allowed, if allowed { ALLOWED_FOR } else { DENIED_FOR });
        Ok(allowed)
    }
}

/// What a SubjectAccessReview asks; empty fields are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Question {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

/// The user that the aggregator speaks for.
fn named_by_proxy(headers: &HeaderMap) -> Option<User> {
    let text = |v: &hyper::header::HeaderValue| v.to_str().ok().map(str::to_owned);
    let name = headers.get("x-remote-user").and_then(text).filter(|n| !n.is_empty())?;
    let groups = headers.get_all("x-remote-group").iter().filter_map(text).collect();
    let uid = headers.get("x-remote-uid").and_then(text).unwrap_or_default();
    Some(User { name, uid, groups, extra: BTreeMap::new() })
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
