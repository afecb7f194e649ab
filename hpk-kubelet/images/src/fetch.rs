//! Bringing an image into the store: from a registry, or from one of the user's files.

use crate::archive::{self, Resolved};
use crate::blobs::{digest_of, digest_of_reader, folder_name, verify};
use crate::conf::Place;
use crate::entry::read_json;
use crate::error::SourceError;
use crate::inner::{Inner, Progress, PulledImage, RefEntry, blocking};
use crate::keyring::{Keyring, Pass};
use crate::local::{self, LocalImages, Node, Opened};
use crate::make::Content;
use crate::manifest::{Document, Manifest, go_arch, select};
use crate::reference::{Format, LocalImage, Source};
use crate::region::Region;
use crate::registry::{self, Found};
use crate::tree::TreeError;
use crate::{reference, resume, sif};
use futures::{FutureExt, StreamExt, TryStreamExt};
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use std::path::PathBuf;

/// Layers of one image that are downloaded at a time (upstream's containerd default).
const PARALLEL_DOWNLOADS: usize = 3;

impl Inner {
    /// What the index says of a reference, when that image is still there.
    pub(crate) fn known(&self, source: &Source, wanted: &Wanted, keyring: &Keyring) -> Option<PulledImage> {
        // A digest names its content: any image of that digest will do, whatever tag it came by.
        let entry: RefEntry = read_json(&self.ref_path(&source.normalized()))?;
        if entry.stamp != wanted.stamp() {
            return None;
        }
        if let (Wanted::Registry { reference, short }, Some(passes)) = (wanted, &entry.passes) {
            // A pass is of the place that gave the image. Without its rules, only what is its own counts.
            let places = self.asked_at(reference, short.as_deref());
            let all = places.iter().flatten().map(|place| &place.at).chain([reference]);
            if !all.into_iter().any(|at| keyring.has_one_of(passes, at)) {
                return None;
            }
        }
        self.load(entry.image, true)
    }

    pub(crate) async fn fetch(
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
            Wanted::Registry { reference, short } => {
                let image;
                (image, pass) = self.fetch_registry(&reference, short, keyring, progress).await?;
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

    /// Where an image may be, by the rules as they are now.
    fn asked_at(&self, reference: &oci_client::Reference, short: Option<&str>) -> Result<Vec<Place>, SourceError> {
        self.config.registries.conf.read()?.places(reference, short)
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
        short: Option<String>,
        keyring: &Keyring,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(PulledImage, Pass), SourceError> {
        let places = self.asked_at(reference, short.as_deref())?;
        let Found { session, bytes, digest, name } = registry::open(&places, keyring, &self.config.registries).await?;
        let id = format!("{}/{}@{digest}", name.registry(), name.repository());
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
            self.blobs.ensure(&descriptor.digest, |path| resume::blob(session, descriptor, path, limit, &count)).await
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
pub(crate) enum Wanted {
    Registry {
        reference: oci_client::Reference,
        /// As it was written, where that names no registry.
        short: Option<String>,
    },
    File {
        file: Region,
        stamp: Option<String>,
    },
    Layers {
        opened: Opened,
        format: Format,
        stamp: Option<String>,
    },
}

impl Wanted {
    /// `image`: as it was written.
    pub(crate) async fn open(source: &Source, image: &str, local: &LocalImages) -> Result<Self, SourceError> {
        let LocalImage { format, spec } = match source {
            Source::Registry(reference) => {
                let short = reference::is_short(image).then(|| image.to_owned());
                return Ok(Self::Registry { reference: reference.clone(), short });
            }
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
            Self::Registry { .. } => None,
            Self::File { stamp, .. } | Self::Layers { stamp, .. } => stamp.clone(),
        }
    }
}
