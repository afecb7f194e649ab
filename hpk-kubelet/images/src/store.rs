//! The image store: decides what is present, pulls what is missing, collects what is unused.

use crate::archive::{self, Resolved};
use crate::blobs::{Blobs, digest_of, digest_of_reader, folder_name, verify};
use crate::config::ImageConfig;
use crate::entry::{self, Entry, read_json, write_json};
use crate::error::{PullError, SourceError};
use crate::helper;
use crate::keyring::{Keyring, Pass};
use crate::layout::Layout;
use crate::local::{self, LocalImages, Node, Opened};
use crate::make::Content;
use crate::manifest::{Document, Manifest, go_arch, select};
use crate::reference::{Format, LocalImage, Source};
use crate::region::Region;
use crate::registries::Registries;
use crate::tree::{Limits, TreeError};
use crate::{registry, sif};
use futures::{FutureExt, StreamExt, TryStreamExt};
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

/// Layers of one image that are downloaded at a time (upstream's containerd default).
const PARALLEL_DOWNLOADS: usize = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time; content that is present is not fetched again.
    Always,
    /// Ask only when the reference is unknown.
    #[default]
    IfNotPresent,
    /// Never ask.
    Never,
}

impl PullPolicy {
    /// The policy of a container: its own, else Always for `:latest`, else IfNotPresent.
    #[must_use]
    pub fn of(policy: Option<&str>, image: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if Source::parse(image).is_ok_and(|s| s.is_latest()) => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

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
        /// Bytes.
        total: u64,
    },
    /// So many more bytes have come.
    Downloaded {
        /// Bytes.
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
    stamp: Option<String>,
    /// Who may have it without the registry being asked; None: of an earlier version, everybody.
    #[serde(default)]
    passes: Option<Vec<Pass>>,
}

/// Credentials that are kept for one name.
const MOST_PASSES: usize = 64;

/// The store. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) ids: Option<SubIds>,
    blobs: Blobs,
    /// One pull at a time per reference and per folder within this process; flock does it between processes.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) serial: AtomicU64,
}

impl ImageStore {
    /// Opens the store, making its folders.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
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
        let inner =
            Inner { config, ids: helper::subordinate_ids(), blobs, turns: Mutex::default(), serial: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes an image available. Several callers that want one image share one pull. `local`: which of the user's files
    /// may be images for this caller.
    ///
    /// # Errors
    /// [`PullError`], whose `reason` is the container's waiting reason.
    pub async fn pull(
        &self,
        image: &str,
        policy: PullPolicy,
        keyring: &Keyring,
        local: &LocalImages,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, PullError> {
        let source = Source::parse(image).map_err(|cause| PullError::InvalidName { image: image.to_owned(), cause })?;
        let of = |e: SourceError| e.of(image, source.registry());
        let turn = self.inner.turn(&source.normalized());
        let _turn = turn.lock().await;
        // Before anything else: an image that is in the store already is not for everybody either.
        let wanted = Wanted::open(&source, local).await.map_err(of)?;
        if policy != PullPolicy::Always
            && let Some(present) = self.inner.known(&source, &wanted, keyring)
        {
            return Ok(present);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NeverPull { image: image.to_owned() });
        }
        self.inner.fetch(&source, wanted, keyring, progress).await.map_err(of)
    }

    /// The image of a reference, when it is in the store and was given for credentials of this keyring, or for none; asks
    /// no registry.
    pub async fn present(&self, image: &str, keyring: &Keyring, local: &LocalImages) -> Option<PulledImage> {
        let source = Source::parse(image).ok()?;
        let wanted = Wanted::open(&source, local).await.ok()?;
        self.inner.known(&source, &wanted, keyring)
    }

    /// How to run an image that is in the store.
    #[must_use]
    pub fn config(&self, image: &ImageRef) -> Option<ImageConfig> {
        Entry::find(&self.inner.config.root, &image.folder).map(|(_, config)| config)
    }

    /// The root file system of an image, where it is a folder.
    #[must_use]
    pub fn rootfs(&self, image: &ImageRef) -> PathBuf {
        self.inner.config.root.join(&image.folder).join(image::ROOTFS)
    }

    /// The one file of an image, where it is of the layout squashfs.
    #[must_use]
    pub fn file(&self, image: &ImageRef) -> PathBuf {
        entry::file(&self.inner.config.root, &image.folder)
    }
}

impl Inner {
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

