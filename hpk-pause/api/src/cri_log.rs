//! The CRI log line: `<RFC3339Nano> <stdout|stderr> <P|F> <content>\n`.

use serde::{Deserialize, Serialize};

/// Longest content of one line in bytes; longer lines are cut into P parts and a last F (containerd's 16 KiB).
pub const MAX_CONTENT: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word in the log line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One parsed record, borrowed from its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// RFC3339 time text, as written.
    pub time: &'a [u8],
    /// Stream.
    pub stream: Stream,
    /// More of the same line follows in another record.
    pub partial: bool,
    /// Content without the newline.
    pub content: &'a [u8],
}

/// Parses one line without its newline; `None` when it is not a CRI record.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = parts.next()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = parts.next()?;
    let partial = match tags.split(|b| *b == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    let content = parts.next()?;
    Some(Record { time, stream, partial, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_full_partial_tagged_and_empty_lines() {
        let r = parse(b"2026-11-23T20:00:00.123456789Z stdout F hello world").unwrap();
        assert_eq!((r.stream, r.partial, r.content), (Stream::Stdout, false, &b"hello world"[..]));
        let r = parse(b"2026-11-23T20:00:00Z stderr P:x y").unwrap();
        assert_eq!((r.stream, r.partial, r.content), (Stream::Stderr, true, &b"y"[..]));
        assert_eq!(parse(b"2026-11-23T20:00:00Z stdout F ").unwrap().content, b"");
    }

    #[test]
    fn refuses_what_is_not_a_record() {
        for line in [&b""[..], b"x", b"t stdout", b"t stdin F x", b"t stdout X y", b"t stdout F"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
