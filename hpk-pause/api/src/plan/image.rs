//! How a plan names an image of the store.

use serde::{Deserialize, Serialize};

/// An image in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// Folder name in the image store (`sha256-<hex>`).
    pub folder: String,
    /// status.imageID: `registry/repo@sha256:…`.
    pub id: String,
}
