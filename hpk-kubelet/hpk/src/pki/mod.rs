//! The cluster's keys and certificates.
//!
//! [`spec`] says which certificates there are, purely; [`store`] makes those that are missing, differ from
//! their specification, or come near their end, and leaves the others alone. Private keys have mode 0600
//! in a folder of mode 0700 and never leave it, except into kubeconfigs beside them.

pub(crate) mod spec;
pub(crate) mod store;
