//! What is in the store: told, checked and removed.

use crate::blobs::digest_of_reader;
use crate::entry::{self, Entry};
use crate::error::SourceError;
use crate::helper::Job;
use crate::inner::{Inner, StoreError, blocking};
use crate::layout::Layout;
use crate::lock;
use crate::store::ImageStore;
use crate::uses::{Uses, UsesError};
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Folder and digest reference.
    pub image_ref: ImageRef,
    /// References known to resolve to it, sorted.
    pub names: Vec<String>,
    /// Bytes, as [`crate::PulledImage::size`].
    pub size: u64,
    /// When it was last pulled or found present for a pod.
    pub last_used: SystemTime,
    /// How it is kept.
    pub layout: Layout,
    /// Bytes and inodes that it takes of the store's file system; None: of an image of an earlier version.
    pub takes: Option<(u64, u64)>,
}

/// What the collector removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Folder names of removed images.
    pub images: Vec<String>,
    /// Number of removed layers.
    pub blobs: usize,
    /// Bytes of the removed layers.
    pub blob_bytes: u64,
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Pods have it.
    #[error("in use by {}", .0.iter().map(String::as_str).collect::<Vec<_>>().join(", "))]
    InUse(BTreeSet<String>),
    /// It cannot be told whether pods have it.
    #[error("it cannot be told which images pods have: {0}")]
    Unknown(#[from] UsesError),
    /// The store's own files.
    #[error("{0}")]
    Store(String),
}

impl From<SourceError> for RemoveError {
    fn from(error: SourceError) -> Self {
        Self::Store(error.to_string())
    }
}

/// What a check of an image found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// As it was made.
    Good,
    /// Of an earlier version: nothing was written down that it could be held against.
    Unknown,
    /// Something else; what, for people.
    Damaged(String),
}

impl ImageStore {
    /// All images, in no particular order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let root = &self.inner.config.root;
        let fail = |source| StoreError { action: "read", path: root.clone(), source };
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for entry in self.inner.refs() {
            names.entry(entry.image.folder).or_default().push(entry.reference);
        }
        let mut folders = BTreeSet::new();
        for entry in std::fs::read_dir(root).map_err(fail)? {
            let file = entry.map_err(fail)?.file_name();
            folders.extend(file.to_str().and_then(entry::name).map(str::to_owned));
        }
        let mut images = Vec::new();
        for folder in folders {
            let Some((entry, _)) = Entry::find(root, &folder) else { continue };
            let mut names = names.remove(&folder).unwrap_or_default();
            names.sort();
            images.push(StoredImage {
                image_ref: entry::image_ref(&folder, &entry.meta),
                names,
                size: entry.meta.size,
                last_used: entry.last_used,
                layout: entry.layout,
                takes: entry.takes(),
            });
        }
        Ok(images)
    }

    /// Whether an image is there; it counts as used now.
    #[must_use]
    pub fn has(&self, image: &ImageRef) -> bool {
        self.inner.load(image.clone(), true).is_some()
    }

    /// Removes images that no pod uses and that were not asked for during `min_age`, and cached layers that old. `uses` is
    /// asked before each, and once more when it is out of the way.
    ///
    /// # Errors
    /// When the store cannot be read. An image that cannot be removed is left for the next time.
    pub async fn collect(
        &self,
        uses: &(dyn Fn() -> Result<Uses, UsesError> + Send + Sync),
        min_age: Duration,
    ) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let old = |time: SystemTime| time.elapsed().is_ok_and(|age| age >= min_age);
        for image in self.list()? {
            let folder = image.image_ref.folder;
            if !old(image.last_used) {
                continue;
            }
            match self.inner.remove_image(&folder, uses).await {
                Ok(()) => collected.images.push(folder),
                Err(RemoveError::InUse(_)) => {}
                Err(e) => tracing::warn!(%folder, "cannot remove an unused image: {e}"),
            }
        }
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { action, path, source }
        };
        // Whoever pulls or removes an image shares this lock: with it alone, no layer is on its way into an image.
        let (store, locks) = (self.inner.store_lock(), self.inner.config.root.join(image::LOCKS));
        let Some(_alone) = lock::try_acquire(store.clone()).map_err(fail("lock", &store))? else {
            return Ok(collected);
        };
        let blobs = self.inner.config.root.join(image::BLOBS);
        for entry in std::fs::read_dir(&blobs).map_err(fail("read", &blobs))?.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.modified().is_ok_and(old) && std::fs::remove_file(entry.path()).is_ok() {
                collected.blobs += 1;
                collected.blob_bytes += meta.len();
            }
        }
        // Each is made again by whoever needs it.
        for entry in std::fs::read_dir(&locks).map_err(fail("read", &locks))?.flatten() {
            if entry.path() != store {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(collected)
    }

    /// Removes one image with all its names, unless a pod has it.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove(
        &self,
        image: &ImageRef,
        uses: &(dyn Fn() -> Result<Uses, UsesError> + Send + Sync),
    ) -> Result<(), RemoveError> {
        self.inner.remove_image(&image.folder, uses).await
    }

    /// Removes one name of an image that has others.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget(&self, reference: &str) -> Result<(), StoreError> {
        let path = self.inner.ref_path(reference);
        std::fs::remove_file(&path).map_err(|source| StoreError { action: "remove", path, source })
    }

    /// Checks an image against what was written down when it was made: of one file the digest of all its bytes; of a folder
    /// the names, modes, owners, lengths and times of all its files, without reading them.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn verify(&self, image: &ImageRef) -> Result<Verified, RemoveError> {
        let Some((entry, _)) = Entry::find(&self.inner.config.root, &image.folder) else {
            return Ok(Verified::Damaged("it is incomplete".to_owned()));
        };
        if let Some((expected, length)) = entry.squashfs {
            let path = entry.path.clone();
            let read = move || {
                let file = std::fs::File::open(&path).map_err(SourceError::io("open", &path))?;
                digest_of_reader(file.take(length)).map_err(SourceError::io("read", &path))
            };
            let actual = blocking(read).await?;
            return Ok(match actual == expected {
                true => Verified::Good,
                false => Verified::Damaged(format!("its file has the digest {actual}, it was made with {expected}")),
            });
        }
        let Some(expected) = entry.meta.files else { return Ok(Verified::Unknown) };
        let job = Job::Measure { path: entry.path.join(image::ROOTFS) };
        let (_, found) = self.inner.help(&job).await.map_err(|e| RemoveError::Store(e.to_string()))?;
        Ok(if found == expected {
            Verified::Good
        } else if (found.inodes, found.bytes) != (expected.inodes, expected.bytes) {
            Verified::Damaged(format!(
                "it has {} files with {} bytes, it was made with {} and {}",
                found.inodes, found.bytes, expected.inodes, expected.bytes
            ))
        } else {
            Verified::Damaged("names, modes, owners or times of its files have changed".to_owned())
        })
    }
}

