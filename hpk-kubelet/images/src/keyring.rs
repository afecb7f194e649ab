//! Registry credentials from imagePullSecrets, matched to images as upstream does
//! (kubernetes pkg/credentialprovider/keyring.go: globs per host label, path prefixes, longest first).

use crate::blobs::digest_of;
use crate::error::json_fault;
use base64::Engine;
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Credentials of one pod, or of one user's `config.json`.
#[derive(Clone, Default)]
pub struct Keyring {
    /// Longest pattern first, so that the most specific is tried first.
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    pattern: Pattern,
    user: String,
    password: String,
}

/// `host[:port][/path]`, host labels may be globs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    text: String,
}

/// A secret that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Not JSON of the expected shape; where, and no word of it.
    #[error("registry credentials are malformed: {0}")]
    Json(String),
    /// `auth` is not base64 of `user:password`.
    #[error("registry credentials for {0}: auth is not base64 of user:password")]
    Auth(String),
}

/// A secret's text must not show in an event.
fn fault(e: serde_json::Error) -> KeyringError {
    KeyringError::Json(json_fault(&e))
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
}

impl Keyring {
    /// Adds a secret of type `kubernetes.io/dockerconfigjson` (key `.dockerconfigjson`) or a `config.json`.
    ///
    /// # Errors
    /// When it cannot be read; the keyring is unchanged then.
    pub fn add_docker_config_json(&mut self, json: &[u8]) -> Result<(), KeyringError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            auths: BTreeMap<String, Login>,
        }
        self.add(serde_json::from_slice::<File>(json).map_err(fault)?.auths)
    }

    /// Adds a secret of type `kubernetes.io/dockercfg` (key `.dockercfg`).
    ///
    /// # Errors
    /// When it cannot be read; the keyring is unchanged then.
    pub fn add_dockercfg(&mut self, json: &[u8]) -> Result<(), KeyringError> {
        self.add(serde_json::from_slice(json).map_err(fault)?)
    }

    fn add(&mut self, logins: BTreeMap<String, Login>) -> Result<(), KeyringError> {
        let mut new = Vec::new();
        for (host, login) in logins {
            let (user, password) = match (login.auth.as_deref().unwrap_or(""), login.username, login.password) {
                ("", Some(user), Some(password)) => (user, password),
                ("", ..) => continue,
                (auth, ..) => decode(auth).ok_or_else(|| KeyringError::Auth(host.clone()))?,
            };
            new.push(Entry { pattern: Pattern::new(&host), user, password });
        }
        self.entries.extend(new);
        self.entries.sort_by(|a, b| b.pattern.cmp(&a.pattern));
        Ok(())
    }

    /// Whether any credentials are known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What to try, in order, for `registry/repository`; the last is always anonymous.
    pub(crate) fn candidates(&self, registry: &str, repository: &str) -> Vec<RegistryAuth> {
        let registry = if registry == "docker.io" { "index.docker.io" } else { registry };
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter(|e| e.pattern.matches(registry, repository))
            .map(|e| RegistryAuth::Basic(e.user.clone(), e.password.clone()))
            .collect();
        found.push(RegistryAuth::Anonymous);
        found
    }
}

/// What shows that somebody may have an image: nothing, or a hash of credentials that its registry has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pass(String);

impl Pass {
    /// Everybody's.
    pub(crate) fn open() -> Self {
        Self(String::new())
    }

    pub(crate) fn of(auth: &RegistryAuth, image: &str) -> Self {
        match auth {
            RegistryAuth::Basic(user, password) => Self(digest_of(format!("{image}\0{user}\0{password}").as_bytes())),
            RegistryAuth::Bearer(token) => Self(digest_of(format!("{image}\0{token}").as_bytes())),
            RegistryAuth::Anonymous => Self::open(),
        }
    }
}

impl Keyring {
    /// Whether one of these passes is among those of this keyring for the image.
    pub(crate) fn has_one_of(&self, passes: &[Pass], reference: &Reference) -> bool {
        let image = reference.whole();
        let candidates = self.candidates(reference.registry(), reference.repository());
        candidates.iter().any(|auth| passes.contains(&Pass::of(auth, &image)))
    }
}

impl std::fmt::Debug for Keyring {
    /// Never shows a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|e| &e.pattern.text)).finish()
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    // Some tools pad the password with NULs.
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

impl Pattern {
    fn new(key: &str) -> Self {
        let text = key.trim_start_matches("https://").trim_start_matches("http://");
        let text = text.trim_end_matches('/');
        // Docker Hub's historic key; `/v1/` and `/v2/` of other hosts are API versions too.
        let text = text.strip_suffix("/v1").or_else(|| text.strip_suffix("/v2")).unwrap_or(text);
        let text = if text == "docker.io" { "index.docker.io" } else { text };
        Self { text: text.to_owned() }
    }

    fn matches(&self, registry: &str, repository: &str) -> bool {
        let (host, path) = self.text.split_once('/').unwrap_or((&self.text, ""));
        let host_fits = {
            let (name, port) = split_port(host);
            let (target, target_port) = split_port(registry);
            let labels: Vec<_> = name.split('.').collect();
            let targets: Vec<_> = target.split('.').collect();
            port == target_port
                && labels.len() == targets.len()
                && labels.iter().zip(&targets).all(|(l, t)| glob(l.as_bytes(), t.as_bytes()))
        };
        host_fits && repository.starts_with(path)
    }
}

fn split_port(host: &str) -> (&str, &str) {
    host.rsplit_once(':').unwrap_or((host, ""))
}

/// `*` and `?` within one label.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|n| glob(rest, &text[n..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => glob(rest, tail),
        ([p, rest @ ..], [t, tail @ ..]) => p == t && glob(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(keyring: &Keyring, registry: &str, repository: &str) -> Vec<String> {
        keyring
            .candidates(registry, repository)
            .into_iter()
            .map(|a| match a {
                RegistryAuth::Basic(user, _) => user,
                _ => "-".to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_most_specific_credentials_come_first_and_anonymous_last() {
        let mut keyring = Keyring::default();
        keyring
            .add_docker_config_json(
                br#"{"auths":{"https://index.docker.io/v1/":{"username":"hub","password":"p"},
                "*.example.com":{"auth":"d2lsZDpwOnE="},"reg.example.com/team":{"username":"team","password":"p"},
                "login:5000":{"username":"site","password":"p"},"empty":{}}}"#,
            )
            .unwrap();
        assert_eq!(users(&keyring, "docker.io", "library/busybox"), ["hub", "-"]);
        assert_eq!(users(&keyring, "reg.example.com", "team/app"), ["team", "wild", "-"]);
        assert_eq!(users(&keyring, "reg.example.com", "other/app"), ["wild", "-"]);
        assert_eq!(users(&keyring, "a.b.example.com", "x"), ["-"]);
        assert_eq!(users(&keyring, "login:5000", "x"), ["site", "-"]);
        assert_eq!(users(&keyring, "login:5001", "x"), ["-"]);
    }

    #[test]
    fn passwords_may_hold_colons_and_are_not_shown() {
        let mut keyring = Keyring::default();
        keyring.add_dockercfg(br#"{"h":{"auth":"d2lsZDpwOnE="}}"#).unwrap();
        assert_eq!(keyring.entries[0].password, "p:q");
        assert!(!format!("{keyring:?}").contains("p:q"));
        assert!(matches!(keyring.add_dockercfg(br#"{"h":{"auth":"!!"}}"#), Err(KeyringError::Auth(_))));
        let error = keyring.add_docker_config_json(br#"{"auths": "s3cret"}"#).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("s3cret"), "{error}");
    }
}
