//! HTTP/2 (RFC 9113) as far as one request needs it, a unary gRPC call or a GET: one stream, sans-IO.
//!
//! Bytes of the server go in by [`Call::receive`], bytes for it come out of [`Call::take_output`].

use super::hpack;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const STREAM: u32 = 1;
const FRAME_HEADER: usize = 9;
/// The largest frame of a peer that knows only our (default) settings.
const MAX_FRAME: usize = 16 << 10;
/// Content that a health check may answer with.
const MAX_CONTENT: usize = 64 << 10;

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Call {
    input: Vec<u8>,
    output: Vec<u8>,
    /// The server's settings have come: it speaks HTTP/2.
    pub(super) ready: bool,
    block: Vec<u8>,
    block_ends_stream: bool,
    /// All headers and trailers so far.
    pub(super) headers: Vec<(String, String)>,
    /// The answer's content.
    pub(super) content: Vec<u8>,
    /// The answer is complete.
    pub(super) done: bool,
}

/// The server does not keep to the protocol or broke the call off.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum H2Error {
    #[error("malformed HTTP/2 frame")]
    Malformed,
    #[error("stream terminated by RST_STREAM with error code: {0}")]
    Reset(u32),
    #[error("the server is going away")]
    GoAway,
}

impl Call {
    /// Preface and settings: what a client says first.
    pub(super) fn new() -> Self {
        let mut output = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // HEADER_TABLE_SIZE 0, ENABLE_PUSH 0.
        frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], &mut output);
        Self {
            input: Vec::new(),
            output,
            ready: false,
            block: Vec::new(),
            block_ends_stream: false,
            headers: Vec::new(),
            content: Vec::new(),
            done: false,
        }
    }

    /// Sends the request, whole. Content must be shorter than a frame.
    pub(super) fn request(&mut self, headers: &[(&str, &str)], content: &[u8]) {
        let mut block = Vec::new();
        for (name, value) in headers {
            hpack::encode(name, value, &mut block);
        }
        let ends = if content.is_empty() { END_STREAM } else { 0 };
        let (mut kind, mut rest) = (HEADERS, block.as_slice());
        while rest.len() > MAX_FRAME {
            let (piece, after) = rest.split_at(MAX_FRAME);
            frame(kind, if kind == HEADERS { ends } else { 0 }, STREAM, piece, &mut self.output);
            (kind, rest) = (CONTINUATION, after);
        }
        let flags = if kind == HEADERS { END_HEADERS | ends } else { END_HEADERS };
        frame(kind, flags, STREAM, rest, &mut self.output);
        if !content.is_empty() {
            frame(DATA, END_STREAM, STREAM, content, &mut self.output);
        }
    }

    /// What is to be sent now.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Takes bytes of the server.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), H2Error> {
        self.input.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.input);
        let mut used = 0;
        while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &input[used..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MAX_FRAME {
                return Err(H2Error::Malformed);
            }
            let Some(payload) = rest.get(..length) else { break };
            let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & 0x7fff_ffff;
            self.frame(*kind, *flags, stream, payload)?;
            used += FRAME_HEADER + length;
        }
        input.drain(..used);
        self.input = input;
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), H2Error> {
        if !self.ready && kind != SETTINGS {
            return Err(H2Error::Malformed);
        }
        match kind {
            SETTINGS => {
                self.ready = true;
                if flags & ACK == 0 {
                    frame(SETTINGS, ACK, 0, &[], &mut self.output);
                }
            }
            PING if flags & ACK == 0 => frame(PING, ACK, 0, payload, &mut self.output),
            // Ours is the first and only stream; a polite farewell names it as still to be served.
            GOAWAY if !self.done && last_stream(payload) < STREAM => return Err(H2Error::GoAway),
            RST_STREAM if stream == STREAM && !self.done => {
                let code = payload.try_into().map(u32::from_be_bytes).map_err(|_| H2Error::Malformed)?;
                return Err(H2Error::Reset(code));
            }
            HEADERS if stream == STREAM => {
                let block = unpad(flags, payload).ok_or(H2Error::Malformed)?;
                let block = if flags & PRIORITY == 0 { block } else { block.get(5..).ok_or(H2Error::Malformed)? };
                self.block = block.to_vec();
                self.block_ends_stream = flags & END_STREAM != 0;
                self.block_done(flags)?;
            }
            CONTINUATION if stream == STREAM => {
                self.block.extend_from_slice(payload);
                self.block_done(flags)?;
            }
            DATA if stream == STREAM => {
                self.content.extend_from_slice(unpad(flags, payload).ok_or(H2Error::Malformed)?);
                self.done |= flags & END_STREAM != 0;
            }
            _ => {}
        }
        if self.content.len() > MAX_CONTENT || self.block.len() > MAX_CONTENT {
            return Err(H2Error::Malformed);
        }
        Ok(())
    }

    fn block_done(&mut self, flags: u8) -> Result<(), H2Error> {
        if flags & END_HEADERS != 0 {
            self.headers.extend(hpack::decode(&std::mem::take(&mut self.block)).ok_or(H2Error::Malformed)?);
            self.done |= self.block_ends_stream;
        }
        Ok(())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn unpad(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (&padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(padding))?)
}

