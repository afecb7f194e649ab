//! hpk-netns as a library: the parts that its `main` puts together, open to tests and measurements.

mod apptainer;
pub mod carry;
pub mod cni;
pub mod datapath;
pub mod gang;
pub mod member;
mod nat;
pub mod network;
mod node;
mod outage;
pub mod outpost;
mod outward;
pub mod probe;
pub mod rank;
pub mod requests;
pub mod rest;
pub mod run;
mod step;
