//! Making an image in the store, in the layout that the store has: unpacked by the helper, and packed again by mksquashfs
//! where it is to be one file. It appears by a rename when it is complete.

use crate::archive::Resolved;
use crate::blobs::digest_of_reader;
use crate::config::ImageConfig;
use crate::entry::{self, CONFIG, META, Meta, write_json};
use crate::error::SourceError;
use crate::helper::{self, HelperError, Job};
use crate::inner::{Inner, Progress, PulledImage, blocking};
use crate::layout::Layout;
use crate::measure::Facts;
use crate::mksquashfs::Mksquashfs;
use crate::region::Region;
use crate::tree::Report;
use crate::{local, lock, sif};
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// What an image is made of.
pub(crate) enum Content {
    Layers(Resolved),
    Sif { name: String, file: Region, root: Region },
}

impl Content {
    /// Bytes as it is stored.
    fn size(&self) -> u64 {
        match self {
            Self::Layers(resolved) => resolved.size,
            Self::Sif { file, .. } => file.length,
        }
    }
}

/// An unpacked tree is taken to be no more than so many times as large as its layers.
const GROWTH: u64 = 6;
/// Bytes that a node-local folder must have free besides.
const SPARE: u64 = 1 << 30;

impl Inner {
    /// Makes an image unless it is there, under its locks.
    pub(crate) async fn once<F, Fut>(
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
        // Before anything is fetched: without the program all of it would be in vain.
        let packer = match self.config.layout {
            Layout::Folder => None,
            Layout::Squashfs => Some(Mksquashfs::find().map_err(SourceError::Other)?),
        };
        let content = content().await?;
        progress(Progress::Unpacking);
        // Remains of a helper that was killed: only the holder of this lock makes such folders.
        let places = self.places();
        for place in &places {
            self.remove_leftovers(place, &image_ref.folder).await;
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{}.{serial}", image_ref.folder, std::process::id());
        let made = match packer {
            None => self.make_folder(&name, &image_ref, content).await,
            Some(packer) => self.make_file(&name, &image_ref, content, &packer, &places, progress).await,
        };
        if let Err(e) = made {
            for place in &places {
                self.remove_leftovers(place, &image_ref.folder).await;
            }
            return Err(e);
        }
        self.load(image_ref, false)
            .ok_or_else(|| SourceError::Other("the image vanished right after it was unpacked".to_owned()))
    }

    async fn make_folder(&self, name: &str, image_ref: &ImageRef, content: Content) -> Result<(), SourceError> {
        let folder = self.config.root.join(&image_ref.folder);
        let tmp = self.tmp().join(name);
        let (meta, config) = self.unpack_into(&tmp, image_ref, content).await?;
        let write = |name: &str, result: std::io::Result<()>| result.map_err(SourceError::io("write", tmp.join(name)));
        write(CONFIG, write_json(&tmp.join(CONFIG), &config))?;
        write(META, write_json(&tmp.join(META), &meta))?;
        match tokio::fs::rename(&tmp, &folder).await {
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                // An incomplete folder of that name (no image.json): out of the way with it.
                self.remove(&folder).await?;
                tokio::fs::rename(&tmp, &folder).await.map_err(SourceError::io("rename", &tmp))
            }
            other => other.map_err(SourceError::io("rename", &tmp)),
        }
    }

    async fn make_file(
        &self,
        name: &str,
        image_ref: &ImageRef,
        content: Content,
        packer: &Mksquashfs,
        places: &[PathBuf],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), SourceError> {
        let needed = content.size().saturating_mul(GROWTH).saturating_add(SPARE);
        let roomy = |place: &&PathBuf| {
            statvfs(place.as_path()).is_ok_and(|s| s.blocks_available() * s.fragment_size() > needed)
        };
        let tmp = self.tmp();
        let place = places.iter().find(roomy).unwrap_or(&tmp);
        let tree = place.join(name);
        let (meta, config) = self.unpack_into(&tree, image_ref, content).await?;
        progress(Progress::Packing);
        let out = tmp.join(image::file(name));
        let job = Job::Pack { tree: tree.join(image::ROOTFS), out: out.clone(), packer: packer.clone() };
        self.help(&job).await.map_err(|e| SourceError::Unpack(e.to_string()))?;
        self.remove(&tree).await?;
        let packed = out.clone();
        blocking(move || {
            // mksquashfs makes it as open as the helper's umask, which is the image's files'.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&packed, mode).map_err(SourceError::io("chmod", &packed))?;
            let open = std::fs::File::open(&packed).map_err(SourceError::io("open", &packed))?;
            let sha256 = digest_of_reader(open).map_err(SourceError::io("read", &packed))?;
            entry::append(&packed, &meta, &config, sha256).map_err(SourceError::io("write", &packed))
        })
        .await?;
        let file = entry::file(&self.config.root, &image_ref.folder);
        tokio::fs::rename(&out, &file).await.map_err(SourceError::io("rename", &out))
    }

