//! Frames on a connection, and descriptors of processes as async streams.

use hpk_api::control::StreamEnd;
use hpk_api::frame::{self, CHUNK, HEADER, channel};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::Mutex;

/// Reads frames of a client.
pub(super) struct FrameReader<'a> {
    half: ReadHalf<'a>,
    buffer: Vec<u8>,
    used: usize,
}

impl<'a> FrameReader<'a> {
    /// `rest` are the bytes that came with the request.
    pub(super) fn new(half: ReadHalf<'a>, rest: Vec<u8>) -> Self {
        Self { half, buffer: rest, used: 0 }
    }

    /// The next frame: channel and payload. None when the client is gone or breaks the rules.
    pub(super) async fn next(&mut self) -> Option<(u8, &[u8])> {
        let (channel, range) = loop {
            let frame = frame::decode(&self.buffer[self.used..]).ok()?;
            if let Some(frame) = frame {
                let end = self.used + frame.consumed;
                let range = end - frame.payload.len()..end;
                self.used = end;
                break (frame.channel, range);
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            self.buffer.reserve(HEADER + CHUNK);
            if self.half.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        };
        Some((channel, &self.buffer[range]))
    }
}

/// Sends frames to a client, from several tasks.
pub(super) struct FrameWriter<'a>(Mutex<WriteHalf<'a>>);

impl<'a> FrameWriter<'a> {
    pub(super) fn new(half: WriteHalf<'a>) -> Self {
        Self(Mutex::new(half))
    }

    /// A whole frame, header first.
    pub(super) async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.lock().await.write_all(frame).await
    }

    /// A frame from its parts, for small ones.
    pub(super) async fn frame(&self, channel: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame::encode(channel, payload, &mut frame);
        self.send(&frame).await
    }

    /// The last frame. The client may be gone: nothing is left to be done about it.
    pub(super) async fn end(&self, end: &StreamEnd) {
        let payload = serde_json::to_vec(end).unwrap_or_default();
        let _ = self.frame(channel::ERROR, &payload).await;
    }
}

/// A buffer for output: a frame is read into it in place.
pub(super) fn frame_buffer() -> Vec<u8> {
    vec![0; HEADER + CHUNK]
}

/// Writes the header before `length` bytes that were read behind it; the frame is the result.
pub(super) fn frame_in_place(channel: u8, buffer: &mut [u8], length: usize) -> &[u8] {
    buffer[..HEADER].copy_from_slice(&frame::header(channel, u32::try_from(length).unwrap_or(u32::MAX)));
    &buffer[..HEADER + length]
}

/// Registers a descriptor with the runtime. tokio deprecates this because it cannot know that a type keeps its
/// descriptor; `OwnedFd` does, so the unsafe successor is not needed.
#[expect(deprecated)]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// One of our ends of a process's stdio.
#[derive(Debug)]
pub(super) struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        register(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Reads; 0 at the end. A terminal whose last user is gone (EIO) is at its end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> usize {
        let read = self.0.async_io(Interest::READABLE, |fd| match nix::unistd::read(fd, buffer) {
            Err(Errno::EIO) => Ok(0),
            result => result.map_err(io::Error::from),
        });
        read.await.unwrap_or(0)
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write =
                self.0.async_io(Interest::WRITABLE, |fd| nix::unistd::write(fd, bytes).map_err(io::Error::from));
            let written = write.await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Sends a process's output as frames until all who can write to it have closed it, which may be long after the end of
/// the process: what it left behind still has its streams, as with container runtimes. `wanted` false: reads and
/// forgets, so that the process is not held up.
pub(super) async fn output(fd: &Fd, channel: u8, wanted: bool, writer: &FrameWriter<'_>) -> io::Result<()> {
    let mut buffer = frame_buffer();
    loop {
        let length = fd.read(&mut buffer[HEADER..]).await;
        if length == 0 {
            return Ok(());
        }
        if wanted {
            writer.send(frame_in_place(channel, &mut buffer, length)).await?;
        }
    }
}

/// Tells when a client has closed its side, whatever it sent before and we have not read yet.
pub(super) struct Gone(AsyncFd<OwnedFd>);

impl Gone {
    pub(super) fn watch(stream: &UnixStream) -> io::Result<Self> {
        let fd = stream.as_fd().try_clone_to_owned()?;
        register(fd, Interest::READABLE).map(Self)
    }

    pub(super) async fn wait(&self) {
        loop {
            let Ok(mut guard) = self.0.ready(Interest::READABLE).await else { return };
            if guard.ready().is_read_closed() {
                return;
            }
            // Readiness comes by edges: the next is for more bytes or for the close.
            guard.clear_ready();
        }
    }
}
