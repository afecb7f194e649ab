//! TLS of the server: its certificate, and what a client's certificate says.
//!
//! The handshake takes any client certificate whose key the client holds; whether the cluster's CA signed it
//! is decided afterwards ([`Tls::identify`]), so that a stranger is told 401 in words instead of an alert.
//! ALPN offers http/1.1 only: the streaming protocols upgrade a connection, which HTTP/2 does not have.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

/// The certificate or the client CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("{path}: {source}")]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate, key or CA do not do.
    #[error("{path}: {source}")]
    Certificate {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Files that make up the server's identity.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Serving certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// CA of client certificates, PEM.
    pub client_ca: PathBuf,
    /// CA of the API server's aggregator, PEM: its certificate may name the user that it speaks for, on the
    /// paths of the metrics API only. None: that API is not served.
    pub front_proxy_ca: Option<PathBuf>,
}

/// Common name that the aggregator's certificate must have (kube-apiserver's requestheader-allowed-names).
const FRONT_PROXY: &str = "front-proxy-client";

/// Who holds a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A user with its groups.
    User { name: String, groups: Vec<String> },
    /// The API server's aggregator.
    FrontProxy,
}

/// TLS settings that live as long as the server.
pub(crate) struct Tls {
    pub(crate) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    front_proxy: Option<Arc<dyn ClientCertVerifier>>,
    serving: Arc<Serving>,
}

impl Tls {
    pub(crate) fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |e: Box<dyn std::error::Error + Send + Sync>| TlsError::Certificate { path, source: e }
        };
        let verifier_of = |path: &Path| -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| fail(path)(e.into()))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| fail(path)(e.into()))
        };
        let verifier = verifier_of(&files.client_ca)?;
        let front_proxy = files.front_proxy_ca.as_deref().map(verifier_of).transpose()?;
        let serving = Arc::new(Serving::new(files.clone(), provider.clone())?);
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| fail(&files.certificate)(e.into()))?
            .with_client_cert_verifier(Arc::new(AnyHolder(verifier.clone())))
            .with_cert_resolver(serving.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), verifier, front_proxy, serving })
    }

    /// Takes up a certificate that was renewed on disk; to be called now and then.
    pub(crate) fn refresh(&self) {
        if let Err(e) = self.serving.refresh() {
            tracing::warn!("the serving certificate cannot be reloaded, the old one stays: {e}");
        }
    }

    /// Whose certificate this is, when one of our CAs signed it and it is valid now.
    pub(crate) fn identify(&self, chain: &[CertificateDer<'_>]) -> Option<Holder> {
        let (leaf, intermediates) = chain.split_first()?;
        let signed =
            |by: &Arc<dyn ClientCertVerifier>| by.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok();
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        if self.front_proxy.as_ref().is_some_and(signed) {
            return (name == FRONT_PROXY).then_some(Holder::FrontProxy);
        }
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        signed(&self.verifier).then_some(Holder::User { name, groups })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}

/// The serving certificate, replaceable while the server runs.
#[derive(Debug)]
struct Serving {
    files: TlsFiles,
    provider: Arc<rustls::crypto::CryptoProvider>,
    current: RwLock<(Arc<CertifiedKey>, Option<SystemTime>)>,
}

impl Serving {
    fn new(files: TlsFiles, provider: Arc<rustls::crypto::CryptoProvider>) -> Result<Self, TlsError> {
        let modified = modified(&files.certificate);
        let key = read_pair(&files, &provider)?;
        Ok(Self { files, provider, current: RwLock::new((Arc::new(key), modified)) })
    }

    fn refresh(&self) -> Result<(), TlsError> {
        let modified = modified(&self.files.certificate);
        if self.current.read().unwrap_or_else(PoisonError::into_inner).1 == modified {
            return Ok(());
        }
        let key = read_pair(&self.files, &self.provider)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(key), modified);
        Ok(())
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read_pair(files: &TlsFiles, provider: &rustls::crypto::CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Pem { path: files.key.clone(), source })?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| TlsError::Certificate { path: files.key.clone(), source: e.into() })
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}

/// Lets any certificate through the handshake whose key the client proves to hold.
#[derive(Debug)]
struct AnyHolder(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyHolder {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
