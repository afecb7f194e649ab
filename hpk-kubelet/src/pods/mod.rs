//! Pods: from API object to plan, and from what supervisor and Slurm report to status.
//!
//! Pure: [`address`], [`admit`], [`again`], [`bandwidth`], [`ephemeral`], [`ids`], [`launcher`], [`oom`], [`plan`], [`probes`], [`security`], [`status`], [`phase`], [`tally`], [`unsupported`],
//! [`verdict`], [`reconcile`], [`submission`]. [`folder`] is the pod's folder on disk.

pub(crate) mod address;
pub(crate) mod admit;
pub(crate) mod again;
pub(crate) mod bandwidth;
pub(crate) mod claim;
pub(crate) mod ephemeral;
pub(crate) mod folder;
pub(crate) mod gifts;
pub(crate) mod ids;
pub(crate) mod launcher;
pub(crate) mod node_fit;
pub(crate) mod oom;
pub(crate) mod outposts;
pub(crate) mod phase;
pub(crate) mod plan;
pub(crate) mod probes;
pub(crate) mod reconcile;
pub(crate) mod resize;
pub(crate) mod runtime_class;
pub(crate) mod security;
pub(crate) mod status;
pub(crate) mod step;
pub(crate) mod submission;
pub(crate) mod tally;
pub(crate) mod unsupported;
pub(crate) mod user;
pub(crate) mod verdict;
