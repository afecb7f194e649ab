//! Reading an HTTP/1.1 response: status line and headers, then a body of known length, in chunks, or up to the connection's end.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a body that are read (upstream's maxRespBodyLength).
pub(super) const MAX_BODY: usize = 10 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    /// None: until the end of the connection.
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

/// Parses status line and headers; None asks for more bytes.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let malformed = |what: &str, line: &str| {
        Err(format!("net/http: HTTP/1.x transport connection broken: malformed {what} {line:?}"))
    };
    let first_end = bytes.iter().position(|b| *b == b'\n');
    // Whatever is no HTTP is told early: such a server may never send a line.
    if !b"HTTP/".starts_with(&bytes[..bytes.len().min(5)]) {
        let line = String::from_utf8_lossy(&bytes[..first_end.unwrap_or(bytes.len())]);
        return malformed("HTTP response", line.trim_end_matches('\r'));
    }
    let Some(end) = find_end(bytes) else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r'));
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(3, ' ');
    let status =
        words.next().zip(words.next()).filter(|(version, code)| version.starts_with("HTTP/1.") && code.len() == 3);
    let Some(status) = status.and_then(|(_, code)| code.parse().ok()) else { return malformed("HTTP response", first) };
    let mut head = Head { status, location: None, length: None, chunked: false };
    for line in lines.filter(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { return malformed("MIME header line:", line) };
        let value = value.trim();
        if name.eq_ignore_ascii_case("location") {
            head.location.get_or_insert_with(|| value.to_owned());
        } else if name.eq_ignore_ascii_case("content-length") {
            head.length = value.parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.to_ascii_lowercase().contains("chunked");
        }
    }
    if matches!(status, 204 | 304) {
        (head.length, head.chunked) = (Some(0), false);
    }
    Ok(Some((head, end)))
}

pub(super) fn find_end(bytes: &[u8]) -> Option<usize> {
    let crlf = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|n| n + 4);
    let lf = bytes.windows(2).position(|w| w == b"\n\n").map(|n| n + 2);
    crlf.into_iter().chain(lf).min()
}

/// Reads at most [`MAX_BODY`] bytes of a body; `buffer` holds what came with the head.
pub(super) async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    mut buffer: Vec<u8>,
    head: &Head,
) -> Result<Vec<u8>, String> {
    let mut chunks = head.chunked.then(Chunked::default);
    let mut body = Vec::new();
    loop {
        let done = match &mut chunks {
            Some(chunks) => chunks.feed(&buffer, &mut body)?,
            None => {
                body.extend_from_slice(&buffer);
                head.length.is_some_and(|length| body.len() as u64 >= length)
            }
        };
        buffer.clear();
        if done || body.len() >= MAX_BODY {
            let length = head.length.map_or(MAX_BODY, |n| usize::try_from(n).unwrap_or(MAX_BODY).min(MAX_BODY));
            body.truncate(if head.chunked { MAX_BODY } else { length });
            return Ok(body);
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) if chunks.is_none() && head.length.is_none() => return Ok(body),
            Ok(0) => return Err("unexpected EOF".to_owned()),
            Ok(_) => {}
            // TLS without its closing message is an end like any other here.
            Err(error)
                if error.kind() == std::io::ErrorKind::UnexpectedEof && chunks.is_none() && head.length.is_none() =>
            {
                return Ok(body);
            }
            Err(error) => return Err(super::text::errno(&error)),
        }
    }
}

/// Decoder of chunked bodies, fed with any pieces.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    /// Bytes of the present chunk that are to come, with its line end.
    left: u64,
    line: Vec<u8>,
}

impl Chunked {
    /// Appends content to `body`; true once the last chunk was seen.
    pub(super) fn feed(&mut self, mut bytes: &[u8], body: &mut Vec<u8>) -> Result<bool, String> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (now, rest) = bytes.split_at(take);
                // The last two bytes of a chunk are its line end.
                let content = usize::try_from(self.left.saturating_sub(2)).unwrap_or(usize::MAX).min(take);
                body.extend_from_slice(&now[..content]);
                self.left -= take as u64;
                bytes = rest;
                continue;
            }
            bytes = rest;
            if byte != b'\n' {
                if self.line.len() >= 4096 {
                    return Err("chunked line ends with bare CR or is too long".to_owned());
                }
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).into_owned();
            self.line.clear();
            let digits = line.trim().split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| "invalid byte in chunk length".to_owned())?;
            if size == 0 {
                return Ok(true);
            }
            self.left = size.saturating_add(2);
        }
        Ok(false)
    }
}
