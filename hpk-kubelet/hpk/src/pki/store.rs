//! Makes and renews the files of [`super::spec`].
//!
//! `index.json` beside them says how each was made; a certificate is made again when its entry differs from
//! what is wanted now (another address of the login node, say), when its file is gone, or when less than
//! [`RENEW_BEFORE`] of its life is left. Authorities are made once: a new one would cut off all clients.

use super::spec::{Authority, Leaf, Usage};
use crate::home::{HomeError, replace_file};
use hpk_layout::pki as names;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Life of an authority.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of a certificate.
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Renewed by the first `hpk up` in the last half year of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(180 * 24 * 3600);

/// Why keys or certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    /// From the library.
    #[error("making certificate {name}: {source}")]
    Make {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    /// From the file system.
    #[error(transparent)]
    File(#[from] HomeError),
    /// A key file is unreadable.
    #[error("{}: {source}: restore it, or remove the folder {} to make new keys (every kubeconfig handed out becomes void)", path.display(), path.parent().unwrap_or(path).display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A key that cannot be made again without loss.
    #[error("{} is damaged ({why}): restore it, or remove the folder {} to make new keys (every kubeconfig handed out becomes void)", path.display(), path.parent().unwrap_or(path).display())]
    Damaged { path: PathBuf, why: String },
    /// An authority's life ends soon.
    #[error("the certificate authority {} has expired or ends within {} days: remove the folder that holds it and run hpk up to make new keys", path.display(), LEAF_LIFE.as_secs() / DAY.as_secs())]
    AuthorityEnds { path: PathBuf },
}

/// How a file was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    /// Seconds since the epoch.
    not_after: u64,
    /// None: an authority.
    leaf: Option<Leaf>,
}

type Index = BTreeMap<String, Made>;

/// What [`ensure`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ensured {
    /// File names (without extension) made in this call.
    pub made: Vec<String>,
    /// First end of a certificate, seconds since the epoch.
    pub first_end: u64,
}

/// Makes whatever is missing, different or near its end in `dir`.
///
/// # Errors
/// See [`PkiError`]; what was made before stays.
pub(crate) fn ensure(dir: &Path, leaves: &[Leaf], now: SystemTime) -> Result<Ensured, PkiError> {
    let index_path = names::index(dir);
    // An unreadable index costs new certificates, not new authorities.
    let mut index: Index =
        std::fs::read(&index_path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    let mut made = Vec::new();

    for authority in Authority::ALL {
        let name = authority.file();
        let crt = names::certificate(dir, name);
        if crt.exists() && names::key(dir, name).exists() {
            let ends = index.get(name).map_or(u64::MAX, |m| m.not_after);
            if ends < seconds(now + LEAF_LIFE) {
                return Err(PkiError::AuthorityEnds { path: crt });
            }
            let key = need_key(&names::key(dir, name))?;
            if !certifies(&crt, &key) {
                // An authority is its name and its key; what it signed stays good.
                let fail = |source| PkiError::Make { name: name.into(), source };
                let not_after = index
                    .get(name)
                    .map_or(now + CA_LIFE, |m| SystemTime::UNIX_EPOCH + Duration::from_secs(m.not_after));
                let cert = authority_params(authority, now, not_after).self_signed(&key).map_err(fail)?;
                replace_file(&crt, cert.pem().as_bytes())?;
                made.push(name.into());
            }
            continue;
        }
        let fail = |source| PkiError::Make { name: name.into(), source };
        let key = KeyPair::generate().map_err(fail)?;
        let not_after = now + CA_LIFE;
        let params = authority_params(authority, now, not_after);
        let cert = params.self_signed(&key).map_err(fail)?;
        write_pair(dir, name, &cert.pem(), &key)?;
        // What a former authority signed is void.
        index.retain(|_, m| m.leaf.as_ref().is_none_or(|l| l.authority != authority));
        index.insert(name.into(), Made { not_after: seconds(not_after), leaf: None });
        made.push(name.into());
    }

    for leaf in leaves {
        let key = std::fs::read_to_string(names::key(dir, &leaf.file)).ok();
        let key = key.and_then(|pem| KeyPair::from_pem(&pem).ok());
        let whole = key.is_some_and(|key| certifies(&names::certificate(dir, &leaf.file), &key));
        if whole && index.get(&leaf.file).is_some_and(|m| still_good(m, leaf, now)) {
            continue;
        }
        let not_after = now + LEAF_LIFE;
        make_leaf(dir, leaf, now, not_after)?;
        index.insert(leaf.file.clone(), Made { not_after: seconds(not_after), leaf: Some(leaf.clone()) });
        made.push(leaf.file.clone());
    }

    // The key that signs service account tokens; the API server wants the public half in a file of its own.
    let (key_path, public_path) =
        (names::key(dir, names::SERVICE_ACCOUNTS), names::public_key(dir, names::SERVICE_ACCOUNTS));
    let key = if key_path.exists() {
        need_key(&key_path)?
    } else {
        let key = KeyPair::generate().map_err(|source| PkiError::Make { name: "sa".into(), source })?;
        replace_file(&key_path, key.serialize_pem().as_bytes())?;
        key
    };
    let public = key.public_key_pem();
    if std::fs::read_to_string(&public_path).ok().as_ref() != Some(&public) {
        replace_file(&public_path, public.as_bytes())?;
        made.push("sa".into());
    }

    if !made.is_empty() {
        let json = serde_json::to_vec_pretty(&index).unwrap_or_default();
        replace_file(&index_path, &json)?;
    }
    let first_end = index.values().map(|m| m.not_after).min().unwrap_or(0);
    Ok(Ensured { made, first_end })
}

/// A key that is there.
fn need_key(path: &Path) -> Result<KeyPair, PkiError> {
    let pem = std::fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source })?;
    KeyPair::from_pem(&pem).map_err(|e| PkiError::Damaged { path: path.to_owned(), why: e.to_string() })
}

