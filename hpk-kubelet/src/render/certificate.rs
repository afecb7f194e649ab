//! Pod certificates (KEP-4317): what is asked of a signer for a projected volume, what comes of it and when it is renewed.
//! Decisions on plain data and time.
//!
//! ```text
//!            ┌────────── deleted ─────────┐
//!            ▼                            │
//! nothing ──ask──▶ Asked ──issued──▶ Held ──refresh_at: ask──▶ Held with a renewal ──issued──▶ Held
//!                    └──denied, failed──▶ Refused                     └──denied, failed──▶ Held, never renewed
//! ```
//! As upstream's kubelet has it, but for a renewal that is refused: there the volume is an error then, here the pod keeps
//! the certificate that it has. Nothing is remembered beyond the kubelet's life: after a restart all are asked for anew,
//! and the files that pods have stay meanwhile.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::api::core::v1::PodCertificateProjection;
use pem::{EncodeConfig, LineEnding, Pem};
use std::collections::BTreeMap;
use thiserror::Error;

/// A request that is not found so long after it was made has been deleted.
const GONE_AFTER: i64 = 600;

/// Values of keyType that can be had: the cryptography library makes no RSA keys and none of P-521.
pub(crate) const KEY_TYPES: [&str; 3] = ["ECDSAP256", "ECDSAP384", "ED25519"];

/// A source of one of the pod's projected volumes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateKey {
    /// Name of the volume.
    pub volume: String,
    /// Number of the source in it.
    pub source: usize,
}

/// What a volume shows, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// PKCS#8.
    pub key: String,
    /// The leaf first.
    pub chain: String,
}

/// Why there is no certificate (yet).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// The signer has not answered.
    #[error("credential bundle is not issued yet")]
    NotYet,
    /// The signer said no.
    #[error("PodCertificateRequest was permanently {}: reason={reason:?} message={message:?}", .kind.to_lowercase())]
    Refused {
        /// Type of the request's condition: `Denied` or `Failed`.
        kind: &'static str,
        reason: String,
        message: String,
    },
}

/// A PodCertificateRequest that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    /// Its resourceVersion, as it was seen last; None: it was not found.
    pub version: Option<String>,
    /// The key that it is for, PEM.
    pub key: String,
    /// When it was made.
    pub at: Timestamp,
}

/// How far one certificate has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// Asked for.
    Asked(Asked),
    /// The volume has it.
    Held {
        /// What the volume shows.
        bundle: Bundle,
        /// When to ask for the next one; None: never.
        refresh_at: Option<Timestamp>,
        /// The next one.
        renewal: Option<Asked>,
    },
    /// Will not come.
    Refused(CertificateError),
}

/// What is seen of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has decided.
    Pending(Option<String>),
    /// There is no such request.
    NotFound,
    /// Denied or failed.
    Refused(CertificateError),
    /// Issued: the chain, and when to ask for the next one.
    Issued(String, Option<Timestamp>),
}

impl Answer {
    /// Reads a request.
    #[must_use]
    pub fn of(request: Option<&PodCertificateRequest>) -> Self {
        let Some(request) = request else { return Self::NotFound };
        let status = request.status.clone().unwrap_or_default();
        for condition in status.conditions.iter().flatten() {
            let refused = |kind| {
                Self::Refused(CertificateError::Refused {
                    kind,
                    reason: condition.reason.clone(),
                    message: condition.message.clone(),
                })
            };
            match condition.type_.as_str() {
                "Denied" => return refused("Denied"),
                "Failed" => return refused("Failed"),
                "Issued" => {
                    let chain = clean(status.certificate_chain.as_deref().unwrap_or_default());
                    return Self::Issued(chain, status.begin_refresh_at.map(|time| time.0));
                }
                _ => {}
            }
        }
        Self::Pending(request.metadata.resource_version.clone())
    }
}

/// The chain without what may stand between and in the heads of its blocks.
fn clean(chain: &str) -> String {
    let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let blocks = pem::parse_many(chain).unwrap_or_default().into_iter();
    blocks.map(|block| pem::encode_config(&Pem::new("CERTIFICATE", block.into_contents()), form)).collect()
}

/// A pod's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    all: BTreeMap<CertificateKey, Certificate>,
}

impl Certificates {
    /// Forgets those that the pod does not have.
    pub fn keep(&mut self, wanted: &BTreeMap<CertificateKey, PodCertificateProjection>) {
        self.all.retain(|key, _| wanted.contains_key(key));
    }

