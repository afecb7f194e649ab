//! hpk-kubelet: translates pods into Slurm jobs and reports what becomes of them.
//!
//! Pure: [`render`], [`executor`] but its edges, [`pods`] but its folder; decisions are functions of data.
//! The controller's one task owns all state; everything that waits is a task that sends it an event.
//! It decides nothing about a running pod: that is the supervisor's part.

pub mod api;
pub mod app;
pub mod backend;
pub mod carrier;
pub mod controller;
pub mod descriptors;
pub mod executor;
pub mod gangs;
pub mod home;
pub mod link_port;
pub mod nodes;
pub mod pods;
pub mod provisioner;
pub mod quantity;
pub mod render;
pub mod volumes;
pub mod watch;