/// Whether the file holds a certificate of this key. (Its key is in it as it is; what else it says, the index tells.)
fn certifies(path: &Path, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(path) else { return false };
    let public = key.der_bytes();
    der.windows(public.len()).any(|w| w == public)
}

/// Whether a certificate made so can stay.
fn still_good(made: &Made, wanted: &Leaf, now: SystemTime) -> bool {
    made.leaf.as_ref() == Some(wanted) && made.not_after > seconds(now + RENEW_BEFORE)
}

fn make_leaf(dir: &Path, leaf: &Leaf, now: SystemTime, not_after: SystemTime) -> Result<(), PkiError> {
    let fail = |source| PkiError::Make { name: leaf.file.clone(), source };
    let ca_key = need_key(&names::key(dir, leaf.authority.file()))?;
    // An issuer is its name and its key; both are those the authority's certificate was made with.
    let issuer = Issuer::new(authority_params(leaf.authority, now, not_after), ca_key);

    let mut params = CertificateParams::default();
    params.distinguished_name = name(&leaf.common_name, &leaf.groups);
    params.not_before = backdated(now);
    params.not_after = offset(not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    for dns in &leaf.dns {
        params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into().map_err(fail)?));
    }
    params.subject_alt_names.extend(leaf.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    let key = KeyPair::generate().map_err(fail)?;
    let cert = params.signed_by(&key, &issuer).map_err(fail)?;
    write_pair(dir, &leaf.file, &cert.pem(), &key)
}

fn authority_params(authority: Authority, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(authority.common_name(), &[]);
    // It signs for programs and users; nobody whom it signed for may sign in its name.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = backdated(now);
    params.not_after = offset(not_after);
    params
}

fn name(common_name: &str, groups: &[String]) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    for group in groups {
        dn.push(DnType::OrganizationName, group.as_str());
    }
    dn.push(DnType::CommonName, common_name);
    dn
}

fn write_pair(dir: &Path, name: &str, cert: &str, key: &KeyPair) -> Result<(), PkiError> {
    replace_file(&names::key(dir, name), key.serialize_pem().as_bytes())?;
    replace_file(&names::certificate(dir, name), cert.as_bytes())?;
    Ok(())
}

