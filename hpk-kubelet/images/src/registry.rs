//! Asking a registry: manifests and blobs over the OCI distribution protocol.

use crate::error::SourceError;
use crate::keyring::{Keyring, Pass};
use crate::manifest::{ACCEPT, Descriptor};
use crate::registries::{Registries, Scheme};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio_util::io::InspectWriter;

/// A registry that answered, with the scheme and credentials that it accepted.
pub(crate) struct Session {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

/// Resolves the reference: tries schemes and credentials in order, and returns the manifest document's
/// bytes and digest with the session that got them.
pub(crate) async fn open(
    reference: &Reference,
    keyring: &Keyring,
    registries: &Registries,
) -> Result<(Session, Vec<u8>, String), SourceError> {
    registries.check_place(reference.resolve_registry()).await?;
    let mut last = SourceError::Unavailable("no way to reach it".to_owned());
    let candidates = keyring.candidates(reference.registry(), reference.repository());
    let has_credentials = candidates.len() > 1;
    let schemes = registries.schemes(reference.resolve_registry(), has_credentials).await;
    for &scheme in &schemes {
        for auth in candidates.clone() {
            // A client of its own: the library caches the first credentials it sees for a registry.
            let session = Session { client: client(scheme, registries).await?, auth, reference: reference.clone() };
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

async fn client(scheme: Scheme, registries: &Registries) -> Result<Client, SourceError> {
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

    /// Writes a blob to `path`, at most `limit` bytes; `progress` gets the number of bytes of each part.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        path: PathBuf,
        limit: u64,
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<(), SourceError> {
        let file = tokio::fs::File::create(&path).await.map_err(SourceError::io("create", &path))?;
        let out = InspectWriter::new(Bounded { file, left: limit }, |bytes: &[u8]| progress(bytes.len()));
        self.client.pull_blob(&self.reference, descriptor.digest.as_str(), out).await.map_err(error)
    }
}

/// A file that takes no more than so many bytes: a registry could send for ever.
struct Bounded {
    file: tokio::fs::File,
    left: u64,
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            return Poll::Ready(Err(io::Error::other("the registry sends more than the manifest says")));
        }
        let written = std::task::ready!(Pin::new(&mut self.file).poll_write(cx, bytes))?;
        self.left -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
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
