//! One image as the store keeps it.
//!
//! ```text
//! sha256-<hex>/         rootfs/  config.json  image.json                      layout folder
//! sha256-<hex>.sqfs     SquashFS │ JSON of Tail │ its length (8 bytes) │ MARK   layout squashfs
//! ```
//! Both come into being by a rename, complete. In one file there is one inode: what is to be known of the image stands
//! behind the file system, whose own head says where it ends.

use crate::config::ImageConfig;
use crate::layout::Layout;
use crate::measure::Facts;
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Of a folder: facts of the image. Its presence says that the folder is complete.
pub(crate) const META: &str = "image.json";
/// Of a folder: how to run it.
pub(crate) const CONFIG: &str = "config.json";

const MARK: &[u8; 8] = b"hpk-img1";
/// Bytes of the longest JSON behind a SquashFS.
const MOST: u64 = 16 << 20;

/// Facts of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Digest reference of the pull that made it.
    pub(crate) id: String,
    /// Bytes as stored in the registry.
    pub(crate) size: u64,
    pub(crate) created: Timestamp,
    /// Of its files; None: made by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) files: Option<Facts>,
}

/// What stands behind a SquashFS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tail {
    meta: Meta,
    config: ImageConfig,
    /// Of the SquashFS.
    sha256: String,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) layout: Layout,
    /// The folder, or the file.
    pub(crate) path: PathBuf,
    pub(crate) meta: Meta,
    pub(crate) last_used: SystemTime,
    /// Of a file: its digest and its length without the tail.
    pub(crate) squashfs: Option<(String, u64)>,
}

impl Entry {
    /// The image `folder` of the store in `root`, and how to run it; a folder comes first where both are there.
    pub(crate) fn find(root: &Path, folder: &str) -> Option<(Self, ImageConfig)> {
        Self::of_folder(root.join(folder)).or_else(|| Self::of_file(file(root, folder)))
    }

    fn of_folder(path: PathBuf) -> Option<(Self, ImageConfig)> {
        let meta_path = path.join(META);
        let meta = read_json(&meta_path)?;
        let config = read_json(&path.join(CONFIG))?;
        let last_used = modified(std::fs::metadata(meta_path));
        Some((Self { layout: Layout::Folder, path, meta, last_used, squashfs: None }, config))
    }

    fn of_file(path: PathBuf) -> Option<(Self, ImageConfig)> {
        let open = File::open(&path).ok()?;
        let (Tail { meta, config, sha256 }, length) = read_tail(&open).ok()??;
        let last_used = modified(open.metadata());
        Some((Self { layout: Layout::Squashfs, path, meta, last_used, squashfs: Some((sha256, length)) }, config))
    }

    /// Marks it as used now.
    pub(crate) fn touch(&self) {
        match self.layout {
            Layout::Folder => crate::blobs::touch(&self.path.join(META)),
            Layout::Squashfs => crate::blobs::touch(&self.path),
        }
    }

    /// Bytes and inodes that it takes of the file system; None: not known of an image of an earlier version.
    pub(crate) fn takes(&self) -> Option<(u64, u64)> {
        match self.layout {
            // image.json, config.json and the folder itself.
            Layout::Folder => self.meta.files.as_ref().map(|files| (files.bytes, files.inodes + 3)),
            Layout::Squashfs => std::fs::metadata(&self.path).ok().map(|meta| (meta.len(), 1)),
        }
    }
}

/// The one file of an image.
pub(crate) fn file(root: &Path, folder: &str) -> PathBuf {
    root.join(image::file(folder))
}

/// The image's name of an entry of the store's folder; None: it is something else.
pub(crate) fn name(entry: &str) -> Option<&str> {
    let name = image::of_file(entry).unwrap_or(entry);
    (!name.starts_with('.')).then_some(name)
}

/// Puts what is to be known of an image behind its SquashFS, whose digest is `sha256`.
pub(crate) fn append(path: &Path, meta: &Meta, config: &ImageConfig, sha256: String) -> io::Result<()> {
    let text = serde_json::to_vec(&Tail { meta: meta.clone(), config: config.clone(), sha256 })?;
    let mut open = OpenOptions::new().append(true).open(path)?;
    open.write_all(&text)?;
    open.write_all(&(text.len() as u64).to_le_bytes())?;
    open.write_all(MARK)?;
    open.sync_all()
}

/// The tail, and how many bytes stand before it; None: there is none.
fn read_tail(file: &File) -> io::Result<Option<(Tail, u64)>> {
    let Some(end) = file.metadata()?.len().checked_sub(16) else { return Ok(None) };
    let mut last = [0; 16];
    file.read_exact_at(&mut last, end)?;
    let (length, mark) = last.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    let Some(start) = end.checked_sub(length).filter(|_| mark == MARK && length <= MOST) else { return Ok(None) };
    let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut text, start)?;
    Ok(serde_json::from_slice(&text).ok().map(|tail| (tail, start)))
}

fn modified(meta: io::Result<std::fs::Metadata>) -> SystemTime {
    meta.and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The reference of an image of this name.
pub(crate) fn image_ref(folder: &str, meta: &Meta) -> ImageRef {
    ImageRef { folder: folder.to_owned(), id: meta.id.clone() }
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Replaces a file as a whole. One that a crash of the node leaves empty is read as none, and made again.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    hpk_layout::replace_soon(path, &serde_json::to_vec(value)?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_read_back_and_nothing_else_is_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "sha256-0");
        std::fs::write(&path, vec![7; 4096]).unwrap();
        assert!(Entry::find(dir.path(), "sha256-0").is_none());
        let meta = Meta { id: "x@sha256:0".into(), size: 5, created: Timestamp::UNIX_EPOCH, files: None };
        let config = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() };
        append(&path, &meta, &config, "s".into()).unwrap();
        let (entry, found) = Entry::find(dir.path(), "sha256-0").unwrap();
        assert_eq!((entry.meta.clone(), found), (meta, config));
        assert_eq!(entry.squashfs, Some(("s".to_owned(), 4096)));
        assert_eq!(entry.takes().map(|(_, inodes)| inodes), Some(1));
        let whole = std::fs::read(&path).unwrap();
        for cut in [whole.len() - 1, 4096, 20, 0] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Entry::find(dir.path(), "sha256-0").is_none(), "{cut}");
        }
    }

    #[test]
    fn names_in_the_store() {
        assert_eq!(name("sha256-ab"), Some("sha256-ab"));
        assert_eq!(name("sha256-ab.sqfs"), Some("sha256-ab"));
        assert_eq!(name(".refs"), None);
    }
}
