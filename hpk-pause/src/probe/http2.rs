//! One request in HTTP/2, where an https server has chosen it by ALPN. Upstream's prober offers it too.

use super::h2::Call;
use super::request::Request;
use super::text::errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A GET that was sent and its answer as far as it has come.
pub(super) struct Exchange<S> {
    stream: S,
    call: Call,
}

/// What broke off, as Go's client says it.
pub(super) type Broken = String;

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<S> {
    /// Sends the request.
    pub(super) async fn begin(mut stream: S, request: &Request) -> Result<Self, Broken> {
        let (authority, target) = (request.authority(), request.url.target());
        let names: Vec<String> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let own = names.iter().map(String::as_str).zip(request.headers.iter().map(|(_, value)| value.as_str()));
        let pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", &*authority), (":path", &*target)];
        let headers: Vec<(&str, &str)> = pseudo.into_iter().chain(own).collect();
        let mut call = Call::new();
        call.request(&headers, &[]);
        stream.write_all(&call.take_output()).await.map_err(|e| errno(&e))?;
        Ok(Self { stream, call })
    }

    /// Waits for status and headers; 1xx are not answers yet.
    pub(super) async fn status(&mut self) -> Result<u16, Broken> {
        loop {
            match self.call.header(":status").map(str::parse) {
                Some(Ok(status @ 200..)) => return Ok(status),
                Some(Err(_)) => return Err("malformed response from server: malformed :status".to_owned()),
                Some(Ok(_)) | None if self.call.done => return Err("unexpected EOF".to_owned()),
                Some(Ok(_)) | None => self.receive().await?,
            }
        }
    }

    /// The value of a header of the answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.call.header(name)
    }

    /// Waits for the body, or the first `most` bytes of it.
    pub(super) async fn body(mut self, most: usize) -> Result<Vec<u8>, Broken> {
        while !self.call.done && self.call.content.len() < most {
            self.receive().await?;
        }
        self.call.content.truncate(most);
        Ok(self.call.content)
    }

    async fn receive(&mut self) -> Result<(), Broken> {
        let answers = self.call.take_output();
        self.stream.write_all(&answers).await.map_err(|e| errno(&e))?;
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer).await.map_err(|e| errno(&e))? {
            0 => Err("unexpected EOF".to_owned()),
            length => self.call.receive(&buffer[..length]).map_err(|e| e.to_string()),
        }
    }
}
