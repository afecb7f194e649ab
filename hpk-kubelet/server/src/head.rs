//! The first line of a request whose address is longer than an address may be to hyper (64 KiB).
//!
//! An exec's command is in the address, and upstream takes a head of 1 MiB. The query of a long address is taken out before
//! hyper sees the line, and given back by [`query`].

use hyper::Request;
use std::io::{self, Cursor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Shorter lines are left as they are.
const LONG: usize = 60 << 10;
/// Longest line; what is longer is left to hyper to refuse.
const MOST: usize = 1 << 20;

/// The query of the request that it is an extension of.
#[derive(Clone, Debug)]
pub(crate) struct LongQuery(pub(crate) String);

/// The query, wherever it came from.
pub(crate) fn query<T>(request: &Request<T>) -> Option<&str> {
    let long = request.extensions().get::<LongQuery>().map(|query| query.0.as_str());
    long.or_else(|| request.uri().query())
}

/// Reads the first line of a connection. What is given back reads as the connection did, but for a long query.
pub(crate) async fn shorten<S>(
    mut stream: S,
) -> io::Result<(impl AsyncRead + AsyncWrite + Send + Unpin, Option<LongQuery>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let mut read = Vec::with_capacity(4 << 10);
    let end = loop {
        let before = read.len();
        if stream.read_buf(&mut read).await? == 0 || read.len() > MOST {
            break None;
        }
        if let Some(at) = read[before..].iter().position(|byte| *byte == b'\n') {
            break Some(before + at);
        }
    };
    let query = end.filter(|end| *end > LONG).and_then(|end| take_query(&mut read, end));
    let (rest, out) = tokio::io::split(stream);
    Ok((tokio::io::join(Cursor::new(read).chain(rest), out), query))
}

/// Takes the query out of `METHOD path?query HTTP/1.1`, which ends at `end`.
fn take_query(read: &mut Vec<u8>, end: usize) -> Option<LongQuery> {
    let line = &read[..end];
    let from = line.iter().position(|byte| *byte == b'?')?;
    let to = from + line[from..].iter().position(|byte| *byte == b' ')?;
    let query = String::from_utf8(line[from + 1..to].to_vec()).ok()?;
    read.drain(from..to);
    Some(LongQuery(query))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn of(sent: Vec<u8>) -> (Vec<u8>, Option<String>) {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
        });
        let (mut stream, query) = shorten(server).await.unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        (read, query.map(|query| query.0))
    }

    #[tokio::test]
    async fn only_a_long_query_is_taken_out() {
        let short = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nbody".to_vec();
        assert_eq!(of(short.clone()).await, (short, None));
        let query = format!("command={}", "x".repeat(100_000));
        let long = format!("POST /exec/a?{query} HTTP/1.1\r\nHost: x\r\n\r\nbody").into_bytes();
        let rest = b"POST /exec/a HTTP/1.1\r\nHost: x\r\n\r\nbody".to_vec();
        assert_eq!(of(long).await, (rest, Some(query)));
    }

    #[tokio::test]
    async fn what_is_none_or_never_ends_is_left_to_the_server() {
        for line in [Vec::new(), b"\n".to_vec(), vec![b'?'; LONG + 9], vec![b'x'; MOST + 9]] {
            assert_eq!(of(line.clone()).await, (line, None));
        }
        let mut no_end = vec![b'?'; LONG + 9];
        no_end.push(b'\n');
        assert_eq!(of(no_end.clone()).await, (no_end, None));
    }
}
