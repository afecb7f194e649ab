//! The contract between the parts of HPK, as plain data.
//!
//! `hpk-kubelet` writes a [`plan::SandboxPlan`], the supervisor `hpk-pause` lives by it and reports
//! [`state::PodState`]; both speak [`control`] over the supervisor's socket, in [`frame`]s.
//! This crate holds types and their codecs only: no I/O (but [`say`]), no clock, no policy.
//!
//! Compatibility: every struct tolerates unknown fields and defaults missing optional ones, so that an
//! old reader can read what a newer writer wrote. [`VERSION`] is raised only when a meaning changes.
// This crate is a contract: each part of it is explained. Elsewhere a name may say enough.
#![warn(missing_docs)]

pub mod cluster;
pub mod cni;
pub mod control;
pub mod cri_log;
pub mod crossing;
pub mod frame;
pub mod gang;
pub mod go_duration;
pub mod ids;
pub mod images;
pub mod link;
pub mod local;
pub mod net;
pub mod nodes;
pub mod plan;
pub mod pod_flags;
pub mod probe;
pub mod quantity;
pub mod say;
pub mod session;
pub mod state;
pub mod step;
pub mod subids;
pub mod time_limit;

/// Version of the contract. A reader refuses a plan or hello whose version is greater than its own.
pub const VERSION: u32 = 1;

/// A line of standard output by which a program tells the control plane's supervisor that it serves.
pub const READY: &str = "ready";