    /// Unpacks into `<folder>/rootfs`.
    async fn unpack_into(
        &self,
        folder: &Path,
        image_ref: &ImageRef,
        content: Content,
    ) -> Result<(Meta, ImageConfig), SourceError> {
        tokio::fs::create_dir(folder).await.map_err(SourceError::io("create", folder))?;
        let rootfs = folder.join(image::ROOTFS);
        tokio::fs::create_dir(&rootfs).await.map_err(SourceError::io("create", &rootfs))?;
        // An image without an entry for the root leaves this mode.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&rootfs, mode).map_err(SourceError::io("chmod", &rootfs))?;
        let owners = self.ids.is_some() || nix::unistd::Uid::effective().is_root();
        let limits = self.config.limits;
        let size = content.size();
        let (config, files) = match content {
            Content::Layers(resolved) => {
                let config =
                    ImageConfig::from_blob(&resolved.config).map_err(SourceError::json("image configuration"))?;
                let job = Job::Layers { rootfs, layers: resolved.layers, owners, limits };
                (config, self.unpack(image_ref, &job).await?)
            }
            Content::Sif { name, file, root } => {
                let before = local::stamp(&file);
                let job = Job::Squashfs { rootfs: rootfs.clone(), image: root, owners, limits };
                let files = self.unpack(image_ref, &job).await?;
                if before != local::stamp(&file) {
                    return Err(SourceError::Unpack(format!("{name} was changed while it was read")));
                }
                (sif::config(&rootfs), files)
            }
        };
        let meta = Meta { id: image_ref.id.clone(), size, created: Timestamp::now(), files: Some(files) };
        Ok((meta, config))
    }

    async fn unpack(&self, image: &ImageRef, job: &Job) -> Result<Facts, SourceError> {
        let (report, facts) = self.help(job).await.map_err(|e| SourceError::Unpack(e.to_string()))?;
        tracing::info!(image = image.id, ?report, "image unpacked");
        Ok(facts)
    }

    pub(crate) async fn help(&self, job: &Job) -> Result<(Report, Facts), HelperError> {
        helper::run(&self.config.helper, self.ids.as_ref(), job).await
    }

    pub(crate) async fn lock(&self, name: &str) -> Result<lock::Lock, SourceError> {
        let path = self.config.root.join(image::LOCKS).join(name);
        lock::acquire(path.clone()).await.map_err(SourceError::io("lock", path))
    }

    /// Of all of the store.
    pub(crate) fn store_lock(&self) -> PathBuf {
        self.config.root.join(image::LOCKS).join("store")
    }

    /// Together with others that pull or remove images.
    pub(crate) async fn share_store(&self) -> Result<lock::Lock, SourceError> {
        let path = self.store_lock();
        lock::share(path.clone()).await.map_err(SourceError::io("lock", path))
    }

    pub(crate) async fn remove(&self, path: &Path) -> Result<(), SourceError> {
        let job = Job::Remove { path: path.to_owned() };
        self.help(&job).await.map(drop).map_err(|e| SourceError::Other(e.to_string()))
    }

    /// Where images are made that have the store's own folders.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.config.root.join(image::TMP)
    }

    /// Where files may be unpacked that are to be packed: on this machine, then in the store itself.
    fn places(&self) -> Vec<PathBuf> {
        let store = self.tmp();
        if self.config.layout == Layout::Folder {
            return vec![store];
        }
        let local = hpk_sys::folders::own(&std::env::temp_dir(), nix::unistd::getuid().as_raw()).map(|own| {
            // Another cluster of the same user is another's to clear up.
            let hash = crate::blobs::digest_of(self.config.root.as_os_str().as_encoded_bytes());
            own.join(format!("unpack-{}", hash.get(7..23).unwrap_or_default()))
        });
        let local = local.and_then(|local| {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700).create(&local).map(|()| local)
        });
        match local {
            Ok(local) => vec![local, store],
            Err(error) => {
                tracing::warn!(%error, "images are unpacked in HPK_HOME: no folder of this machine can be had");
                vec![store]
            }
        }
    }

    async fn remove_leftovers(&self, place: &Path, folder: &str) {
        let Ok(entries) = std::fs::read_dir(place) else { return };
        let prefix = format!("{folder}.");
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix)
                && let Err(e) = self.remove(&entry.path()).await
            {
                tracing::warn!("cannot remove {}: {e}", entry.path().display());
            }
        }
    }
}