fn last_stream(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server's side of a health check, as bytes.
    fn answer() -> Vec<u8> {
        let (mut wire, mut block) = (Vec::new(), vec![0x88]);
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100], &mut wire);
        frame(SETTINGS, ACK, 0, &[], &mut wire);
        frame(PING, 0, 0, b"12345678", &mut wire);
        hpack::encode("content-type", "application/grpc", &mut block);
        frame(HEADERS, END_HEADERS, STREAM, &block, &mut wire);
        frame(DATA, PADDED, STREAM, &[2, 0, 0, 0, 0, 2, 8, 1, 9, 9], &mut wire);
        let mut trailers = Vec::new();
        hpack::encode("grpc-status", "0", &mut trailers);
        let (first, second) = trailers.split_at(5);
        frame(HEADERS, END_STREAM, STREAM, first, &mut wire);
        frame(CONTINUATION, END_HEADERS, STREAM, second, &mut wire);
        wire
    }

    proptest! {
        #[test]
        fn an_answer_survives_any_split(cut in 1usize..40) {
            let mut call = Call::new();
            for piece in answer().chunks(cut) {
                prop_assert!(!call.done);
                call.receive(piece).unwrap();
            }
            prop_assert!(call.done && call.ready);
            prop_assert_eq!(&call.content, &[0, 0, 0, 0, 2, 8, 1]);
            prop_assert_eq!((call.header(":status"), call.header("grpc-status")), (Some("200"), Some("0")));
            prop_assert!(call.take_output().ends_with(b"12345678"));
        }

        #[test]
        fn total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut call = Call::new();
            let _ = call.receive(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]);
            let _ = call.receive(&bytes);
        }
    }

    #[test]
    fn long_headers_go_in_several_frames() {
        let mut call = Call::new();
        let preface = call.take_output().len();
        assert!(preface > 0);
        let long = "x".repeat(3 * MAX_FRAME);
        call.request(&[(":method", "GET"), ("cookie", &long)], &[]);
        let (wire, mut at, mut block, mut seen) = (call.take_output(), 0, Vec::new(), Vec::new());
        while let [a, b, c, kind, flags, ..] = wire[at..] {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            assert!(length <= MAX_FRAME);
            block.extend_from_slice(&wire[at + FRAME_HEADER..at + FRAME_HEADER + length]);
            seen.push((kind, flags));
            at += FRAME_HEADER + length;
        }
        let (middle, last) = ((CONTINUATION, 0), (CONTINUATION, END_HEADERS));
        assert_eq!(seen, [(HEADERS, END_STREAM), middle, middle, last]);
        let sent = hpack::decode(&block).unwrap();
        assert_eq!(sent, [(":method".to_owned(), "GET".to_owned()), ("cookie".to_owned(), long)]);
    }

    #[test]
    fn refusals() {
        let mut wire = Vec::new();
        frame(SETTINGS, 0, 0, &[], &mut wire);
        frame(RST_STREAM, 0, STREAM, &[0, 0, 0, 7], &mut wire);
        assert_eq!(Call::new().receive(&wire), Err(H2Error::Reset(7)));
        assert_eq!(Call::new().receive(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Err(H2Error::Malformed));
    }
}
