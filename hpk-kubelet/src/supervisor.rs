//! The kubelet as a client of a pod's supervisor, over a stream of the link.

use hpk_api::control::{Answer, ControlError, Greeting, MAX_LINE, Reply, Request};
use hpk_api::state::PodState;
use serde::Serialize;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// A request that was not answered.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The stream broke.
    #[error("the supervisor's stream broke")]
    Io(#[from] std::io::Error),
    /// An answer that makes no sense.
    #[error("the supervisor's answer cannot be read")]
    Answer(#[from] serde_json::Error),
    /// The supervisor refused.
    #[error("the supervisor refused: {}", .0.message)]
    Refused(ControlError),
    /// Another kind of answer than asked for, or none.
    #[error("the supervisor gave no fitting answer")]
    Unexpected,
}

/// An open conversation with a supervisor.
#[derive(Debug)]
pub struct Conversation<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    /// Sends a request and reads the first answer.
    ///
    /// # Errors
    /// A refusal, or a stream that breaks.
    pub async fn open(stream: S, request: &Request) -> Result<(Self, Answer), RequestError> {
        let mut all = Self { stream: BufReader::new(stream) };
        let mut text = line(&Greeting::Hello { version: hpk_api::VERSION })?;
        text.extend(line(request)?);
        all.stream.get_mut().write_all(&text).await?;
        all.stream.get_mut().flush().await?;
        let answer = all.read_line().await?.ok_or(RequestError::Unexpected)?;
        match serde_json::from_slice(&answer)? {
            Reply::Ok(answer) => Ok((all, answer)),
            Reply::Error(error) => Err(RequestError::Refused(error)),
        }
    }

    /// The next report of a watched status; None: the supervisor has closed.
    ///
    /// # Errors
    /// A stream that breaks.
    pub async fn next_state(&mut self) -> Result<Option<PodState>, RequestError> {
        match self.read_line().await? {
            Some(text) => Ok(Some(serde_json::from_slice(&text)?)),
            None => Ok(None),
        }
    }

    async fn read_line(&mut self) -> Result<Option<Vec<u8>>, RequestError> {
        let mut text = Vec::new();
        let limit = MAX_LINE as u64 + 1;
        let read = (&mut self.stream).take(limit).read_until(b'\n', &mut text).await?;
        match read {
            0 => Ok(None),
            _ if text.last() != Some(&b'\n') => Err(RequestError::Unexpected),
            _ => Ok(Some(text)),
        }
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor that answers from a script; only the protocol is real.
    #[tokio::test]
    async fn watches_status() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let fake = tokio::spawn(async move {
            let mut text = vec![0; 4096];
            let n = theirs.read(&mut text).await.expect("request");
            let first = serde_json::to_string(&Reply::Ok(Answer::Status(Box::default()))).expect("json");
            let next = serde_json::to_string(&PodState { sequence: 5, ..PodState::default() }).expect("json");
            theirs.write_all(format!("{first}\n{next}\n").as_bytes()).await.expect("answer");
            String::from_utf8_lossy(&text[..n]).into_owned()
        });
        let (mut talk, answer) = Conversation::open(ours, &Request::Status { watch: true }).await.expect("answer");
        assert!(matches!(answer, Answer::Status(_)));
        assert_eq!(talk.next_state().await.expect("state").expect("one").sequence, 5);
        assert!(talk.next_state().await.expect("end").is_none());
        assert_eq!(fake.await.expect("fake"), "{\"hello\":{\"version\":1}}\n{\"status\":{\"watch\":true}}\n");
    }
}
