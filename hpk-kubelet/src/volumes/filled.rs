//! Content of the volumes that the kubelet fills: configMap, secret, downwardAPI, projected.

use super::{Ground, Tell};
use crate::render::certificate::{self, CertificateError, CertificateKey};
use crate::render::downward::{self, Facts, FieldError};
use crate::render::sources::{DEFAULT_TOKEN_SECONDS, References, Sources, TokenKey};
use crate::render::trust::{self, TrustError};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Secret, SecretVolumeSource, Volume,
};
use std::collections::BTreeMap;
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// A user of the container; None: its root.
    pub owner: Option<u32>,
}

/// Files by path relative to the volume's root.
pub(crate) type Payload = BTreeMap<String, File>;

/// Why a volume cannot be filled; becomes the message of a `FailedMount` event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum FillError {
    /// A configMap that does not exist.
    #[error("MountVolume.SetUp failed for volume {volume:?} : configmap {name:?} not found")]
    NoConfigMap { volume: String, name: String },
    /// A secret that does not exist.
    #[error("MountVolume.SetUp failed for volume {volume:?} : secret {name:?} not found")]
    NoSecret { volume: String, name: String },
    /// A key that is asked for and not there.
    #[error("MountVolume.SetUp failed for volume {volume:?} : references non-existent {kind} key: {key}")]
    NoKey {
        volume: String,
        /// `config` or `secret`.
        kind: &'static str,
        key: String,
    },
    /// A token that could not be had.
    #[error("MountVolume.SetUp failed for volume {volume:?} : failed to fetch token: {cause}")]
    NoToken { volume: String, cause: String },
    /// A path that leaves the volume.
    #[error(
        "MountVolume.SetUp failed for volume {volume:?} : invalid path {path:?}: must be relative and must not contain '..'"
    )]
    BadPath { volume: String, path: String },
    /// Downward API.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Field { volume: String, cause: FieldError },
    /// Trust anchors.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Trust { volume: String, cause: TrustError },
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Certificate { volume: String, cause: CertificateError },
}

const DEFAULT_MODE: i32 = 0o644;

