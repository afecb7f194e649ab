//! Container images: from a reference to a root file system on the shared file system.
//!
//! This crate owns `HPK_HOME/images`. It resolves references, downloads what is missing, verifies every
//! digest and unpacks each image once, as a folder that pods use read-only. It never runs a container,
//! never talks to Kubernetes and keeps no state outside that folder.
//!
//! ```text
//! images/
//!   sha256-<hex>/          one per image manifest, as a folder: rootfs/  config.json  image.json
//!   sha256-<hex>.sqfs      or as one file: a SquashFS, and behind it what the two JSON files say
//!   .refs/<hash>.json      what a reference resolved to, for imagePullPolicy IfNotPresent
//!   .blobs/sha256-<hex>    downloaded layers, shared by images, kept until they are collected
//!   .locks/<name>          flock per image and blob, against other processes of the same user; `store` for all of it
//!   .tmp/                  images being unpacked; renamed into place when complete
//! ```
//! Images in the user's own files are opened once, by rules ([`LocalImages`]), and read through what is open.
//!
//! Unpacking happens in a helper process ([`helper`]) inside a user namespace that holds the user's
//! subordinate ids, chrooted into the new folder: owners and set-uid bits come out right, and a layer
//! cannot write outside of its image whatever its paths and links say.

mod archive;
mod blobs;
mod conf;
mod config;
mod entry;
mod error;
mod fetch;
pub mod helper;
mod inflate;
mod inner;
mod keyring;
mod layer;
mod layout;
mod load;
mod local;
mod lock;
mod make;
mod manage;
mod manifest;
mod measure;
mod mksquashfs;
mod pass;
mod reference;
mod region;
mod registries;
mod registry;
mod resume;
mod sif;
mod squashfs;
mod store;
mod tree;
mod unfold;
mod unpack;
mod uses;

pub use conf::ConfFiles;
pub use config::ImageConfig;
pub use error::PullError;
pub use inner::{Progress, PulledImage, StoreConfig, StoreError};
pub use keyring::{Keyring, KeyringError};
pub use layout::{Layout, shared_by};
pub use load::Loaded;
pub use local::LocalImages;
pub use manage::{Collected, RemoveError, StoredImage, Verified};
pub use measure::Facts;
pub use mksquashfs::packer;
pub use reference::{Format, LocalImage, ReferenceError, Source};
pub use registries::{Registries, RegistriesError};
pub use store::{ImageStore, PullPolicy};
pub use tree::Limits;
pub use unfold::{UNPACK, unpack_main};
pub use uses::{Uses, UsesError, images, uses};