    /// Whether a request is to be made.
    #[must_use]
    pub fn wants(&self, key: &CertificateKey, now: Timestamp) -> bool {
        match self.all.get(key) {
            None => true,
            Some(Certificate::Held { refresh_at: Some(at), renewal: None, .. }) => *at <= now,
            Some(_) => false,
        }
    }

    /// A request was made.
    pub fn asked(&mut self, key: CertificateKey, asked: Asked) {
        match self.all.get_mut(&key) {
            Some(Certificate::Held { renewal, .. }) => *renewal = Some(asked),
            _ => drop(self.all.insert(key, Certificate::Asked(asked))),
        }
    }

    /// The request that is under way.
    #[must_use]
    pub fn request(&self, key: &CertificateKey) -> Option<&Asked> {
        match self.all.get(key)? {
            Certificate::Asked(asked) | Certificate::Held { renewal: Some(asked), .. } => Some(asked),
            Certificate::Held { renewal: None, .. } | Certificate::Refused(_) => None,
        }
    }

    /// What became of it. `jitter`: seconds by which its renewal is put off, so that not all ask at once.
    ///
    /// # Errors
    /// A refusal that the volume does not show: that of a renewal.
    pub fn answered(
        &mut self,
        key: &CertificateKey,
        answer: Answer,
        now: Timestamp,
        jitter: i64,
    ) -> Result<(), CertificateError> {
        let Some(certificate) = self.all.get_mut(key) else { return Ok(()) };
        let (asked, held) = match certificate {
            Certificate::Asked(asked) => (asked, None),
            Certificate::Held { bundle, refresh_at, renewal: Some(asked) } => (asked, Some((bundle, refresh_at))),
            Certificate::Held { renewal: None, .. } | Certificate::Refused(_) => return Ok(()),
        };
        match (answer, held) {
            (Answer::Pending(version), _) => asked.version = version,
            // What was made a moment ago may not be seen yet by the server that is asked.
            (Answer::NotFound, _) if now.as_second() < asked.at.as_second() + GONE_AFTER => asked.version = None,
            (Answer::NotFound, None) => drop(self.all.remove(key)),
            (Answer::NotFound, Some((bundle, refresh_at))) => {
                let (bundle, refresh_at) = (bundle.clone(), *refresh_at);
                *certificate = Certificate::Held { bundle, refresh_at, renewal: None };
            }
            (Answer::Issued(chain, refresh_at), _) => {
                let bundle = Bundle { key: asked.key.clone(), chain };
                let later = |at: Timestamp| Timestamp::from_second(at.as_second() + jitter).unwrap_or(at);
                *certificate = Certificate::Held { bundle, refresh_at: refresh_at.map(later), renewal: None };
            }
            (Answer::Refused(error), None) => *certificate = Certificate::Refused(error),
            (Answer::Refused(error), Some((bundle, _))) => {
                *certificate = Certificate::Held { bundle: bundle.clone(), refresh_at: None, renewal: None };
                return Err(error);
            }
        }
        Ok(())
    }

    /// What the volume shows.
    ///
    /// # Errors
    /// Why there is nothing.
    pub fn bundle(&self, key: &CertificateKey) -> Result<&Bundle, CertificateError> {
        match self.all.get(key) {
            None | Some(Certificate::Asked(_)) => Err(CertificateError::NotYet),
            Some(Certificate::Held { bundle, .. }) => Ok(bundle),
            Some(Certificate::Refused(error)) => Err(error.clone()),
        }
    }