/// A volume that the kubelet fills.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filled<'a> {
    ConfigMap(&'a ConfigMapVolumeSource),
    Secret(&'a SecretVolumeSource),
    DownwardApi(&'a DownwardAPIVolumeSource),
    Projected(&'a ProjectedVolumeSource),
}

impl<'a> Filled<'a> {
    /// None: the volume is of another kind.
    pub(super) fn of(volume: &'a Volume) -> Option<Self> {
        let config_map = volume.config_map.as_ref().map(Self::ConfigMap);
        let secret = || volume.secret.as_ref().map(Self::Secret);
        let downward = || volume.downward_api.as_ref().map(Self::DownwardApi);
        let projected = || volume.projected.as_ref().map(Self::Projected);
        config_map.or_else(secret).or_else(downward).or_else(projected)
    }

    pub(super) fn references(&self, volume: &str, all: &mut References) {
        match self {
            Self::ConfigMap(source) => {
                all.config_maps.insert(source.name.clone());
            }
            Self::Secret(source) => all.secrets.extend(source.secret_name.clone()),
            Self::DownwardApi(_) => {}
            Self::Projected(source) => projected_references(source, volume, all),
        }
    }

    /// Tells what of it is not carried out.
    pub(super) fn unsupported(&self, field: &dyn Fn(&str) -> String, tell: &mut Tell<'_>) {
        let (kind, asked) = match self {
            Self::ConfigMap(v) => ("configMap", v.default_user.is_some() || any_user(v.items.as_deref())),
            Self::Secret(v) => ("secret", v.default_user.is_some() || any_user(v.items.as_deref())),
            Self::DownwardApi(v) => ("downwardAPI", v.default_user.is_some() || any_file_user(v.items.as_deref())),
            Self::Projected(v) => ("projected", v.default_user.is_some()),
        };
        if asked {
            tell(false, field(&format!("{kind}.defaultUser or user")), FILES_OWNER);
        }
        if let Self::Projected(source) = self {
            unsupported_sources(source, field, tell);
        }
    }

    /// The files of the volume.
    ///
    /// # Errors
    /// The first reference that cannot be resolved.
    pub(super) fn payload(&self, volume: &str, ground: Ground<'_>) -> Result<Payload, FillError> {
        let Ground { pod, user, sources, facts, .. } = ground;
        let mut filler = Filler { pod, user, volume, sources, facts, payload: Payload::new() };
        match self {
            Self::ConfigMap(v) => {
                filler.config_map(&v.name, Wanted::of(v.items.as_deref(), mode(v.default_mode), v.optional))
            }
            Self::Secret(v) => {
                let name = v.secret_name.as_deref().unwrap_or_default();
                filler.secret(name, Wanted::of(v.items.as_deref(), mode(v.default_mode), v.optional))
            }
            Self::DownwardApi(v) => filler.downward(v.items.as_deref().unwrap_or_default(), mode(v.default_mode)),
            Self::Projected(v) => filler.projected(v),
        }?;
        let mut payload = filler.payload;
        if fs_group(pod).is_some() {
            // As upstream's SetVolumeOwnership for a read-only volume.
            payload.values_mut().for_each(|file| file.mode |= 0o440);
        }
        Ok(payload)
    }
}

fn fs_group(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}

fn projected_references(projected: &ProjectedVolumeSource, volume: &str, all: &mut References) {
    for (source, projection) in projected.sources.iter().flatten().enumerate() {
        all.certificates.extend(projection.pod_certificate.iter().map(|c| {
            let key = CertificateKey { volume: volume.to_owned(), source };
            (key, c.clone())
        }));
        all.config_maps.extend(projection.config_map.iter().map(|v| v.name.clone()));
        all.secrets.extend(projection.secret.iter().map(|v| v.name.clone()));
        all.trust_bundles |= projection.cluster_trust_bundle.is_some();
        all.tokens.extend(projection.service_account_token.iter().map(|t| TokenKey {
            audience: t.audience.clone().unwrap_or_default(),
            expiration_seconds: t.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS),
        }));
    }
}

fn unsupported_sources(projected: &ProjectedVolumeSource, field: &dyn Fn(&str) -> String, tell: &mut Tell<'_>) {
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let asked = source.config_map.as_ref().is_some_and(|s| any_user(s.items.as_deref()))
            || source.secret.as_ref().is_some_and(|s| any_user(s.items.as_deref()))
            || source.downward_api.as_ref().is_some_and(|s| any_file_user(s.items.as_deref()))
            || source.service_account_token.as_ref().is_some_and(|s| s.user.is_some())
            || source.cluster_trust_bundle.as_ref().is_some_and(|s| s.user.is_some())
            || source.pod_certificate.as_ref().is_some_and(|s| s.user.is_some());
        if asked {
            tell(false, field(&format!("projected.sources[{index}].(items.)user")), FILES_OWNER);
        }
        if let Some(certificate) = &source.pod_certificate
            && !certificate::KEY_TYPES.contains(&certificate.key_type.as_str())
        {
            tell(
                true,
                field(&format!("projected.sources[{index}].podCertificate.keyType")),
                "ask for ECDSAP256, ECDSAP384 or ED25519",
            );
        }
    }
}

const FILES_OWNER: &str = "the files belong to root of the container; fsGroup and modes let others read them";

fn any_user(items: Option<&[KeyToPath]>) -> bool {
    items.is_some_and(|list| list.iter().any(|i| i.user.is_some()))
}

fn any_file_user(items: Option<&[DownwardAPIVolumeFile]>) -> bool {
    items.is_some_and(|list| list.iter().any(|i| i.user.is_some()))
}

fn mode(given: Option<i32>) -> u32 {
    u32::try_from(given.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o7777
}

/// Which keys of an object become files, and how.
struct Wanted<'a> {
    /// None or empty: all.
    items: Option<&'a [KeyToPath]>,
    /// Mode of files that have none of their own.
    mode: u32,
    /// An object or key that is missing is no error.
    optional: bool,
}

impl<'a> Wanted<'a> {
    fn of(items: Option<&'a [KeyToPath]>, mode: u32, optional: Option<bool>) -> Self {
        Self { items, mode, optional: optional == Some(true) }
    }
}

struct Filler<'a> {
    pod: &'a Pod,
    user: Option<u32>,
    volume: &'a str,
    sources: &'a Sources,
    facts: &'a Facts,
    payload: Payload,
}