    /// What the index says of a reference, when that image is still there.
    fn known(&self, source: &Source, wanted: &Wanted, keyring: &Keyring) -> Option<PulledImage> {
        // A digest names its content: any image of that digest will do, whatever tag it came by.
        let entry: RefEntry = read_json(&self.ref_path(&source.normalized()))?;
        if entry.stamp != wanted.stamp() {
            return None;
        }
        if let (Wanted::Registry(reference), Some(passes)) = (wanted, &entry.passes)
            && !keyring.has_one_of(passes, reference)
        {
            return None;
        }
        self.load(entry.image, true)
    }

    pub(crate) fn load(&self, image_ref: ImageRef, already_present: bool) -> Option<PulledImage> {
        let (entry, config) = Entry::find(&self.config.root, &image_ref.folder)?;
        entry.touch();
        Some(PulledImage { image_ref, config, size: entry.meta.size, already_present })
    }

    async fn fetch(
        &self,
        source: &Source,
        wanted: Wanted,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let _store = self.share_store().await?;
        let stamp = wanted.stamp();
        let mut pass = Pass::open();
        let image = match wanted {
            Wanted::Registry(reference) => {
                let image;
                (image, pass) = self.fetch_registry(&reference, keyring, progress).await?;
                image
            }
            Wanted::File { file, .. } => {
                self.check_length(&file)?;
                self.unpack_sif(source, file, progress).await?
            }
            Wanted::Layers { opened, format, .. } => {
                if let Node::File(file) = &opened.node {
                    self.check_length(file)?;
                }
                let most = self.config.limits.bytes;
                let resolve = move || match format {
                    Format::DockerArchive => archive::docker(&opened, most),
                    _ => archive::oci(&opened, most),
                };
                self.unpack_local(source, blocking(resolve).await?, progress).await?
            }
        };
        self.name(source.normalized(), &image.image_ref, stamp, pass)?;
        Ok(image)
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

    /// Before a file is hashed: a sparse one of any length costs nothing to make.
    fn check_length(&self, file: &Region) -> Result<(), SourceError> {
        if file.length > self.config.limits.bytes {
            return Err(SourceError::Unpack(TreeError::Bytes(self.config.limits.bytes).to_string()));
        }
        Ok(())
    }

    async fn fetch_registry(
        &self,
        reference: &oci_client::Reference,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(PulledImage, Pass), SourceError> {
        let (session, bytes, digest) = registry::open(reference, keyring, &self.config.registries).await?;
        let id = format!("{}/{}@{digest}", reference.registry(), reference.repository());
        let (manifest, digest) = match Document::parse(&bytes)? {
            Document::Image(manifest) => (manifest, digest),
            Document::Index(entries) => {
                let chosen = select(&entries, go_arch())?.digest.clone();
                match Document::parse(&session.manifest_by_digest(&chosen).await?)? {
                    Document::Image(manifest) => (manifest, chosen),
                    Document::Index(_) => {
                        return Err(SourceError::InvalidImage {
                            what: "manifest".to_owned(),
                            cause: format!("{chosen} is an index within an index"),
                        });
                    }
                }
            }
        };
        let image_ref = ImageRef { folder: folder_name(&digest)?, id };
        let image = self.once(
            image_ref,
            || async {
                let resolved = self.download(&session, manifest, digest, progress).await?;
                Ok(Content::Layers(resolved))
            },
            progress,
        );
        Ok((image.await?, session.pass()))
    }

    async fn download(
        &self,
        session: &registry::Session,
        manifest: Manifest,
        digest: String,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Resolved, SourceError> {
        let wanted = manifest.layers.iter().chain([&manifest.config]);
        let size = wanted.clone().fold(0u64, |sum, d| sum.saturating_add(d.size));
        let mut missing = 0;
        for blob in wanted {
            let path = self.config.root.join(image::BLOBS).join(folder_name(&blob.digest)?);
            missing = if path.exists() { missing } else { blob.size.saturating_add(missing) };
        }
        if size > self.config.limits.bytes {
            return Err(SourceError::Unpack(TreeError::Bytes(self.config.limits.bytes).to_string()));
        }
        progress(Progress::Resolved { total: missing });
        let count = |bytes: usize| progress(Progress::Downloaded { bytes: bytes as u64 });
        let fetch = |descriptor, most| async move {
            let descriptor: &crate::manifest::Descriptor = descriptor;
            // Some tools leave sizes out.
            let limit = if descriptor.size > 0 { descriptor.size.min(most) } else { most };
            self.blobs.ensure(&descriptor.digest, |path| session.blob(descriptor, path, limit, &count)).await
        };
        let config_path = fetch(&manifest.config, archive::MAX_DOCUMENT).await?;
        let config = tokio::fs::read(&config_path).await.map_err(SourceError::io("read", config_path))?;
        verify(&manifest.config.digest, &config)?;
        // Boxed one by one: a stream over a borrowing closure would not be Send for callers that spawn this.
        let mut fetches = Vec::new();
        for layer in &manifest.layers {
            fetches.push(fetch(layer, self.config.limits.bytes).boxed());
        }
        let paths: Vec<PathBuf> = futures::stream::iter(fetches).buffered(PARALLEL_DOWNLOADS).try_collect().await?;
        let mut layers = Vec::new();
        for (path, descriptor) in paths.into_iter().zip(&manifest.layers) {
            let layer = std::fs::File::open(&path).and_then(Region::whole).map_err(SourceError::io("open", path))?;
            layers.push((layer, descriptor.digest.clone()));
        }
        Ok(Resolved { digest, config, layers, size })
    }

    async fn unpack_local(
        &self,
        source: &Source,
        resolved: Resolved,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let id = format!("{}@{}", source.normalized(), resolved.digest);
        let image_ref = ImageRef { folder: folder_name(&resolved.digest)?, id };
        self.once(image_ref, || async { Ok(Content::Layers(resolved)) }, progress).await
    }

    async fn unpack_sif(
        &self,
        source: &Source,
        file: Region,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let name = source.normalized();
        let sif = file.clone();
        let read = name.clone();
        let (root, digest) = blocking(move || {
            let root = sif::root_of(&sif)
                .map_err(|e| SourceError::InvalidImage { what: read.clone(), cause: e.to_string() })?;
            Ok((root, digest_of_reader(sif.reader()).map_err(SourceError::io("read", read))?))
        })
        .await?;
        // The path is part of the folder's name: a SIF is read twice, and whoever may write it between the two gets
        // nothing but an image of the same name.
        let folder = folder_name(&digest_of(format!("sif {name} {digest}").as_bytes()))?;
        let image_ref = ImageRef { folder, id: format!("{name}@{digest}") };
        self.once(image_ref, || async { Ok(Content::Sif { name, file, root }) }, progress).await
    }
}

/// What a reference leads to; a local image is open, and its rules are kept.
enum Wanted {
    Registry(oci_client::Reference),
    File { file: Region, stamp: Option<String> },
    Layers { opened: Opened, format: Format, stamp: Option<String> },
}

impl Wanted {
    async fn open(source: &Source, local: &LocalImages) -> Result<Self, SourceError> {
        let LocalImage { format, spec } = match source {
            Source::Registry(reference) => return Ok(Self::Registry(reference.clone())),
            Source::Local(image) => image.clone(),
        };
        let local = local.clone();
        blocking(move || {
            let opened = local::open(&spec, &local)?;
            let marker = match (format, &opened.node) {
                (Format::Sif, _) => {
                    let file = opened.file()?.clone();
                    return Ok(Self::File { stamp: local::stamp(&file), file });
                }
                (_, Node::File(file)) => file.clone(),
                (Format::DockerArchive, Node::Folder(folder)) => folder.file("manifest.json")?,
                (_, Node::Folder(folder)) => folder.file("index.json")?,
            };
            Ok(Self::Layers { stamp: local::stamp(&marker), opened, format })
        })
        .await
    }

    /// For local images: identity of the file that was opened.
    fn stamp(&self) -> Option<String> {
        match self {
            Self::Registry(_) => None,
            Self::File { stamp, .. } | Self::Layers { stamp, .. } => stamp.clone(),
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SourceError::Other(e.to_string()))?
}