    /// When the next request must be made, or one that is under way has been deleted if it is not found.
    #[must_use]
    pub fn due(&self) -> Option<Timestamp> {
        let gone = |asked: &Asked| Timestamp::from_second(asked.at.as_second() + GONE_AFTER).ok();
        let each = self.all.values().filter_map(|certificate| match certificate {
            Certificate::Asked(asked) | Certificate::Held { renewal: Some(asked), .. } => gone(asked),
            Certificate::Held { refresh_at, .. } => *refresh_at,
            Certificate::Refused(_) => None,
        });
        each.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn key() -> CertificateKey {
        CertificateKey { volume: "v".into(), source: 1 }
    }

    fn asked(name: &str, second: i64) -> Asked {
        Asked { name: name.into(), version: None, key: format!("key of {name}"), at: at(second) }
    }

    fn issued(refresh_at: i64) -> Answer {
        Answer::Issued("chain".into(), Some(at(refresh_at)))
    }

    fn refused() -> CertificateError {
        CertificateError::Refused { kind: "Denied", reason: "No".into(), message: "not you".into() }
    }

    /// With its first certificate, of time 0, to be renewed at 1000.
    fn held() -> Certificates {
        let mut all = Certificates::default();
        all.asked(key(), asked("a", 0));
        assert_eq!(all.answered(&key(), issued(900), at(1), 100), Ok(()));
        all
    }

    #[test]
    fn asked_for_once_and_shown_when_issued() {
        let mut all = Certificates::default();
        assert!(all.wants(&key(), at(0)) && all.request(&key()).is_none());
        all.asked(key(), asked("a", 0));
        assert!(!all.wants(&key(), at(10)));
        assert_eq!(all.bundle(&key()), Err(CertificateError::NotYet));
        assert_eq!(all.answered(&key(), Answer::Pending(Some("7".into())), at(1), 0), Ok(()));
        assert_eq!(all.request(&key()).map(|a| (a.name.as_str(), a.version.as_deref())), Some(("a", Some("7"))));
        let all = held();
        let bundle = Bundle { key: "key of a".into(), chain: "chain".into() };
        assert_eq!((all.bundle(&key()), all.request(&key()), all.due()), (Ok(&bundle), None, Some(at(1000))));
    }

    #[test]
    fn renewed_when_it_is_time_and_shown_meanwhile() {
        let mut all = held();
        assert!(!all.wants(&key(), at(999)) && all.wants(&key(), at(1000)));
        all.asked(key(), asked("b", 1000));
        assert!(!all.wants(&key(), at(2000)));
        assert_eq!(all.bundle(&key()).map(|b| b.key.as_str()), Ok("key of a"));
        assert_eq!(all.answered(&key(), issued(5000), at(1001), 0), Ok(()));
        assert_eq!(all.bundle(&key()).map(|b| b.key.as_str()), Ok("key of b"));
        assert_eq!(all.due(), Some(at(5000)));
    }

    #[test]
    fn a_refusal_is_the_volumes_but_a_refused_renewal_leaves_what_there_is() {
        let mut all = Certificates::default();
        all.asked(key(), asked("a", 0));
        assert_eq!(all.answered(&key(), Answer::Refused(refused()), at(1), 0), Ok(()));
        assert_eq!((all.bundle(&key()), all.due(), all.wants(&key(), at(9999))), (Err(refused()), None, false));
        assert_eq!(
            refused().to_string(),
            "PodCertificateRequest was permanently denied: reason=\"No\" message=\"not you\""
        );
        let mut all = held();
        all.asked(key(), asked("b", 1000));
        assert_eq!(all.answered(&key(), Answer::Refused(refused()), at(1001), 0), Err(refused()));
        assert!(all.bundle(&key()).is_ok());
        assert_eq!((all.due(), all.wants(&key(), at(9999))), (None, false));
    }

    #[test]
    fn a_request_that_somebody_deleted_is_made_again_after_a_while() {
        let mut all = Certificates::default();
        all.asked(key(), asked("a", 0));
        assert_eq!(all.answered(&key(), Answer::NotFound, at(599), 0), Ok(()));
        assert_eq!((all.wants(&key(), at(599)), all.due()), (false, Some(at(600))));
        assert_eq!(all.answered(&key(), Answer::NotFound, at(600), 0), Ok(()));
        assert!(all.wants(&key(), at(600)));
        let mut all = held();
        all.asked(key(), asked("b", 1000));
        assert_eq!(all.answered(&key(), Answer::NotFound, at(1600), 0), Ok(()));
        assert!(all.wants(&key(), at(1600)) && all.bundle(&key()).is_ok());
    }

    #[test]
    fn answers_are_read_from_conditions() {
        let request = |status| {
            let spec = json!({"nodeName": "", "nodeUID": "", "podName": "", "podUID": "", "serviceAccountName": "",
                "serviceAccountUID": "", "signerName": "", "stubPKCS10Request": ""});
            let whole = json!({"metadata": {"resourceVersion": "3"}, "spec": spec, "status": status});
            Answer::of(Some(&serde_json::from_value(whole).expect("a request")))
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "No", "message": "not you", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert_eq!(Answer::of(None), Answer::NotFound);
        assert_eq!(request(json!({})), Answer::Pending(Some("3".into())));
        assert_eq!(request(json!({"conditions": condition("Denied")})), Answer::Refused(refused()));
        let block = |der: &str| {
            pem::encode_config(&Pem::new("CERTIFICATE", der), EncodeConfig::new().set_line_ending(LineEnding::LF))
        };
        let chain = format!("the leaf\n{}and its issuer\n{}", block("a"), block("b"));
        let status = json!({"conditions": condition("Issued"), "certificateChain": chain, "beginRefreshAt": "1970-01-01T00:00:09Z"});
        assert_eq!(request(status), Answer::Issued(block("a") + &block("b"), Some(at(9))));
    }
}
