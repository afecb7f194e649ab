//! Paths inside the parent container, the same for every pod.

/// The inner part of the pod's folder, [`crate::pod::INSIDE`] (shared file system, read-write).
pub const POD: &str = "/hpk/pod";
/// The image store: `/hpk/images/<digest>/rootfs` (read-only).
pub const IMAGES: &str = "/hpk/images";
/// Images that are files in the store, as folders: `/hpk/mounted/<digest>/rootfs` (read-only).
pub const MOUNTED: &str = "/hpk/mounted";
/// Scratch folder of the job on node-local storage (read-write): [`crate::node::SCRATCH`].
pub const SCRATCH: &str = "/hpk/scratch";
/// Bind mounts of hostPath volumes: `/hpk/host/<index>`.
pub const HOST: &str = "/hpk/host";
/// Node-local 0700 folder shared with hpk-netns: [`crate::node::RUN`], with the sockets in it.
pub const RUN: &str = "/hpk/run";
