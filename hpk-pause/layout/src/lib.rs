//! Where everything is: the names of the files and folders that HPK's programs share, each written once, and how such a file
//! is replaced.
//!
//! ```text
//! Home      HPK_HOME, on the shared file system
//!  ├─ pod      pods/<uid>          one pod's folder
//!  ├─ run      runs/<id>           one run of the local executor
//!  ├─ gang     gangs/<id>          one gang
//!  ├─ image    images/<folder>     one image
//!  ├─ app      apps/<name>         one installed application
//!  └─ pki      pki/                keys and certificates
//! node      the pod's folder on the compute node
//! parent    what the pod's parent container has of both
//! Install   the installed programs
//! ```
//!
//! Owns names. It reads and writes no content of its own: who writes a file, and what is in it, is said where its type is
//! (`hpk-api`).

pub mod app;
pub mod gang;
mod home;
pub mod image;
mod install;
pub mod node;
pub mod parent;
pub mod pki;
pub mod pod;
pub mod run;
mod write;

pub use home::Home;
pub use install::Install;
pub use write::{remove_stale_socket, replace, replace_soon};
