//! The link's own certificate authority: made once, kept in two files, known to nobody else.
//!
//! It signs one certificate for the kubelet and one for each pod, both for days. What revokes a pod's certificate sooner
//! is [`crate::grants`], which knows the one that is valid.

use crate::{SERVER_NAME, is_uid, link_name};
use hpk_api::link::LinkCredentials;
use hpk_layout::pki;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// How long a pod's certificate and the kubelet's own live.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A certificate with less than this left is renewed. Half of its life: a kubelet that is away over a long weekend renews
/// in time.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(84);
/// How long a new authority lives.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 366 * 24);
/// How much the clocks of two nodes may differ.
const CLOCKS: SignedDuration = SignedDuration::from_hours(24);

/// Why there is no authority or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Certificates could not be made or their key not be read.
    #[error(
        "link certificates: {0}; remove link-ca.key and link-ca.crt to start afresh (running pods then lose their link)"
    )]
    Certificate(#[from] rcgen::Error),
    /// Not a UID.
    #[error("pod UID {uid:?}: must be 1 to 63 lower-case letters, digits or dashes")]
    BadUid {
        /// What was given.
        uid: String,
    },
    /// The clock says a time that no certificate can hold.
    #[error("link certificates: the clock says {now}: set it")]
    Clock {
        /// What it says.
        now: Timestamp,
    },
    /// The task that issues is gone: the kubelet ends.
    #[error("link certificates: the kubelet is ending")]
    Ending,
}

pub struct LinkCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for LinkCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkCa(…)")
    }
}

impl LinkCa {
    /// Reads the authority from `folder` (`HPK_HOME/pki`), or makes and keeps a new one, both files 0600.
    ///
    /// # Errors
    /// Files that cannot be read or written, or hold no usable key.
    pub fn load_or_create(folder: &Path) -> Result<Self, PkiError> {
        let (key_path, certificate_path) = (pki::key(folder, pki::LINK_CA), pki::certificate(folder, pki::LINK_CA));
        if let Some(key) = read(&key_path)? {
            let key = KeyPair::from_pem(&key)?;
            // The key is written first: without a certificate, the making was interrupted in between.
            let certificate = match read(&certificate_path)? {
                Some(certificate) => certificate,
                None => Self::certify(&key, &certificate_path)?,
            };
            return Ok(Self { issuer: Issuer::new(authority(), key), certificate });
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| PkiError::Io { path: folder.to_path_buf(), source })?;
        let key = KeyPair::generate()?;
        write(&key_path, &key.serialize_pem())?;
        let certificate = Self::certify(&key, &certificate_path)?;
        Ok(Self { issuer: Issuer::new(authority(), key), certificate })
    }

    fn certify(key: &KeyPair, path: &Path) -> Result<String, PkiError> {
        let mut params = authority();
        live(&mut params, Timestamp::now(), AUTHORITY_LIFE)?;
        let certificate = params.self_signed(key)?.pem();
        write(path, &certificate)?;
        Ok(certificate)
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Credentials for one pod, or the control plane's member, that dials `address`.
    ///
    /// # Errors
    /// A UID that is none.
    pub fn issue(&self, uid: &str, address: SocketAddr, now: Timestamp) -> Result<LinkCredentials, PkiError> {
        if !is_uid(uid) {
            return Err(PkiError::BadUid { uid: uid.to_owned() });
        }
        let (cert, key) = self.leaf(uid, link_name(uid), ExtendedKeyUsagePurpose::ClientAuth, now)?;
        Ok(LinkCredentials {
            address,
            server_name: SERVER_NAME.to_owned(),
            ca: self.certificate.clone(),
            cert,
            key,
            expires_at: Some(end(now)?),
        })
    }

    /// The kubelet's certificate and key, PEM, and the certificate's end; made anew at each start.
    ///
    /// # Errors
    /// The signing itself.
    pub fn server(&self, now: Timestamp) -> Result<(String, String, Timestamp), PkiError> {
        let (cert, key) = self.leaf("hpk-kubelet", SERVER_NAME.to_owned(), ExtendedKeyUsagePurpose::ServerAuth, now)?;
        Ok((cert, key, end(now)?))
    }

    fn leaf(
        &self,
        common_name: &str,
        name: String,
        usage: ExtendedKeyUsagePurpose,
        now: Timestamp,
    ) -> Result<(String, String), PkiError> {
        let mut params = CertificateParams::new(vec![name])?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        live(&mut params, now, LEAF_LIFE)?;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

/// Whether a certificate with this end has half of its life before it. None: its issuer set no end.
pub(crate) fn is_fresh(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    // One from the future was made by a clock that has been set back since, and may not be valid yet.
    expires_at.is_some_and(|end| (RENEW_BEFORE..=LEAF_LIFE).contains(&now.duration_until(end)))
}

fn end(now: Timestamp) -> Result<Timestamp, PkiError> {
    now.checked_add(LEAF_LIFE).map_err(|_| PkiError::Clock { now })
}

/// Valid for `life` from now on, and a little before: a node's clock may be behind.
fn live(params: &mut CertificateParams, now: Timestamp, life: SignedDuration) -> Result<(), PkiError> {
    let at = |moment: SignedDuration| {
        let seconds = now.as_second().saturating_add(moment.as_secs());
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| PkiError::Clock { now })
    };
    (params.not_before, params.not_after) = (at(-CLOCKS)?, at(life)?);
    Ok(())
}

/// The same parameters each time: the issuer's name and key identifier are all that leaf certificates refer to.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "hpk-link");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io { path: path.to_path_buf(), source }),
    }
}

/// For its owner alone.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    hpk_layout::replace(path, text.as_bytes(), 0o600)
        .map_err(|source| PkiError::Io { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn kept_private_and_read_again() {
        let tmp = tempfile::tempdir().unwrap();
        let folder = tmp.path().join("pki");
        let first = LinkCa::load_or_create(&folder).unwrap();
        for file in [pki::key(&folder, pki::LINK_CA), pki::certificate(&folder, pki::LINK_CA)] {
            assert_eq!(folder.join(file).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = LinkCa::load_or_create(&folder).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        // Made by the key alone, when the certificate was never written.
        std::fs::remove_file(pki::certificate(&folder, pki::LINK_CA)).unwrap();
        assert!(LinkCa::load_or_create(&folder).unwrap().certificate().starts_with("-----BEGIN"));
    }

    #[test]
    fn only_uids_get_credentials() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = LinkCa::load_or_create(tmp.path()).unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        for bad in ["", "a.b", "A", "-a", "a*", &"a".repeat(64)] {
            assert!(matches!(ca.issue(bad, address, Timestamp::now()), Err(PkiError::BadUid { .. })), "{bad:?}");
        }
        assert!(ca.issue("0f3c-11", address, Timestamp::now()).is_ok());
    }

    #[test]
    fn credentials_live_for_days_and_are_renewed_at_half() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = LinkCa::load_or_create(tmp.path()).unwrap();
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let hours = |n: i64| now + SignedDuration::from_hours(n);
        let credentials = ca.issue("u", "127.0.0.1:1".parse().unwrap(), now).unwrap();
        assert_eq!(credentials.expires_at, Some(hours(7 * 24)));
        let fresh = |at| is_fresh(credentials.expires_at, at);
        assert_eq!([0, 83, 84, 85, 7 * 24, 9000].map(|n| fresh(hours(n))), [true, true, true, false, false, false]);
        assert!(!fresh(hours(-1)), "issued by a clock that was wrong");
        assert!(!is_fresh(None, now), "of a kubelet that set no end");
    }
}
