//! The pod's network devices.
