//! SPDY/3.1 as Kubernetes uses it: a sans-IO codec ([`codec`]), header compression ([`headers`]) and the
//! server's side of a connection ([`connection`]).
//!
//! Specification: SPDY Protocol, draft 3.1. The one peer that matters, moby/spdystream in kubectl and the
//! API server, neither sends WINDOW_UPDATE nor honours windows: flow control here is the connection's own,
//! and a window that is never opened again must not stop us.

pub(crate) mod codec;
pub(crate) mod connection;
pub(crate) mod headers;
