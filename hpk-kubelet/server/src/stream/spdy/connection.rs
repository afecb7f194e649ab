//! The server's side of a SPDY connection over any byte stream.
//!
//! One task reads: it answers pings, announces new streams and hands each stream its data through a bounded
//! queue; a full queue stops the reading, so back-pressure is the connection's. Writers share the other half.

use super::codec::{self, CodecError, Decoder, Encoder, Frame, reset};
use super::headers::{Headers, get};
use crate::stream::Stall;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// Data frames that wait for a stream's consumer.
const QUEUE: usize = 8;
/// Streams that a connection may have at a time; a kubectl port-forward has two per forwarded connection.
const MAX_STREAMS: usize = 2048;

type Io = Box<dyn crate::backend::Stream>;

/// A stream that the client opened; it has been answered.
pub(crate) struct Incoming {
    pub(crate) headers: Headers,
    /// Data from the client; ends at its half-close, reset or the end of the connection.
    pub(crate) input: mpsc::Receiver<Bytes>,
    pub(crate) out: Writer,
}

impl Incoming {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        get(&self.headers, name)
    }
}

/// Our side of one stream.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) id: u32,
    shared: Arc<Mutex<Out>>,
}

struct Out {
    io: WriteHalf<Io>,
    encoder: Encoder,
}

/// An established connection.
pub(crate) struct Connection {
    /// New streams.
    pub(crate) streams: mpsc::Receiver<Incoming>,
    /// Cancelled when the client is gone or broke the protocol.
    pub(crate) closed: CancellationToken,
    shared: Arc<Mutex<Out>>,
}

impl Connection {
    /// Takes over a byte stream on which the client speaks SPDY/3.1.
    pub(crate) fn start(io: Io) -> Result<Self, CodecError> {
        let (read, write) = tokio::io::split(io);
        let shared = Arc::new(Mutex::new(Out { io: write, encoder: Encoder::new()? }));
        let (sender, streams) = mpsc::channel(16);
        let closed = CancellationToken::new();
        let stall = Stall::default();
        let reader = Reader { streams: HashMap::new(), shared: shared.clone(), announce: sender, stall: stall.clone() };
        tokio::spawn(ping(shared.clone(), stall, closed.clone()));
        let done = closed.clone();
        tokio::spawn(async move {
            if let Err(e) = reader.run(read).await {
                tracing::debug!("SPDY connection: {e}");
            }
            done.cancel();
        });
        Ok(Self { streams, closed, shared })
    }

    /// Says good-bye and closes our side.
    pub(crate) async fn close(&self) {
        let mut out = self.shared.lock().await;
        // The client may be gone already.
        let _ = out.send(&Frame::GoAway { last: 0, status: 0 }).await;
        let _ = out.io.shutdown().await;
    }
}

/// Finds out that the client is gone while the reader waits for a stream's consumer and so cannot see it.
async fn ping(shared: Arc<Mutex<Out>>, stall: Stall, closed: CancellationToken) {
    // Ids of a server's pings are even.
    for id in (2..u32::MAX).step_by(2) {
        tokio::select! {
            () = closed.cancelled() => return,
            () = stall.told() => {}
        }
        if shared.lock().await.send(&Frame::Ping { id }).await.is_err() {
            closed.cancel();
            return;
        }
    }
}

impl Out {
    async fn send(&mut self, frame: &Frame) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        self.encoder.encode(frame, &mut bytes).map_err(std::io::Error::other)?;
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }
}

impl Writer {
    /// Sends data; waits while the client does not read.
    pub(crate) async fn data(&self, payload: &[u8]) -> std::io::Result<()> {
        // The lock is taken per chunk, so that streams share the connection fairly.
        for part in payload.chunks(codec::CHUNK) {
            self.write(part, false).await?;
        }
        Ok(())
    }

    /// Half-closes our side of the stream.
    pub(crate) async fn finish(&self) -> std::io::Result<()> {
        self.write(&[], true).await
    }

    async fn write(&self, part: &[u8], fin: bool) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(part.len() + 8);
        codec::data(self.id, part, fin, &mut bytes);
        let mut out = self.shared.lock().await;
        out.io.write_all(&bytes).await?;
        out.io.flush().await
    }

    /// Breaks the stream off.
    pub(crate) async fn reset(&self) -> std::io::Result<()> {
        self.shared.lock().await.send(&Frame::Reset { id: self.id, status: reset::CANCEL }).await
    }
}

struct Reader {
    /// Streams whose client side is open.
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    shared: Arc<Mutex<Out>>,
    announce: mpsc::Sender<Incoming>,
    stall: Stall,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl Reader {
    async fn run(mut self, mut io: impl AsyncRead + Unpin) -> Result<(), ReadError> {
        let mut decoder = Decoder::new();
        loop {
            while let Some(frame) = decoder.next()? {
                self.frame(frame).await?;
            }
            if io.read_buf(decoder.buffer()).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> std::io::Result<()> {
        match frame {
            Frame::SynStream { id, headers, fin } => self.open(id, headers, fin).await,
            Frame::Data { id, payload, fin } => {
                if let Some(stream) = self.streams.get(&id) {
                    // An error means that the consumer has enough: the data is dropped, as by a closed pipe.
                    if !payload.is_empty() {
                        let _ = self.stall.during(stream.send(payload)).await;
                    }
                    if fin {
                        self.streams.remove(&id);
                    }
                }
                Ok(())
            }
            Frame::Reset { id, .. } => {
                self.streams.remove(&id);
                Ok(())
            }
            Frame::Headers { id, fin: true, .. } => {
                self.streams.remove(&id);
                Ok(())
            }
            // Client pings are odd; even ones would be answers to ours, and we send none.
            Frame::Ping { id } if !id.is_multiple_of(2) => self.shared.lock().await.send(&Frame::Ping { id }).await,
            Frame::Ping { .. } | Frame::SynReply { .. } | Frame::Headers { .. } | Frame::GoAway { .. } => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, headers: Headers, fin: bool) -> std::io::Result<()> {
        self.streams.retain(|_, s| !s.is_closed());
        let refused = if id.is_multiple_of(2) || self.streams.contains_key(&id) {
            Some(reset::PROTOCOL_ERROR)
        } else if self.streams.len() >= MAX_STREAMS {
            Some(reset::INVALID_STREAM)
        } else {
            None
        };
        if let Some(status) = refused {
            return self.shared.lock().await.send(&Frame::Reset { id, status }).await;
        }
        let (sender, input) = mpsc::channel(QUEUE);
        if !fin {
            self.streams.insert(id, sender);
        }
        self.shared.lock().await.send(&Frame::SynReply { id, headers: Headers::new(), fin: false }).await?;
        let out = Writer { id, shared: self.shared.clone() };
        // Nobody listens any more: the session is ending.
        let _ = self.announce.send(Incoming { headers, input, out }).await;
        Ok(())
    }
}
