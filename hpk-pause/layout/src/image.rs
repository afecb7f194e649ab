//! Names in the image store, `HPK_HOME/images`, and in the folders where nodes unpack images.

/// The image's root file system, in its folder.
pub const ROOTFS: &str = "rootfs";
/// Of the store: what references resolved to.
pub const REFS: &str = ".refs";
/// Of the store: layers that were downloaded.
pub const BLOBS: &str = ".blobs";
/// Of the store: locks.
pub const LOCKS: &str = ".locks";
/// Of the store: what is being made.
pub const TMP: &str = ".tmp";

const SQUASHFS: &str = ".sqfs";

/// Name of the SquashFS file of the image that would else be in `folder`.
#[must_use]
pub fn file(folder: &str) -> String {
    format!("{folder}{SQUASHFS}")
}

/// The folder's name of an image that is this SquashFS file. None: it is no such file.
#[must_use]
pub fn of_file(name: &str) -> Option<&str> {
    name.strip_suffix(SQUASHFS)
}
