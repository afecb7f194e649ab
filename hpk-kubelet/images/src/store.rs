//! The image store: decides what is present, pulls what is missing, collects what is unused.

use crate::archive::{self, Resolved};
use crate::blobs::{Blobs, digest_of, digest_of_file, folder_name, verify};
use crate::config::ImageConfig;
use crate::error::{PullError, SourceError};
use crate::helper::{self, HelperError, Job, LayerInput, SubIds};
use crate::keyring::Keyring;
use crate::layer::Report;
use crate::manifest::{Document, Manifest, go_arch, select};
use crate::reference::Source;
use crate::registries::Registries;
use crate::{lock, registry, sif};
use futures::{FutureExt, StreamExt, TryStreamExt};
use hpk_api::plan::ImageRef;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

/// Layers of one image that are downloaded at a time (upstream's containerd default).
const PARALLEL_DOWNLOADS: usize = 3;

/// imagePullPolicy.
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
    /// Apptainer, for SIF files; None: found in PATH.
    pub apptainer: Option<PathBuf>,
}

/// The store cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("image store: {action} {path}: {source}")]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
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
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Folder and digest reference.
    pub image_ref: ImageRef,
    /// References known to resolve to it, sorted.
    pub names: Vec<String>,
    /// Bytes, as [`PulledImage::size`].
    pub size: u64,
    /// When it was last pulled or found present for a pod.
    pub last_used: SystemTime,
}

/// What the collector removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Folder names of removed images.
    pub images: Vec<String>,
    /// Number of removed layers.
    pub blobs: usize,
}

/// `image.json`: facts of an unpacked image. Its presence says that the folder is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Meta {
    /// Digest reference of the pull that made it.
    id: String,
    size: u64,
    created: Timestamp,
}

/// `.refs/<hash>.json`: what a reference resolved to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RefEntry {
    reference: String,
    image: ImageRef,
    /// For files: modification time and size, so that a changed file is a new image.
    #[serde(default)]
    stamp: Option<String>,
}

/// The store. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: StoreConfig,
    ids: Option<SubIds>,
    blobs: Blobs,
    /// One pull at a time per reference and per folder within this process; flock does it between processes.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    serial: AtomicU64,
}

impl ImageStore {
    /// Opens the store, making its folders.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        let root = config.root.clone();
        for folder in ["", ".refs", ".blobs", ".locks", ".tmp"] {
            let path = root.join(folder);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|source| StoreError {
                action: "create",
                path,
                source,
            })?;
        }
        // The registry client leaves the choice of TLS provider to the process; whoever was first wins.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let blobs = Blobs::new(root.join(".blobs"), root.join(".locks"));
        let inner =
            Inner { config, ids: SubIds::of_current_user(), blobs, turns: Mutex::default(), serial: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes an image available. Several callers that want one image share one pull.
    ///
    /// # Errors
    /// [`PullError`], whose `reason` is the container's waiting reason.
    pub async fn pull(
        &self,
        image: &str,
        policy: PullPolicy,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, PullError> {
        let source = Source::parse(image).map_err(|cause| PullError::InvalidName { image: image.to_owned(), cause })?;
        let turn = self.inner.turn(&source.normalized());
        let _turn = turn.lock().await;
        if policy != PullPolicy::Always
            && let Some(present) = self.inner.known(&source).await
        {
            return Ok(present);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NeverPull { image: image.to_owned() });
        }
        self.inner.fetch(&source, keyring, progress).await.map_err(|e| e.of(image, source.registry()))
    }

    /// The image of a reference, when it is in the store; asks no registry.
    pub async fn present(&self, image: &str) -> Option<PulledImage> {
        self.inner.known(&Source::parse(image).ok()?).await
    }

    /// How to run an image that is in the store.
    #[must_use]
    pub fn config(&self, image: &ImageRef) -> Option<ImageConfig> {
        read_json(&self.inner.config.root.join(&image.folder).join("config.json"))
    }

    /// The root file system of an image.
    #[must_use]
    pub fn rootfs(&self, image: &ImageRef) -> PathBuf {
        self.inner.config.root.join(&image.folder).join("rootfs")
    }

    /// All images, in no particular order; for Node.status.images and the collector.
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
        let mut images = Vec::new();
        for entry in std::fs::read_dir(root).map_err(fail)? {
            let folder = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
            if folder.starts_with('.') {
                continue;
            }
            let file = root.join(&folder).join("image.json");
            let Some(meta) = read_json::<Meta>(&file) else { continue };
            let last_used = std::fs::metadata(&file).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let mut names = names.remove(&folder).unwrap_or_default();
            names.sort();
            images.push(StoredImage { image_ref: ImageRef { folder, id: meta.id }, names, size: meta.size, last_used });
        }
        Ok(images)
    }

    /// Removes images that no pod uses and that were not asked for during `min_age`, and cached layers that
    /// old. `in_use` holds folder names; it must include those of every pod whose job may still run.
    ///
    /// # Errors
    /// When the store cannot be read. An image that cannot be removed is left for the next time.
    pub async fn collect(&self, in_use: &HashSet<String>, min_age: Duration) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let old = |time: SystemTime| time.elapsed().is_ok_and(|age| age >= min_age);
        for image in self.list()? {
            let folder = image.image_ref.folder;
            if in_use.contains(&folder) || !old(image.last_used) {
                continue;
            }
            match self.inner.remove_image(&folder).await {
                Ok(()) => collected.images.push(folder),
                Err(e) => tracing::warn!(%folder, "cannot remove an unused image: {e}"),
            }
        }
        let blobs = self.inner.config.root.join(".blobs");
        let fail = |source| StoreError { action: "read", path: blobs.clone(), source };
        for entry in std::fs::read_dir(&blobs).map_err(fail)?.flatten() {
            let unused = entry.metadata().and_then(|m| m.modified()).is_ok_and(old);
            if unused && std::fs::remove_file(entry.path()).is_ok() {
                collected.blobs += 1;
            }
        }
        Ok(collected)
    }
}