fn seconds(t: SystemTime) -> u64 {
    t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn offset(t: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(t)
}

/// A compute node's clock may be behind the login node's.
fn backdated(now: SystemTime) -> OffsetDateTime {
    offset(now - Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Subject, leaves};
    use super::*;

    fn wanted(ip: &str) -> Vec<Leaf> {
        leaves(&Subject {
            node_name: "hpk-site",
            node_ip: ip.parse().unwrap(),
            hostname: "login",
            apiserver_service_ip: "10.96.0.1".parse().unwrap(),
            domain: "cluster.local",
        })
    }

    #[test]
    fn made_once_then_left_alone_then_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = ensure(dir.path(), &wanted("10.0.0.1"), now).unwrap();
        assert_eq!(first.made.len(), 3 + wanted("10.0.0.1").len() + 1);
        let key = std::fs::read(dir.path().join("ca.key")).unwrap();

        assert_eq!(ensure(dir.path(), &wanted("10.0.0.1"), now).unwrap().made, Vec::<String>::new());

        // Another address: only what carries it.
        assert_eq!(ensure(dir.path(), &wanted("10.0.0.2"), now).unwrap().made, ["apiserver", "kubelet-server"]);

        // Near the end: all but the authorities and the token key.
        let later = ensure(dir.path(), &wanted("10.0.0.2"), now + LEAF_LIFE - 100 * DAY).unwrap();
        assert_eq!(later.made.len(), wanted("10.0.0.2").len());
        assert_eq!(std::fs::read(dir.path().join("ca.key")).unwrap(), key);

        // A lost certificate alone is made again.
        std::fs::remove_file(dir.path().join("etcd.crt")).unwrap();
        let soon = now + LEAF_LIFE - 100 * DAY;
        assert_eq!(ensure(dir.path(), &wanted("10.0.0.2"), soon).unwrap().made, ["etcd"]);

        // A lost authority takes with it what it signed, and nothing else.
        std::fs::remove_file(dir.path().join("front-proxy-ca.key")).unwrap();
        assert_eq!(
            ensure(dir.path(), &wanted("10.0.0.2"), soon).unwrap().made,
            ["front-proxy-ca", "front-proxy-client"]
        );
    }

    #[test]
    fn what_is_damaged_is_made_again_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let (now, leaves) = (SystemTime::now(), wanted("10.0.0.1"));
        ensure(dir.path(), &leaves, now).unwrap();
        let file = |name: &str| dir.path().join(name);
        let empty = |name: &str| std::fs::write(file(name), "").unwrap();
        let made = || ensure(dir.path(), &leaves, now).unwrap().made;
        for (name, again) in [("etcd.crt", "etcd"), ("admin.key", "admin"), ("ca.crt", "ca"), ("sa.pub", "sa")] {
            empty(name);
            assert_eq!(made(), [again], "{name}");
            assert_eq!(made(), Vec::<String>::new(), "{name}");
        }
        // A certificate of another key.
        std::fs::copy(file("scheduler.crt"), file("kubelet.crt")).unwrap();
        assert_eq!(made(), ["kubelet"]);
        // These cannot be made again: the right one is named.
        for name in ["etcd-ca.key", "sa.key"] {
            let whole = std::fs::read(file(name)).unwrap();
            empty(name);
            let refused = ensure(dir.path(), &leaves, now).unwrap_err().to_string();
            assert!(refused.contains(&format!("{} is damaged", file(name).display())), "{refused}");
            std::fs::write(file(name), whole).unwrap();
        }
        assert_eq!(made(), Vec::<String>::new());
    }

    #[test]
    fn an_ending_authority_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        ensure(dir.path(), &wanted("10.0.0.1"), now).unwrap();
        let end = now + CA_LIFE - 10 * DAY;
        assert!(matches!(ensure(dir.path(), &wanted("10.0.0.1"), end), Err(PkiError::AuthorityEnds { .. })));
    }
}
