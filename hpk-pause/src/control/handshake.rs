//! The lines at the start of a connection: hello, request, answer.

use hpk_api::control::{Answer, ControlError, ErrorCode, Greeting, MAX_LINE, Reply, Request};
use serde::Serialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A client has so long to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection before its request is answered.
pub(super) struct Handshake {
    pub(super) stream: UnixStream,
    /// Bytes that came after the lines read so far: with a streaming request, the first frames.
    pub(super) rest: Vec<u8>,
}

impl Handshake {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, rest: Vec::new() }
    }

    /// Reads hello and request; None when the client went away without a word.
    pub(super) async fn request(&mut self) -> Result<Option<Request>, ControlError> {
        let read = async {
            let Some(hello) = self.read_line().await? else { return Ok(None) };
            let Greeting::Hello { version } = parse(&hello)?;
            if version > hpk_api::VERSION {
                return Err(ControlError {
                    code: ErrorCode::Version,
                    message: format!(
                        "the client speaks version {version} of the contract, this supervisor knows {}: delete the pod to have it run by a newer one",
                        hpk_api::VERSION
                    ),
                });
            }
            let Some(request) = self.read_line().await? else { return Ok(None) };
            parse(&request).map(Some)
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap_or_else(|_| Err(bad(format!("no request within {} s", PATIENCE.as_secs()))))
    }

    async fn read_line(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.rest[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.rest.split_off(searched + end + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            searched = self.rest.len();
            if searched > MAX_LINE {
                return Err(bad(format!("line longer than {MAX_LINE} bytes")));
            }
            if self.rest.capacity() == searched {
                self.rest.reserve(searched.max(1024));
            }
            match self.stream.read_buf(&mut self.rest).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }

    /// Sends the one answer and closes.
    pub(super) async fn finish(mut self, result: Result<Answer, ControlError>) {
        match result {
            Ok(answer) => {
                self.answer(&Reply::Ok(answer)).await;
            }
            Err(error) => self.refuse(error).await,
        }
    }

    pub(super) async fn refuse(mut self, error: ControlError) {
        self.answer(&Reply::Error(error)).await;
    }

    /// Sends an answer; false when the client is gone.
    pub(super) async fn answer(&mut self, reply: &Reply) -> bool {
        self.line(reply).await
    }

    /// Sends one JSON line; false when the client is gone.
    pub(super) async fn line(&mut self, value: &impl Serialize) -> bool {
        // Our own types always serialise; a client is told nothing rather than half a line.
        let Ok(mut line) = serde_json::to_vec(value) else { return false };
        line.push(b'\n');
        self.stream.write_all(&line).await.is_ok()
    }
}

fn parse<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(line).map_err(|error| bad(format!("not a request of this contract: {error}")))
}

fn bad(message: String) -> ControlError {
    ControlError { code: ErrorCode::BadRequest, message }
}
