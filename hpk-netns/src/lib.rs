//! hpk-netns as a library: the parts that its `main` puts together. What is public is what `main`, the tests and
//! the measurements need.

mod apptainer;
pub mod carry;
mod cni;
pub mod datapath;
pub mod gang;
pub mod member;
mod nat;
mod network;
mod node;
mod outage;
pub mod outpost;
mod outward;
pub mod probe;
pub mod rank;
mod requests;
mod rest;
pub mod run;
mod step;

pub use cni::inside;
pub use requests::receive_tun;
pub use rest::Rest;
