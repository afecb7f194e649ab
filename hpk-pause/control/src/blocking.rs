//! Requests over the socket itself, for `hpk-pause ctl` and for tests.

use crate::codec::{self, Decoder};
use crate::{RequestError, stream_end};
use bytes::Bytes;
use hpk_api::control::{Answer, Request, StreamEnd};
use hpk_api::frame::{CHUNK, channel};
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection whose request was taken.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    decoder: Decoder,
}

/// Connects, sends a request and reads the answer.
///
/// # Errors
/// When the supervisor is not there, refuses, or answers nonsense.
pub fn request(socket: &Path, request: &Request) -> Result<(Answer, Connection), RequestError> {
    let mut stream =
        UnixStream::connect(socket).map_err(|source| RequestError::Connect { path: socket.to_path_buf(), source })?;
    stream.write_all(&codec::opening(request)?)?;
    let mut connection = Connection { socket: stream, decoder: Decoder::default() };
    loop {
        if let Some(answer) = connection.decoder.answer()? {
            return Ok((answer, connection));
        }
        if !connection.fill()? {
            return Err(RequestError::Protocol("the connection was closed".to_owned()));
        }
    }
}

impl Connection {
    /// Reads more bytes. False: the supervisor has closed the connection where it may.
    fn fill(&mut self) -> Result<bool, RequestError> {
        let buffer = self.decoder.space();
        let before = buffer.len();
        buffer.resize(before + CHUNK, 0);
        let read = loop {
            match self.socket.read(&mut buffer[before..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        buffer.truncate(before + read.as_ref().copied().unwrap_or(0));
        match read? {
            0 if self.decoder.is_empty() => Ok(false),
            0 => Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            _ => Ok(true),
        }
    }

    /// The next line: further states of a watch. None: the supervisor has closed the connection.
    ///
    /// # Errors
    /// When the connection breaks or the line is not what was expected.
    pub fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RequestError> {
        loop {
            if let Some(line) = self.decoder.line()? {
                return Ok(Some(line));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The next frame. None: the supervisor has closed the connection.
    ///
    /// # Errors
    /// When the connection breaks in the middle of a frame or a frame is too large.
    pub fn frame(&mut self) -> Result<Option<(u8, Bytes)>, RequestError> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads frames to the end, giving output to `each` by channel.
    ///
    /// # Errors
    /// When the connection breaks, or ends without a [`StreamEnd`].
    pub fn output(&mut self, mut each: impl FnMut(u8, &[u8]) -> io::Result<()>) -> Result<StreamEnd, RequestError> {
        while let Some((channel, payload)) = self.frame()? {
            if channel == channel::ERROR {
                return Ok(stream_end(&payload));
            }
            each(channel, &payload)?;
        }
        Err(RequestError::Protocol("the stream ended without a result".to_owned()))
    }

    /// Closes the connection, whatever other handles of it exist.
    ///
    /// # Errors
    /// When it is closed already.
    pub fn shutdown(self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Both)
    }

    /// A second handle for sending, for another thread.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn sender(&self) -> io::Result<Sender> {
        self.socket.try_clone().map(Sender)
    }
}

/// Sends frames.
#[derive(Debug)]
pub struct Sender(UnixStream);

impl Sender {
    /// A payload as one frame or several.
    ///
    /// # Errors
    /// When the supervisor has closed the connection.
    pub fn send(&mut self, channel: u8, payload: &[u8]) -> io::Result<()> {
        codec::frames(channel, payload).try_for_each(|frame| self.0.write_all(&frame))
    }

    /// The end of stdin.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn close_stdin(&mut self) -> io::Result<()> {
        self.send(channel::CLOSE, &[channel::STDIN])
    }
}
