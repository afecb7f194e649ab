//! Slurm as the kubelet sees it.
//!
//! Pure: [`request`] (what a pod asks of Slurm), [`flags`] (users' own flags), [`limits`] (what the site gives and allows), [`script`], [`job`] (what Slurm
//! says of a job), [`pace`] (when to ask again). [`client`] runs Slurm's commands and nothing else.

pub mod client;
pub mod cluster;
pub mod flags;
pub mod job;
pub mod limits;
pub mod pace;
pub mod request;
pub mod script;
