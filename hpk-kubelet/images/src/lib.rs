//! Container images: from a reference to a root file system on the shared file system.
//!
//! This crate owns `HPK_HOME/images`. It resolves references, downloads what is missing, verifies every
//! digest and unpacks each image once, as a folder that pods use read-only. It never runs a container,
//! never talks to Kubernetes and keeps no state outside that folder.
//!
//! ```text
//! images/
//!   sha256-<hex>/          one per image manifest: rootfs/  config.json  image.json
//!   .refs/<hash>.json      what a reference resolved to, for imagePullPolicy IfNotPresent
//!   .blobs/sha256-<hex>    downloaded layers, shared by images, kept until they are collected
//!   .locks/<name>          flock per image and blob, against other processes of the same user
//!   .tmp/                  images being unpacked; renamed into place when complete
//! ```
//! Images in the user's own files are opened once, by rules ([`LocalImages`]), and read through what is open.
//!
//! Unpacking happens in a helper process ([`helper`]) inside a user namespace that holds the user's
//! subordinate ids, chrooted into the new folder: owners and set-uid bits come out right, and a layer
//! cannot write outside of its image whatever its paths and links say.

mod archive;
mod blobs;
mod config;
mod error;
pub mod helper;
mod inflate;
mod keyring;
mod layer;
mod local;
mod lock;
mod manifest;
mod pass;
mod reference;
mod region;
mod registries;
mod registry;
mod sif;
mod squashfs;
mod store;
mod tree;
mod unpack;

pub use config::ImageConfig;
pub use error::PullError;
pub use keyring::{Keyring, KeyringError};
pub use local::LocalImages;
pub use reference::{Format, LocalImage, Source};
pub use registries::{Registries, RegistriesError};
pub use store::{Collected, ImageStore, Progress, PullPolicy, PulledImage, StoreConfig, StoreError, StoredImage};
pub use tree::Limits;
