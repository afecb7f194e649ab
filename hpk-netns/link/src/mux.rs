//! One connection, many streams: the task that drives yamux.
//!
//! The connection makes progress only while it is polled, so one task owns and polls it; others ask it for
//! streams through [`Opener`] and get what the peer opens through a bounded queue.

use futures::{AsyncRead, AsyncWrite};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// A stream inside a link; reading ends when the peer half-closes, `shutdown` half-closes ours.
pub type LinkStream = Compat<yamux::Stream>;

/// Streams of one connection at once. The kubelet's sessions into one pod; more are refused.
const MAX_STREAMS: usize = 256;
/// Receive window of one connection, bytes: the least that yamux accepts for that many streams.
const MAX_WINDOW: usize = MAX_STREAMS * 256 * 1024;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
#[error("the link went down")]
pub(crate) struct Gone;

/// Asks the driving task for streams.
#[derive(Clone, Debug)]
pub(crate) struct Opener(mpsc::Sender<oneshot::Sender<LinkStream>>);

impl Opener {
    pub(crate) async fn open(&self) -> Result<LinkStream, Gone> {
        let (answer, stream) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| Gone)?;
        stream.await.map_err(|_| Gone)
    }
}

/// Which end of the connection this is.
pub(crate) use yamux::Mode;

/// A connection and the two ends of its queues.
pub(crate) struct Mux<T> {
    connection: yamux::Connection<T>,
    asked: mpsc::Receiver<oneshot::Sender<LinkStream>>,
    inbound: mpsc::Sender<LinkStream>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Mux<T> {
    /// The connection over `io`; nothing happens until [`Self::drive`] is polled.
    pub(crate) fn new(io: T, mode: Mode) -> (Self, Opener, mpsc::Receiver<LinkStream>) {
        let mut config = yamux::Config::default();
        config
            .set_max_num_streams(MAX_STREAMS)
            .set_max_connection_receive_window(Some(MAX_WINDOW))
            .set_split_send_size(64 << 10);
        let (ask, asked) = mpsc::channel(16);
        let (inbound, opened) = mpsc::channel(16);
        (Self { connection: yamux::Connection::new(io, config, mode), asked, inbound }, Opener(ask), opened)
    }

    /// Polls the connection until it ends; the text says why it did.
    pub(crate) async fn drive(mut self) -> String {
        let mut waiting: Option<oneshot::Sender<LinkStream>> = None;
        let end = poll_fn(|cx| self.poll(&mut waiting, cx)).await;
        // The peer is told, when it still listens; whoever waits on our streams sees their end.
        let close = poll_fn(|cx| self.connection.poll_close(cx));
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), close).await;
        end
    }

    fn poll(&mut self, waiting: &mut Option<oneshot::Sender<LinkStream>>, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            let mut progress = false;
            if waiting.is_none() {
                match Pin::new(&mut self.asked).poll_recv(cx) {
                    Poll::Ready(Some(answer)) => *waiting = Some(answer),
                    // Every Opener is gone: nobody needs the link any more.
                    Poll::Ready(None) => return Poll::Ready("closed by this end".to_owned()),
                    Poll::Pending => {}
                }
            }
            if waiting.is_some() {
                match self.connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(answer) = waiting.take() {
                            let _ = answer.send(stream.compat());
                        }
                        progress = true;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                    Poll::Pending => {}
                }
            }
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // A full queue drops the stream, which resets it: the peer opens faster than we serve.
                    let _ = self.inbound.try_send(stream.compat());
                    progress = true;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error.to_string()),
                Poll::Ready(None) => return Poll::Ready("closed by the other end".to_owned()),
                Poll::Pending => {}
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }
}
