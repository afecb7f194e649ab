//! Names in the folder of an installed application, `HPK_HOME/apps/<name>`, and in the bundle that it comes from.

/// The application's own manifest.
pub const MANIFEST: &str = "manifest.yaml";
/// Its images, an OCI layout each.
pub const IMAGES: &str = "images";
/// Its commands.
pub const BIN: &str = "bin";
/// What HPK changes in the manifest.
pub const KUSTOMIZATION: &str = "kustomization.yaml";
/// Its namespace.
pub const NAMESPACE: &str = "namespace.yaml";
/// All its objects, as they are applied.
pub const OBJECTS: &str = "objects.yaml";
/// The version that is installed.
pub const VERSION: &str = "version";
