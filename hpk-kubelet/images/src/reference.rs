//! What a pod's `image` field names.
//!
//! Registry references follow upstream's grammar (docker.io and `library/` for short names, `:latest`
//! when neither tag nor digest is given). Beside them, images in files: `oci-archive:/a.tar[:tag]`,
//! `docker-archive:/a.tar[:name:tag]`, `oci:/folder[:tag]` and the path of a SIF, all absolute.

use oci_client::Reference;
use std::path::{Path, PathBuf};

/// A parsed `image` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a registry.
    Registry(Reference),
    /// A tar of an OCI image layout.
    OciArchive(LocalImage),
    /// A tar as `docker save` writes it.
    DockerArchive(LocalImage),
    /// A folder with an OCI image layout.
    OciLayout(LocalImage),
    /// An Apptainer image file.
    Sif(PathBuf),
}

/// A file or folder that may hold several images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    /// Path, with the tag still attached when there was one: only the file system can tell them apart.
    pub spec: PathBuf,
}

impl LocalImage {
    /// Splits path and tag: the whole text when such a file exists, else what precedes a colon.
    pub(crate) fn resolve(&self, exists: impl Fn(&Path) -> bool) -> (PathBuf, Option<String>) {
        if exists(&self.spec) {
            return (self.spec.clone(), None);
        }
        let text = self.spec.to_string_lossy();
        for (at, _) in text.match_indices(':') {
            let path = Path::new(&text[..at]);
            if exists(path) {
                return (path.to_owned(), Some(text[at + 1..].to_owned()));
            }
        }
        (self.spec.clone(), None)
    }
}

impl Source {
    /// Parses an `image` field.
    ///
    /// # Errors
    /// A text that says what is wrong and, for local images, what the form is.
    pub fn parse(image: &str) -> Result<Self, String> {
        for (prefix, make) in [
            ("oci-archive:", Self::OciArchive as fn(LocalImage) -> Self),
            ("docker-archive:", Self::DockerArchive),
            ("oci:", Self::OciLayout),
        ] {
            let Some(rest) = image.strip_prefix(prefix) else { continue };
            if rest.starts_with('/') {
                return Ok(make(LocalImage { spec: PathBuf::from(rest) }));
            }
            // `oci:5000/x` and `oci:latest` are honest registry references.
            if prefix != "oci:" {
                return Err(format!("{prefix} needs an absolute path, such as {prefix}/home/me/image.tar"));
            }
        }
        if image.starts_with('/') {
            return if Path::new(image).extension().is_some_and(|e| e == "sif") {
                Ok(Self::Sif(PathBuf::from(image)))
            } else {
                Err("a path must end in .sif or begin with oci:, oci-archive: or docker-archive:".to_owned())
            };
        }
        let reference = Reference::try_from(image).map_err(|e| e.to_string())?;
        // The parser takes an upper-case first component for a user of docker.io; no registry has such names.
        if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("repository name must be lowercase".to_owned());
        }
        Ok(Self::Registry(reference))
    }

    /// The reference in full, as the store's index knows it.
    #[must_use]
    pub fn normalized(&self) -> String {
        match self {
            Self::Registry(reference) => reference.whole(),
            Self::OciArchive(l) => format!("oci-archive:{}", l.spec.display()),
            Self::DockerArchive(l) => format!("docker-archive:{}", l.spec.display()),
            Self::OciLayout(l) => format!("oci:{}", l.spec.display()),
            Self::Sif(path) => path.display().to_string(),
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
    fn bad_references_are_refused_with_a_reason() {
        for bad in ["", "UPPER/case", "a b", "x:", "foo@sha256:abc", "oci-archive:rel.tar", "/tmp/dir", "http://x/y"] {
            assert!(!Source::parse(bad).unwrap_err().is_empty(), "{bad}");
        }
    }

    #[test]
    fn local_images_split_path_and_tag_by_what_exists() {
        let Source::OciArchive(local) = Source::parse("oci-archive:/a/b:c.tar:v1").unwrap() else { panic!() };
        let (path, tag) = local.resolve(|p| p == Path::new("/a/b:c.tar"));
        assert_eq!((path.to_str(), tag.as_deref()), (Some("/a/b:c.tar"), Some("v1")));
        let (path, tag) = local.resolve(|p| p == Path::new("/a/b:c.tar:v1"));
        assert_eq!((path.to_str(), tag), (Some("/a/b:c.tar:v1"), None));
        assert_eq!(Source::parse("/x/y.sif").unwrap(), Source::Sif("/x/y.sif".into()));
    }

    #[test]
    fn latest_means_pull_always() {
        assert!(Source::parse("busybox").unwrap().is_latest());
        assert!(!Source::parse("busybox:1").unwrap().is_latest());
    }
}
