//! hpk-netns as a library: the parts that its `main` puts together, open to tests and measurements.

pub mod carry;
pub mod datapath;
pub mod member;
pub mod network;
mod outward;
pub mod run;
