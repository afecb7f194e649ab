//! Frames of SPDY/3.1, sans-IO: bytes in, frames out, and back.

use super::headers::{Deflater, HeaderError, Headers, Inflater};
use bytes::{Buf, Bytes, BytesMut};

/// Payload that we put into one data frame, bytes.
pub(crate) const CHUNK: usize = 64 << 10;
/// Largest frame that a peer may send, bytes. spdystream sends what its caller writes, 32 KiB as a rule.
const MAX_FRAME: usize = 4 << 20;
const HEADER: usize = 8;
const VERSION: u16 = 3;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const FLAG_FIN: u8 = 1;

/// Status codes of RST_STREAM.
pub(crate) mod reset {
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const INVALID_STREAM: u32 = 2;
    pub(crate) const CANCEL: u32 = 5;
}

/// A frame that matters here. Others (SETTINGS, WINDOW_UPDATE, CREDENTIAL) are read and dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream { id: u32, headers: Headers, fin: bool },
    SynReply { id: u32, headers: Headers, fin: bool },
    Headers { id: u32, headers: Headers, fin: bool },
    Data { id: u32, payload: Bytes, fin: bool },
    Reset { id: u32, status: u32 },
    Ping { id: u32 },
    GoAway { last: u32, status: u32 },
}

/// Bytes that are no SPDY/3.1. The connection must end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CodecError {
    #[error("SPDY version {0} instead of {VERSION}")]
    Version(u16),
    #[error("SPDY frame of {0} bytes")]
    TooLarge(usize),
    #[error("SPDY frame of type {0} is too short")]
    Short(u16),
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Bytes → frames.
pub(crate) struct Decoder {
    buffer: BytesMut,
    inflater: Inflater,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflater: Inflater::new() }
    }

    /// Where the next bytes from the peer are to be appended.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(CHUNK);
        &mut self.buffer
    }

    /// The next whole frame; None asks for more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, CodecError> {
        loop {
            let [a, b, c, d, flags, x, y, z] = *match self.buffer.first_chunk::<HEADER>() {
                Some(head) => head,
                None => return Ok(None),
            };
            let length = u32::from_be_bytes([0, x, y, z]) as usize;
            if length > MAX_FRAME {
                return Err(CodecError::TooLarge(length));
            }
            if self.buffer.len() < HEADER + length {
                self.buffer.reserve(HEADER + length - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            let payload = self.buffer.split_to(length).freeze();
            let fin = flags & FLAG_FIN != 0;
            if a & 0x80 == 0 {
                return Ok(Some(Frame::Data { id: u32::from_be_bytes([a, b, c, d]), payload, fin }));
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != VERSION {
                return Err(CodecError::Version(version));
            }
            if let Some(frame) = self.control(u16::from_be_bytes([c, d]), fin, &payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u16, fin: bool, payload: &[u8]) -> Result<Option<Frame>, CodecError> {
        let word = |at: usize| {
            payload
                .get(at..at + 4)
                .and_then(|w| <[u8; 4]>::try_from(w).ok())
                .map(u32::from_be_bytes)
                .ok_or(CodecError::Short(kind))
        };
        let stream = || word(0).map(|id| id & 0x7fff_ffff);
        Ok(Some(match kind {
            SYN_STREAM => {
                // Stream id, associated stream id, priority and slot, header block.
                let block = payload.get(10..).ok_or(CodecError::Short(kind))?;
                Frame::SynStream { id: stream()?, headers: self.inflater.block(block)?, fin }
            }
            SYN_REPLY | HEADERS => {
                let block = payload.get(4..).ok_or(CodecError::Short(kind))?;
                let (id, headers) = (stream()?, self.inflater.block(block)?);
                if kind == SYN_REPLY {
                    Frame::SynReply { id, headers, fin }
                } else {
                    Frame::Headers { id, headers, fin }
                }
            }
            RST_STREAM => Frame::Reset { id: stream()?, status: word(4)? },
            PING => Frame::Ping { id: word(0)? },
            GOAWAY => Frame::GoAway { last: stream()?, status: word(4)? },
            _ => return Ok(None),
        }))
    }
}

/// Frames → bytes.
pub(crate) struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    pub(crate) fn new() -> Result<Self, CodecError> {
        Ok(Self { deflater: Deflater::new()? })
    }

    /// Appends the frame to `out`; a long data payload becomes several frames.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let block = self.deflater.block(headers)?;
                control(out, SYN_STREAM, *fin, &[&id.to_be_bytes(), &[0; 6], &block])
            }
            Frame::SynReply { id, headers, fin } => {
                let block = self.deflater.block(headers)?;
                control(out, SYN_REPLY, *fin, &[&id.to_be_bytes(), &block])
            }
            Frame::Headers { id, headers, fin } => {
                let block = self.deflater.block(headers)?;
                control(out, HEADERS, *fin, &[&id.to_be_bytes(), &block])
            }
            Frame::Data { id, payload, fin } => {
                data(*id, payload, *fin, out);
                Ok(())
            }
            Frame::Reset { id, status } => control(out, RST_STREAM, false, &[&id.to_be_bytes(), &status.to_be_bytes()]),
            Frame::Ping { id } => control(out, PING, false, &[&id.to_be_bytes()]),
            Frame::GoAway { last, status } => {
                control(out, GOAWAY, false, &[&last.to_be_bytes(), &status.to_be_bytes()])
            }
        }
    }
}

