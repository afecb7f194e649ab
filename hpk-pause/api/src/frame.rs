//! Frames of streaming requests: `[channel u8][length u32 big endian][bytes]`, sans-IO.
//!
//! Channel numbers are Kubernetes' own (WebSocket `v5.channel.k8s.io`).

/// Channel numbers.
pub mod channel {
    /// Standard input (client → container).
    pub const STDIN: u8 = 0;
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// End of the stream: one JSON [`crate::control::StreamEnd`].
    pub const ERROR: u8 = 3;
    /// Terminal size: one JSON [`crate::control::TerminalSize`].
    pub const RESIZE: u8 = 4;
    /// Where a log's reader is after the frames before: one JSON [`crate::control::LogPosition`]; only when asked for.
    pub const POSITION: u8 = 5;
    /// Half-close: payload is one byte, the channel that ended.
    pub const CLOSE: u8 = 255;
}

/// Header length in bytes.
pub const HEADER: usize = 5;
/// Largest payload that a peer may send; senders use [`CHUNK`].
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Payload size that senders aim at.
pub const CHUNK: usize = 64 << 10;

/// A frame that breaks the rules. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameTooLarge {
    /// Length that the header claimed.
    pub length: usize,
}

impl std::fmt::Display for FrameTooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frame of {} bytes exceeds the limit of {MAX_PAYLOAD}", self.length)
    }
}

impl std::error::Error for FrameTooLarge {}

/// Header of a frame with `length` payload bytes.
#[must_use]
pub fn header(channel: u8, length: u32) -> [u8; HEADER] {
    let l = length.to_be_bytes();
    [channel, l[0], l[1], l[2], l[3]]
}

/// Appends a whole frame to `out`. Payloads beyond [`MAX_PAYLOAD`] become several frames.
pub fn encode(channel: u8, payload: &[u8], out: &mut Vec<u8>) {
    if payload.is_empty() {
        out.extend_from_slice(&header(channel, 0));
        return;
    }
    for part in payload.chunks(MAX_PAYLOAD) {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&header(channel, length));
        out.extend_from_slice(part);
    }
}

/// One frame found at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Channel number.
    pub channel: u8,
    /// Payload.
    pub payload: &'a [u8],
    /// Bytes that the frame occupies in the buffer.
    pub consumed: usize,
}

/// Looks for a frame at the front of `buffer`; `None` asks for more bytes.
///
/// # Errors
/// [`FrameTooLarge`] when the header claims more than [`MAX_PAYLOAD`].
pub fn decode(buffer: &[u8]) -> Result<Option<Frame<'_>>, FrameTooLarge> {
    let [channel, a, b, c, d, rest @ ..] = buffer else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if length > MAX_PAYLOAD {
        return Err(FrameTooLarge { length });
    }
    Ok(rest.get(..length).map(|payload| Frame { channel: *channel, payload, consumed: HEADER + length }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_split(frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20), cut in 1usize..64) {
            let mut wire = Vec::new();
            for (channel, payload) in &frames {
                encode(*channel, payload, &mut wire);
            }
            let mut buffer = Vec::new();
            let mut seen = Vec::new();
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(frame) = decode(&buffer).unwrap() {
                    seen.push((frame.channel, frame.payload.to_vec()));
                    let consumed = frame.consumed;
                    buffer.drain(..consumed);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn decode_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some(frame)) = decode(&bytes) {
                prop_assert!(frame.consumed <= bytes.len());
            }
        }
    }

    #[test]
    fn a_giant_frame_is_refused() {
        assert_eq!(decode(&[1, 0xff, 0, 0, 0]), Err(FrameTooLarge { length: 0xff00_0000 }));
    }
}
