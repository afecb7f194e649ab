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
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

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
    File { path: String, message: String },
    /// An answer other than 200.
    #[error("answers {0}")]
    Status(String),
    /// A DNS server without one of the names.
    #[error("no address of {0} yet")]
    Name(String),
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
        // It tells by itself, through its output.
        Probe::Says => std::future::pending().await,
        Probe::Dns { addr, names } => {
            for (name, ip) in names {
                look_up(*addr, name, *ip).await?;
            }
            Ok(())
        }
        Probe::Https { addr, path, credentials } => {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(credentials)?));
            let tcp = TcpStream::connect(addr).await?;
            let tls = connector.connect(ServerName::from(addr.ip()), tcp).await?;
            get(tls, *addr, path).await
        }
    }
}

/// Whether `ip` is what the server knows of `name`.
async fn look_up(server: SocketAddr, name: &str, ip: IpAddr) -> Result<(), AskError> {
    let any: IpAddr = if server.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let query = dns_query(name, ip);
    socket.send(&query).await?;
    let mut answer = [0; 1500];
    let n = socket.recv(&mut answer).await?;
    let answer = answer.get(..n).unwrap_or_default();
    if dns_has(answer, &query, ip) { Ok(()) } else { Err(AskError::Name(name.to_owned())) }
}

/// A question for the address of `name` in the family of `ip` (RFC 1035, 4.1).
fn dns_query(name: &str, ip: IpAddr) -> Vec<u8> {
    // Identifier, recursion desired, one question.
    let mut query = vec![0x4b, 0x50, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(63).min(63));
        query.extend(label.bytes().take(63));
    }
    // The root; A or AAAA; Internet.
    query.extend([0, 0, if ip.is_ipv4() { 1 } else { 28 }, 0, 1]);
    query
}

/// Whether `answer` is one without an error to `query` and ends with a record of `ip`'s octets.
fn dns_has(answer: &[u8], query: &[u8], ip: IpAddr) -> bool {
    let record = match ip {
        IpAddr::V4(ip) => [&[0, 4], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[0, 16], &ip.octets()[..]].concat(),
    };
    let (Some(head), Some(asked)) = (answer.get(..12), query.get(12..)) else { return false };
    let body = answer.get(12..).unwrap_or_default();
    head[..2] == query[..2]
        && head[2] & 0x80 != 0
        && head[3] & 0x0f == 0
        && body.strip_prefix(asked).is_some_and(|rest| rest.windows(record.len()).any(|w| w == record))
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
        let http = async |addr| get(TcpStream::connect(addr).await.unwrap(), addr, "/x").await;
        assert!(http(good).await.is_ok());
        assert!(matches!(http(bad).await, Err(AskError::Status(s)) if s.contains("503")));
    }

    /// Answers every query with `flags`, its question, and one record of these octets.
    async fn dns_server(flags: [u8; 2], octets: Vec<u8>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                let mut answer = buffer[..n].to_vec();
                answer[2..4].copy_from_slice(&flags);
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, u8::try_from(octets.len()).unwrap()]);
                answer.extend(&octets);
                let _ = socket.send_to(&answer, from).await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn only_the_server_that_knows_the_address_is_ours() {
        let ours: IpAddr = "fd00::1234".parse().unwrap();
        let octets = |ip: &str| ip.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
        let probe = |addr| Probe::Dns { addr, names: vec![("x.hpk.internal".into(), ours)] };
        assert!(once(&probe(dns_server([0x85, 0x80], octets("fd00::1234")).await)).await.is_ok());
        for (flags, ip) in [([0x85, 0x80], "fd00::1235"), ([0x85, 0x83], "fd00::1234"), ([0x05, 0x80], "fd00::1234")] {
            let said = once(&probe(dns_server(flags, octets(ip)).await)).await.unwrap_err().to_string();
            assert!(said.contains("x.hpk.internal"), "{flags:?} {ip}: {said}");
        }
    }
}
