//! PURE rendering of what a pod's containers see: environment, files, host and resolver configuration.
//!
//! Everything here is a function of API objects and addresses; nothing reads a clock, a file or the network.

pub mod atomic;
pub mod certificate;
pub mod downward;
pub mod env;
pub mod expand;
pub mod hosts;
pub mod resolv;
pub mod services;
pub mod sources;
pub mod trust;
