//! Client of the supervisor's control socket: hello, request, answer, then frames.

use crate::backend::SupervisorStream;
use bytes::{Buf, Bytes, BytesMut};
use hpk_api::control::{Answer, ControlError, ErrorCode, Greeting, MAX_LINE, Reply, Request, StreamEnd};
use hpk_api::frame::{self, CHUNK, HEADER, MAX_PAYLOAD, channel};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// A supervisor that says nothing for this long after a request is not going to.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client is told when a session's connection ends before the session has said how it ended.
pub(crate) const LOST: &str = "the connection to the pod was lost before the session ended: its node or its link to \
    the kubelet went down, or its supervisor was killed";

/// Why a request to a supervisor failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlFailure {
    /// It was refused.
    #[error("{}", .0.message)]
    Refused(ControlError),
    /// The connection broke.
    #[error("connection to the pod's supervisor broke: {0}")]
    Io(#[from] std::io::Error),
    /// It answered nonsense.
    #[error("the pod's supervisor answered nonsense: {0}")]
    Protocol(String),
    /// It did not answer.
    #[error("the pod's supervisor did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

impl ControlFailure {
    /// Class of a refusal.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(e) => Some(e.code),
            _ => None,
        }
    }
}

/// Incoming frames.
pub(crate) struct FrameReader {
    io: ReadHalf<SupervisorStream>,
    buffer: BytesMut,
}

/// Outgoing frames.
pub(crate) struct FrameWriter {
    io: WriteHalf<SupervisorStream>,
}

/// Sends a request and reads the answer; frames follow when it is [`Answer::Streaming`].
pub(crate) async fn request(
    stream: SupervisorStream,
    request: &Request,
) -> Result<(Answer, FrameReader, FrameWriter), ControlFailure> {
    let (io, mut out) = tokio::io::split(stream);
    let mut reader = FrameReader { io, buffer: BytesMut::with_capacity(CHUNK) };
    let exchange = async {
        let mut lines = encode_line(&Greeting::Hello { version: hpk_api::VERSION })?;
        lines.extend(encode_line(request)?);
        out.write_all(&lines).await?;
        out.flush().await?;
        reader.answer().await
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| ControlFailure::Timeout)??;
    Ok((answer, reader, FrameWriter { io: out }))
}

fn encode_line(value: &impl serde::Serialize) -> Result<Vec<u8>, ControlFailure> {
    let mut line = serde_json::to_vec(value).map_err(|e| ControlFailure::Protocol(e.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

impl FrameReader {
    async fn answer(&mut self) -> Result<Answer, ControlFailure> {
        let mut searched = 0;
        let end = loop {
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                break searched + at;
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(ControlFailure::Protocol("its answer line is too long".to_owned()));
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        };
        let line = self.buffer.split_to(end + 1);
        match serde_json::from_slice(&line).map_err(|e| ControlFailure::Protocol(e.to_string()))? {
            Reply::Ok(answer) => Ok(answer),
            Reply::Error(e) => Err(ControlFailure::Refused(e)),
        }
    }

    /// The next frame; None at an orderly end of the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Bytes)>, ControlFailure> {
        loop {
            let length = match self.buffer.as_ref() {
                [_, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                _ => 0,
            };
            if length > MAX_PAYLOAD {
                return Err(ControlFailure::Protocol(frame::FrameTooLarge { length }.to_string()));
            }
            if self.buffer.len() >= HEADER + length && self.buffer.len() >= HEADER {
                let channel = self.buffer[0];
                self.buffer.advance(HEADER);
                return Ok(Some((channel, self.buffer.split_to(length).freeze())));
            }
            self.buffer.reserve(HEADER + length.max(CHUNK));
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }
}

impl FrameWriter {
    /// One frame; waits while the other side does not read.
    pub(crate) async fn send(&mut self, channel: u8, payload: &[u8]) -> std::io::Result<()> {
        for part in payload.chunks(CHUNK) {
            let mut out = Vec::with_capacity(HEADER + part.len());
            frame::encode(channel, part, &mut out);
            self.io.write_all(&out).await?;
        }
        self.io.flush().await
    }

    /// Half-close of a channel.
    pub(crate) async fn close_channel(&mut self, channel: u8) -> std::io::Result<()> {
        self.send(channel::CLOSE, &[channel]).await
    }
}

/// Reads the payload of channel 3.
pub(crate) fn stream_end(payload: &[u8]) -> StreamEnd {
    serde_json::from_slice(payload).unwrap_or_else(|e| StreamEnd::Failed {
        message: format!("the pod's supervisor ended the stream with nonsense: {e}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames_of(bytes: &[u8], splits: &[usize]) -> Vec<(u8, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let stream: SupervisorStream = Box::new(ours);
            let (io, _keep) = tokio::io::split(stream);
            let mut reader = FrameReader { io, buffer: BytesMut::new() };
            let (bytes, splits) = (bytes.to_vec(), splits.to_vec());
            let feeder = tokio::spawn(async move {
                let mut theirs = theirs;
                let mut rest = &bytes[..];
                for n in splits {
                    let n = n.min(rest.len());
                    theirs.write_all(&rest[..n]).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = &rest[n..];
                }
                theirs.write_all(rest).await.unwrap();
            });
            let mut found = Vec::new();
            while let Some((channel, payload)) = reader.next().await.unwrap() {
                found.push((channel, payload.to_vec()));
            }
            feeder.await.unwrap();
            found
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_survive_any_split(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            splits in prop::collection::vec(0usize..64, 0..32),
        ) {
            let mut bytes = Vec::new();
            for (channel, payload) in &frames {
                frame::encode(*channel, payload, &mut bytes);
            }
            prop_assert_eq!(frames_of(&bytes, &splits), frames);
        }
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        for (answer, refused) in [
            (&b"{\"error\":{\"code\":\"not_found\",\"message\":\"no container x\"}}\n"[..], true),
            (b"what?\n", false),
            (b"", false),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(4096);
            let answer = answer.to_vec();
            tokio::spawn(async move {
                theirs.write_all(&answer).await.unwrap();
                let mut rest = Vec::new();
                theirs.shutdown().await.unwrap();
                let _ = theirs.read_to_end(&mut rest).await;
            });
            let error = request(Box::new(ours), &Request::Stats).await.err().unwrap();
            assert_eq!(error.code() == Some(ErrorCode::NotFound), refused, "{error}");
        }
    }
}
