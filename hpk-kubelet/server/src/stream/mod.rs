//! Streaming sessions: exec, attach and port-forward over WebSocket and SPDY.
//!
//! ```text
//!  kubectl ── API server ──▶ upgrade (101) ──▶ ws | spdy ──▶ remote | forward ──▶ supervisor's frames
//! ```
//! [`upgrade`] decides the protocol from the request's headers; [`ws`] and [`spdy`] carry bytes; [`remote`]
//! and [`forward`] translate to [`crate::control`] and interpret nothing. Every queue is bounded and every
//! copy waits for its reader, so a slow client slows the process in the pod and nothing else.

pub(crate) mod forward;
pub(crate) mod remote;
mod spdy;
mod status;
pub(crate) mod upgrade;
mod ws;

use std::time::Duration;

/// streamingConnectionIdleTimeout of upstream.
pub(crate) const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Time for a SPDY client to open the streams that it asked for (upstream's DefaultStreamCreationTimeout).
pub(crate) const STREAM_CREATION: Duration = Duration::from_secs(30);
/// How long a session that is over waits for the client to hang up: closing with unread input would make the
/// kernel throw away output that is still on its way.
pub(crate) const LINGER: Duration = Duration::from_secs(5);
/// How often a client is pinged; one that is gone is noticed after the second.
pub(crate) const PING: Duration = Duration::from_secs(5);
