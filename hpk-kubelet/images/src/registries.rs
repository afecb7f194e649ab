//! `HPK_HOME/registries.json`: which registries may be spoken to without TLS, and whom to trust.
//!
//! ```json
//! {"insecure": ["login:5000"], "ca_files": ["/home/me/site-ca.pem"]}
//! ```
//! A registry is asked over https. Plain http is tried second, and only when the registry is listed under
//! `insecure`, or when there are no credentials for it and it is `localhost` or every address its name resolves to is
//! loopback or private (RFC 1918, RFC 4193): an HPC site's own registry. Credentials go out in the clear to
//! registries under `insecure` alone, and whoever makes TLS fail cannot answer in the place of a registry that has some.

use crate::conf::{ConfFiles, Place};
use crate::error::SourceError;
use serde::Deserialize;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Settings for registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    /// `host[:port]` that may be asked over plain http.
    #[serde(default)]
    pub insecure: Vec<String>,
    /// PEM files with certificates to trust beside the system's.
    #[serde(default)]
    pub ca_files: Vec<PathBuf>,
    /// Mirrors, short names and more, as Podman has them.
    #[serde(skip)]
    pub conf: ConfFiles,
}

/// `registries.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// It exists but cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {source}; expected {{\"insecure\": [\"host:port\"], \"ca_files\": [\"/path.pem\"]}}")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// How to speak to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
}

impl Registries {
    /// Reads the file; the defaults when there is none. What Podman has is read at each pull.
    ///
    /// # Errors
    /// When it exists and is unusable.
    pub fn load(path: &Path) -> Result<Self, RegistriesError> {
        let own: Self = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| RegistriesError::Parse { path: path.to_owned(), source })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(source) => return Err(RegistriesError::Read { path: path.to_owned(), source }),
        };
        Ok(Self { conf: ConfFiles::of_user(|name| std::env::var(name).ok()), ..own })
    }

    fn is_insecure(&self, place: &Place) -> bool {
        place.insecure || self.insecure.iter().any(|listed| listed == place.at.resolve_registry())
    }

    /// Schemes to try, in order.
    pub(crate) async fn schemes(&self, place: &Place, has_credentials: bool) -> Vec<Scheme> {
        if self.is_insecure(place) || (!has_credentials && is_near(place.at.resolve_registry()).await) {
            vec![Scheme::Https, Scheme::Http]
        } else {
            vec![Scheme::Https]
        }
    }
}

impl Registries {
    /// Refuses a registry at an address where none is but what a node asks about itself (link-local: the metadata of
    /// clouds), or that is no host's; whoever may create pods names registries, and the login node is who asks them. Those
    /// under `insecure` are the owner's choice.
    ///
    /// # Errors
    /// The address.
    pub(crate) async fn check_place(&self, place: &Place) -> Result<(), SourceError> {
        if self.is_insecure(place) {
            return Ok(());
        }
        self.check_host(place.at.resolve_registry()).await
    }

    async fn check_host(&self, registry: &str) -> Result<(), SourceError> {
        if self.insecure.iter().any(|listed| listed == registry) {
            return Ok(());
        }
        match addresses(registry).await.into_iter().find(|ip| is_nobodys(*ip)) {
            None => Ok(()),
            Some(ip) => Err(SourceError::Forbidden(format!(
                "{registry} is at {ip}, which is no place for a registry (link-local, multicast or unspecified); if it is \
                 one, list {registry:?} under \"insecure\" in HPK_HOME/registries.json"
            ))),
        }
    }
}

async fn addresses(registry: &str) -> Vec<IpAddr> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().unwrap_or(443)),
        None => (registry, 443),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(_) => Vec::new(),
    }
}

fn is_nobodys(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast(),
        // fd00:ec2::254: the metadata of one cloud.
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

/// Whether every address of a registry is one that never leaves the site.
async fn is_near(registry: &str) -> bool {
    if registry.rsplit_once(':').map_or(registry, |(host, _)| host) == "localhost" {
        return true;
    }
    let addresses = addresses(registry).await;
    !addresses.is_empty() && addresses.into_iter().all(is_private)
}

fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(registry: &str) -> Place {
        let name = oci_client::Reference::try_from(format!("{registry}/x:1")).unwrap();
        Place { at: name.clone(), name, insecure: false }
    }

    #[tokio::test]
    async fn plain_http_is_for_listed_and_near_registries_only() {
        let listed = Registries { insecure: vec!["203.0.113.9:5000".to_owned()], ..Registries::default() };
        let both = [Scheme::Https, Scheme::Http];
        for near in ["localhost", "localhost:5000", "127.0.0.1:1", "10.77.0.1:5000", "192.168.1.1", "203.0.113.9:5000"]
        {
            assert_eq!(listed.schemes(&at(near), false).await, both, "{near}");
            let with_credentials = if near.starts_with("203") { &both[..] } else { &both[..1] };
            assert_eq!(listed.schemes(&at(near), true).await, with_credentials, "{near}");
        }
        for far in ["203.0.113.9", "8.8.8.8:5000", "172.32.0.1", "does-not-exist.invalid"] {
            assert_eq!(listed.schemes(&at(far), false).await, [Scheme::Https], "{far}");
            let insecure = Place { insecure: true, ..at(far) };
            assert_eq!(listed.schemes(&insecure, true).await, both, "{far}");
        }
    }

    #[tokio::test]
    async fn nobodys_addresses_are_no_registries_unless_listed() {
        let listed = Registries { insecure: vec!["169.254.1.1:5000".to_owned()], ..Registries::default() };
        for bad in ["169.254.169.254", "169.254.169.254:80", "0.0.0.0:5000", "0.1.2.3", "224.0.0.1", "255.255.255.255"]
        {
            assert!(listed.check_host(bad).await.unwrap_err().to_string().contains(bad.split(':').next().unwrap()));
        }
        for bad in ["fe80::1", "::", "ff02::1", "fd00:ec2::254", "::ffff:169.254.169.254"] {
            assert!(listed.check_host(&format!("[{bad}]:5000")).await.is_err(), "{bad}");
        }
        for good in ["169.254.1.1:5000", "127.0.0.1:5000", "10.0.0.1", "[fd00::1]:5000", "does-not-exist.invalid"] {
            listed.check_host(good).await.unwrap();
        }
    }

    #[test]
    fn the_file_is_optional_but_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.json");
        assert_eq!(Registries::load(&path).unwrap().insecure, Registries::default().insecure);
        std::fs::write(&path, r#"{"insecure":["a:1"]}"#).unwrap();
        assert_eq!(Registries::load(&path).unwrap().insecure, ["a:1"]);
        std::fs::write(&path, r#"{"insecur":["a:1"]}"#).unwrap();
        assert!(Registries::load(&path).unwrap_err().to_string().contains("insecur"));
    }
}