impl Filler<'_> {
    fn put(&mut self, path: &str, data: Vec<u8>, mode: u32) -> Result<(), FillError> {
        self.put_for(path, data, mode, None)
    }

    fn put_for(&mut self, path: &str, data: Vec<u8>, mode: u32, owner: Option<u32>) -> Result<(), FillError> {
        // `./a` and `d//b` are `a` and `d/b`, as upstream's AtomicWriter cleans them.
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let leaves =
            path.starts_with('/') || parts.contains(&"..") || parts.first().is_some_and(|p| p.starts_with(".."));
        if leaves || parts.is_empty() {
            return Err(FillError::BadPath { volume: self.volume.to_owned(), path: path.to_owned() });
        }
        self.payload.insert(parts.join("/"), File { data, mode, owner });
        Ok(())
    }

    fn config_map(&mut self, name: &str, wanted: Wanted<'_>) -> Result<(), FillError> {
        let data = self.sources.config_maps.get(name).map(config_map_data);
        let missing = |volume, name| FillError::NoConfigMap { volume, name };
        self.keys("config", name, data, wanted, missing)
    }

    fn secret(&mut self, name: &str, wanted: Wanted<'_>) -> Result<(), FillError> {
        let data = self.sources.secrets.get(name).map(secret_data);
        let missing = |volume, name| FillError::NoSecret { volume, name };
        self.keys("secret", name, data, wanted, missing)
    }

    /// Files from the keys of one object; `data`: None when there is no such object.
    fn keys(
        &mut self,
        kind: &'static str,
        name: &str,
        data: Option<BTreeMap<String, Vec<u8>>>,
        wanted: Wanted<'_>,
        missing: impl Fn(String, String) -> FillError,
    ) -> Result<(), FillError> {
        let Wanted { items, mode: default_mode, optional } = wanted;
        let mut data = match data {
            Some(data) => data,
            None if optional => return Ok(()),
            None => return Err(missing(self.volume.to_owned(), name.to_owned())),
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, value) in data {
                self.put(&key, value, default_mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.remove(&item.key) {
                Some(value) => {
                    // One key may be asked for at several paths.
                    data.insert(item.key.clone(), value.clone());
                    self.put(&item.path, value, item.mode.map_or(default_mode, |m| mode(Some(m))))?;
                }
                None if optional => {}
                None => {
                    return Err(FillError::NoKey { volume: self.volume.to_owned(), kind, key: item.key.clone() });
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], default_mode: u32) -> Result<(), FillError> {
        for item in items {
            let text =
                self.downward_text(item).map_err(|cause| FillError::Field { volume: self.volume.to_owned(), cause })?;
            self.put(&item.path, text.into_bytes(), item.mode.map_or(default_mode, |m| mode(Some(m))))?;
        }
        Ok(())
    }

    fn downward_text(&self, item: &DownwardAPIVolumeFile) -> Result<String, FieldError> {
        if let Some(field) = &item.field_ref {
            return downward::field(self.pod, &field.field_path, self.facts);
        }
        let Some(selector) = &item.resource_field_ref else { return Ok(String::new()) };
        let container = downward::container(self.pod, selector.container_name.as_deref().unwrap_or_default())?;
        downward::resource(self.pod, container, selector, self.facts)
    }

    fn projected(&mut self, volume: &ProjectedVolumeSource) -> Result<(), FillError> {
        let default_mode = mode(volume.default_mode);
        // Credentials are for the pod's user alone, as upstream. With fsGroup its group reads them too.
        let owner = self.user;
        let alone = owner.is_some() || fs_group(self.pod).is_some();
        let private_mode = if alone { 0o600 } else { default_mode };
        for (number, source) in volume.sources.iter().flatten().enumerate() {
            if let Some(s) = &source.config_map {
                self.config_map(&s.name, Wanted::of(s.items.as_deref(), default_mode, s.optional))?;
            }
            if let Some(s) = &source.secret {
                self.secret(&s.name, Wanted::of(s.items.as_deref(), default_mode, s.optional))?;
            }
            if let Some(s) = &source.downward_api {
                self.downward(s.items.as_deref().unwrap_or_default(), default_mode)?;
            }
            if let Some(s) = &source.service_account_token {
                let key = TokenKey {
                    audience: s.audience.clone().unwrap_or_default(),
                    expiration_seconds: s.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS),
                };
                let token = self.sources.tokens.get(&key).ok_or_else(|| FillError::NoToken {
                    volume: self.volume.to_owned(),
                    cause: "the API server gave none yet".to_owned(),
                })?;
                self.put_for(&s.path, token.clone().into_bytes(), private_mode, owner)?;
            }
            if let Some(s) = &source.cluster_trust_bundle {
                let text = trust::anchors(s, self.sources)
                    .map_err(|cause| FillError::Trust { volume: self.volume.to_owned(), cause })?;
                self.put_for(&s.path, text.into_bytes(), private_mode, owner)?;
            }
            if let Some(s) = &source.pod_certificate {
                let key = CertificateKey { volume: self.volume.to_owned(), source: number };
                let failed = |cause| FillError::Certificate { volume: self.volume.to_owned(), cause };
                let bundle = self.sources.certificates.bundle(&key).map_err(failed)?;
                // Key and chain in one file, so that a program never reads two that do not match.
                let both = || format!("{}{}", bundle.key, bundle.chain);
                for (path, text) in [
                    (&s.credential_bundle_path, both()),
                    (&s.key_path, bundle.key.clone()),
                    (&s.certificate_chain_path, bundle.chain.clone()),
                ] {
                    if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
                        self.put_for(path, text.into_bytes(), private_mode, owner)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn payload(pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Payload, FillError> {
        let (facts, images) = (Facts::default(), BTreeMap::new());
        let user = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.run_as_user);
        let user = user.and_then(|user| u32::try_from(user).ok());
        let ground = Ground { pod, user, sources, facts: &facts, images: &images, mounts: "" };
        Filled::of(volume).expect("a volume that the kubelet fills").payload(&volume.name, ground)
    }

    fn fill(volume: serde_json::Value) -> Result<Vec<(String, String, u32)>, FillError> {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]}}))
            .expect("pod");
        let sources = Sources {
            config_maps: [(
                "cm".to_owned(),
                serde_json::from_value(json!({"data": {"k": "v", "l": "w"}, "binaryData": {"b": "AAE="}})).expect("cm"),
            )]
            .into(),
            secrets: [("s".to_owned(), serde_json::from_value(json!({"data": {"pw": "c2VjcmV0"}})).expect("secret"))]
                .into(),
            tokens: [(TokenKey { audience: String::new(), expiration_seconds: 3607 }, "tok".to_owned())].into(),
            ..Sources::default()
        };
        let volume: Volume = serde_json::from_value(volume).expect("volume");
        payload(&pod, &volume, &sources)
            .map(|p| p.into_iter().map(|(k, f)| (k, String::from_utf8_lossy(&f.data).into_owned(), f.mode)).collect())
    }

    fn file(path: &str, data: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), data.to_owned(), mode)
    }

    #[test]
    fn sources_of_all_kinds() {
        assert_eq!(
            fill(json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 0o400}})),
            Ok(vec![file("b", "\0\u{1}", 0o400), file("k", "v", 0o400), file("l", "w", 0o400)])
        );
        assert_eq!(
            fill(
                json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": "d/x", "mode": 0o600}, {"key": "k", "path": "y"}]}})
            ),
            Ok(vec![file("d/x", "v", 0o600), file("y", "v", 0o644)])
        );
        assert_eq!(fill(json!({"name": "v", "secret": {"secretName": "none", "optional": true}})), Ok(vec![]));
        assert_eq!(
            fill(json!({"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}]}}]}})),
            Ok(vec![
                file("cpu", "2", 0o644),
                file("labels", "a=\"1\"", 0o644),
                file("pw", "secret", 0o644),
                file("token", "tok", 0o644)
            ])
        );
    }

    #[test]
    fn a_certificate_is_there_with_its_key_or_not_at_all() {
        use crate::render::certificate::{Answer, Asked};
        let source = |paths: serde_json::Value| {
            let mut certificate = json!({"signerName": "x/y", "keyType": "ED25519"});
            certificate.as_object_mut().unwrap().extend(paths.as_object().unwrap().clone());
            json!({"name": "v", "projected": {"defaultMode": 0o400, "sources": [{"podCertificate": certificate}]}})
        };
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut sources = Sources::default();
        let key = CertificateKey { volume: "v".into(), source: 0 };
        sources.certificates.asked(key.clone(), Asked { name: "r".into(), version: None, key: "K".into(), at: now });
        let fill = |sources: &Sources, volume| {
            let volume = serde_json::from_value(volume).unwrap();
            payload(&Pod::default(), &volume, sources)
        };
        let bundle = source(json!({"credentialBundlePath": "both.pem"}));
        assert_eq!(
            fill(&sources, bundle.clone()).unwrap_err().to_string(),
            "MountVolume.SetUp failed for volume \"v\" : credential bundle is not issued yet"
        );
        sources.certificates.answered(&key, Answer::Issued("C".into(), None), now, 0).unwrap();
        let file = |data: &str| File { data: data.into(), mode: 0o400, owner: None };
        assert_eq!(fill(&sources, bundle), Ok([("both.pem".to_owned(), file("KC"))].into()));
        let two = source(json!({"keyPath": "k", "certificateChainPath": "c"}));
        assert_eq!(fill(&sources, two), Ok([("c".to_owned(), file("C")), ("k".to_owned(), file("K"))].into()));
    }

    #[test]
    fn a_token_is_for_the_pods_user_alone() {
        let token = |context: serde_json::Value| {
            let pod = serde_json::from_value(json!({"spec": {"securityContext": context, "containers": []}})).unwrap();
            let volume = json!({"name": "v", "projected": {"defaultMode": 0o444, "sources": [
                {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "cm"}}]}});
            let sources = Sources {
                tokens: [(TokenKey { audience: String::new(), expiration_seconds: DEFAULT_TOKEN_SECONDS }, "t".into())]
                    .into(),
                config_maps: [("cm".to_owned(), serde_json::from_value(json!({"data": {"k": "v"}})).unwrap())].into(),
                ..Sources::default()
            };
            let files = payload(&pod, &serde_json::from_value(volume).unwrap(), &sources).unwrap();
            ["token", "k"].map(|name| (files[name].mode, files[name].owner))
        };
        assert_eq!(token(json!({})), [(0o444, None), (0o444, None)]);
        assert_eq!(token(json!({"runAsUser": 1000})), [(0o600, Some(1000)), (0o444, None)]);
        assert_eq!(token(json!({"fsGroup": 5})), [(0o640, None), (0o444, None)]);
        assert_eq!(token(json!({"runAsUser": 1000, "fsGroup": 5})), [(0o640, Some(1000)), (0o444, None)]);
    }

    #[test]
    fn errors_name_the_volume() {
        for (volume, text) in [
            (
                json!({"name": "v", "configMap": {"name": "no"}}),
                "MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found",
            ),
            (
                json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "x", "path": "y"}]}}),
                "MountVolume.SetUp failed for volume \"v\" : references non-existent secret key: x",
            ),
        ] {
            assert_eq!(fill(volume).expect_err("an error").to_string(), text);
        }
        let of = |path: &str| json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "k", "path": path}]}});
        for bad in ["../x", "a/../b", "/a", "..a", "", ".", "./", "./..a"] {
            assert!(matches!(fill(of(bad)), Err(FillError::BadPath { .. })), "{bad}");
        }
        for (path, clean) in [("./a", "a"), ("d//b", "d/b"), ("d/./b/", "d/b"), ("a..", "a..")] {
            let names: Vec<String> = fill(of(path)).expect("a payload").into_iter().map(|(name, ..)| name).collect();
            assert_eq!(names, [clean], "{path}");
        }
    }
}
