//! Pods: from API object to plan, and from what supervisor and Slurm report to status.
//!
//! Pure: [`address`], [`admit`], [`again`], [`bandwidth`], [`ephemeral`], [`launcher`], [`oom`], [`plan`], [`probes`], [`security`], [`status`], [`phase`], [`tally`], [`unsupported`],
//! [`verdict`], [`reconcile`], [`submission`]. [`folder`] is the pod's folder on disk.

pub mod address;
pub mod admit;
pub mod again;
pub mod bandwidth;
pub mod claim;
pub mod ephemeral;
pub mod folder;
pub mod launcher;
pub mod node_fit;
pub mod oom;
pub mod outposts;
pub mod phase;
pub mod plan;
pub mod probes;
pub mod reconcile;
pub mod resize;
pub mod runtime_class;
pub mod security;
pub mod status;
pub mod step;
pub mod submission;
pub mod tally;
pub mod unsupported;
pub mod verdict;
