//! What all of the store's work shares: its folders, the index of references, and turns within this process.

use crate::blobs::{Blobs, digest_of};
use crate::config::ImageConfig;
use crate::entry::{Entry, read_json, write_json};
use crate::error::SourceError;
use crate::helper;
use crate::keyring::Pass;
use crate::layout::Layout;
use crate::registries::Registries;
use crate::tree::Limits;
use hpk_api::plan::ImageRef;
use hpk_api::subids::SubIds;
use hpk_layout::image;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Where the store is and what it works with.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `HPK_HOME/images`; made when missing.
    pub root: PathBuf,
    /// Command of a program that runs [`helper::main`], see [`helper::command_of`].
    pub helper: Vec<OsString>,
    /// Registry settings.
    pub registries: Registries,
    /// How much one image may take.
    pub limits: Limits,
    /// How images that come are kept; those that are there stay as they are.
    pub layout: Layout,
}

/// The store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("image store: {action} {path}: {source}")]
pub struct StoreError {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    #[source]
    pub(crate) source: std::io::Error,
}

/// An image that is ready for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// Folder and status.imageID.
    pub image_ref: ImageRef,
    /// How to run it.
    pub config: ImageConfig,
    /// Bytes of the image as stored in the registry (compressed layers and configuration).
    pub size: u64,
    /// Nothing had to be asked for or fetched: the event is "already present on machine".
    pub already_present: bool,
}

/// What a pull is doing, for people who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known; so many bytes of layers are not in the cache.
    Resolved {
        /// How many bytes of layers are not in the cache.
        total: u64,
    },
    /// So many more bytes have come.
    Downloaded {
        /// How many since the last of these.
        bytes: u64,
    },
    /// Layers are being unpacked.
    Unpacking,
    /// The files are being packed into one.
    Packing,
}

/// `.refs/<hash>.json`: what a reference resolved to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RefEntry {
    pub(crate) reference: String,
    pub(crate) image: ImageRef,
    /// For files: modification time and size, so that a changed file is a new image.
    #[serde(default)]
    pub(crate) stamp: Option<String>,
    /// Who may have it without the registry being asked; None: of an earlier version, everybody.
    #[serde(default)]
    pub(crate) passes: Option<Vec<Pass>>,
}

/// Credentials that are kept for one name.
const MOST_PASSES: usize = 64;

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) ids: Option<SubIds>,
    pub(crate) blobs: Blobs,
    /// One pull at a time per reference and per folder within this process; flock does it between processes.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) serial: AtomicU64,
}

impl Inner {
    /// Opens the store, making its folders.
    pub(crate) fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let root = config.root.clone();
        for folder in ["", image::REFS, image::BLOBS, image::LOCKS, image::TMP] {
            let path = root.join(folder);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|source| StoreError {
                action: "create",
                path,
                source,
            })?;
        }
        // The registry client leaves the choice of TLS provider to the process; whoever was first wins.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let blobs = Blobs::new(root.join(image::BLOBS), root.join(image::LOCKS));
        let ids = helper::subordinate_ids();
        Ok(Self { config, ids, blobs, turns: Mutex::default(), serial: AtomicU64::new(0) })
    }

    pub(crate) fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, t| t.strong_count() > 0);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    pub(crate) fn ref_path(&self, reference: &str) -> PathBuf {
        let hash = digest_of(reference.as_bytes());
        self.config.root.join(image::REFS).join(format!("{}.json", &hash["sha256:".len()..]))
    }

    pub(crate) fn refs(&self) -> Vec<RefEntry> {
        let Ok(entries) = std::fs::read_dir(self.config.root.join(image::REFS)) else { return Vec::new() };
        entries.flatten().filter_map(|e| read_json(&e.path())).collect()
    }

    pub(crate) fn load(&self, image_ref: ImageRef, already_present: bool) -> Option<PulledImage> {
        let (entry, config) = Entry::find(&self.config.root, &image_ref.folder)?;
        entry.touch();
        Some(PulledImage { image_ref, config, size: entry.meta.size, already_present })
    }

    /// Writes down what a reference means.
    pub(crate) fn name(
        &self,
        reference: String,
        image: &ImageRef,
        stamp: Option<String>,
        pass: Pass,
    ) -> Result<(), SourceError> {
        let path = self.ref_path(&reference);
        let mut passes = vec![pass.clone()];
        // Who may have the same image by this name may go on having it.
        if let Some(before) = read_json::<RefEntry>(&path).filter(|before| before.image == *image) {
            passes.extend(before.passes.into_iter().flatten().filter(|known| *known != pass));
            passes.truncate(MOST_PASSES);
        }
        let entry = RefEntry { reference, image: image.clone(), stamp, passes: Some(passes) };
        write_json(&path, &entry).map_err(SourceError::io("write", path))
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SourceError::Other(e.to_string()))?
}
