//! Why an image could not be had, in the classes that Kubernetes shows.

use std::path::PathBuf;

/// A failed pull. [`PullError::reason`] is the waiting reason for the container's status.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference cannot be parsed.
    #[error("couldn't parse image name \"{image}\": {cause}")]
    InvalidName {
        /// The reference as written in the pod.
        image: String,
        /// What is wrong with it.
        cause: String,
    },
    /// imagePullPolicy is Never and the image is not in the store.
    #[error("Container image \"{image}\" is not present with pull policy of Never")]
    NeverPull {
        /// The reference as written in the pod.
        image: String,
    },
    /// The registry could not be reached.
    #[error("failed to pull image \"{image}\": registry {registry} cannot be reached: {cause}")]
    RegistryUnavailable {
        /// The reference as written in the pod.
        image: String,
        /// `host[:port]` of the registry.
        registry: String,
        /// Transport error.
        cause: String,
    },
    /// The registry (or archive) has no such image.
    #[error("failed to pull image \"{image}\": not found: {cause}")]
    NotFound {
        /// The reference as written in the pod.
        image: String,
        /// The registry's words.
        cause: String,
    },
    /// The registry wants other credentials.
    #[error(
        "failed to pull image \"{image}\": authorization failed: {cause}; \
         check the pod's imagePullSecrets"
    )]
    Unauthorized {
        /// The reference as written in the pod.
        image: String,
        /// The registry's words.
        cause: String,
    },
    /// No image for this machine in a multi-platform index.
    #[error("failed to pull image \"{image}\": no match for platform linux/{architecture} in manifest")]
    NoPlatform {
        /// The reference as written in the pod.
        image: String,
        /// GOARCH name of this machine.
        architecture: String,
    },
    /// Content does not have the digest that its reference promises.
    #[error("failed to pull image \"{image}\": digest mismatch: expected {expected}, got {actual}")]
    Digest {
        /// The reference as written in the pod.
        image: String,
        /// Promised digest.
        expected: String,
        /// Computed digest.
        actual: String,
    },
    /// Manifest, configuration, archive or file is not what it should be.
    #[error("failed to pull image \"{image}\": invalid image: {what}: {cause}")]
    InvalidImage {
        /// The reference as written in the pod.
        image: String,
        what: String,
        cause: String,
    },
    /// A file that images may not be taken from.
    #[error("failed to pull image \"{image}\": not allowed: {cause}")]
    Forbidden {
        /// The reference as written in the pod.
        image: String,
        /// Which rule, and what can be done.
        cause: String,
    },
    /// A layer could not be applied.
    #[error("failed to unpack image \"{image}\": {cause}")]
    Unpack {
        /// The reference as written in the pod.
        image: String,
        /// The helper's words.
        cause: String,
    },
    /// Any other error of the registry.
    #[error("failed to pull image \"{image}\": {cause}")]
    Registry {
        /// The reference as written in the pod.
        image: String,
        /// The registry's words.
        cause: String,
    },
    /// The store could not be read or written.
    #[error("failed to pull image \"{image}\": {action} {path}: {source}")]
    Io {
        /// The reference as written in the pod.
        image: String,
        /// What was tried: `create`, `read` …
        action: &'static str,
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl PullError {
    /// The container's waiting reason, as upstream's kubelet names it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::RegistryUnavailable { .. } => "RegistryUnavailable",
            _ => "ErrImagePull",
        }
    }
}

/// An error that does not know yet for which image it happened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("no match for platform linux/{0}")]
    NoPlatform(String),
    #[error("expected {expected}, got {actual}")]
    Digest { expected: String, actual: String },
    #[error("{what}: {cause}")]
    InvalidImage { what: String, cause: String },
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Unpack(String),
    #[error("{0}")]
    Other(String),
    #[error("{action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl SourceError {
    /// For `map_err`: an I/O error on a path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// For `map_err`: JSON that should have parsed. Says where it is wrong and shows nothing of it: it may be any file.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |e| Self::InvalidImage { what, cause: json_fault(&e) }
    }

    /// The same, after other places had failed.
    pub(crate) fn after(self, failed: &str) -> Self {
        let and = |text: String| format!("{text} (before: {failed})");
        match self {
            Self::Unavailable(text) => Self::Unavailable(and(text)),
            Self::NotFound(text) => Self::NotFound(and(text)),
            Self::Unauthorized(text) => Self::Unauthorized(and(text)),
            Self::Forbidden(text) => Self::Forbidden(and(text)),
            Self::Other(text) => Self::Other(and(text)),
            other => other,
        }
    }

    /// Names the image.
    pub(crate) fn of(self, image: &str, registry: &str) -> PullError {
        let image = image.to_owned();
        match self {
            Self::Unavailable(cause) => PullError::RegistryUnavailable { image, registry: registry.to_owned(), cause },
            Self::NotFound(cause) => PullError::NotFound { image, cause },
            Self::Unauthorized(cause) => PullError::Unauthorized { image, cause },
            Self::NoPlatform(architecture) => PullError::NoPlatform { image, architecture },
            Self::Digest { expected, actual } => PullError::Digest { image, expected, actual },
            Self::InvalidImage { what, cause } => PullError::InvalidImage { image, what, cause },
            Self::Forbidden(cause) => PullError::Forbidden { image, cause },
            Self::Unpack(cause) => PullError::Unpack { image, cause },
            Self::Other(cause) => PullError::Registry { image, cause },
            Self::Io { action, path, source } => PullError::Io { image, action, path, source },
        }
    }
}

/// What is wrong with a JSON text, without a word of it.
pub(crate) fn json_fault(e: &serde_json::Error) -> String {
    let what = match e.classify() {
        serde_json::error::Category::Data => "not the JSON that is expected",
        serde_json::error::Category::Io => "cannot be read",
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof => "not JSON",
    };
    format!("{what} (line {}, column {})", e.line(), e.column())
}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_show_nothing_of_the_text() {
        for text in [r#"{"manifests": "hunter2"}"#, "hunter2", r#"{"hunter2": }"#, r#"["hunter2"]"#] {
            let error = crate::manifest::Document::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("JSON"), "{error}");
        }
    }
}
