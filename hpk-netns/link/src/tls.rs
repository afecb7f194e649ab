//! TLS 1.3 with certificates on both sides, all of one private authority.

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// Keys or certificates that do not fit.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not what was expected in it.
    #[error("{what} of the link: {source}")]
    Pem {
        what: &'static str,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// Refused by the TLS library.
    #[error("link certificates: {0}")]
    Rustls(#[from] rustls::Error),
    /// Client verification could not be set up.
    #[error("link certificates: {0}")]
    Verifier(String),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(crate) fn roots(ca: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate("authority", ca)?)?;
    Ok(roots)
}

pub(crate) fn certificate(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what, source })
}

pub(crate) fn key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what: "key", source })
}

/// The pod's side.
pub(crate) fn client(ca: &str, cert: &str, key_pem: &str) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(vec![certificate("certificate", cert)?], key(key_pem)?)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The kubelet's certificate and key, which can be renewed while links come.
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct Identity(std::sync::RwLock<Arc<rustls::sign::CertifiedKey>>);

#[cfg(feature = "server")]
impl Identity {
    pub(crate) fn new(cert: &str, key_pem: &str) -> Result<Self, TlsError> {
        Ok(Self(std::sync::RwLock::new(certified(cert, key_pem)?)))
    }

    /// For all links from now on.
    pub(crate) fn replace(&self, cert: &str, key_pem: &str) -> Result<(), TlsError> {
        let fresh = certified(cert, key_pem)?;
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        Ok(())
    }
}

#[cfg(feature = "server")]
fn certified(cert: &str, key_pem: &str) -> Result<Arc<rustls::sign::CertifiedKey>, TlsError> {
    let chain = vec![certificate("certificate", cert)?];
    Ok(Arc::new(rustls::sign::CertifiedKey::from_der(chain, key(key_pem)?, &provider())?))
}

#[cfg(feature = "server")]
impl rustls::server::ResolvesServerCert for Identity {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }
}

/// The kubelet's side.
#[cfg(feature = "server")]
pub(crate) fn server(ca: &str, identity: Arc<Identity>) -> Result<rustls::ServerConfig, TlsError> {
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .build()
        .map_err(|e| TlsError::Verifier(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    // Links are few and long: no tickets, no memory of sessions.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Whether a certificate names this pod.
#[cfg(feature = "server")]
pub(crate) fn is_of(certificate: &CertificateDer<'_>, uid: &str) -> bool {
    let named = || {
        let name = rustls::pki_types::ServerName::try_from(crate::link_name(uid)).ok()?;
        let parsed = rustls::server::ParsedCertificate::try_from(certificate).ok()?;
        rustls::client::verify_server_name(&parsed, &name).ok()
    };
    named().is_some()
}
