//! The image store as its users see it: it decides whether an image is present or is to be pulled.

use crate::config::ImageConfig;
use crate::entry::{self, Entry};
use crate::error::{PullError, SourceError};
use crate::fetch::Wanted;
use crate::inner::{Inner, Progress, PulledImage, StoreConfig, StoreError};
use crate::keyring::Keyring;
use crate::local::LocalImages;
use crate::reference::Source;
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use std::path::PathBuf;
use std::sync::Arc;

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

/// The store. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

impl ImageStore {
    /// Opens the store, making its folders.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        Inner::open(config).map(|inner| Self { inner: Arc::new(inner) })
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
        let source = Source::parse(image)
            .map_err(|e| PullError::InvalidName { image: image.to_owned(), cause: e.to_string() })?;
        let of = |e: SourceError| e.of(image, source.registry());
        let turn = self.inner.turn(&source.normalized());
        let _turn = turn.lock().await;
        // Before anything else: an image that is in the store already is not for everybody either.
        let wanted = Wanted::open(&source, image, local).await.map_err(of)?;
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
        let wanted = Wanted::open(&source, image, local).await.ok()?;
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
