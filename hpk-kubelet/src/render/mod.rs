//! PURE rendering of what a pod's containers see: environment, files, host and resolver configuration.
//!
//! Everything here is a function of API objects and addresses; nothing reads a clock, a file or the network.

pub(crate) mod atomic;
pub(crate) mod certificate;
pub(crate) mod downward;
pub(crate) mod env;
pub(crate) mod expand;
pub(crate) mod hosts;
pub(crate) mod resolv;
pub(crate) mod services;
pub(crate) mod sources;
pub(crate) mod trust;
