//! Streaming sessions: exec, attach and port-forward over WebSocket and SPDY.
//!
//! ```text
//!  kubectl ── API server ──▶ upgrade (101) ──▶ ws | spdy ──▶ remote | forward ──▶ supervisor's frames
//! ```
//! [`upgrade`] decides the protocol from the request's headers; [`ws`] and [`spdy`] carry bytes; [`remote`]
//! and [`forward`] translate to [`hpk_control::stream`] and interpret nothing. Every queue is bounded and every
//! copy waits for its reader, so a slow client slows the process in the pod and nothing else.

pub(crate) mod forward;
pub(crate) mod remote;
mod spdy;
mod status;
pub(crate) mod upgrade;
mod ws;

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// streamingConnectionIdleTimeout of upstream.
pub(crate) const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Time for a SPDY client to open the streams that it asked for (upstream's DefaultStreamCreationTimeout).
pub(crate) const STREAM_CREATION: Duration = Duration::from_secs(30);
/// How long a session that is over waits for the client to hang up: closing with unread input would make the
/// kernel throw away output that is still on its way.
pub(crate) const LINGER: Duration = Duration::from_secs(5);
/// How often a client is pinged whose input waits; one that is gone is noticed after the second.
const PING: Duration = Duration::from_secs(1);

/// Tells that a client's input waits for the process in the pod. Only then must the client be pinged: a reader that
/// waits does not see that the client is gone, one that reads does.
#[derive(Clone, Default)]
pub(crate) struct Stall(Arc<Notify>);

impl Stall {
    /// Waits for `sent` and tells of every [`PING`] that it takes.
    pub(crate) async fn during<T>(&self, sent: impl Future<Output = T>) -> T {
        tokio::pin!(sent);
        loop {
            tokio::select! {
                done = &mut sent => return done,
                () = tokio::time::sleep(PING) => self.0.notify_one(),
            }
        }
    }

    /// The next time that there is something to tell.
    pub(crate) async fn told(&self) {
        self.0.notified().await;
    }
}
