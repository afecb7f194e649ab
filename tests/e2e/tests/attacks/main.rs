//! Attacks that once succeeded, each a case: every one must fail with a clear word where the user looks.
//!
//! Who attacks: `bob`, another user of the machine; the *pod-maker*, a user of the cluster who may only create pods in
//! one namespace; a hostile image. SECURITY.md says what is promised to whom.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed helper is a failed case")]

mod flags;
mod folder;
mod images;
mod links;
mod ports;
