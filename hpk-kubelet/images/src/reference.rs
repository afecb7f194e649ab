//! What a pod's `image` field names.
//!
//! Registry references follow upstream's grammar (docker.io and `library/` for short names, `:latest`
//! when neither tag nor digest is given). Beside them, images in files: `oci-archive:/a.tar[:tag]`,
//! `docker-archive:/a.tar[:name:tag]`, `oci:/folder[:tag]` and the path of a SIF, all absolute.

use oci_client::Reference;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A parsed `image` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a registry.
    Registry(Reference),
    /// In the user's files.
    Local(LocalImage),
}

/// An image in a file or folder, which may hold several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    /// How it is stored.
    pub format: Format,
    /// Absolute path, with the tag still attached when there was one: only the file system can tell them apart.
    pub spec: PathBuf,
}

/// How an image is stored in a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A tar of an OCI image layout.
    OciArchive,
    /// A tar as `docker save` writes it.
    DockerArchive,
    /// A folder with an OCI image layout.
    OciLayout,
    /// An Apptainer image file.
    Sif,
}

/// What is wrong with an `image` field.
#[derive(Debug, Error)]
pub enum ReferenceError {
    #[error("{0} needs an absolute path, such as {0}/home/me/image.tar")]
    RelativePath(&'static str),
    #[error("a path must end in .sif or begin with oci:, oci-archive: or docker-archive:")]
    UnknownFile,
    #[error("repository name must be lowercase")]
    UpperCase,
    #[error(transparent)]
    Registry(#[from] oci_client::ParseError),
}

impl Source {
    /// Parses an `image` field.
    ///
    /// # Errors
    /// It is neither a registry's reference nor the name of a file; the text says what the form is.
    pub fn parse(image: &str) -> Result<Self, ReferenceError> {
        for (prefix, format) in [
            ("oci-archive:", Format::OciArchive),
            ("docker-archive:", Format::DockerArchive),
            ("oci:", Format::OciLayout),
        ] {
            let Some(rest) = image.strip_prefix(prefix) else { continue };
            if rest.starts_with('/') {
                return Ok(Self::Local(LocalImage { format, spec: PathBuf::from(rest) }));
            }
            // `oci:5000/x` and `oci:latest` are honest registry references.
            if prefix != "oci:" {
                return Err(ReferenceError::RelativePath(prefix));
            }
        }
        if image.starts_with('/') {
            return if Path::new(image).extension().is_some_and(|e| e == "sif") {
                Ok(Self::Local(LocalImage { format: Format::Sif, spec: PathBuf::from(image) }))
            } else {
                Err(ReferenceError::UnknownFile)
            };
        }
        let reference = Reference::try_from(image)?;
        // The parser takes an upper-case first component for a user of docker.io; no registry has such names.
        if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase);
        }
        Ok(Self::Registry(reference))
    }

    /// Whether it is in the user's files.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// The reference in full, as the store's index knows it.
    #[must_use]
    pub fn normalized(&self) -> String {
        match self {
            Self::Registry(reference) => reference.whole(),
            Self::Local(LocalImage { format, spec }) => {
                let prefix = match format {
                    Format::OciArchive => "oci-archive:",
                    Format::DockerArchive => "docker-archive:",
                    Format::OciLayout => "oci:",
                    Format::Sif => "",
                };
                format!("{prefix}{}", spec.display())
            }
        }
    }

    /// Registry host and port, or `file` for local images; for messages.
    #[must_use]
    pub fn registry(&self) -> &str {
        match self {
            Self::Registry(reference) => reference.registry(),
            _ => "file",
        }
    }

    /// Whether the default imagePullPolicy is Always: tag `latest`, no digest.
    #[must_use]
    pub fn is_latest(&self) -> bool {
        match self {
            Self::Registry(r) => r.digest().is_none() && r.tag() == Some("latest"),
            _ => false,
        }
    }
}

/// Whether the name of an image says no registry, so that `docker.io` is taken for it.
pub(crate) fn is_short(image: &str) -> bool {
    let Some((first, _)) = image.split_once('/') else { return true };
    first != "localhost" && !first.contains(['.', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_references_are_normalised_as_upstream_does() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("login:5000/busybox:1", "login:5000/busybox:1"),
            ("localhost/x", "localhost/x:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("oci:5000/x", "oci:5000/x:latest"),
            ("oci:1", "docker.io/library/oci:1"),
        ] {
            assert_eq!(Source::parse(given).unwrap().normalized(), full, "{given}");
        }
    }

    #[test]
    fn a_short_name_says_no_registry() {
        for (image, short) in [
            ("busybox", true),
            ("busybox:1", true),
            ("team/app:1", true),
            ("localhost/x", false),
            ("login:5000/x", false),
            ("quay.io/x", false),
            ("docker.io/x", false),
        ] {
            assert_eq!(is_short(image), short, "{image}");
        }
    }

    #[test]
    fn bad_references_are_refused_with_a_reason() {
        for bad in ["", "UPPER/case", "a b", "x:", "foo@sha256:abc", "oci-archive:rel.tar", "/tmp/dir", "http://x/y"] {
            assert!(!Source::parse(bad).unwrap_err().to_string().is_empty(), "{bad}");
        }
    }

    #[test]
    fn local_images_are_told_by_their_prefix() {
        for (text, format, spec) in [
            ("oci-archive:/a/b:c.tar:v1", Format::OciArchive, "/a/b:c.tar:v1"),
            ("docker-archive:/a.tar:x:1", Format::DockerArchive, "/a.tar:x:1"),
            ("oci:/layout:t", Format::OciLayout, "/layout:t"),
            ("/x/y.sif", Format::Sif, "/x/y.sif"),
        ] {
            let source = Source::parse(text).unwrap();
            assert_eq!(source.normalized(), text);
            assert_eq!(source, Source::Local(LocalImage { format, spec: spec.into() }));
        }
    }

    #[test]
    fn latest_means_pull_always() {
        assert!(Source::parse("busybox").unwrap().is_latest());
        assert!(!Source::parse("busybox:1").unwrap().is_latest());
    }
}