impl Inner {
    /// Out of the way first, then asked again: who writes down a use before it looks whether the image is there either
    /// finds it gone, or is found here.
    async fn remove_image(
        &self,
        folder: &str,
        uses: &(dyn Fn() -> Result<Uses, UsesError> + Send + Sync),
    ) -> Result<(), RemoveError> {
        let users = || Ok::<_, RemoveError>(uses()?.remove(folder));
        if let Some(pods) = users()? {
            return Err(RemoveError::InUse(pods));
        }
        let turn = self.turn(folder);
        let _turn = turn.lock().await;
        let _store = self.share_store().await?;
        let _lock = self.lock(folder).await?;
        let root = &self.config.root;
        let mut moved = Vec::new();
        for from in [root.join(folder), entry::file(root, folder)] {
            let name = from.file_name().unwrap_or_default().to_string_lossy();
            let to = self.tmp().join(format!("{name}.removed"));
            // A half-removed image must never look complete.
            match tokio::fs::rename(&from, &to).await {
                Ok(()) => moved.push((from, to)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    put_back(&moved).await;
                    return Err(SourceError::io("rename", &from)(e).into());
                }
            }
        }
        match users() {
            Ok(None) => {}
            Ok(Some(pods)) => {
                put_back(&moved).await;
                return Err(RemoveError::InUse(pods));
            }
            Err(error) => {
                put_back(&moved).await;
                return Err(error);
            }
        }
        for entry in self.refs().into_iter().filter(|e| e.image.folder == folder) {
            let path = self.ref_path(&entry.reference);
            tokio::fs::remove_file(&path).await.map_err(SourceError::io("remove", &path))?;
        }
        for (_, to) in moved {
            self.remove(&to).await?;
        }
        Ok(())
    }
}

async fn put_back(moved: &[(PathBuf, PathBuf)]) {
    for (from, to) in moved {
        if let Err(error) = tokio::fs::rename(to, from).await {
            tracing::error!(%error, "cannot put {} back", from.display());
        }
    }
}
