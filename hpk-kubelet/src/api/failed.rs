//! What could not be asked of the API server.

use kube::Error;
use thiserror::Error as ThisError;

/// An object could not be asked for (which is not the same as its not being there).
#[derive(Debug, ThisError)]
#[error("cannot read {kind} {name:?}: {source}")]
pub(crate) struct FetchError {
    /// `configmap`, `secret`, `token of service account` and so on.
    pub kind: &'static str,
    pub name: String,
    #[source]
    pub source: Box<Error>,
}

/// For `map_err`.
pub(super) fn failed(kind: &'static str, name: &str, source: Error) -> FetchError {
    FetchError { kind, name: name.to_owned(), source: Box::new(source) }
}
