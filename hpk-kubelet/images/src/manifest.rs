//! Image manifests and multi-platform indexes, OCI and Docker schema 2. Data only.

use crate::error::SourceError;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Media types that we accept, for the Accept header.
pub(crate) const ACCEPT: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Layers that an image may have; those that are in use have some hundred.
pub(crate) const MAX_LAYERS: usize = 1024;

/// Pointer to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// Platform of an index entry.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// An image manifest.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// What a reference may point to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Image(Manifest),
}

impl Document {
    /// Tells index and manifest apart by their content: media types are often missing.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, SourceError> {
        #[derive(Deserialize)]
        struct Any {
            #[serde(default)]
            manifests: Option<Vec<Descriptor>>,
            #[serde(default)]
            config: Option<Descriptor>,
            #[serde(default)]
            layers: Vec<Descriptor>,
            #[serde(default, rename = "schemaVersion")]
            schema_version: u32,
        }
        let any: Any = serde_json::from_slice(bytes).map_err(SourceError::json("manifest"))?;
        match any {
            Any { manifests: Some(list), .. } => Ok(Self::Index(list)),
            Any { layers, .. } if layers.len() > MAX_LAYERS => Err(SourceError::InvalidImage {
                what: "manifest".to_owned(),
                cause: format!("it has more than {MAX_LAYERS} layers"),
            }),
            Any { config: Some(config), layers, .. } => Ok(Self::Image(Manifest { config, layers })),
            Any { schema_version, .. } => Err(SourceError::InvalidImage {
                what: "manifest".to_owned(),
                cause: format!("neither an index nor an image manifest (schemaVersion {schema_version})"),
            }),
        }
    }
}

/// This machine in Go's words, as images name it.
pub(crate) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The entry of an index that fits linux on `arch`; prefers one without a variant (the baseline).
pub(crate) fn select<'a>(entries: &'a [Descriptor], arch: &str) -> Result<&'a Descriptor, SourceError> {
    let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == arch);
    let plain = entries
        .iter()
        .filter(fits)
        .find(|d| d.platform.as_ref().is_some_and(|p| matches!(p.variant.as_deref(), None | Some("" | "v1" | "v8"))));
    plain
        .or_else(|| entries.iter().find(fits))
        // A layout made by a single-platform tool has one entry and says nothing.
        .or_else(|| entries.iter().find(|d| entries.len() == 1 && d.platform.is_none()))
        .ok_or_else(|| SourceError::NoPlatform(arch.to_owned()))
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes: media types lie now and then, magic numbers do not.
    pub(crate) fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame in front (seekable zstd).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, arch: &str, variant: Option<&str>) -> String {
        let variant = variant.map(|v| format!(r#","variant":"{v}""#)).unwrap_or_default();
        format!(
            r#"{{"digest":"sha256:{os}{arch}","size":1,"platform":{{"os":"{os}","architecture":"{arch}"{variant}}}}}"#
        )
    }

    #[test]
    fn selects_this_platform_from_an_index() {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{},{}]}}"#,
            entry("windows", "amd64", None),
            entry("unknown", "unknown", None),
            entry("linux", "arm64", Some("v8")),
            entry("linux", "amd64", None)
        );
        let Document::Index(list) = Document::parse(json.as_bytes()).unwrap() else { panic!() };
        assert_eq!(select(&list, "amd64").unwrap().digest, "sha256:linuxamd64");
        assert_eq!(select(&list, "arm64").unwrap().digest, "sha256:linuxarm64");
        assert!(matches!(select(&list, "s390x"), Err(SourceError::NoPlatform(_))));
    }

    #[test]
    fn tells_documents_apart_and_refuses_schema_1() {
        let image = br#"{"config":{"digest":"sha256:c"},"layers":[{"digest":"sha256:l"}]}"#;
        assert!(matches!(Document::parse(image), Ok(Document::Image(_))));
        assert!(Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#).is_err());
        assert!(Document::parse(b"nonsense").is_err());
    }

    #[test]
    fn compression_is_told_by_magic() {
        assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::sniff(b"etc/"), Compression::None);
        assert_eq!(Compression::sniff(b""), Compression::None);
    }
}
