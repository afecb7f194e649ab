//! etcd's data: where it lies, and how it outlives the login node.
//!
//! etcd wants locks that work and a quick fdatasync(2). Network file systems often have neither, so on them the data lies
//! on the login node's own disk, and HPK_HOME holds snapshots of it. Each data folder has a generation, a number that
//! grows whenever the data is taken over from elsewhere. HPK_HOME's [`record::Record`] says which generation is the
//! cluster's. So a folder that an earlier login node has kept is known to be old.
//!
//! [`begin`] decides what etcd starts from, [`ready`] makes that folder, [`keep`] takes snapshots while etcd runs,
//! [`client`] is how etcd is asked for them, [`backup`] carries the whole state to one file and back.

pub(crate) mod backup;
mod begin;
mod client;
pub(crate) mod keep;
pub(crate) mod place;
pub(crate) mod ready;
pub(crate) mod record;
mod snapshots;
