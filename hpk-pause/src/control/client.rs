//! The other end of the socket, synchronous: for `hpk-pause ctl` and for tests.

use hpk_api::control::{Answer, ControlError, Greeting, MAX_LINE, Reply, Request, StreamEnd};
use hpk_api::frame::{self, CHUNK, HEADER, MAX_PAYLOAD, channel};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be reached or broke.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The supervisor refused.
    #[error("{}", .0.message)]
    Refused(ControlError),
    /// It does not speak the contract.
    #[error("control socket: unexpected answer: {0}")]
    Protocol(String),
}

/// A connection whose request was taken.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// Connects, sends a request and reads the answer.
///
/// # Errors
/// When the supervisor is not there, refuses, or answers nonsense.
pub fn request(socket: &Path, request: &Request) -> Result<(Answer, Connection), ClientError> {
    let mut writer = UnixStream::connect(socket)?;
    let mut lines = serde_json::to_vec(&Greeting::Hello { version: hpk_api::VERSION }).map_err(io::Error::from)?;
    lines.push(b'\n');
    serde_json::to_writer(&mut lines, request).map_err(io::Error::from)?;
    lines.push(b'\n');
    writer.write_all(&lines)?;
    let mut connection = Connection { reader: BufReader::with_capacity(HEADER + CHUNK, writer.try_clone()?), writer };
    match connection.line::<Reply>()? {
        Some(Reply::Ok(answer)) => Ok((answer, connection)),
        Some(Reply::Error(error)) => Err(ClientError::Refused(error)),
        None => Err(ClientError::Protocol("the connection was closed".to_owned())),
    }
}

impl Connection {
    /// The next line, None at the end: further states of a watch.
    ///
    /// # Errors
    /// When the connection breaks or the line is not what was expected.
    pub fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let mut line = Vec::new();
        if self.reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// The next frame into `payload`; its channel, or None at the end of the connection.
    ///
    /// # Errors
    /// When the connection breaks in the middle of a frame or a frame is too large.
    pub fn frame(&mut self, payload: &mut Vec<u8>) -> Result<Option<u8>, ClientError> {
        let mut header = [0; HEADER];
        match self.reader.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(ClientError::Protocol(frame::FrameTooLarge { length }.to_string()));
        }
        payload.resize(length, 0);
        self.reader.read_exact(payload)?;
        Ok(Some(header[0]))
    }

    /// Reads frames to the end, giving output to `each` by channel.
    ///
    /// # Errors
    /// When the connection breaks, or ends without a [`StreamEnd`].
    pub fn output(&mut self, mut each: impl FnMut(u8, &[u8]) -> io::Result<()>) -> Result<StreamEnd, ClientError> {
        let mut payload = Vec::new();
        while let Some(channel) = self.frame(&mut payload)? {
            if channel == channel::ERROR {
                return serde_json::from_slice(&payload).map_err(|error| ClientError::Protocol(error.to_string()));
            }
            each(channel, &payload)?;
        }
        Err(ClientError::Protocol("the stream ended without a result".to_owned()))
    }

    /// Closes the connection, whatever other handles of it exist.
    ///
    /// # Errors
    /// When it is closed already.
    pub fn shutdown(self) -> io::Result<()> {
        self.writer.shutdown(std::net::Shutdown::Both)
    }

    /// A second handle for sending, for another thread.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn sender(&self) -> io::Result<Sender> {
        self.writer.try_clone().map(Sender)
    }
}

/// Sends frames.
#[derive(Debug)]
pub struct Sender(UnixStream);

impl Sender {
    /// One frame.
    ///
    /// # Errors
    /// When the supervisor has closed the connection.
    pub fn send(&mut self, channel: u8, payload: &[u8]) -> io::Result<()> {
        let mut wire = Vec::with_capacity(HEADER + payload.len());
        frame::encode(channel, payload, &mut wire);
        self.0.write_all(&wire)
    }

    /// The end of stdin.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn close_stdin(&mut self) -> io::Result<()> {
        self.send(channel::CLOSE, &[channel::STDIN])
    }
}
