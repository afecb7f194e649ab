//! Asking a registry: manifests and blobs over the OCI distribution protocol.

use crate::conf::Place;
use crate::error::SourceError;
use crate::keyring::{Keyring, Pass};
use crate::manifest::{ACCEPT, Descriptor};
use crate::registries::{Registries, Scheme};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use std::time::Duration;

/// A registry that answered, with the scheme and credentials that it accepted.
pub(crate) struct Session {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

/// A place that has an image, and its manifest document's bytes and digest.
pub(crate) struct Found {
    pub(crate) session: Session,
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
    /// What the image is called there ([`Place::name`]).
    pub(crate) name: Reference,
}

/// Resolves an image: tries the places in order. The last is the one that counts, when none has it.
pub(crate) async fn open(places: &[Place], keyring: &Keyring, registries: &Registries) -> Result<Found, SourceError> {
    let mut failed = Vec::new();
    let mut last = SourceError::Unavailable("there is no place to ask".to_owned());
    for place in places {
        match open_at(place, keyring, registries).await {
            Ok((session, bytes, digest)) => return Ok(Found { session, bytes, digest, name: place.name.clone() }),
            Err(error) => {
                failed.push(format!("{}: {error}", place.at));
                last = error;
            }
        }
    }
    // The last one's words are the error's own.
    failed.pop();
    Err(if failed.is_empty() { last } else { last.after(&failed.join("; ")) })
}

/// Tries schemes and credentials in order.
async fn open_at(
    place: &Place,
    keyring: &Keyring,
    registries: &Registries,
) -> Result<(Session, Vec<u8>, String), SourceError> {
    let reference = &place.at;
    registries.check_place(place).await?;
    let mut last = SourceError::Unavailable("no way to reach it".to_owned());
    let candidates = keyring.candidates(reference.registry(), reference.repository());
    let has_credentials = candidates.len() > 1;
    let schemes = registries.schemes(place, has_credentials).await;
    for &scheme in &schemes {
        for auth in candidates.clone() {
            // A client of its own: the library caches the first credentials it sees for a registry.
            let session = Session {
                client: client(scheme, place.insecure, registries).await?,
                auth,
                reference: reference.clone(),
            };
            match session.manifest(reference).await {
                Ok((bytes, digest)) => return Ok((session, bytes, digest)),
                Err(e @ SourceError::Unauthorized(_)) => last = e,
                Err(e @ SourceError::Unavailable(_)) => {
                    // The https error is the interesting one when both fail, unless it was not TLS at all.
                    if scheme == Scheme::Https || matches!(last, SourceError::Unavailable(_)) {
                        last = e;
                    }
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        if !matches!(last, SourceError::Unavailable(_)) {
            break;
        }
    }
    Err(match last {
        SourceError::Unavailable(cause) if has_credentials && !schemes.contains(&Scheme::Http) => {
            SourceError::Unavailable(format!(
                "{cause}; credentials are sent by https only, unless {:?} is listed under \"insecure\" in \
                 HPK_HOME/registries.json",
                reference.resolve_registry()
            ))
        }
        last => last,
    })
}

async fn client(scheme: Scheme, insecure: bool, registries: &Registries) -> Result<Client, SourceError> {
    let mut roots = Vec::new();
    for path in &registries.ca_files {
        let data = tokio::fs::read(path).await.map_err(SourceError::io("read", path))?;
        roots.push(Certificate { encoding: CertificateEncoding::Pem, data });
    }
    Client::try_from(ClientConfig {
        protocol: match scheme {
            Scheme::Https => ClientProtocol::Https,
            Scheme::Http => ClientProtocol::Http,
        },
        extra_root_certificates: roots,
        accept_invalid_certificates: insecure,
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("hpk/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
    .map_err(error)
}

impl Session {
    /// What the registry has accepted.
    pub(crate) fn pass(&self) -> Pass {
        Pass::of(&self.auth, &self.reference.whole())
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), SourceError> {
        let (bytes, digest) = self.client.pull_manifest_raw(reference, &self.auth, ACCEPT).await.map_err(error)?;
        Ok((bytes.to_vec(), digest))
    }

    /// The manifest that an index entry points to; the library verifies the digest.
    pub(crate) async fn manifest_by_digest(&self, digest: &str) -> Result<Vec<u8>, SourceError> {
        Ok(self.manifest(&self.reference.clone_with_digest(digest.to_owned())).await?.0)
    }

    /// The rest of a blob, from a byte on: the bytes, and whether they begin there. A registry may not know how to begin
    /// anywhere but at the beginning.
    pub(crate) async fn rest(&self, descriptor: &Descriptor, from: u64) -> Result<(SizedStream, bool), SourceError> {
        let digest = descriptor.digest.as_str();
        if from == 0 {
            return Ok((self.client.pull_blob_stream(&self.reference, digest).await.map_err(error)?, false));
        }
        match self.client.pull_blob_stream_partial(&self.reference, digest, from, None).await.map_err(error)? {
            BlobResponse::Full(stream) => Ok((stream, false)),
            BlobResponse::Partial(stream) => Ok((stream, true)),
        }
    }
}

/// Sorts the library's errors into ours.
fn error(e: OciDistributionError) -> SourceError {
    use OciDistributionError as E;
    match e {
        E::RequestError(e) => {
            if let Some(status) = e.status() {
                return by_status(status.as_u16(), e.to_string());
            }
            SourceError::Unavailable(chain(&e))
        }
        E::UnauthorizedError { url } => SourceError::Unauthorized(format!("{url}: 401 Unauthorized")),
        E::AuthenticationFailure(text) => SourceError::Unauthorized(text),
        E::ImageManifestNotFoundError(text) => SourceError::NotFound(text),
        E::ServerError { code, url, message } => by_status(code, format!("{url}: {code} {message}")),
        E::RegistryError { envelope, url } => {
            let text = envelope.errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join(", ");
            let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.contains(&e.code));
            if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                SourceError::Unauthorized(format!("{url}: {text}"))
            } else if has(&[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::NotFound,
                OciErrorCode::BlobUnknown,
            ]) {
                SourceError::NotFound(format!("{url}: {text}"))
            } else {
                SourceError::Other(format!("{url}: {text}"))
            }
        }
        E::DigestError(oci_client::errors::DigestError::VerificationError { expected, actual }) => {
            SourceError::Digest { expected, actual }
        }
        other => SourceError::Other(other.to_string()),
    }
}

fn by_status(code: u16, text: String) -> SourceError {
    match code {
        401 | 403 => SourceError::Unauthorized(text),
        404 => SourceError::NotFound(text),
        502..=504 => SourceError::Unavailable(text),
        _ => SourceError::Other(text),
    }
}

/// An error with its causes: the transport hides the interesting part deep inside.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
