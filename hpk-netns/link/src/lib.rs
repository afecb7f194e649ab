//! The link between a pod's node and the kubelet, both ends.
//!
//! ```text
//!  hpk-netns (client)                                hpk-kubelet (server)
//!  dial ── TCP keep-alive, TLS 1.3 both ways ──────▶ listener
//!  yamux ══════════════════════════════════════════ yamux
//!    hello ─────────────────────────────────────────▶ registry: event Up   (or refused)
//!    net   ─── questions ──▶   ◀── updates ─────────  event Subscribed, LinkServer::push
//!    supervisor ◀───────────────────────────────────  LinkServer::open_supervisor
//! ```
//! The client redials for ever; a server that is cut, restarted or half-open is found out by the kernel's
//! keep-alive and user timeout, so an idle link wakes nobody. Every queue is bounded: an end that cannot keep up is
//! cut and starts afresh.
//!
//! What flows inside is [`hpk_api::link`]'s; this crate interprets nothing of the supervisor's streams.

#[cfg(feature = "server")]
mod arrival;
pub mod client;
#[cfg(feature = "server")]
pub mod doorway;
#[cfg(feature = "server")]
mod events;
#[cfg(feature = "server")]
mod grants;
pub mod lasting;
mod line;
mod mux;
#[cfg(feature = "server")]
pub mod pki;
mod random;
#[cfg(feature = "server")]
mod registry;
mod relay;
#[cfg(feature = "server")]
pub mod server;
pub mod tls;
mod transport;

pub use mux::LinkStream;
pub use random::random;

/// Name in the kubelet's certificate.
pub const SERVER_NAME: &str = "kubelet.link.hpk";

/// Name in the certificate of a pod, or of the control plane's member: what ties a connection to who it says it is. No pod
/// can have the member's.
#[must_use]
pub fn link_name(uid: &str) -> String {
    if uid == hpk_api::link::MEMBER { format!("{uid}.link.hpk") } else { format!("{uid}.pod.link.hpk") }
}

/// Whether a pod UID can be a label of a DNS name: what Kubernetes gives always can.
#[must_use]
pub fn is_uid(uid: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&uid.len()) && uid.chars().all(ok) && !uid.starts_with('-') && !uid.ends_with('-')
}
