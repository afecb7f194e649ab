//! etcd's maintenance calls, by its own HTTP gateway (`/v3/maintenance/…`), with the API server's certificate.

use crate::components::Layout;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use hpk_layout::pki;
use http_body_util::BodyExt;
use kube::client::Body;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The bytes of SHA-256 that etcd appends to a snapshot.
const DIGEST: usize = 32;
/// The longest line that is taken, bytes: etcd sends 32 KiB at a time.
const LINE: usize = 1 << 20;

/// A client of the cluster's etcd.
pub(super) struct Etcd(kube::Client);

/// One line of the stream.
#[derive(Deserialize)]
struct Line {
    result: Option<Part>,
    error: Option<serde_json::Value>,
}

/// A piece of the snapshot, as base64.
#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    blob: String,
}

impl Etcd {
    /// # Errors
    /// A certificate of ours is missing or damaged.
    pub(super) fn new(layout: &Layout) -> Result<Self> {
        let folder = layout.home.pki();
        let ca = pki::certificate(&folder, pki::ETCD_CA);
        let ca = CertificateDer::from_pem_file(&ca).with_context(|| ca.display().to_string())?;
        let url = format!("https://127.0.0.1:{}", layout.control_plane.ports.etcd);
        let mut config = kube::Config::new(url.parse()?);
        config.root_cert = Some(vec![ca.to_vec()]);
        let text = |path: PathBuf| Some(path.display().to_string());
        config.auth_info.client_certificate = text(pki::certificate(&folder, pki::APISERVER_ETCD_CLIENT));
        config.auth_info.client_key = text(pki::key(&folder, pki::APISERVER_ETCD_CLIENT));
        Ok(Self(kube::Client::try_from(config)?))
    }

    /// Writes a snapshot of all data to `path`, which must not be there: mode 0600, on disk when this returns. How many bytes
    /// it has.
    ///
    /// # Errors
    /// etcd's, the file system's, or what came is not what etcd sent.
    pub(super) async fn snapshot(&self, path: &Path) -> Result<u64> {
        let request = http::Request::post("/v3/maintenance/snapshot").body(Body::from(b"{}".to_vec()))?;
        let response = self.0.send(request).await.context("asking etcd for a snapshot")?;
        ensure!(response.status().is_success(), "etcd answers {} when asked for a snapshot", response.status());
        let at = || path.display().to_string();
        let file = File::options().write(true).create_new(true).mode(0o600).open(path).with_context(at)?;
        let mut checked = Checked { file, digest: Sha256::new(), tail: VecDeque::new(), written: 0 };
        let mut body = response.into_body();
        let mut line = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("etcd's snapshot was cut off")?.into_data() else { continue };
            for piece in data.split_inclusive(|byte| *byte == b'\n') {
                ensure!(line.len() + piece.len() <= LINE, "etcd's snapshot has a line of more than {LINE} bytes");
                line.extend_from_slice(piece);
                if line.ends_with(b"\n") {
                    checked.take(&line).with_context(at)?;
                    line.clear();
                }
            }
        }
        if !line.is_empty() {
            checked.take(&line).with_context(at)?;
        }
        checked.finish().with_context(at)
    }
}

/// A file that is written while its digest, its own last bytes, is checked.
struct Checked {
    file: File,
    digest: Sha256,
    /// What may be the digest.
    tail: VecDeque<u8>,
    written: u64,
}

impl Checked {
    fn take(&mut self, line: &[u8]) -> Result<()> {
        let line: Line = serde_json::from_slice(line).context("etcd's answer is no snapshot")?;
        if let Some(error) = line.error {
            bail!("etcd made no snapshot: {error}");
        }
        let Some(part) = line.result else { return Ok(()) };
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(part.blob).context("etcd's answer is no snapshot")?;
        self.file.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        self.tail.extend(&bytes);
        let surplus = self.tail.len().saturating_sub(DIGEST);
        let sure: Vec<u8> = self.tail.drain(..surplus).collect();
        self.digest.update(&sure);
        Ok(())
    }

    fn finish(self) -> Result<u64> {
        self.file.sync_all()?;
        let digest: Vec<u8> = self.digest.finalize().to_vec();
        ensure!(self.tail == digest, "the snapshot's own digest does not match: it was not received whole");
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(parts: &[&[u8]]) -> Result<u64> {
        let file = tempfile::tempfile().unwrap();
        let mut checked = Checked { file, digest: Sha256::new(), tail: VecDeque::new(), written: 0 };
        for part in parts {
            let blob = base64::engine::general_purpose::STANDARD.encode(part);
            checked
                .take(serde_json::json!({"result": {"remaining_bytes": "1", "blob": blob}}).to_string().as_bytes())?;
        }
        checked.finish()
    }

    #[test]
    fn a_snapshot_is_whole_or_refused() {
        let digest = Sha256::digest(b"all of it").to_vec();
        let (first, last) = digest.split_at(5);
        assert_eq!(checked(&[b"all ", b"of it", &digest]).unwrap(), 9 + 32);
        assert_eq!(checked(&[b"all of", &[b" it", first].concat(), last]).unwrap(), 9 + 32);
        for cut in [&[&b"all of it"[..]][..], &[b"all of", &digest], &[b"all of it", first], &[]] {
            assert!(checked(cut).unwrap_err().to_string().contains("digest"), "{cut:?}");
        }
    }

    #[test]
    fn what_etcd_says_against_it_is_passed_on() {
        let file = tempfile::tempfile().unwrap();
        let mut checked = Checked { file, digest: Sha256::new(), tail: VecDeque::new(), written: 0 };
        let said = checked.take(br#"{"error":{"code":7,"message":"permission denied"}}"#).unwrap_err().to_string();
        assert!(said.contains("permission denied"), "{said}");
        assert!(checked.take(b"<html>").is_err());
    }
}