impl Inner {
    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, t| t.strong_count() > 0);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn ref_path(&self, reference: &str) -> PathBuf {
        let hash = digest_of(reference.as_bytes());
        self.config.root.join(".refs").join(format!("{}.json", &hash["sha256:".len()..]))
    }

    fn refs(&self) -> Vec<RefEntry> {
        let Ok(entries) = std::fs::read_dir(self.config.root.join(".refs")) else { return Vec::new() };
        entries.flatten().filter_map(|e| read_json(&e.path())).collect()
    }

    /// What the index says of a reference, when that image is still there.
    async fn known(&self, source: &Source) -> Option<PulledImage> {
        // A digest names its content: any image of that digest will do, whatever tag it came by.
        let entry: RefEntry = read_json(&self.ref_path(&source.normalized()))?;
        if entry.stamp != stamp(source) {
            return None;
        }
        self.load(entry.image, true)
    }

    fn load(&self, image_ref: ImageRef, already_present: bool) -> Option<PulledImage> {
        let folder = self.config.root.join(&image_ref.folder);
        let meta_path = folder.join("image.json");
        let meta: Meta = read_json(&meta_path)?;
        let config = read_json(&folder.join("config.json"))?;
        crate::blobs::touch(&meta_path);
        Some(PulledImage { image_ref, config, size: meta.size, already_present })
    }

    async fn fetch(
        &self,
        source: &Source,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let stamp = stamp(source);
        let image = match source {
            Source::Registry(reference) => self.fetch_registry(reference, keyring, progress).await?,
            Source::OciArchive(local) | Source::OciLayout(local) => {
                let local = local.clone();
                let resolved = blocking(move || archive::oci(&local)).await?;
                self.unpack_local(source, resolved, progress).await?
            }
            Source::DockerArchive(local) => {
                let local = local.clone();
                let resolved = blocking(move || archive::docker(&local)).await?;
                self.unpack_local(source, resolved, progress).await?
            }
            Source::Sif(path) => self.unpack_sif(path, progress).await?,
        };
        let reference = source.normalized();
        let path = self.ref_path(&reference);
        let entry = RefEntry { reference, image: image.image_ref.clone(), stamp };
        write_json(&path, &entry).map_err(SourceError::io("write", path))?;
        Ok(image)
    }

    async fn fetch_registry(
        &self,
        reference: &oci_client::Reference,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let (session, bytes, digest) = registry::open(reference, keyring, &self.config.registries).await?;
        let id = format!("{}/{}@{digest}", reference.registry(), reference.repository());
        let (manifest, digest) = match Document::parse(&bytes)? {
            Document::Image(manifest) => (manifest, digest),
            Document::Index(entries) => {
                let chosen = select(&entries, go_arch())?.digest.clone();
                match Document::parse(&session.manifest_by_digest(&chosen).await?)? {
                    Document::Image(manifest) => (manifest, chosen),
                    Document::Index(_) => {
                        return Err(SourceError::Malformed {
                            what: "manifest".to_owned(),
                            cause: format!("{chosen} is an index within an index"),
                        });
                    }
                }
            }
        };
        let image_ref = ImageRef { folder: folder_name(&digest)?, id };
        self.once(
            image_ref,
            || async {
                let resolved = self.download(&session, manifest, digest, progress).await?;
                Ok(Content::Layers(resolved))
            },
            progress,
        )
        .await
    }

    async fn download(
        &self,
        session: &registry::Session,
        manifest: Manifest,
        digest: String,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Resolved, SourceError> {
        let wanted = manifest.layers.iter().chain([&manifest.config]);
        let size = wanted.clone().map(|d| d.size).sum();
        let mut missing = 0;
        for blob in wanted {
            let path = self.config.root.join(".blobs").join(folder_name(&blob.digest)?);
            missing += if path.exists() { 0 } else { blob.size };
        }
        progress(Progress::Resolved { total: missing });
        let count = |bytes: usize| progress(Progress::Downloaded { bytes: bytes as u64 });
        let fetch = |descriptor| async move {
            let descriptor: &crate::manifest::Descriptor = descriptor;
            self.blobs.ensure(&descriptor.digest, |path| session.blob(descriptor, path, &count)).await
        };
        let config_path = fetch(&manifest.config).await?;
        let config = tokio::fs::read(&config_path).await.map_err(SourceError::io("read", config_path))?;
        verify(&manifest.config.digest, &config)?;
        // Boxed one by one: a stream over a borrowing closure would not be Send for callers that spawn this.
        let mut fetches = Vec::new();
        for layer in &manifest.layers {
            fetches.push(fetch(layer).boxed());
        }
        let paths: Vec<PathBuf> = futures::stream::iter(fetches).buffered(PARALLEL_DOWNLOADS).try_collect().await?;
        let mut layers = Vec::new();
        for path in paths {
            let length = tokio::fs::metadata(&path).await.map_err(SourceError::io("read", &path))?.len();
            layers.push(LayerInput { path, offset: 0, length });
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
        path: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError> {
        let file = path.to_owned();
        let digest = blocking(move || {
            digest_of_file(&file).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => SourceError::NotFound(format!("no such file: {}", file.display())),
                _ => SourceError::Io { action: "read", path: file.clone(), source: e },
            })
        })
        .await?;
        let image_ref = ImageRef { folder: folder_name(&digest)?, id: format!("{}@{digest}", path.display()) };
        self.once(image_ref, || async { Ok(Content::Sif(path.to_owned())) }, progress).await
    }

    /// Makes the folder of an image unless it is there, under its locks.
    async fn once<F, Fut>(
        &self,
        image_ref: ImageRef,
        content: F,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, SourceError>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Content, SourceError>>,
    {
        let turn = self.turn(&image_ref.folder);
        let _turn = turn.lock().await;
        let _lock = self.lock(&image_ref.folder).await?;
        if let Some(image) = self.load(image_ref.clone(), false) {
            return Ok(image);
        }
        let content = content().await?;
        progress(Progress::Unpacking);
        let folder = self.config.root.join(&image_ref.folder);
        // Remains of a helper that was killed: only the holder of this lock makes such folders.
        self.remove_leftovers(&image_ref.folder).await;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{}.{serial}", image_ref.folder, std::process::id());
        let tmp = self.config.root.join(".tmp").join(name);
        let made = self.make(&tmp, &image_ref, content).await;
        let placed = match made {
            Ok(()) => match tokio::fs::rename(&tmp, &folder).await {
                Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                    // An incomplete folder of that name (no image.json): out of the way with it.
                    self.remove(&folder).await?;
                    tokio::fs::rename(&tmp, &folder).await.map_err(SourceError::io("rename", &tmp))
                }
                other => other.map_err(SourceError::io("rename", &tmp)),
            },
            Err(e) => Err(e),
        };
        if let Err(e) = placed {
            if let Err(again) = self.remove(&tmp).await {
                tracing::warn!("cannot clean up after a failed unpack: {again}");
            }
            return Err(e);
        }
        self.load(image_ref, false)
            .ok_or_else(|| SourceError::Other("the image vanished right after it was unpacked".to_owned()))
    }

    async fn make(&self, tmp: &Path, image_ref: &ImageRef, content: Content) -> Result<(), SourceError> {
        tokio::fs::create_dir(tmp).await.map_err(SourceError::io("create", tmp))?;
        let rootfs = tmp.join("rootfs");
        let (config, size) = match content {
            Content::Layers(resolved) => {
                let config =
                    ImageConfig::from_blob(&resolved.config).map_err(SourceError::malformed("image configuration"))?;
                tokio::fs::create_dir(&rootfs).await.map_err(SourceError::io("create", &rootfs))?;
                // A layer without an entry for the root leaves this mode.
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&rootfs, mode).map_err(SourceError::io("chmod", &rootfs))?;
                let owners = self.ids.is_some() || nix::unistd::Uid::effective().is_root();
                let job = Job::Unpack { rootfs, layers: resolved.layers, owners };
                let report = self.help(&job).await.map_err(|e| SourceError::Unpack(e.to_string()))?;
                tracing::info!(image = image_ref.id, ?report, "image unpacked");
                (config, resolved.size)
            }
            Content::Sif(path) => {
                sif::unpack(self.config.apptainer.as_deref(), &path, &rootfs).await?;
                let size = tokio::fs::metadata(&path).await.map_err(SourceError::io("read", &path))?.len();
                (sif::config(&rootfs), size)
            }
        };
        let meta = Meta { id: image_ref.id.clone(), size, created: Timestamp::now() };
        let write = |name: &str, result: std::io::Result<()>| result.map_err(SourceError::io("write", tmp.join(name)));
        write("config.json", write_json(&tmp.join("config.json"), &config))?;
        write("image.json", write_json(&tmp.join("image.json"), &meta))
    }

    async fn help(&self, job: &Job) -> Result<Report, HelperError> {
        helper::run(&self.config.helper, self.ids.as_ref(), job).await
    }

    async fn lock(&self, name: &str) -> Result<lock::Lock, SourceError> {
        let path = self.config.root.join(".locks").join(name);
        lock::acquire(path.clone()).await.map_err(SourceError::io("lock", path))
    }

    async fn remove(&self, path: &Path) -> Result<(), SourceError> {
        let job = Job::Remove { path: path.to_owned() };
        self.help(&job).await.map(drop).map_err(|e| SourceError::Other(e.to_string()))
    }

    async fn remove_leftovers(&self, folder: &str) {
        let Ok(entries) = std::fs::read_dir(self.config.root.join(".tmp")) else { return };
        let prefix = format!("{folder}.");
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix)
                && let Err(e) = self.remove(&entry.path()).await
            {
                tracing::warn!("cannot remove {}: {e}", entry.path().display());
            }
        }
    }

    async fn remove_image(&self, folder: &str) -> Result<(), SourceError> {
        let turn = self.turn(folder);
        let _turn = turn.lock().await;
        let _lock = self.lock(folder).await?;
        for entry in self.refs().into_iter().filter(|e| e.image.folder == folder) {
            let path = self.ref_path(&entry.reference);
            tokio::fs::remove_file(&path).await.map_err(SourceError::io("remove", &path))?;
        }
        // Renamed first: a half-removed image must never look complete.
        let from = self.config.root.join(folder);
        let to = self.config.root.join(".tmp").join(format!("{folder}.removed"));
        tokio::fs::rename(&from, &to).await.map_err(SourceError::io("rename", &from))?;
        self.remove(&to).await
    }
}

enum Content {
    Layers(Resolved),
    Sif(PathBuf),
}

/// For local images: identity of the file that was read.
fn stamp(source: &Source) -> Option<String> {
    let path = match source {
        Source::Registry(_) => return None,
        Source::OciArchive(l) | Source::DockerArchive(l) => l.resolve(Path::exists).0,
        Source::OciLayout(l) => l.resolve(Path::exists).0.join("index.json"),
        Source::Sif(path) => path.clone(),
    };
    let meta = std::fs::metadata(path).ok()?;
    Some(format!("{}.{:09} {}", meta.mtime(), meta.mtime_nsec(), meta.size()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SourceError::Other(e.to_string()))?
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Replaces a file as a whole.
fn write_json(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let tmp = path.with_extension("json.tmp");
    std::fs::write(&tmp, serde_json::to_vec(value)?)?;
    std::fs::rename(tmp, path)
}
