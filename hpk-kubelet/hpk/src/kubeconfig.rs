//! kubeconfig files. Pure: text from data.
//!
//! Certificates and keys are embedded, so that a file can be used from anywhere the user can read it.

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{KeyPair, PublicKeyData};

/// What goes into one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kubeconfig<'a> {
    /// `https://host:port`
    pub server: &'a str,
    /// Name of the cluster and of the context.
    pub cluster: &'a str,
    /// Name of the user entry.
    pub user: &'a str,
    /// PEM.
    pub ca: &'a [u8],
    /// PEM.
    pub cert: &'a [u8],
    /// PEM.
    pub key: &'a [u8],
}

impl Kubeconfig<'_> {
    /// As YAML. Names are quoted as JSON strings, which YAML 1.2 contains.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let quote = |s: &str| serde_json::Value::from(s).to_string();
        let (cluster, user, server) = (quote(self.cluster), quote(self.user), quote(self.server));
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: {cluster}\n\
             clusters:\n\
             - name: {cluster}\n\
             \x20 cluster:\n\
             \x20   server: {server}\n\
             \x20   certificate-authority-data: {ca}\n\
             contexts:\n\
             - name: {cluster}\n\
             \x20 context:\n\
             \x20   cluster: {cluster}\n\
             \x20   user: {user}\n\
             users:\n\
             - name: {user}\n\
             \x20 user:\n\
             \x20   client-certificate-data: {cert}\n\
             \x20   client-key-data: {key}\n",
            ca = STANDARD.encode(self.ca),
            cert = STANDARD.encode(self.cert),
            key = STANDARD.encode(self.key),
        )
    }
}

/// A P-256 key as `EC PRIVATE KEY` (SEC 1, RFC 5915): clients for Java read no elliptic key in PKCS #8. None: it is no such
/// key.
#[must_use]
pub(crate) fn sec1(key: &KeyPair) -> Option<String> {
    // Of RFC 5915: version 1, then 32 octets of the key.
    const BEGIN: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    // The parameters: curve prime256v1.
    const CURVE: [u8; 12] = [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    // The public key: 65 octets in a bit string.
    const PUBLIC: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
    let pkcs8 = key.serialized_der();
    let at = pkcs8.windows(BEGIN.len()).position(|w| w == BEGIN)? + BEGIN.len();
    let (secret, public) = (pkcs8.get(at..at + 32)?, key.der_bytes());
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 || public.len() != 65 {
        return None;
    }
    let body = [&BEGIN[..], secret, &CURVE, &PUBLIC, public].concat();
    let der = [&[0x30, u8::try_from(body.len()).ok()?], &body[..]].concat();
    let text = STANDARD.encode(der);
    let mut pem = "-----BEGIN EC PRIVATE KEY-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END EC PRIVATE KEY-----\n");
    Some(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_in_the_older_form() {
        use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
        let key = KeyPair::generate().unwrap();
        let pem = sec1(&key).unwrap();
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert!(matches!(der, PrivateKeyDer::Sec1(_)), "{pem}");
        assert!(pem.lines().all(|l| l.len() <= 64), "{pem}");
        // Another reader finds the same public key in it.
        let read = rustls::crypto::ring::sign::any_ecdsa_type(&der).unwrap();
        let public = read.public_key().unwrap();
        assert!(public.as_ref().ends_with(key.der_bytes()), "{pem}");
    }

    #[test]
    fn kubernetes_own_reader_understands_it() {
        let text = Kubeconfig {
            server: "https://10.77.0.1:6443",
            cluster: "hpk-my: \"site\"",
            user: "system:node:x",
            ca: b"CA",
            cert: b"CRT",
            key: b"KEY",
        }
        .render();
        let read = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("hpk-my: \"site\""));
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.77.0.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        assert_eq!(read.auth_infos[0].auth_info.as_ref().unwrap().client_certificate_data.as_deref(), Some("Q1JU"));
        assert_eq!(read.contexts[0].context.as_ref().unwrap().user.as_deref(), Some("system:node:x"));
    }
}
