//! JSON lines on a stream, bounded.

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line, bytes. A service with thousands of endpoints fits.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// Why no line could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("the stream ended")]
    Ended,
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("the line cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads exactly one line and not a byte more: what follows belongs to somebody else. For short first lines only.
pub(crate) async fn read_one<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, LineError> {
    let mut line = Vec::with_capacity(256);
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(serde_json::from_slice(&line)?),
            Ok(byte) => line.push(byte),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(LineError::Ended),
            Err(e) => return Err(e.into()),
        }
        if line.len() > 64 << 10 {
            return Err(LineError::TooLong);
        }
    }
}

/// Reads lines for as long as the stream lives.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), searched: 0 }
    }

    /// The next line. Cancel safe: what was read stays in the buffer.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, LineError> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|b| *b == b'\n') {
                let end = self.searched + at;
                let parsed = serde_json::from_slice(self.buffer.get(..end).unwrap_or_default());
                self.buffer.drain(..=end);
                self.searched = 0;
                if self.buffer.is_empty() && self.buffer.capacity() > 4096 {
                    self.buffer = Vec::new();
                }
                return Ok(parsed?);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(LineError::TooLong);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(LineError::Ended);
            }
        }
    }
}

/// A value as one line.
pub(crate) fn encode(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Writes one line and flushes it.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> Result<(), LineError> {
    stream.write_all(&encode(value)?).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_line_leaves_the_rest() {
        let mut input: &[u8] = b"\"a\"\nrest";
        assert_eq!(read_one::<String>(&mut input).await.unwrap(), "a");
        assert_eq!(input, b"rest");
        assert!(matches!(read_one::<String>(&mut input).await, Err(LineError::Ended)));
    }

    #[tokio::test]
    async fn lines_survive_any_split() {
        let text = b"1\n22\n\"\\n\"\n";
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            let mut lines = Lines::new(a.chain(b));
            assert_eq!(lines.next::<u32>().await.unwrap(), 1);
            assert_eq!(lines.next::<u32>().await.unwrap(), 22);
            assert_eq!(lines.next::<String>().await.unwrap(), "\n");
            assert!(matches!(lines.next::<u32>().await, Err(LineError::Ended)));
        }
    }

    #[tokio::test]
    async fn endless_lines_are_cut_off() {
        let mut lines = Lines::new(tokio::io::repeat(b'x'));
        assert!(matches!(lines.next::<u32>().await, Err(LineError::TooLong)));
        assert!(matches!(read_one::<u32>(&mut tokio::io::repeat(b'x')).await, Err(LineError::TooLong)));
    }
}