/// Appends data frames for a payload.
pub(crate) fn data(id: u32, payload: &[u8], fin: bool, out: &mut Vec<u8>) {
    let mut parts = payload.chunks(CHUNK).peekable();
    if parts.peek().is_none() {
        parts = [].chunks(CHUNK).peekable();
        data_frame(id, &[], fin, out);
    }
    while let Some(part) = parts.next() {
        data_frame(id, part, fin && parts.peek().is_none(), out);
    }
}

fn data_frame(id: u32, part: &[u8], fin: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&(id & 0x7fff_ffff).to_be_bytes());
    out.push(if fin { FLAG_FIN } else { 0 });
    // CHUNK fits into 24 bits.
    let [_, length @ ..] = u32::try_from(part.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(part);
}

fn control(out: &mut Vec<u8>, kind: u16, fin: bool, parts: &[&[u8]]) -> Result<(), CodecError> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    if length > MAX_FRAME {
        return Err(CodecError::TooLarge(length));
    }
    out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.push(if fin { FLAG_FIN } else { 0 });
    let [_, size @ ..] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&size);
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(bytes: &[u8], splits: &[usize]) -> Result<Vec<Frame>, CodecError> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        let mut rest = bytes;
        for n in splits.iter().copied().chain([usize::MAX]) {
            let (part, tail) = rest.split_at(n.min(rest.len()));
            rest = tail;
            decoder.buffer().extend_from_slice(part);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = 1u32..0x7fff_ffff;
        let headers = || prop::collection::vec(("[a-z]{1,12}", "[ -~]{0,40}"), 0..6);
        prop_oneof![
            (id.clone(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::SynStream { id, headers, fin }),
            (id.clone(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::SynReply { id, headers, fin }),
            (id.clone(), headers(), any::<bool>()).prop_map(|(id, headers, fin)| Frame::Headers { id, headers, fin }),
            (id.clone(), prop::collection::vec(any::<u8>(), 0..500), any::<bool>())
                .prop_map(|(id, payload, fin)| Frame::Data { id, payload: payload.into(), fin }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            (id, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in prop::collection::vec(frame(), 0..12),
            splits in prop::collection::vec(0usize..40, 0..40),
        ) {
            let mut encoder = Encoder::new().unwrap();
            let mut bytes = Vec::new();
            for frame in &frames {
                encoder.encode(frame, &mut bytes).unwrap();
            }
            prop_assert_eq!(decode_all(&bytes, &splits).unwrap(), frames);
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_all(&bytes, &[1, 2, 3]);
        }
    }

    #[test]
    fn long_payloads_become_several_frames_and_the_last_ends_the_stream() {
        let mut bytes = Vec::new();
        data(7, &vec![1; CHUNK * 2 + 1], true, &mut bytes);
        let frames = decode_all(&bytes, &[]).unwrap();
        let fins: Vec<_> = frames
            .iter()
            .map(|f| match f {
                Frame::Data { payload, fin, .. } => (payload.len(), *fin),
                _ => panic!(),
            })
            .collect();
        assert_eq!(fins, [(CHUNK, false), (CHUNK, false), (1, true)]);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(decode_all(&[0x80, 2, 0, 1, 0, 0, 0, 0], &[]), Err(CodecError::Version(2)));
        assert_eq!(decode_all(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff], &[]), Err(CodecError::TooLarge(0xff_ffff)));
        assert_eq!(decode_all(&[0x80, 3, 0, 6, 0, 0, 0, 0], &[]), Err(CodecError::Short(6)));
        // SETTINGS and WINDOW_UPDATE are skipped.
        assert_eq!(decode_all(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0], &[]), Ok(vec![]));
    }
}
