//! Asks a component's probe until it answers.
//!
//! A foreign program gives no sign when it begins to serve, so it has to be asked again and again: quickly,
//! because `hpk up` waits for it, and only until its first answer.

use crate::components::Probe;
use crate::components::probe::Credentials;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const INTERVAL: Duration = Duration::from_millis(50);
/// For one question; a server that is just starting may accept and not answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A first line and some headers; the rest of an answer is of no interest.
const ANSWER: u64 = 512;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Connection, TLS or reading.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A certificate or key of ours.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A file that should hold one does not.
    #[error("{path}: {message}")]
    File {
        /// Which.
        path: String,
        /// Why.
        message: String,
    },
    /// An answer other than 200.
    #[error("answers {0}")]
    Status(String),
    /// Nothing in time.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
}

/// Returns when `probe` has answered well; tells each error before through `failed`.
pub(crate) async fn until_served(probe: &Probe, mut failed: impl FnMut(AskError)) {
    let mut turns = tokio::time::interval(INTERVAL);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        match tokio::time::timeout(PATIENCE, once(probe)).await {
            Ok(Ok(())) => return,
            Ok(Err(e)) => failed(e),
            Err(_) => failed(AskError::Late),
        }
    }
}

/// Asks once.
///
/// # Errors
/// Whatever is not a good answer.
pub(crate) async fn once(probe: &Probe) -> Result<(), AskError> {
    match probe {
        Probe::None => Ok(()),
        Probe::Tcp { addr } => TcpStream::connect(addr).await.map(drop).map_err(Into::into),
        Probe::Http { addr, path } => get(TcpStream::connect(addr).await?, *addr, path).await,
        Probe::Https { addr, path, credentials } => {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(credentials)?));
            let tcp = TcpStream::connect(addr).await?;
            let tls = connector.connect(ServerName::from(addr.ip()), tcp).await?;
            get(tls, *addr, path).await
        }
    }
}

async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, addr: SocketAddr, path: &str) -> Result<(), AskError> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // An end without TLS' own good-bye after the answer is no concern of ours.
    if let Err(e) = stream.take(ANSWER).read_to_end(&mut answer).await
        && answer.is_empty()
    {
        return Err(e.into());
    }
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    if line.split(' ').nth(1) == Some("200") { Ok(()) } else { Err(AskError::Status(line)) }
}

fn client_config(c: &Credentials) -> Result<rustls::ClientConfig, AskError> {
    let file = |path: &std::path::Path, e: rustls::pki_types::pem::Error| AskError::File {
        path: path.display().to_string(),
        message: e.to_string(),
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&c.ca).map_err(|e| file(&c.ca, e))?)?;
    let cert = CertificateDer::from_pem_file(&c.cert).map_err(|e| file(&c.cert, e))?;
    let key = PrivateKeyDer::from_pem_file(&c.key).map_err(|e| file(&c.key, e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut c, _)) = listener.accept().await {
                let mut buffer = [0; 256];
                let _ = c.read(&mut buffer).await;
                let _ = c.write_all(answer.as_bytes()).await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn only_200_is_an_answer() {
        let good = server("HTTP/1.1 200 OK\r\n\r\nok").await;
        let bad = server("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let http = |addr| Probe::Http { addr, path: "/x".into() };
        assert!(once(&http(good)).await.is_ok());
        assert!(matches!(once(&http(bad)).await, Err(AskError::Status(s)) if s.contains("503")));
        assert!(once(&Probe::Tcp { addr: bad }).await.is_ok());
    }
}
