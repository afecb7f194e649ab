//! One stream of the link joined to one connection of the supervisor's socket, until either end is gone.
//!
//! The supervisor takes a closed connection for a client that is gone and ends what it ran for it, so a kubelet that
//! hung up must be seen also while the process in the pod does not read: the bytes that wait for it would keep the
//! hang-up behind them unread for ever.

use crate::mux::LinkStream;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;

/// Most bytes taken at a time in each direction.
const MOST: usize = 64 << 10;
/// What a stream that brings little has room for: many live as long as the pod and are idle nearly always.
const LITTLE: usize = 4 << 10;

/// Room for the next read, after one of `length` bytes.
fn fit(buffer: &mut Vec<u8>, length: usize) {
    if length == buffer.len() && length < MOST {
        *buffer = vec![0; MOST];
    } else if length <= LITTLE && buffer.len() > LITTLE {
        *buffer = vec![0; LITTLE];
    }
}

/// The stream, polled by both directions of one task; the lock is never contended.
struct Shared(Mutex<LinkStream>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, LinkStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut into = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *self.lock()).poll_read(cx, &mut into))?;
            Poll::Ready(Ok(into.filled().len()))
        })
        .await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = poll_fn(|cx| Pin::new(&mut *self.lock()).poll_write(cx, bytes)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        poll_fn(|cx| Pin::new(&mut *self.lock()).poll_flush(cx)).await
    }

    async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut *self.lock()).poll_shutdown(cx)).await
    }

    /// Until the other end has dropped the stream, whatever of it is still unread.
    async fn hung_up(&self) {
        poll_fn(|cx| self.poll_hung_up(cx)).await;
    }

    fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut stream = self.lock();
        // A read of no bytes takes none and is woken by whatever happens to the reading side.
        let _ = Pin::new(&mut *stream).poll_read(cx, &mut ReadBuf::new(&mut []));
        if stream.get_ref().is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Carries bytes both ways until the stream is dropped at its other end, or both directions have ended.
pub(crate) async fn join(stream: LinkStream, mut socket: UnixStream) {
    let stream = Shared(Mutex::new(stream));
    let (mut from_socket, mut to_socket) = socket.split();
    let inward = async {
        let mut buffer = vec![0; LITTLE];
        loop {
            let length = stream.read(&mut buffer).await?;
            if length == 0 {
                return to_socket.shutdown().await;
            }
            let bytes = buffer.get(..length).unwrap_or_default();
            tokio::select! {
                written = to_socket.write_all(bytes) => written?,
                () = stream.hung_up() => return Err(io::ErrorKind::ConnectionReset.into()),
            }
            fit(&mut buffer, length);
        }
    };
    let outward = async {
        let mut buffer = vec![0; LITTLE];
        loop {
            let length = from_socket.read(&mut buffer).await?;
            if length == 0 {
                return stream.shutdown().await;
            }
            stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
            fit(&mut buffer, length);
        }
    };
    // An error of one direction ends both: dropping the ends tells the two sides.
    let _ = tokio::try_join!(inward, outward);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_follows_what_comes() {
        let mut buffer = vec![0; LITTLE];
        for (length, room) in
            [(10, LITTLE), (LITTLE, MOST), (MOST, MOST), (LITTLE + 1, MOST), (LITTLE, LITTLE), (0, LITTLE)]
        {
            fit(&mut buffer, length);
            assert_eq!(buffer.len(), room, "after {length}");
        }
    }
}
