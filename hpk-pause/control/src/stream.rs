//! Requests over an asynchronous stream, such as one of the link.

use crate::RequestError;
use crate::codec::{self, Decoder};
use bytes::Bytes;
use hpk_api::control::{Answer, Request};
use hpk_api::frame::channel;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// A supervisor that says nothing for this long after a request is not going to: it answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same when it dials somebody first, who may take his time.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the supervisor sends.
#[derive(Debug)]
pub struct Reader<S> {
    io: ReadHalf<S>,
    decoder: Decoder,
}

/// What the supervisor is sent. The stream is closed when reader and writer are gone.
#[derive(Debug)]
pub struct Writer<S> {
    io: WriteHalf<S>,
}

/// Sends a request and reads the answer. Frames follow when it is [`Answer::Streaming`], lines when a status is watched.
///
/// # Errors
/// When the supervisor refuses, answers nonsense or nothing, or the stream breaks.
pub async fn request<S: AsyncRead + AsyncWrite>(
    stream: S,
    request: &Request,
) -> Result<(Answer, Reader<S>, Writer<S>), RequestError> {
    let (io, mut out) = tokio::io::split(stream);
    let mut reader = Reader { io, decoder: Decoder::default() };
    let exchange = async {
        out.write_all(&codec::opening(request)?).await?;
        out.flush().await?;
        loop {
            if let Some(answer) = reader.decoder.answer()? {
                return Ok(answer);
            }
            if !reader.fill().await? {
                return Err(RequestError::Io(ErrorKind::UnexpectedEof.into()));
            }
        }
    };
    let patience = if matches!(request, Request::Dial { .. }) { DIAL_TIMEOUT } else { ANSWER_TIMEOUT };
    let answer = tokio::time::timeout(patience, exchange).await;
    let answer = answer.map_err(|_| RequestError::Timeout(patience.as_secs()))??;
    Ok((answer, reader, Writer { io: out }))
}

impl<S: AsyncRead> Reader<S> {
    /// Reads more bytes. False: the supervisor has closed the connection where it may.
    async fn fill(&mut self) -> Result<bool, RequestError> {
        match self.io.read_buf(self.decoder.space()).await? {
            0 if self.decoder.is_empty() => Ok(false),
            0 => Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            _ => Ok(true),
        }
    }

    /// The next line: further states of a watch. None: the supervisor has closed the connection.
    ///
    /// # Errors
    /// When the stream breaks or the line is not what was expected.
    pub async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RequestError> {
        loop {
            if let Some(line) = self.decoder.line()? {
                return Ok(Some(line));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame, channel and payload. None: the supervisor has closed the connection.
    ///
    /// # Errors
    /// When the stream breaks or a frame is too large.
    pub async fn next(&mut self) -> Result<Option<(u8, Bytes)>, RequestError> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }
}

impl<S: AsyncWrite> Writer<S> {
    /// A payload as one frame or several; waits while the other side does not read.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn send(&mut self, channel: u8, payload: &[u8]) -> io::Result<()> {
        for frame in codec::frames(channel, payload) {
            self.io.write_all(&frame).await?;
        }
        self.io.flush().await
    }

    /// Half-close of a channel.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn close_channel(&mut self, channel: u8) -> io::Result<()> {
        self.send(channel::CLOSE, &[channel]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::control::{ErrorCode, Reply};
    use hpk_api::state::PodState;

    /// A supervisor that answers from a script; only the protocol is real.
    #[tokio::test]
    async fn a_status_is_watched() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let fake = tokio::spawn(async move {
            let mut text = vec![0; 4096];
            let n = theirs.read(&mut text).await.unwrap();
            let first = serde_json::to_string(&Reply::Ok(Answer::Status(Box::default()))).unwrap();
            let next = serde_json::to_string(&PodState { sequence: 5, ..PodState::default() }).unwrap();
            theirs.write_all(format!("{first}\n{next}\n").as_bytes()).await.unwrap();
            String::from_utf8_lossy(&text[..n]).into_owned()
        });
        let (answer, mut reader, _writer) = request(ours, &Request::Status { watch: true }).await.unwrap();
        assert!(matches!(answer, Answer::Status(_)));
        assert_eq!(reader.line::<PodState>().await.unwrap().unwrap().sequence, 5);
        assert!(reader.line::<PodState>().await.unwrap().is_none());
        assert_eq!(fake.await.unwrap(), "{\"hello\":{\"version\":1}}\n{\"status\":{\"watch\":true}}\n");
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
            let error = request(ours, &Request::Stats).await.err().unwrap();
            assert_eq!(error.code() == Some(ErrorCode::NotFound), refused, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_is_stopped_is_told_as_such_soon() {
        // Its socket takes the request, and nobody reads it.
        for (asked, seconds) in [(Request::Stats, 10), (Request::Dial { address: "10.0.0.1:80".parse().unwrap() }, 30)]
        {
            let (ours, _theirs) = tokio::io::duplex(4096);
            let began = tokio::time::Instant::now();
            let error = request(ours, &asked).await.err().unwrap().to_string();
            assert_eq!(began.elapsed().as_secs(), seconds);
            assert!(error.contains("supervisor does not answer") && error.contains("SIGSTOP"), "{error}");
        }
    }
}
